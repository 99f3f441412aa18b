"""Why a layer's samples have no statistics, as far as running it in float64 shows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sigeo_ext._per_sample.case import Case, NoSamples, tensors_in

_APART = 1e-11  # relative, in float64


def find_cause(case: Case) -> str | None:
    """What is wrong with a layer, as far as running it shows."""
    for test in (_varies, _batch_norms, _other_dimension, _mixes):
        cause = test(case)
        if cause is not None:
            return cause
    return None


@torch.no_grad()
def _varies(case: Case) -> str | None:
    """Randomness, or a state that calls change."""
    before = {name: b.clone() for name, b in case.start.named_buffers()}
    first = case.outputs()
    again = _difference(first, case.outputs(again=True))
    if again > _APART:
        buffers = case.layer.named_buffers()
        moved = [n for n, b in buffers if n in before and not torch.equal(b, before[n])]
        how = f"with its buffer {moved[0]}" if moved else "with no buffer or random state of torch"
        return f"its output changes from call to call, by {again:.3g}, {how}"
    random = _difference(first, case.outputs(seed=1))
    if random > _APART:
        return f"it is random: two runs of the batch differ by {random:.3g}; dropout? call eval()"
    return None


def _difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    distances = [
        float((a - b).norm() / (a.norm() or 1.0)) for a, b in zip(first, second, strict=True)
    ]
    return max(distances, default=0.0)


def _distance(case: Case) -> float:
    """How far any sample is from its own, run alone; infinite if that cannot be said."""
    try:
        return float(case.parts()[1].max())
    except Exception:  # whatever the layer does with one sample
        return float("inf")


def _batch_norms(case: Case) -> str | None:
    """Batch norm on batch statistics, if without it the samples are apart."""
    frozen = copy.deepcopy(case.start)
    coupled = list(_coupled(frozen))
    if not coupled or _distance(case) <= _APART:
        return None
    for _, norm in coupled:
        norm.eval()
        if norm.running_mean is None or norm.running_var is None:
            norm.running_mean, norm.running_var = torch.zeros(2, norm.num_features).double()
            norm.track_running_stats = True
    if _distance(Case(frozen, case.inputs, case.batch_dim, case.count)) > _APART:
        return None
    names = ", ".join(name or "the layer itself" for name, _ in coupled)
    return f"batch norm uses the statistics of the batch ({names}); with running ones it does not"


def _coupled(layer: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    for name, module in layer.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            yield name, module


def _other_dimension(case: Case) -> str | None:
    """Another dimension in which the samples are apart, if in the given one they are not."""
    if _distance(case) <= _APART:
        return None
    tensors = tensors_in(case.inputs)
    for dim in range(max(t.dim() for t in tensors)):
        sizes = {t.shape[dim] for t in tensors if t.dim() > dim}
        if dim == case.batch_dim or len(sizes) != 1 or min(sizes) < 2:
            continue
        if _distance(Case(case.start, case.inputs, dim, sizes.pop())) <= _APART:
            return (
                f"its samples are apart in dimension {dim}, not {case.batch_dim}: batch_dim={dim}"
            )
    return None


def _mixes(case: Case) -> str | None:
    """Samples that are not apart, for no better known reason."""
    try:
        _, distances = case.parts()
    except Exception as error:  # whatever the layer does with one sample
        line = (str(error).splitlines() or [""])[0]
        kind = "" if isinstance(error, NoSamples) else f"{type(error).__name__}: "
        return f"it cannot be run on single samples: {kind}{line}"
    sample = int(distances.argmax())
    if distances[sample] <= _APART:
        return None
    return (
        f"it mixes samples: the output of sample {sample} alone differs from its part of the "
        f"batch's by {float(distances[sample]):.3g}"
    )
