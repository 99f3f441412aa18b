"""A layer on a batch and on single samples, in float64, always from the same state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Rows = dict[str, Tensor]
"""Each parameter's gradients, [samples, *shape]."""


def tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def cast(inputs: Sequence[Any], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(
        t.detach().to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t
        for t in inputs
    )


@dataclass(frozen=True)
class Part:
    """Where one sample's part of an output is: of a dimension, ``each`` entries of every sample.

    One sample's are neighbours, or else the samples take turns.
    """

    dim: int
    each: int
    neighbours: bool

    def of(self, output: Tensor, sample: int) -> Tensor:
        """The part of one sample."""
        count = output.shape[self.dim] // self.each
        if self.neighbours:
            return output.narrow(self.dim, sample * self.each, self.each)
        index = torch.arange(sample, output.shape[self.dim], count, device=output.device)
        return output.index_select(self.dim, index)


class NoSamples(Exception):
    """An output has no dimension that grows with the samples."""


class Case:
    """A layer in float64, on the batch and on single samples, always from the same state."""

    def __init__(self, layer: nn.Module, inputs: tuple[Any, ...], batch_dim: int, count: int):
        self.layer, self.inputs, self.batch_dim, self.count = layer, inputs, batch_dim, count
        self.parameters = {n: p for n, p in layer.named_parameters() if p.requires_grad}
        self.start = copy.deepcopy(layer)

    def outputs(self, sample: int | None = None, *, seed: int = 0, again: bool = False) -> Any:
        """The outputs of the batch or of one sample; ``again`` from where the last call ended."""
        if not again:
            self.layer = copy.deepcopy(self.start)
            self.parameters = {n: p for n, p in self.layer.named_parameters() if p.requires_grad}
        torch.manual_seed(seed)
        output = self.layer(*(t if sample is None else self._one(t, sample) for t in self.inputs))
        return [t for t in tensors_in(output) if t.is_floating_point()]

    def _one(self, value: Any, sample: int) -> Any:
        if isinstance(value, Tensor) and value.dim() > self.batch_dim:
            return value.narrow(self.batch_dim, sample, 1)
        return value

    @torch.no_grad()
    def parts(self) -> tuple[list[Part], Tensor]:
        """Where the samples are in each output, and how far each is from its own, run alone.

        Raises:
            NoSamples: Nobody can say.
        """
        whole = self.outputs()
        alone = [self.outputs(sample) for sample in range(self.count)]
        found, distances = [], torch.zeros(self.count, dtype=torch.float64, device="cpu")
        for index, output in enumerate(whole):
            singles = [outputs[index] for outputs in alone]
            candidates = [
                (part, _distances(output, singles, part))
                for part in self._candidates(output.shape, singles[0].shape)
            ]
            part, distance = min(candidates, key=lambda pair: float(pair[1].max()))
            found.append(part)
            distances = torch.maximum(distances, distance)
        return found, distances

    def _candidates(self, whole: torch.Size, single: torch.Size) -> list[Part]:
        grown = [d for d, (a, b) in enumerate(zip(whole, single, strict=False)) if a != b]
        fits = len(whole) == len(single) and len(grown) == 1
        if not fits or whole[grown[0]] != self.count * single[grown[0]]:
            raise NoSamples(
                f"an output of shape {list(whole)} is {list(single)} for one sample alone, so no "
                "dimension of it is the samples'"
            )
        dim, each = grown[0], single[grown[0]]
        return [Part(dim, each, True)] + ([Part(dim, each, False)] if each > 1 else [])

    def gradients(self, parts: Sequence[Part], weights: Sequence[Tensor]) -> Rows:
        """Each sample's gradients of the inner product of its outputs with its weights."""
        rows: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        for sample in range(self.count):
            outputs = self.outputs(sample)
            pairs = [
                (output, part.of(weight, sample))
                for output, part, weight in zip(outputs, parts, weights, strict=True)
                if output.requires_grad
            ]
            found: Sequence[Tensor | None] = [None] * len(rows)
            if pairs:
                found = torch.autograd.grad(
                    [output for output, _ in pairs],
                    list(self.parameters.values()),
                    [weight for _, weight in pairs],
                    allow_unused=True,
                )
            for (name, parameter), gradient in zip(self.parameters.items(), found, strict=True):
                rows[name].append(
                    torch.zeros_like(parameter) if gradient is None else gradient.to_dense()
                )
        return {name: torch.stack(gradients).detach() for name, gradients in rows.items()}


def _distances(whole: Tensor, singles: Sequence[Tensor], part: Part) -> Tensor:
    """How far each sample is from its own run alone, by the norm of the whole a sample."""
    scale = float(whole.norm()) / len(singles) ** 0.5
    apart = [float((part.of(whole, b) - single).norm()) for b, single in enumerate(singles)]
    return torch.tensor(apart, dtype=torch.float64, device="cpu") / (scale or 1.0)
