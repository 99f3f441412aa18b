"""Gradient statistics of any module over mini-batches: one unit a batch, nothing stored a batch.

A *course* is how the weights move between the batches: not at all, or by an optimiser's step after
each. All courses begin at the same weights, so the first batch's gradient serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from sigeo.capture.batches import Batches, MemoryFormat, call
from sigeo.capture.inner_products import sample_inner_products
from sigeo.capture.layers import Selection, select
from sigeo.capture.losses import LossFunction, batch_loss
from sigeo.capture.state import RandomState, Snapshot, device_of, preserved
from sigeo.capture.steps import Steps
from sigeo.errors import InputError, check_one_of, described
from sigeo.kinds import named_arguments
from sigeo_ext.moments import Moments, Summary
from sigeo_ext.moments.state import Keep

Gradients = dict[str, Tensor | None]


class NoInnerProducts(InputError):
    """A model or a loss that `Request.samples` cannot be measured for."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        selection: Of which parameters.
        steps: How the weights move between the batches; None for not at all.
        ddof: Of the standard deviation in the summary's ratio.
        samples: Whether to measure <theta, g_b> for each sample as well, over all parameters.
        rows: Whether to keep every gradient, as published code does. Memory grows with batches.
    """

    selection: Selection = "layers"
    steps: Steps | None = None
    ddof: int = 0
    samples: bool = False
    rows: bool = False

    def __post_init__(self) -> None:
        """Check the selection and the steps.

        Raises:
            InputError: There is no selection of that name, or the steps are something else.
        """
        check_one_of("request: selection", self.selection, get_args(Selection))
        steps = self.steps
        if steps is not None and (isinstance(steps, type) or not hasattr(steps, "start")):
            raise InputError(
                f"request: steps must be an SGD, a ClippedAdagrad or None, got {described(steps)}"
            )


@dataclass(frozen=True)
class GradientStatistics:
    """What was measured.

    Attributes:
        names: Qualified names of the parameters, in the order of the summary.
        summary: Sums over each parameter's coordinates, see `sigeo_ext.moments.Summary`; its
            ``inner`` is with the weights after the last step.
        losses: Mean loss of each batch [M], before its step.
        count: M, the number of batches.
        reached: Whether the loss depends on any parameter that asks for a gradient.
        sample_inner: <theta, g_b> of every sample, float64, if asked for.
        rows: Every gradient, [batch][name], if asked for.
        weights: The parameters after the last step, if rows were asked for.
    """

    names: tuple[str, ...]
    summary: Summary
    losses: Tensor
    count: int
    reached: bool = True
    sample_inner: Tensor | None = None
    rows: tuple[Gradients, ...] = ()
    weights: dict[str, Tensor] | None = None

    def __repr__(self) -> str:
        """What was measured, in a line."""
        first, last = float(self.losses[0]), float(self.losses[-1])
        parts = [f"{len(self.names)} parameters", f"{self.count} batches"]
        parts.append(f"loss {first:.4g} at first, {last:.4g} at last")
        if self.sample_inner is not None:
            parts.append(f"sample_inner of {len(self.sample_inner)} samples")
        if self.rows:
            parts.append("rows")
        if not self.reached:
            parts.append("the loss reaches none of the parameters")
        return f"<GradientStatistics: {'; '.join(parts)}>"


@dataclass(frozen=True)
class FirstGradient:
    """The gradient of the first batch at the weights as they came.

    Attributes:
        names: Qualified names of the selected parameters.
        grads: Their gradients; None where the loss does not reach. Read only.
        weights: The parameters.
        loss: Mean loss of the batch.
        reached: Whether the loss depends on any parameter that asks for a gradient.
    """

    names: tuple[str, ...]
    grads: tuple[Tensor | None, ...]
    weights: tuple[Tensor, ...]
    loss: Tensor
    reached: bool = True

    def __repr__(self) -> str:
        """What there is, in a line."""
        reached = sum(gradient is not None for gradient in self.grads)
        return (
            f"<FirstGradient: {len(self.names)} parameters, of which the loss reaches {reached}; "
            f"loss {float(self.loss):.4g}>"
        )


Observer = Callable[[FirstGradient], None]


@named_arguments("gradient_statistics")
def gradient_statistics(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    requests: Sequence[Request] = (Request(),),
    observer: Observer | None = None,
    memory_format: MemoryFormat = "auto",
    max_bytes: int | None = None,
) -> list[GradientStatistics]:
    """Measure gradients of each batch's mean loss, in train mode; the model comes back as it was.

    A parameter that the loss does not reach has a zero gradient. Passes are shared: the first by
    all courses, the others by all requests of one course. Beside the model's own gradients the
    statistics hold at most three copies of the selected parameters, however many batches there are;
    several courses also hold the first batch's gradient, and one with steps the copy that the
    parameters are restored from.

    Args:
        model: Any module.
        batches: Pairs (inputs, labels), see `Batches`.
        loss_fn: (output, labels) to the mean loss; it gets the output alone where there are no
            labels.
        requests: What to measure.
        observer: Called once with the first batch's gradient of the convolution and linear weights.
        memory_format: Of images, see `Batches`.
        max_bytes: Bound on the statistics' memory. If three copies need more, the parameters are
            measured in groups, with all passes for each group.

    Returns:
        One result a request.

    Raises:
        InputError: No batch, no parameter, a loss that is not one number, an output or labels that
            it does not take, ``max_bytes`` below what the largest parameter needs, or a model or a
            loss that `Request.samples` cannot be measured for (`NoInnerProducts`).
    """
    data = Batches.of(batches, model, memory_format)
    selected = {r.selection: select(model, r.selection) for r in requests}
    groups = _groups(selected, max_bytes)
    moving = any(request.steps is not None for request in requests)
    results: list[list[GradientStatistics]] = []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        preserved(model, parameters=moving) as start,
    ):
        model.train()
        for index, group in enumerate(groups):
            if index > 0:
                start.restore()
            run = _Run(model, data, loss_fn, start, group, requests)
            results.append(run.measure(observer if index == 0 else None))
    return [_joined(parts) for parts in zip(*results, strict=True)]


class _Run:
    """One set of passes for one group of parameters."""

    def __init__(
        self,
        model: nn.Module,
        data: Batches,
        loss_fn: LossFunction,
        start: Snapshot,
        group: dict[Selection, dict[str, nn.Parameter]],
        requests: Sequence[Request],
    ):
        self.model, self.data, self.loss_fn, self.start = model, data, loss_fn, start
        self.group, self.requests = group, requests
        self.parameters = dict(model.named_parameters())
        self.reached = False

    def measure(self, observer: Observer | None) -> list[GradientStatistics]:
        """Go through all courses, one after another, the still one first."""
        loss = self._backward(0)
        first = self._take_gradients()
        if observer is not None:
            weights = select(self.model, "layers")
            grads = tuple(first[name] for name in weights)
            observer(
                FirstGradient(tuple(weights), grads, tuple(weights.values()), loss, self.reached)
            )
        if not self.requests:
            return []
        courses = sorted(
            {request.steps for request in self.requests},
            key=lambda steps: (steps is not None, steps is not None and steps.changes_gradients),
        )
        after_first = Snapshot(self.model, parameters=False) if len(courses) > 1 else None
        results: dict[Request, GradientStatistics] = {}
        for index, steps in enumerate(courses):
            if index > 0 and after_first is not None:
                self.start.restore()
                after_first.restore()
            last = index + 1 == len(courses)
            results |= self._course(steps, loss, first, owned=last)
        return [results[request] for request in self.requests]

    def _course(
        self, steps: Steps | None, first_loss: Tensor, first: Gradients, *, owned: bool
    ) -> dict[Request, GradientStatistics]:
        """All batches with one way of moving; ``owned`` if no other course needs ``first``."""
        requests = [request for request in self.requests if request.steps == steps]
        selections = {request.selection for request in requests}
        states = {s: _new_state(list(self.group[s].values())) for s in selections}
        step = None if steps is None else steps.start(self.parameters.values())
        rows: list[Gradients] = []
        inner: list[Tensor] = []
        losses, grads = [first_loss], first
        if steps is not None and steps.changes_gradients and not owned:
            grads = {name: None if g is None else g.clone() for name, g in first.items()}
        for index in range(len(self.data)):
            if index > 0:
                grads = {}  # what the state has not kept is freed before the next pass
                losses.append(self._backward(index))
                grads = self._take_gradients()
            if any(request.samples for request in requests):
                random = RandomState(device_of(self.model))
                inner.append(self._inner_products(index))
                random.restore()
            if step is not None:
                self._take_step(step, grads)
            if any(request.rows for request in requests):
                rows.append({n: None if g is None else g.clone() for n, g in grads.items()})
            if index + 1 < len(self.data):
                alone = len(selections) == 1 and (owned or index > 0)
                keep: Keep = "own" if alone else "borrow"
                for selection, state in states.items():
                    state.add([grads[name] for name in self.group[selection]], keep=keep)
        return {
            request: self._result(request, states[request.selection], grads, losses, inner, rows)
            for request in requests
        }

    def _result(
        self,
        request: Request,
        state: Moments,
        last: Gradients,
        losses: list[Tensor],
        inner: list[Tensor],
        rows: list[Gradients],
    ) -> GradientStatistics:
        chosen = self.group[request.selection]
        weights = list(chosen.values())
        pending = [last[name] for name in chosen]
        return GradientStatistics(
            names=tuple(chosen),
            summary=state.summary(last=pending, weights=weights, ddof=request.ddof),
            losses=torch.stack(losses),
            count=len(self.data),
            reached=self.reached,
            sample_inner=torch.cat(inner) if request.samples else None,
            rows=tuple(rows) if request.rows else (),
            weights={n: w.detach().clone() for n, w in chosen.items()} if request.rows else None,
        )

    def _backward(self, index: int) -> Tensor:
        inputs, labels = self.data[index]
        loss = batch_loss(self.loss_fn, call(self.model, inputs), labels)
        if loss.requires_grad:
            self.reached = True
            loss.backward()
        return loss.detach().reshape(())

    def _inner_products(self, index: int) -> Tensor:
        try:
            return sample_inner_products(self.model, self.loss_fn, *self.data[index])
        except InputError as error:
            raise NoInnerProducts(str(error)) from error

    def _take_gradients(self) -> Gradients:
        """Move the gradients out of the model: no copy, and the next pass makes new ones."""
        grads: Gradients = {}
        for name, parameter in self.parameters.items():
            grad, parameter.grad = parameter.grad, None
            grads[name] = grad.to_dense() if grad is not None and grad.is_sparse else grad
        return grads

    def _take_step(self, step: Callable[[], None], grads: Gradients) -> None:
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name]
        step()
        for parameter in self.parameters.values():
            parameter.grad = None


def _new_state(parameters: list[nn.Parameter]) -> Moments:
    wide = any(p.dtype == torch.float64 for p in parameters)
    return Moments(parameters, dtype=torch.float64 if wide else torch.float32)


def _groups(
    selected: dict[Selection, dict[str, nn.Parameter]], max_bytes: int | None
) -> list[dict[Selection, dict[str, nn.Parameter]]]:
    """Split the parameters so that the statistics of each group fit into ``max_bytes``.

    Raises:
        InputError: One parameter alone does not.
    """
    everything: dict[str, nn.Parameter] = {}
    for chosen in sorted(selected.values(), key=len, reverse=True):  # all, then the layers in it
        everything |= {name: p for name, p in chosen.items() if name not in everything}
    if max_bytes is None or not everything:
        return [selected]
    names: list[list[str]] = [[]]
    used = 0
    for name, parameter in everything.items():
        need = 3 * parameter.numel() * max(4, parameter.element_size())
        if need > max_bytes:
            raise InputError(
                f"max_bytes: parameter {name} alone needs {need} bytes for its statistics, "
                f"got {max_bytes}"
            )
        if used + need > max_bytes:
            names.append([])
            used = 0
        names[-1].append(name)
        used += need
    return [
        {s: {n: p for n, p in chosen.items() if n in set(group)} for s, chosen in selected.items()}
        for group in names
    ]


def _joined(parts: tuple[GradientStatistics, ...]) -> GradientStatistics:
    """The statistics of all groups of one request as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    columns = zip(*(part.summary for part in parts), strict=True)
    weights = [part.weights for part in parts if part.weights is not None]
    return GradientStatistics(
        names=tuple(name for part in parts for name in part.names),
        summary=Summary(*(torch.cat(column) for column in columns)),
        losses=first.losses,
        count=first.count,
        reached=first.reached,
        sample_inner=first.sample_inner,
        rows=first.rows,
        weights={n: w for some in weights for n, w in some.items()} if weights else None,
    )
