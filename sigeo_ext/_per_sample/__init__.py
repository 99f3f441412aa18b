"""`check_per_sample`: a layer's per-sample statistics against single samples, one at a time.

The loss is the inner product of the layer's outputs with random tensors, so that each sample's
gradient depends on all of its outputs.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sigeo_ext._per_sample.case import Case, Rows, cast, tensors_in
from sigeo_ext._per_sample.causes import find_cause

PER_SAMPLE_TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Largest error ratio that `check_per_sample` accepts, by the dtype that the layer runs in."""

_WANT = (
    "sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sample_sq_norm", "fisher_rao", "gram",
)  # fmt: skip

EVERYTHING = "all parameters"
"""In place of a parameter's name, for the statistics that are about all of them."""


class Worst(NamedTuple):
    """The largest error that was seen."""

    error: float
    dtype: torch.dtype
    parameter: str
    statistic: str


@dataclass(frozen=True)
class PerSampleCheck:
    """What `check_per_sample` found.

    Attributes:
        errors: Error ratios by dtype, parameter and statistic; of the statistics over all
            parameters under the name `EVERYTHING`.
        unreached: Parameters that no sample's gradient reaches: the check says nothing about them.
    """

    errors: dict[torch.dtype, dict[str, dict[str, float]]]
    unreached: tuple[str, ...]

    @property
    def worst(self) -> Worst:
        """The largest error ratio of all."""
        everything = [
            Worst(error, dtype, parameter, statistic)
            for dtype, parameters in self.errors.items()
            for parameter, statistics in parameters.items()
            for statistic, error in statistics.items()
        ]
        return max(everything, key=lambda one: one.error)


def check_per_sample(
    layer: nn.Module,
    x: Tensor | Sequence[Any],
    *,
    batch_dim: int = 0,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    tolerance: float | Mapping[torch.dtype, float] | None = None,
    seed: int = 0,
) -> PerSampleCheck:
    """Assert that `sigeo.capture.capture` gives a layer's per-sample statistics.

    The judge is autograd in float64, on one sample at a time. Copies of the layer are run, in the
    modes that its parts are in; the layer itself is not touched. A float32 ReLU within rounding of
    zero may go either way and moves its sample's gradients: take float64 alone if that is it.

    ::

        from sigeo_ext.testing import check_per_sample

        found = check_per_sample(MyLayer().eval(), torch.randn(8, 16))
        found.worst, found.unreached

    Args:
        layer: Any module with trainable parameters, a whole model too if B times its parameters
            fit into memory.
        x: Its input, or several: tensors of two or more samples, and whatever else it takes.
        batch_dim: Where the samples are in all tensors that have so many dimensions.
        dtypes: In which the layer is to be right; parameters and inputs are rounded to each.
        tolerance: Largest error ratio, one or by dtype; `PER_SAMPLE_TOLERANCE` if not given. The
            ratio is taken to a hundredth of the largest parameter's norm where a parameter's own
            is smaller, and signs count where gradients are further from zero than the tolerance.
        seed: Of the random tensors.

    Raises:
        ValueError: No trainable parameter or none that an output depends on, inputs without one
            number of samples, no dtype or one without tolerance.
        AssertionError: A statistic is wrong, or `capture` refuses the layer. The message names the
            worst parameter and statistic, its error, and the cause, if a test in float64 shows one:
            batch norm on batch statistics, outputs that are random or change from call to call,
            mixed samples, another ``batch_dim``, a parameter that is not reached.
    """
    # One distribution holds both packages, and this is the one place that looks up to the other.
    toolkit = importlib.import_module("sigeo")
    inputs = (x,) if isinstance(x, Tensor) else tuple(x)
    _check_layer(layer)
    count = _samples(inputs, batch_dim)
    if not dtypes:
        raise ValueError("dtypes: expected at least one, got none")
    errors: dict[torch.dtype, dict[str, dict[str, float]]] = {}
    unreached: tuple[str, ...] = ()
    for dtype in dtypes:
        limit = _limit(tolerance, dtype)
        measured = copy.deepcopy(layer).to(dtype)
        given = cast(inputs, dtype)
        twin = copy.deepcopy(measured).double()
        case = Case(twin, cast(given, torch.float64), batch_dim, count)
        with toolkit.capture.preserved(measured, parameters=False), torch.enable_grad():
            judged = _judged(toolkit, measured, given, case, limit, seed)
        errors[dtype], unreached = judged
    return PerSampleCheck(errors, unreached)


