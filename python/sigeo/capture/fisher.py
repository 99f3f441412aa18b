"""The Fisher matrix of a model: its trace, its diagonal, its product with the weights.

F = mean over samples of g g^T, with g the gradient of a sample's loss. With labels as given it is
the *empirical* Fisher matrix; with labels drawn from the model's own softmax, the Fisher matrix
proper, by one draw a sample (Kunstner et al., "Limitations of the Empirical Fisher Approximation",
NeurIPS 2019, sections 2 and 3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sigeo.capture.batches import Batches, MemoryFormat, call
from sigeo.capture.losses import (
    LossFunction,
    Reduction,
    batch_loss,
    check_reduction,
    check_trainable,
)
from sigeo.capture.samples import (
    BatchNormPolicy,
    SamplesCoupled,
    SampleStatistics,
    all_served,
    capture,
)
from sigeo.capture.signs import sq_norms_by_signs
from sigeo.capture.state import preserved
from sigeo.errors import InputError, described
from sigeo.kinds import checked_seed, is_of, named_arguments

Labels = Literal["given", "drawn"]
Estimator = Literal["exact", "signs"]


class Trace(float):
    """The trace of a Fisher matrix: a number that says how far off it may be.

    Attributes:
        standard_error: Of the estimate, 0 where the trace is exact.
    """

    standard_error: float

    def __new__(cls, value: float, standard_error: float = 0.0) -> Trace:
        """A value and its error."""
        trace = super().__new__(cls, value)
        trace.standard_error = standard_error
        return trace


@named_arguments("fisher_trace")
@torch.inference_mode(False)
@torch.enable_grad()
@all_served()
def fisher_trace(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    estimator: Estimator = "exact",
    probes: int = 2,
    labels: Labels = "given",
    seed: int = 0,
    reduction: Reduction = "mean",
    batch_norm: BatchNormPolicy = "refuse",
    memory_format: MemoryFormat = "auto",
) -> Trace:
    """Trace of the Fisher matrix over all trainable parameters: the mean squared norm of g_b.

    The model is measured in the mode that it is in, train or eval, and comes back as it was.

    Args:
        model: Any module.
        batches: Pairs (inputs, labels); inputs alone will do where labels are drawn.
        loss_fn: (output, labels) to the loss of a batch.
        estimator: "exact", or "signs": unbiased, from one forward and ``probes`` backward passes a
            batch, ||sum_b e_b g_b||^2 with random signs e_b, whose relative standard error is
            sqrt(2 / probes) (sum over b != c of <g_b, g_c>^2)^(1/2) / sum_b ||g_b||^2.
        probes: How many draws of the signs, two or more; the error is estimated from their spread,
            and is itself rough where they are few.
        labels: "given", or "drawn" from the softmax of outputs [B, classes].
        seed: Of the draws.
        reduction: What the loss does with the samples' losses: "mean" or "sum". The trace is the
            same for both.
        batch_norm: As in `capture`; with "signs", "refuse" or "frozen".
        memory_format: Of images, as in `gradient_statistics`.

    Returns:
        A number with the attribute ``standard_error``.

    Raises:
        InputError: An argument out of its range, no labels, labels that are no classes of the
            output, outputs that cannot be drawn from, a loss of the other reduction, or a model
            that `capture` refuses.
    """
    if estimator not in ("exact", "signs"):
        raise InputError(f'estimator: must be "exact" or "signs", got {described(estimator)}')
    passes = _Passes(model, batches, loss_fn, labels, seed, reduction, batch_norm, memory_format)
    if estimator == "signs":
        return _trace_by_signs(passes, probes)
    total, count = 0.0, 0
    for found in passes.measured("sample_sq_norm"):
        total += float(found.sample_sq_norm.sum())
        count += found.units
    return Trace(total / count)


@named_arguments("fisher_rao")
@torch.inference_mode(False)
@torch.enable_grad()
@all_served()
def fisher_rao(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    labels: Labels = "given",
    seed: int = 0,
    reduction: Reduction = "mean",
    batch_norm: BatchNormPolicy = "refuse",
    memory_format: MemoryFormat = "auto",
) -> float:
    """theta^T F theta, the squared Fisher-Rao norm: mean_b of <theta, g_b>^2.

    Most layers have <theta, g_b> from their outputs and the gradients of these, so no weight
    gradient is formed (Liang et al., "Fisher-Rao Metric, Geometry, and Complexity of Neural
    Networks", AISTATS 2019, section 2). Arguments and errors are those of `fisher_trace`.
    """
    passes = _Passes(model, batches, loss_fn, labels, seed, reduction, batch_norm, memory_format)
    total, count = 0.0, 0
    for found in passes.measured("fisher_rao"):
        total += float(found.fisher_rao.square().sum())
        count += found.units
    return total / count


@named_arguments("diag_fisher")
@torch.inference_mode(False)
@torch.enable_grad()
@all_served()
def diag_fisher(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    labels: Labels = "given",
    seed: int = 0,
    reduction: Reduction = "mean",
    batch_norm: BatchNormPolicy = "refuse",
    memory_format: MemoryFormat = "auto",
) -> dict[str, Tensor]:
    """Diagonal of the Fisher matrix: mean_b of g_b^2, for each trainable parameter by name.

    Tensors are like the parameters; those of embedding tables that are looked up in once a pass are
    sparse, with the rows that were touched. Arguments and errors are those of `fisher_trace`.
    """
    passes = _Passes(model, batches, loss_fn, labels, seed, reduction, batch_norm, memory_format)
    result: dict[str, Tensor] = {}
    count = 0
    for found in passes.measured("sq_sum"):
        count += found.units
        for name in found.keys():  # noqa: SIM118  (the mapping computes its values)
            squares = found[name].sq_sum
            assert squares is not None
            before = result.get(name)
            if before is not None:  # dense + sparse is defined, sparse + dense is not
                dense_first = before.is_sparse and not squares.is_sparse
                squares = squares + before if dense_first else before + squares
            result[name] = squares
    return {name: squares / count for name, squares in result.items()}


class _Passes:
    """A model, its batches and what their losses are."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[object] | Batches,
        loss_fn: LossFunction,
        labels: Labels,
        seed: int,
        reduction: Reduction,
        batch_norm: BatchNormPolicy,
        memory_format: MemoryFormat,
    ):
        if labels not in ("given", "drawn"):
            raise InputError(f'labels: must be "given" or "drawn", got {described(labels)}')
        if reduction not in ("mean", "sum"):
            raise InputError(f'reduction: must be "mean" or "sum", got {described(reduction)}')
        self.model, self.loss_fn = model, loss_fn
        self.labels, self.seed, self.reduction = labels, checked_seed(seed), reduction
        self.batch_norm = batch_norm
        self._asked = False
        self.data = Batches.of(batches, model, memory_format)

    def measured(self, want: str) -> Iterator[SampleStatistics]:
        """One statistic of every batch in turn.

        Yields:
            The statistics of a batch.
        """
        generator = torch.Generator().manual_seed(self.seed)
        with preserved(self.model, parameters=False):
            for index in range(len(self.data)):
                inputs, given = self.data[index]
                with capture(
                    self.model,
                    [want],
                    reduction=self.reduction,
                    batch_norm=self.batch_norm,
                    grads=False,
                ) as found:
                    output = call(self.model, inputs)
                    targets = self.label(output, given, generator)
                    check_trainable(self.loss(output, targets)).backward()
                yield found

    def label(self, output: Any, given: Any, generator: torch.Generator) -> Any:
        """The labels of a batch.

        Raises:
            InputError: There are none, or the output cannot be drawn from.
        """
        if self.labels == "drawn":
            return _drawn(output, generator)
        if given is None:
            raise InputError("batches: expected pairs (inputs, labels), got inputs alone")
        return given

    def loss(self, output: Any, labels: Any) -> Tensor:
        """The loss of a batch; the first is also asked whether it is a mean or a sum."""
        loss = batch_loss(self.loss_fn, output, labels)
        if not self._asked:
            self._asked = True
            check_reduction(self.loss_fn, output, labels, loss, self.reduction)
        return loss


