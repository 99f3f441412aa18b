"""Proxies of single samples' gradients: zico_sample, sigeo_sample, gradsign, Fisher, noise.

All from one backward pass over the first batch. Where batch norm uses the batch's statistics, a
sample has no gradient of its own; what counts is its contribution to the batch's gradient, unless
``batch_norm`` says otherwise. The model is in the mode that it was given in: in eval mode batch
norm uses its running statistics, and nothing is dropped. Layers are the weights of convolutions and
linear layers.

====================  ==========================================================================
zico_sample           ZiCo's formula with samples in the place of batches: many units, less noise
sigeo_sample          lambda1 * zico_sample + lambda2 * log sqrt(mean_b <theta, g_b>^2) - lambda3 *
                      loss, the second term over all parameters
gradsign              mean over coordinates of |sum_b sign(g_b)|: do the samples agree?
fisher_trace          mean_b of the squared norm of g_b: the trace of the empirical Fisher matrix
diag_fisher           sum_i theta_i^2 F_ii / 2 with F_ii = mean_b g_bi^2: what the loss would gain,
                      to second order, by the removal of each weight alone, added up
gradient_noise_scale  tr(covariance of g) / |expected g|^2, both without bias; lower is better
====================  ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sigeo.capture import BatchNormPolicy, SampleStatistics, select
from sigeo.proxies.base import OnSamples, Outcome, Proxy
from sigeo.proxies.registry import register
from sigeo.proxies.sigeo import LAMBDAS, checked_lambdas, combined
from sigeo.proxies.zico import ratio_term
from sigeo_ext import moments
from sigeo_ext.sample_moments import SampleMoments

_RATIO = frozenset({"sum", "abs_sum", "m2"})


def _layers(model: nn.Module, statistics: SampleStatistics) -> list[SampleMoments]:
    served = set(statistics.keys())
    return [statistics[name] for name in select(model, "layers") if name in served]


def _ratio(model: nn.Module, statistics: SampleStatistics) -> tuple[float, tuple[str, ...]]:
    """ZiCo's term over the samples, and its notes."""
    count = statistics.units
    states: list[list[Tensor]] = [[], [], []]
    for found in _layers(model, statistics):
        assert found.abs_sum is not None and found.sum is not None and found.m2 is not None
        for state, value in zip(states, (found.abs_sum, found.sum / count, found.m2), strict=True):
            state.append(value)
    term, _, notes = ratio_term(moments.summary(*states, count=count).ratio)
    return term, notes


def _zico(model: nn.Module, statistics: SampleStatistics, loss: float) -> Outcome:
    value, notes = _ratio(model, statistics)
    return Outcome(value, {"zico": value}, notes)


def _gradsign(model: nn.Module, statistics: SampleStatistics, loss: float) -> Outcome:
    signs = [found.sign_sum for found in _layers(model, statistics)]
    total = sum(float(s.abs().sum(dtype=torch.float64)) for s in signs if s is not None)
    coordinates = sum(s.numel() for s in signs if s is not None)
    return Outcome(total / coordinates if coordinates else math.nan)


def _fisher_trace(model: nn.Module, statistics: SampleStatistics, loss: float) -> Outcome:
    return Outcome(float(statistics.sample_sq_norm.mean()))


def _diag_fisher(model: nn.Module, statistics: SampleStatistics, loss: float) -> Outcome:
    parameters = dict(model.named_parameters())
    total = 0.0
    for name in statistics.keys():  # noqa: SIM118  (the mapping computes its values)
        squares = statistics[name].sq_sum
        assert squares is not None
        theta = parameters[name].detach()
        if squares.is_sparse:  # rows that no sample touched have none
            theta, squares = theta[squares.indices()[0]], squares.values()
        total += float((theta.double().square() * squares).sum())
    return Outcome(total / (2 * statistics.units))


