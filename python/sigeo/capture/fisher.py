"""The Fisher matrix of a model: its trace, its diagonal, its product with the weights.

F = mean over samples of g g^T, with g the gradient of a sample's loss. With labels as given it is
the *empirical* Fisher matrix; with labels drawn from the model's own softmax, the Fisher matrix
proper, by one draw a sample (Kunstner et al., "Limitations of the Empirical Fisher Approximation",
NeurIPS 2019, sections 2 and 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from sigeo.capture.batches import Batches, MemoryFormat, call
from sigeo.capture.samples import BatchNormPolicy, SampleStatistics, capture
from sigeo.capture.state import preserved
from sigeo.capture.statistics import LossFunction
from sigeo.errors import InputError

Labels = Literal["given", "drawn"]


def fisher_trace(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    labels: Labels = "given",
    seed: int = 0,
    batch_norm: BatchNormPolicy = "refuse",
    memory_format: MemoryFormat = "auto",
) -> float:
    """Trace of the Fisher matrix over all trainable parameters: the mean squared norm of g_b.

    The model comes back as it was.

    Args:
        model: Any module.
        batches: Pairs (inputs, labels); inputs alone will do where labels are drawn.
        loss_fn: (output, labels) to the mean loss of a batch.
        labels: "given", or "drawn" from the softmax of outputs [B, classes].
        seed: Of the draws.
        batch_norm: As in `capture`.
        memory_format: Of images, as in `gradient_statistics`.

    Raises:
        InputError: No labels, outputs that cannot be drawn from, or a model that `capture` refuses.
    """
    total, count = 0.0, 0
    given = (labels, seed, batch_norm, memory_format)
    for found in _measured(model, batches, loss_fn, "sample_sq_norm", *given):
        total += float(found.sample_sq_norm.sum())
        count += found.units
    return total / count


def fisher_rao(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    labels: Labels = "given",
    seed: int = 0,
    batch_norm: BatchNormPolicy = "refuse",
    memory_format: MemoryFormat = "auto",
) -> float:
    """theta^T F theta, the squared Fisher-Rao norm: mean_b of <theta, g_b>^2.

    Most layers have <theta, g_b> from their outputs and the gradients of these, so no weight
    gradient is formed (Liang et al., "Fisher-Rao Metric, Geometry, and Complexity of Neural
    Networks", AISTATS 2019, section 2). Arguments and errors are those of `fisher_trace`.
    """
    total, count = 0.0, 0
    given = (labels, seed, batch_norm, memory_format)
    for found in _measured(model, batches, loss_fn, "fisher_rao", *given):
        total += float(found.fisher_rao.square().sum())
        count += found.units
    return total / count


def diag_fisher(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    labels: Labels = "given",
    seed: int = 0,
    batch_norm: BatchNormPolicy = "refuse",
    memory_format: MemoryFormat = "auto",
) -> dict[str, Tensor]:
    """Diagonal of the Fisher matrix: mean_b of g_b^2, for each trainable parameter by name.

    Tensors are like the parameters; those of embedding tables that are looked up in once a pass are
    sparse, with the rows that were touched. Arguments and errors are those of `fisher_trace`.
    """
    result: dict[str, Tensor] = {}
    count = 0
    given = (labels, seed, batch_norm, memory_format)
    for found in _measured(model, batches, loss_fn, "sq_sum", *given):
        count += found.units
        for name in found.keys():  # noqa: SIM118  (the mapping computes its values)
            squares = found[name].sq_sum
            assert squares is not None
            result[name] = result[name] + squares if name in result else squares
    return {name: squares / count for name, squares in result.items()}


def _measured(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    loss_fn: LossFunction,
    want: str,
    labels: Labels,
    seed: int,
    batch_norm: BatchNormPolicy,
    memory_format: MemoryFormat,
) -> Iterator[SampleStatistics]:
    """One statistic of every batch in turn.

    Yields:
        The statistics of a batch.

    Raises:
        InputError: As `fisher_trace` says.
    """
    if labels not in ("given", "drawn"):
        raise InputError(f'labels: must be "given" or "drawn", got {labels!r}')
    data = Batches.of(batches, model, memory_format)
    generator = torch.Generator().manual_seed(seed)
    with preserved(model, parameters=False), torch.enable_grad():
        for index in range(len(data)):
            inputs, targets = data[index]
            with capture(model, [want], batch_norm=batch_norm, grads=False) as found:
                output = call(model, inputs)
                if labels == "drawn":
                    targets = _drawn(output, generator)
                elif targets is None:
                    raise InputError("batches: expected pairs (inputs, labels), got inputs alone")
                loss_fn(output, targets).backward()
            yield found


def _drawn(output: object, generator: torch.Generator) -> Tensor:
    """A class for each row of the logits.

    Raises:
        InputError: The output is no logits.
    """
    if not isinstance(output, Tensor) or output.dim() != 2:
        what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"labels: can be drawn from outputs [samples, classes], got {what}")
    odds = output.detach().float().softmax(1).cpu()  # the same draws on every device
    return torch.multinomial(odds, 1, generator=generator).flatten().to(output.device)
