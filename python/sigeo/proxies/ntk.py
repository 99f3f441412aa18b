"""Proxies of the neural tangent kernel: ntk_min_eig, ntk_cond.

The kernel is that of f = the sum of the outputs, over the weights of convolutions and linear layers
(`sigeo.capture.ntk`), of the first ``samples`` inputs of each of ``batches`` batches; eigenvalues
and condition number are means over the batches. Where batch norm uses the batch's statistics, rows
are the samples' contributions to the batch's gradient, unless ``batch_norm`` says otherwise; the
published code takes the whole batch's gradient of each sample's output instead, a backward pass a
sample: ``batch_norm="coupled"``. The model is in the mode that it was given in.

A smallest eigenvalue below ``samples * eps * largest`` is rounding: it stands at that bound, and a
note says that it is unresolved.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sigeo.capture import NTKBatchNorm, ntk, select
from sigeo.errors import InputError
from sigeo.proxies.base import OnInputs, Outcome, Proxy
from sigeo.proxies.passes import first_samples
from sigeo.proxies.registry import register
from sigeo_ext import gram

_TERMS = ("smallest", "largest", "trace", "condition")


def _proxy(
    name: str, term: str, source: str, samples: int, batches: int, batch_norm: NTKBatchNorm
) -> Proxy:
    """One of the terms as a proxy.

    Raises:
        InputError: Fewer than two samples, or no batch.
    """
    if samples < 2:
        raise InputError(f"samples: a kernel needs at least 2, got {samples}")
    if batches < 1:
        raise InputError(f"batches: must be at least 1, got {batches}")

    def function(model: nn.Module, inputs: Sequence[Any]) -> Outcome:
        dtypes = [p.dtype for p in select(model, "layers").values() if p.requires_grad]
        if not dtypes:
            return Outcome(math.nan, {}, ("no weight of a layer asks for a gradient",))
        found = []
        for batch in inputs:
            some = first_samples(batch, samples)
            kernel = ntk(model, some, params="layers", batch_norm=batch_norm)
            found.append(gram.spectrum(kernel, dtypes[0]))
        terms = {t: math.fsum(getattr(s, t) for s in found) / len(found) for t in _TERMS}
        unresolved = sum(not s.resolved for s in found)
        note = f"smallest eigenvalue unresolved in {unresolved} of {len(found)} batches"
        return Outcome(terms[term], terms, (note,) if unresolved else ())

    def images(sizes: Sequence[int]) -> tuple[int, int]:
        taken = [min(size, samples) for size in sizes[:batches]]
        passes = [size if batch_norm == "coupled" else 1 for size in taken]  # one a sample
        return sum(map(operator.mul, taken, passes)), 0

    options = {"samples": samples, "batches": batches, "batch_norm": batch_norm}
    measurement = OnInputs(function, batches)
    return Proxy(name, measurement, source, cost="batches", options=options, images=images)


@register("ntk_min_eig")
def ntk_min_eig(
    *, samples: int = 32, batches: int = 3, batch_norm: NTKBatchNorm = "contribution"
) -> Proxy:
    """Smallest eigenvalue of the kernel: large where gradient descent learns fast."""
    source = "Zhu et al., NeurIPS 2022 (arXiv 2209.07238), section 3"
    return _proxy("ntk_min_eig", "smallest", source, samples, batches, batch_norm)


@register("ntk_cond")
def ntk_cond(
    *, samples: int = 32, batches: int = 3, batch_norm: NTKBatchNorm = "contribution"
) -> Proxy:
    """Condition number of the kernel, lower is better."""
    source = "Chen et al., ICLR 2021 (TE-NAS), section 3.1"
    proxy = _proxy("ntk_cond", "condition", source, samples, batches, batch_norm)
    return replace(proxy, direction=-1)