def _check_layer(layer: nn.Module) -> None:
    """Check that there is something to measure.

    Raises:
        ValueError: There is not.
    """
    for name, parameter in layer.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"layer: {name} has no shape yet; run the lazy layer once before")
    if not any(p.requires_grad for p in layer.parameters()):
        raise ValueError("layer: expected at least one trainable parameter, found none")


def _samples(inputs: Sequence[Any], batch_dim: int) -> int:
    """How many samples there are.

    Raises:
        ValueError: Not one number, or fewer than two.
    """
    if batch_dim < 0:
        raise ValueError(f"batch_dim: expected a dimension counted from the first, got {batch_dim}")
    sizes = {t.shape[batch_dim] for t in tensors_in(inputs) if t.dim() > batch_dim}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            f"x: expected one number of samples, two or more, in dimension {batch_dim}, "
            f"got {sorted(sizes) or 'no tensor that has it'}"
        )
    return int(sizes.pop())


def _limit(tolerance: float | Mapping[torch.dtype, float] | None, dtype: torch.dtype) -> float:
    """The largest error ratio in a dtype.

    Raises:
        ValueError: None is known.
    """
    if isinstance(tolerance, (int, float)):
        return float(tolerance)
    known = PER_SAMPLE_TOLERANCE if tolerance is None else tolerance
    if dtype not in known:
        raise ValueError(f"tolerance: expected one for {dtype}, got {sorted(map(str, known))}")
    return known[dtype]


def _judged(
    toolkit: Any,
    measured: nn.Module,
    inputs: tuple[Any, ...],
    case: Case,
    limit: float,
    seed: int,
) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    """The errors of all statistics in one dtype, and the parameters that are not reached.

    Raises:
        ValueError: No output depends on a parameter.
        AssertionError: An error above the limit, or no statistics at all.
    """
    what = f"check_per_sample: {type(measured).__name__}"
    dtype = next(p.dtype for p in measured.parameters() if p.requires_grad)
    outputs = case.outputs()
    if not any(t.requires_grad for t in outputs):
        raise ValueError("layer: expected an output that depends on a parameter, got none")
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu")
        for t in outputs
    ]
    weights = [w.to(t.device, dtype) for w, t in zip(drawn, outputs, strict=True)]
    try:
        parts, _ = case.parts()
    except Exception as error:  # whatever the layer does with one sample
        raise AssertionError(f"{what}: {find_cause(case)}") from error
    try:
        stats = _captured(toolkit, measured, inputs, weights, case.batch_dim)
    except toolkit.InputError as error:
        cause = find_cause(case) or "its samples are apart, run alone in float64"
        raise AssertionError(f"{what} is refused by capture: {error}; {cause}") from error
    rows = case.gradients(parts, [w.double() for w in weights])
    errors = _errors(stats, rows, case.parameters, limit)
    worst = _worst(errors, limit)
    if worst is not None:
        name, statistic, ratio = worst
        cause = find_cause(case) or _missed(stats, rows, name)
        raise AssertionError(
            f"{what}, {name}: {statistic} has error ratio {ratio:.3g} in {dtype}, at most "
            f"{limit:.3g} allowed; {cause}"
        )
    return errors, tuple(name for name, g in rows.items() if not g.any())


def _captured(
    toolkit: Any,
    layer: nn.Module,
    inputs: tuple[Any, ...],
    weights: Sequence[Tensor],
    batch_dim: int,
) -> Any:
    """What `sigeo.capture.capture` says."""
    torch.manual_seed(0)  # as the judge's runs
    with toolkit.capture.capture(layer, _WANT, reduction="sum", batch_dim=batch_dim) as stats:
        outputs = [t for t in tensors_in(layer(*inputs)) if t.is_floating_point()]
        pairs = zip(outputs, weights, strict=True)
        torch.stack([(t * w).sum() for t, w in pairs if t.requires_grad]).sum().backward()
    return stats