_SIGNS = 0x5F1A6ED5  # signs that shared the labels' draws would not be independent of them


def _trace_by_signs(passes: _Passes, probes: int) -> Trace:
    """The mean over probes, and its error from their spread within each batch.

    Raises:
        InputError: Too few probes, or a policy for batch norm that does not keep samples apart.
        SamplesCoupled: Batch norm uses the batch's statistics, and the policy is to refuse that.
    """
    if not is_of(probes, int) or probes < 2:
        raise InputError(
            f"probes: expected 2 or more, from which an error follows, got {described(probes)}"
        )
    if passes.batch_norm not in ("refuse", "frozen"):
        raise InputError(
            'batch_norm: must be "refuse" or "frozen" with estimator="signs", '
            f"got {described(passes.batch_norm)}"
        )
    draws = torch.Generator().manual_seed(passes.seed)
    signs = torch.Generator().manual_seed(passes.seed ^ _SIGNS)
    total, variance, count = 0.0, 0.0, 0
    with preserved(passes.model, parameters=False):
        for index in range(len(passes.data)):
            inputs, given = passes.data[index]
            try:
                estimates, samples = sq_norms_by_signs(
                    passes.model,
                    inputs,
                    functools.partial(passes.label, given=given, generator=draws),
                    passes.loss,
                    probes=probes,
                    generator=signs,
                    batch_norm=passes.batch_norm,
                )
            except SamplesCoupled:  # the other policies are none of this estimator's
                raise SamplesCoupled(SamplesCoupled.FROZEN) from None
            if passes.reduction == "mean":
                estimates = estimates * samples**2
            total += float(estimates.mean())
            variance += float(estimates.var()) / probes
            count += samples
    return Trace(total / count, math.sqrt(variance) / count)


def _drawn(output: object, generator: torch.Generator) -> Tensor:
    """A class for each row of the logits.

    Raises:
        InputError: The output is no logits, or of one class.
    """
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"labels: can be drawn from outputs [samples, 2 classes or more], got {what}"
        )
    odds = output.detach().float().softmax(1).cpu()  # the same draws on every device
    return torch.multinomial(odds, 1, generator=generator).flatten().to(output.device)