def _noise_scale(model: nn.Module, statistics: SampleStatistics, loss: float) -> Outcome:
    count = statistics.units
    if count < 2:
        return Outcome(math.nan, {}, ("one sample has no variance",))
    deviation = square = 0.0
    for name in statistics.keys():  # noqa: SIM118  (the mapping computes its values)
        found = statistics[name]
        assert found.m2 is not None and found.sum is not None
        deviation += float(_dense(found.m2).sum(dtype=torch.float64))
        square += float((_dense(found.sum).double() / count).square().sum())
    variance = deviation / (count - 1)
    signal = square - variance / count
    terms = {"variance": variance, "signal": signal}
    if signal <= 0:
        return Outcome(math.nan, terms, ("the samples' gradients are all noise",))
    return Outcome(variance / signal, terms)


def _dense(values: Tensor) -> Tensor:
    """What is stored; the rest is zero."""
    return values.values() if values.is_sparse else values


def _proxy(name: str, measurement: OnSamples, source: str, **options: object) -> Proxy:
    return Proxy(
        name=name,
        measurement=measurement,
        source=source,
        cost="backward",
        labels=True,
        options={"batch_norm": measurement.batch_norm, **options},
    )


@register("zico_sample")
def zico_sample(*, batch_norm: BatchNormPolicy = "contribution") -> Proxy:
    """ZiCo over the samples of one batch."""
    source = "Li et al., ICLR 2023, section 3, with samples for batches"
    return _proxy("zico_sample", OnSamples(_zico, _RATIO, batch_norm, "layers"), source)


@register("sigeo_sample")
def sigeo_sample(
    *, lambdas: Sequence[float] = LAMBDAS, batch_norm: BatchNormPolicy = "contribution"
) -> Proxy:
    """SiGeo as in the paper, all three terms from the samples of one batch.

    Raises:
        InputError: Not three finite lambdas.
    """
    weights = checked_lambdas(lambdas)

    def function(model: nn.Module, statistics: SampleStatistics, loss: float) -> Outcome:
        zico, notes = _ratio(model, statistics)
        fr = float(statistics.fisher_rao.square().mean().sqrt().log())
        return combined(weights, zico, fr, loss, notes)

    measurement = OnSamples(function, _RATIO | {"fisher_rao"}, batch_norm)
    return _proxy("sigeo_sample", measurement, "arXiv 2311.13169", lambdas=weights)


@register("gradsign")
def gradsign(*, batch_norm: BatchNormPolicy = "contribution") -> Proxy:
    """GradSign: agreement of the samples' gradient signs."""
    measurement = OnSamples(_gradsign, frozenset({"sign_sum"}), batch_norm, "layers")
    proxy = _proxy("gradsign", measurement, "Zhang and Jia, ICLR 2022, section 4")
    return replace(proxy, whole_network=True)  # unreached coordinates count in the mean


@register("fisher_trace")
def fisher_trace(*, batch_norm: BatchNormPolicy = "contribution") -> Proxy:
    """Trace of the empirical Fisher matrix, over all parameters."""
    measurement = OnSamples(_fisher_trace, frozenset({"sample_sq_norm"}), batch_norm)
    return _proxy("fisher_trace", measurement, "Kunstner et al., NeurIPS 2019, section 2")


@register("diag_fisher")
def diag_fisher(*, batch_norm: BatchNormPolicy = "contribution") -> Proxy:
    """Fisher pruning's saliency of all weights: the diagonal of the matrix at the weights."""
    measurement = OnSamples(_diag_fisher, frozenset({"sq_sum"}), batch_norm)
    return _proxy("diag_fisher", measurement, "Theis et al., arXiv 1801.05787 (Fisher pruning)")


@register("gradient_noise_scale")
def gradient_noise_scale(*, batch_norm: BatchNormPolicy = "contribution") -> Proxy:
    """The simple noise scale, over all parameters."""
    measurement = OnSamples(_noise_scale, frozenset({"sum", "m2"}), batch_norm)
    source = "McCandlish et al., arXiv 1812.06162, section 2.2"
    return replace(_proxy("gradient_noise_scale", measurement, source), direction=-1)