def _worst(
    errors: Mapping[str, Mapping[str, float]], limit: float
) -> tuple[str, str, float] | None:
    """The largest error above the limit, of a single parameter if there is one."""
    failed = [
        (name != EVERYTHING, ratio, name, statistic)
        for name, statistics in errors.items()
        for statistic, ratio in statistics.items()
        if not ratio <= limit
    ]
    if not failed:
        return None
    _, ratio, name, statistic = max(failed)
    return name, statistic, ratio


_SMALL = 1e-2  # of the largest parameter: a gradient that is zero but for rounding has no ratio


def _errors(
    stats: Any, rows: Rows, parameters: Mapping[str, Tensor], limit: float
) -> dict[str, dict[str, float]]:
    """Error ratios of all statistics of all parameters."""
    expected = {name: _statistics(gradients) for name, gradients in rows.items()}
    errors: dict[str, dict[str, float]] = {name: {} for name in rows}
    steepest = max(float(g.abs().max()) for g in rows.values() if g.numel())
    for statistic in next(iter(expected.values())):
        largest = max(float(values[statistic].norm()) for values in expected.values())
        for name, values in expected.items():
            actual = getattr(stats[name], statistic)
            reference = values[statistic]
            given = torch.zeros_like(reference) if actual is None else actual.to_dense().double()
            difference = given - reference
            if statistic == "sign_sum":
                difference = _beyond(given, rows[name], limit, _SMALL * steepest)
            scale = max(float(reference.norm()), _SMALL * largest)
            errors[name][statistic] = _ratio(difference, scale)
    flat = torch.cat([_flat(g) for g in rows.values()], 1)
    theta = torch.cat([parameters[name].detach().flatten() for name in rows])
    sq_norm, inner, gram = flat.square().sum(1), flat @ theta, flat @ flat.t()
    errors[EVERYTHING] = {
        "sample_sq_norm": _ratio(stats.sample_sq_norm - sq_norm, float(sq_norm.norm())),
        # Inner products may cancel; they are judged by the lengths of what is multiplied.
        "fisher_rao": _ratio(stats.fisher_rao - inner, float(sq_norm.sum().sqrt() * theta.norm())),
        "gram": _ratio(stats.gram - gram, float(gram.norm())),
    }
    return errors


def _statistics(g: Tensor) -> dict[str, Tensor]:
    """All statistics of one parameter from each sample's gradient."""
    return {
        "sum": g.sum(0),
        "abs_sum": g.abs().sum(0),
        "sq_sum": g.square().sum(0),
        "m2": (g - g.mean(0)).square().sum(0),
        "sign_sum": g.sign().sum(0),
        "sq_norm": _flat(g).square().sum(1),
    }


def _flat(g: Tensor) -> Tensor:
    """The gradients of a parameter of any shape as rows."""
    return g.flatten(1) if g.dim() > 1 else g[:, None]


def _beyond(actual: Tensor, g: Tensor, limit: float, least: float) -> Tensor:
    """By how much a sum of signs is off, whichever signs the gradients within rounding have."""
    unclear = g.abs() <= limit * g.abs().max().clamp_min(least)
    clear = torch.where(unclear, 0.0, g.sign()).sum(0)
    return ((actual - clear).abs() - unclear.sum(0)).clamp_min(0)


def _ratio(difference: Tensor, scale: float) -> float:
    distance = float(difference.norm())
    if distance == 0:
        return 0.0
    return distance / scale if scale > 0 and distance == distance else float("inf")


def _missed(stats: Any, rows: Rows, name: str) -> str:
    """What else is known of a parameter whose statistics are wrong."""
    if name != EVERYTHING and not stats[name].abs_sum.to_dense().any():
        return "the capture saw no use of the parameter, whose gradient is not zero"
    if name != EVERYTHING and not rows[name].any():
        return "no sample's gradient reaches the parameter, but the capture saw a use of it"
    return "the layer repeats itself and keeps its samples apart, so the statistics are wrong"
