"""SiGeo: the ZiCo term, the Fisher-Rao norm of the weights and the loss, after a short warm-up.

"SiGeo: Sub-One-Shot NAS via Geometry of Loss Landscape" (arXiv 2311.13169):

    SiGeo = lambda1 * sum_l log( sum_i mean|g_i| / std(g_i) )  +  lambda2 * fr  -  lambda3 * loss

The published code has two versions that differ from each other and from the paper; each preset is
one of them, and the three terms are always reported beside the score.

=====================  =========================================================================
sigeo_cv_official      gradient steps of lr 1 between the batches; population std; fr = 2 log(
                       sum_l |<G_l, theta_l>| + 1e-5) with G the sum of the batches' gradients and
                       theta the weights after the last step; layers without ratio count in neither
sigeo_recsys_official  gradients of all parameters clipped to norm 5, Adagrad steps; unbiased std;
                       fr = log(|sum_l <G_l, theta_l>| + 1e-10); over all coordinates, where the
                       published index takes only the first
sigeo_recsys_buggy     that code to the letter: first coordinate, and layers that print alike
                       merged; only to compare with numbers it gave
sigeo_paper            no steps; fr = log of the Fisher-Rao norm, sqrt(mean_b <theta, g_b>^2) over
                       all parameters and samples; whether the paper squares it is not settled,
                       which is a factor 2 in lambda2
=====================  =========================================================================

The loss is that of the last batch, before its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sigeo.capture import SGD, ClippedAdagrad, GradientStatistics, Request
from sigeo.capture.steps import LARGEST_STEP
from sigeo.errors import InputError
from sigeo.proxies.base import OnStatistics, Outcome, Proxy
from sigeo.proxies.registry import register
from sigeo.proxies.zico import ratio_term

LAMBDAS = (1.0, 1.0, 0.0)
"""Of the published code for networks that have not been warmed up, and ours on a supernet."""

LAMBDAS_WARMED = (1.0, 50.0, 1.0)
"""Of the published code for networks each warmed up alone."""

_SOURCE = "arXiv 2311.13169; published code"

TermsAndNotes = tuple[float, float, tuple[str, ...]]
Terms = Callable[[nn.Module, GradientStatistics], TermsAndNotes]


def _cv_terms(model: nn.Module, statistics: GradientStatistics) -> TermsAndNotes:
    zico, counted, notes = ratio_term(statistics.summary.ratio)
    inner = statistics.summary.inner[counted].abs().sum()
    return zico, 2 * float((inner + 1e-5).log()), notes


def _recsys_terms(model: nn.Module, statistics: GradientStatistics) -> TermsAndNotes:
    zico, _, notes = ratio_term(statistics.summary.ratio)
    return zico, float((statistics.summary.inner.sum().abs() + 1e-10).log()), notes


def _paper_terms(model: nn.Module, statistics: GradientStatistics) -> TermsAndNotes:
    zico, _, notes = ratio_term(statistics.summary.ratio)
    assert statistics.sample_inner is not None
    return zico, float(statistics.sample_inner.square().mean().sqrt().log()), notes


def _buggy_terms(model: nn.Module, statistics: GradientStatistics) -> TermsAndNotes:
    assert statistics.weights is not None
    gradients: dict[str, list[Tensor]] = {}
    weights: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        if any(True for _ in module.children()):
            continue
        for name, _ in module.named_parameters(recurse=False):
            place = f"{prefix}.{name}" if prefix else name
            for unit in statistics.rows:
                gradient = unit.get(place)
                if gradient is not None:
                    flat = gradient.flatten()
                    key = f"{module}{flat.shape}"
                    gradients.setdefault(key, []).append(flat)
                    weights[key] = statistics.weights[place].flatten()
    zico, inner = first_coordinate_terms(gradients, weights)
    notes = ("a layer has no gradient that varies",) if math.isnan(zico) else ()
    return zico, math.log(abs(inner) + 1e-10), notes


def first_coordinate_terms(
    gradients: dict[str, list[Tensor]], weights: dict[str, Tensor]
) -> tuple[float, float]:
    """The ZiCo term of the first varying coordinate of each key, and <G, theta> of all.

    Args:
        gradients: Flat gradients of each key, one a batch.
        weights: Flat weights of each key.

    Returns:
        The sum of logs, NaN if a key has no coordinate that varies (the published code stops
        there), and the sum over keys of the inner products.
    """
    zico = inner = 0.0
    for key, rows in gradients.items():
        stacked = torch.stack(rows)
        std = stacked.std(0)
        varying = torch.nonzero(std)
        if len(varying) == 0:
            zico = math.nan
        else:
            first = int(varying[0])
            zico += math.log(float(stacked[:, first].abs().mean() / std[first]))
        inner += float((stacked.sum(0) * weights[key]).sum())
    return zico, inner


_PRESETS: dict[str, tuple[Terms, Request]] = {
    "sigeo_cv_official": (_cv_terms, Request(steps=SGD(1.0))),
    "sigeo_recsys_official": (
        _recsys_terms,
        Request(selection="all", steps=ClippedAdagrad(), ddof=1),
    ),
    "sigeo_recsys_buggy": (
        _buggy_terms,
        Request(selection="all", steps=ClippedAdagrad(), ddof=1, rows=True),
    ),
    "sigeo_paper": (_paper_terms, Request(samples=True)),
}


def checked_lambdas(lambdas: Sequence[float]) -> list[float]:
    """The weights of the three terms.

    Raises:
        InputError: Not three finite numbers.
    """
    if len(lambdas) != 3 or not all(math.isfinite(value) for value in lambdas):
        raise InputError(f"lambdas: expected three finite numbers, got {list(lambdas)}")
    return [float(value) for value in lambdas]


def combined(
    lambdas: Sequence[float], zico: float, fr: float, loss: float, notes: tuple[str, ...]
) -> Outcome:
    """The score of three terms; a term with weight 0 is left out, so that it may be infinite."""
    one, two, three = lambdas
    parts = [(one, zico), (two, fr), (-three, loss)]
    value = sum(weight * term for weight, term in parts if weight != 0)
    if not math.isfinite(loss):
        value = math.nan
        notes = (*notes, f"the loss of the last batch is {loss}")
    return Outcome(value, {"zico": zico, "fr": fr, "loss": loss}, notes)


def _make(preset: str, lambdas: Sequence[float], name: str, inner_lr: float | None) -> Proxy:
    terms, request = _PRESETS[preset]
    weights = checked_lambdas(lambdas)
    options: dict[str, object] = {"preset": preset, "lambdas": weights}
    if inner_lr is not None:
        if not isinstance(request.steps, SGD):
            raise InputError(f"inner_lr: only sigeo_cv_official has one, got preset {preset}")
        if not 0 <= inner_lr <= LARGEST_STEP:
            raise InputError(f"inner_lr: must be from 0 to {LARGEST_STEP:g}, got {inner_lr}")
        request = replace(request, steps=SGD(inner_lr) if inner_lr > 0 else None)
        options["inner_lr"] = float(inner_lr)

    def function(model: nn.Module, statistics: GradientStatistics) -> Outcome:
        zico, fr, notes = terms(model, statistics)
        return combined(weights, zico, fr, float(statistics.losses[-1]), notes)

    return Proxy(
        name=name,
        measurement=OnStatistics(function, request, reads_model=terms is _buggy_terms),
        source=_SOURCE,
        cost="batches",
        labels=True,
        options=options,
        # Products with single samples' gradients take a forward pass more.
        images=lambda sizes: (sum(sizes), sum(sizes) if request.samples else 0),
    )


@register("sigeo")
def sigeo(
    *,
    preset: str = "sigeo_cv_official",
    lambdas: Sequence[float] = LAMBDAS,
    inner_lr: float | None = None,
) -> Proxy:
    """SiGeo by a named preset.

    Args:
        preset: See the module's table.
        lambdas: Weights of the ZiCo term, of the Fisher-Rao term and of minus the loss.
        inner_lr: Step size between the batches, where sigeo_cv_official takes 1; 0 for no steps.

    Raises:
        InputError: No preset of that name, not three finite numbers, or a step size that the
            preset does not have.
    """
    if preset not in _PRESETS:
        raise InputError(f"preset must be one of {', '.join(_PRESETS)}, got {preset!r}")
    return _make(preset, lambdas, "sigeo", inner_lr)


def _register_preset(preset: str) -> None:
    @register(preset)
    def factory(*, lambdas: Sequence[float] = LAMBDAS, inner_lr: float | None = None) -> Proxy:
        return _make(preset, lambdas, preset, inner_lr)


for _preset in _PRESETS:
    _register_preset(_preset)
