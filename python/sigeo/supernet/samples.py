"""Statistics of single samples' gradients of many subnets of a supernet, from one pass.

The layers of a stack show what they compute; on the way back each one's input and its output's
gradient give, as segments of one call of `sigeo_ext.sample_moments`, the statistics of every
subnet's samples. Where batch norm uses the batch's statistics, what counts is a sample's
contribution to its subnet's gradient, as with ``batch_norm="contribution"`` in
`sigeo.capture.capture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sigeo.capture import (
    Batches,
    LossFunction,
    SampleStatistics,
    batch_loss,
    check_reduction,
)
from sigeo.capture.state import RandomState
from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.spaces import Supernet
from sigeo.supernet.many import shares_passes
from sigeo_ext import sample_moments as kernels
from sigeo_ext.sample_moments import SampleMoments

OF_SUBNETS = frozenset(
    {"sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sample_sq_norm", "fisher_rao"}
)
"""What can be measured on a stack."""


def shares_samples(supernet: Supernet[Any]) -> bool:
    """Whether stacks of a supernet can be measured as `sigeo.capture.capture` would each subnet."""
    return getattr(supernet, "watchable", False) and shares_passes(supernet)


class OfSubnet(NamedTuple):
    """What a pass gives of one subnet."""

    statistics: SampleStatistics
    """By the names that ``supernet.subnet(arch)`` has for its parameters."""
    loss: float
    """Mean of the batch."""
    reached: bool
    """Whether the loss depends on anything that asks for a gradient."""


@named_arguments("many_sample_statistics")
def many_sample_statistics(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    batches: Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    want: frozenset[str],
) -> list[OfSubnet]:
    """`sigeo.capture.capture` of each subnet alone on the first batch, from one pass of all.

    Args:
        supernet: Shared weights that `shares_samples`; they stay as they are.
        archs: The subnets.
        batches: Of all subnets alike.
        loss_fn: (output, labels) to the mean of the samples' losses.
        want: Of `OF_SUBNETS`.

    Returns:
        One a subnet.

    Raises:
        InputError: Stacks of the supernet cannot be measured, something else is wanted, or the loss
            is no mean.
    """
    if not shares_samples(supernet):
        kind = type(supernet).__name__
        raise InputError(
            "supernet: expected one whose stacks show their layers, with batch norm on the batch's "
            f"statistics alone, got {kind}"
        )
    unknown = sorted(want - OF_SUBNETS)
    if unknown:
        raise InputError(f"want: must be of {', '.join(sorted(OF_SUBNETS))}, got {unknown[0]!r}")
    random = RandomState(batches.device)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _measured(supernet, archs, batches, loss_fn, want)
    finally:
        random.restore()


def _measured(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    batches: Batches,
    loss_fn: LossFunction,
    want: frozenset[str],
) -> list[OfSubnet]:
    stack: Any = supernet.stack(archs)
    watch = stack.watch = _Measuring(stack.weights, want)
    for rows in stack.weights.values():
        rows.requires_grad_(False)  # the statistics take the place of the ordinary gradients
    inputs, labels = batches[0]
    outputs = stack(inputs)
    losses = torch.stack([batch_loss(loss_fn, output, labels) for output in outputs])
    for output, loss in zip(outputs, losses, strict=True):
        check_reduction(loss_fn, output, labels, loss, "mean", fixed=True)
    if losses.requires_grad:
        losses.sum().backward()
    module: nn.Module = supernet  # type: ignore[assignment]
    shared = {id(parameter): name for name, parameter in module.named_parameters()}
    found = []
    for place, (arch, loss) in enumerate(zip(archs, losses.tolist(), strict=True)):
        parameters = {
            name: (parameter, shared[id(parameter)])
            for name, parameter in supernet.subnet(arch).named_parameters()
            if parameter.requires_grad
        }
        rows = {
            name: stack.members[name].index(place)
            for _, name in parameters.values()
            if place in stack.members.get(name, ()) and name in watch.moments
        }
        statistics = _SubnetStatistics(want, parameters, rows, watch, len(inputs))
        found.append(OfSubnet(statistics, loss, losses.requires_grad and bool(parameters)))
    return found


class _Measuring:
    """Measures the layers of a stack as gradients come by; see `sigeo.spaces.Watch`.

    Attributes:
        moments: By the weight's name, a row for each subnet that uses it; ``sq_norm`` [n, B].
        inner: <weight, its gradient> of each sample, float64 [n, B].
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], want: frozenset[str]):
        self._weights = weights
        self._measured = frozenset(name for name, rows in weights.items() if rows.requires_grad)
        self._want = [
            "sq_norm" if w == "sample_sq_norm" else w for w in sorted(want - {"fisher_rao"})
        ]
        self._wants_inner = "fisher_rao" in want
        self.moments: dict[str, SampleMoments] = {}
        self.inner: dict[str, Tensor] = {}

    def convolution(self, name: str, x: Tensor, y: Tensor, *, stride: int, padding: int) -> None:
        """Statistics of a weight [n, O, I, k, k]."""

        def measure(d: Tensor, x: Tensor, y: Tensor) -> None:
            moments = kernels.convolution(
                x.flatten(0, 1).movedim(-1, 1),
                d.flatten(0, 1).movedim(-1, 1),
                self._weights[name].shape[3:],
                stride=stride,
                padding=padding,
                segments=len(d),
                want=self._want,
                factor=d.shape[1],
            )
            self._keep(name, moments, d, lambda: d * y)  # the output is linear in the weight

        self._ask([name], y, measure, x, y)

    def norm(
        self, name: str, x: Tensor, y: Tensor, subnets: Tensor, mean: Tensor, rstd: Tensor
    ) -> None:
        """Statistics of scale and shift [n, C]."""

        def measure(d: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> None:
            blocks, samples = x.shape[:2]
            d = d.index_select(0, subnets).view(blocks * samples, -1, x.shape[-1])
            sums = kernels.scale(
                x.reshape(d.shape),
                d,
                mean=mean.repeat_interleave(samples, 0),
                rstd=rstd.repeat_interleave(samples, 0),
            )
            for weight, rows in ((f"{name}.weight", sums.scale), (f"{name}.bias", sums.shift)):
                assert rows is not None
                self._keep_rows(weight, rows.view(blocks, samples, -1))

        self._ask([f"{name}.weight", f"{name}.bias"], y, measure, x, mean, rstd)

    def linear(self, name: str, x: Tensor, y: Tensor) -> None:
        """Statistics of a weight [K, O, I] and its bias [K, O]."""
        weight, bias = f"{name}.weight", f"{name}.bias"

        def measure(d: Tensor, x: Tensor, y: Tensor) -> None:
            if weight in self._measured:
                moments = kernels.linear(
                    x.flatten(0, 1),
                    d.flatten(0, 1),
                    segments=len(d),
                    want=self._want,
                    factor=d.shape[1],
                )
                self._keep(weight, moments, d, lambda: d * (y - self._weights[bias][:, None]))
            self._keep_rows(bias, d)

        self._ask([weight, bias], y, measure, x, y)

    def _ask(
        self, names: Sequence[str], y: Tensor, measure: Callable[..., None], *values: Tensor
    ) -> None:
        """Have ``measure(d, *values)`` called with the gradient of y, if a weight is measured."""
        if self._measured.isdisjoint(names):
            return
        if not y.requires_grad:
            y.requires_grad_()
        held = [value.detach() for value in values]  # the graph must not hold itself

        def hook(d: Tensor) -> None:
            given = held.copy()
            held.clear()  # freed as the pass comes by, as what autograd keeps
            measure(d.contiguous(), *given)

        y.register_hook(hook)

    def _keep_rows(self, name: str, rows: Tensor) -> None:
        """Of a weight whose samples' gradients are there, [n, B, size]."""
        if name not in self._measured:
            return
        moments = kernels.rows(
            rows.flatten(0, 1), segments=len(rows), want=self._want, factor=rows.shape[1]
        )
        self._keep(name, moments, rows, lambda: rows * self._weights[name][:, None])

    def _keep(
        self, name: str, moments: SampleMoments, d: Tensor, product: Callable[[], Tensor]
    ) -> None:
        """Statistics, and sums over a sample of ``product`` [n, B, ...]; d is of these n and B."""
        blocks, samples = d.shape[:2]
        if moments.sum is not None:  # the kernels have the batch's gradient there
            moments = moments._replace(sum=moments.sum * samples)
        if moments.sq_norm is not None:
            moments = moments._replace(sq_norm=moments.sq_norm.view(blocks, samples))
        self.moments[name] = moments
        if self._wants_inner:
            self.inner[name] = product().flatten(2).sum(2, dtype=torch.float64) * samples


class _SubnetStatistics(SampleStatistics):
    """One subnet's part."""

    def __init__(
        self,
        want: frozenset[str],
        parameters: Mapping[str, tuple[nn.Parameter, str]],
        rows: Mapping[str, int],
        found: _Measuring,
        samples: int,
    ):
        """Its part.

        Args:
            want: What was measured.
            parameters: The subnet's by its own names, and the supernet's names of them.
            rows: Its row in what was found, by the supernet's names; none where no gradient came.
            found: Of all subnets.
            samples: Of the batch.
        """
        super().__init__(want)
        self._parameters, self._rows, self._found = parameters, rows, found
        self._samples = samples

    @property
    def unsupported(self) -> Mapping[str, str]:
        return {}

    @property
    def units(self) -> int:
        return self._samples

    def keys(self) -> list[str]:
        return list(self._parameters)

    def __getitem__(self, name: str) -> SampleMoments:
        parameter, shared = self._parameters[name]
        if shared in self._rows:
            row = self._rows[shared]
            values = self._found.moments[shared]
            return SampleMoments(*(None if value is None else value[row] for value in values))
        zero = torch.zeros_like(parameter, requires_grad=False)
        norms = zero.new_zeros(self.units, dtype=torch.float64)
        names = self.want - {"fisher_rao", "sample_sq_norm"}
        squares = norms if "sample_sq_norm" in self.want else None
        return SampleMoments(**dict.fromkeys(names, zero), sq_norm=squares)

    def _over_parameters(self, name: str) -> Tensor:
        found: Mapping[str, Tensor | None] = self._found.inner
        if name == "sample_sq_norm":
            found = {key: moments.sq_norm for key, moments in self._found.moments.items()}
        parts = [(found[shared], row) for shared, row in self._rows.items()]
        present = [part[row] for part, row in parts if part is not None]
        if not present:
            return torch.zeros(self.units, dtype=torch.float64)
        return torch.stack(present).sum(0)
