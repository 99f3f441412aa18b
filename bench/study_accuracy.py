"""How exact the statistics of single samples are where float32 is under stress.

    python -m bench.study_accuracy

Each case gives a linear layer and a convolution inputs and output gradients; the judge is float64
on the same values. Errors are ``||difference|| / ||exact||`` of each statistic, of the kernels and
of plain torch in float32 on materialised per-sample gradients, with the variance both in two passes
and as E[g^2] - E[g]^2. Results go to bench/results/accuracy.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bench.harness import write_study
from sigeo_ext import gram, sample_moments
from sigeo_ext.testing import error_ratio

Layer = Literal["linear", "convolution"]
Values = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
LAYERS: tuple[Layer, ...] = ("linear", "convolution")
STATISTICS = (*sample_moments.STATISTICS, "gram")
KERNEL, CHANNELS = 3, (8, 16)  # of the convolution; in and out of both layers


@dataclass(frozen=True)
class Case:
    """Values that are hard to add up.

    Attributes:
        name: In the table.
        samples: How many.
        side: Of the image; a linear layer has its square of positions.
        values: Makes them of normal inputs and output gradients [samples, channels, side, side].
        dtype: That they are rounded to.
        outputs: Output channels whose errors are also given alone.
    """

    name: str
    samples: int = 64
    side: int = 8
    values: Values = lambda x, d: (x, d)
    dtype: torch.dtype = torch.float32
    outputs: slice | None = None


def _scales(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients near 1e4 in the first half of the output channels, near 1e-8 in the other."""
    scale = torch.full((d.shape[1], 1, 1), 1e4, dtype=d.dtype)
    scale[d.shape[1] // 2 :] = 1e-8
    return x, d * scale / d.shape[-1]


def _alike(spread: float) -> Values:
    """All samples have the first one's gradient, but for a small part."""

    def values(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        factor = 1 + spread * torch.randn(len(x), 1, 1, 1, dtype=x.dtype)
        return x[:1] * factor, d[:1].expand_as(d)

    return values


def _outlier(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The first sample's gradient, from which deviations are taken, is far from all others."""
    scale = torch.ones(len(x), 1, 1, 1, dtype=x.dtype)
    scale[0] = 1e3
    return x, d * scale


CASES = (
    Case("normal values"),
    Case("1,000,000 positions", samples=4, side=1000),
    Case("4,096 samples", samples=4096, side=4),
    Case("gradients of 1e4 beside 1e-8", values=_scales, outputs=slice(CHANNELS[1] // 2, None)),
    Case("samples alike to 1e-2", values=_alike(1e-2)),
    Case("samples alike to 1e-4", values=_alike(1e-4)),
    Case("first sample 1,000 times the others", samples=256, values=_outlier),
    Case("bfloat16 inputs", dtype=torch.bfloat16),
    Case("float16 inputs", dtype=torch.float16),
)


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Input and output gradient, [samples, channels, side, side]."""
    generator = torch.Generator().manual_seed(0)
    x, d = (
        torch.randn(case.samples, channels, case.side, case.side, generator=generator).double()
        for channels in CHANNELS
    )
    torch.manual_seed(0)
    x, d = case.values(x, d)
    return x.to(case.dtype), d.to(case.dtype)


def tokens(images: Tensor) -> Tensor:
    """[samples, channels, side, side] as [samples, positions, channels]."""
    return images.flatten(2).transpose(1, 2).contiguous()


def of_kernels(layer: Layer, x: Tensor, d: Tensor) -> dict[str, Tensor]:
    """All statistics by the kernels."""
    want = sample_moments.STATISTICS
    if layer == "linear":
        x, d = tokens(x), tokens(d)
        found = sample_moments.linear(x, d, want=want)._asdict()
        return found | {"gram": gram.linear(x, d)}
    size, padding = (KERNEL, KERNEL), KERNEL // 2
    found = sample_moments.convolution(x, d, size, padding=padding, want=want)._asdict()
    return found | {"gram": gram.convolution(x, d, size, padding=padding)}


def gradients(layer: Layer, x: Tensor, d: Tensor) -> Tensor:
    """Per-sample gradients by plain torch, [samples, outputs, ...]."""
    if layer == "linear":
        return tokens(d).transpose(1, 2) @ tokens(x)
    shape = (d.shape[1], x.shape[1], KERNEL, KERNEL)
    rows = [
        torch.nn.grad.conv2d_weight(a[None], shape, b[None], padding=KERNEL // 2)
        for a, b in zip(x, d, strict=True)
    ]
    return torch.stack(rows)


def of_gradients(g: Tensor) -> dict[str, Tensor]:
    """All statistics by their definitions; ``m2, naive`` as a difference of means."""
    rows = g.flatten(1)
    return {
        "sum": g.sum(0),
        "abs_sum": g.abs().sum(0),
        "sq_sum": (g * g).sum(0),
        "m2": (g - g.mean(0)).square().sum(0),
        "sign_sum": g.sign().sum(0),
        "sq_norm": (rows * rows).sum(1),
        "gram": rows @ rows.t(),
        "m2, naive": len(g) * ((g * g).mean(0) - g.mean(0).square()),
    }


def entries(case: Case, layer: Layer) -> list[dict[str, Any]]:
    """The errors of a case: of everything, and of some output channels alone."""
    x, d = inputs(case)
    exact = of_gradients(gradients(layer, x.double(), d.double()))
    ours = of_kernels(layer, x, d)
    theirs = of_gradients(gradients(layer, x.float(), d.float()))
    naive = theirs.pop("m2, naive")

    def entry(name: str, part: Callable[[str, Tensor], Tensor], of: tuple[str, ...]) -> Any:
        def errors(found: dict[str, Tensor]) -> dict[str, float]:
            return {s: error_ratio(part(s, found[s]), part(s, exact[s])) for s in of}

        naive_m2 = error_ratio(part("m2", naive), part("m2", exact["m2"]))
        return {
            "layer": layer,
            "case": name,
            "kernels": errors(ours),
            "torch": errors(theirs),
            "naive m2": naive_m2,
        }

    result = [entry(case.name, lambda _, value: value, STATISTICS)]
    if case.outputs is not None:
        chosen = tuple(s for s in STATISTICS if s not in ("sq_norm", "gram"))
        some = case.outputs
        name = f"{case.name}, the latter alone"
        result.append(entry(name, lambda _, value: value[some], chosen))
    return result


def main() -> int:
    """Measure all cases and write the results."""
    torch.set_num_threads(1)
    found = []
    for case in CASES:
        for layer in LAYERS:
            for entry in entries(case, layer):
                found.append(entry)
                errors = "  ".join(f"{s} {e:.1e}" for s, e in entry["kernels"].items())
                print(f"{layer}, {entry['case']}: {errors}", flush=True)
                errors = "  ".join(f"{s} {e:.1e}" for s, e in entry["torch"].items())
                print(f"    torch: {errors}  naive m2 {entry['naive m2']:.1e}", flush=True)
    write_study("accuracy", "study_accuracy", {"entries": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
