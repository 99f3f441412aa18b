r"""Whether options pull shared weights the same way.

With G_i the gradient that option i alone on the choice gives, and R repetitions of a batch and a
drawn path through the other choices,

.. math:: D_{ij} = \frac{1}{R} \sum_r 1 - \frac{\langle G_i, G_j \rangle}
    {\lVert G_i \rVert \lVert G_j \rVert + 10^{-6}}

(Hu et al., "Generalizing Few-Shot NAS with Gradient Matching", ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sigeo.capture import LossFunction, batch_loss
from sigeo.errors import InputError
from sigeo.fewshot.metrics.base import NamedWeights, Subject
from sigeo.fewshot.partition import Relation
from sigeo.spaces import Stack
from sigeo.supernet import Budget
from sigeo_ext import gram

_EPSILON = 1e-6


@dataclass(frozen=True)
class GradientMatching:
    """Distances of the gradients of shared weights.

    All options of a repetition go in one pass. A weight that an option does not use has a zero
    gradient; ``none``, which may leave no gradient at all, is then at distance 1 from the others.
    Products are summed in float64, tensor by tensor.

    Attributes:
        repeats: R (published: 100).
        measure: "cosine" as above; "filter" for the mean distance of the output channels of all
            weights that some option has a gradient of; "squared" for the squared distance of the
            gradients.
        objective: "loss", or "logits" for the sum of all outputs.
        ends: Whether weights outside the searched part count (the published code for NAS-Bench-201
            leaves stem and classifier out).
        own: Whether weights of the compared options themselves count.
        selection: "layers" for weights of convolutions and linear layers, as the published
            networks have no other; "all" for norms and biases as well.
        loss_fn: (output, labels) to the mean loss of a batch.
    """

    repeats: int = 100
    measure: Literal["cosine", "filter", "squared"] = "cosine"
    objective: Literal["loss", "logits"] = "loss"
    ends: bool = False
    own: bool = False
    selection: Literal["layers", "all"] = "layers"
    loss_fn: LossFunction = nn.functional.cross_entropy
    initial_weights: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: No repetition, or an unknown measure, objective or selection.
        """
        for name, known in (("objective", ("loss", "logits")), ("selection", ("layers", "all"))):
            if getattr(self, name) not in known:
                raise InputError(
                    f"gradient_matching: {name} must be {' or '.join(known)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.repeats < 1:
            raise InputError(f"{self.name}: repeats must be at least 1, got {self.repeats}")
        if self.measure not in ("cosine", "filter", "squared"):
            raise InputError(
                f"{self.name}: measure must be cosine, filter or squared, got {self.measure!r}"
            )

    @property
    def name(self) -> str:
        """As on the command line."""
        return "gradient_matching" if self.objective == "loss" else "gradient_matching_logits"

    def __call__(self, subject: Subject[Any]) -> Relation:
        """The distances, or of summed logits the cosines as similarities.

        Raises:
            InputError: The supernet does not name its weights, or a gradient is not finite.
        """
        total = torch.zeros(
            len(subject.options), len(subject.options), dtype=torch.float64, device="cpu"
        )
        for repetition in range(self.repeats):
            gradients = list(self._gradients(subject, repetition))
            total += self._distances(gradients, len(subject.options)).cpu()
        if not bool(total.isfinite().all()):
            raise InputError(f"{self.name}: gradients on {subject.name} are not finite")
        distances = total / self.repeats
        if self.objective == "logits" and self.measure != "squared":
            return Relation.of((1 - distances).tolist(), "similarity")
        return Relation.of(distances.tolist(), "distance")

    def cost(self, subject: Subject[Any]) -> Budget:
        """A pass an option and repetition."""
        return Budget(trained=subject.images(self.repeats))

    def check(self, subject: Subject[Any]) -> None:
        """See `sigeo.fewshot.metrics.base.check`.

        Raises:
            InputError: The supernet does not name its weights, or options use parts of one.
        """
        self._left_out(subject)
        self._whole(subject, subject.networks().stack(subject.paths(0)))

    def _gradients(self, subject: Subject[Any], repetition: int) -> Iterator[list[Tensor | None]]:
        """One list a weight: its gradient from each option, None for zeros.

        Yields:
            The weights that count, in the supernet's order.
        """
        supernet = subject.networks()
        left_out = self._left_out(subject)
        with torch.inference_mode(False), torch.enable_grad():
            stack: Stack = supernet.stack(subject.paths(repetition))
            inputs, labels = subject.batch(repetition)
            outputs = stack(inputs)
            value = outputs.sum()
            if self.objective == "loss":
                losses = [batch_loss(self.loss_fn, output, labels) for output in outputs]
                value = torch.stack(losses).sum()
            value.backward()
        for name, weight in self._whole(subject, stack).items():
            chosen = self.selection == "all" or name in stack.layers
            if chosen and name not in left_out and weight.grad is not None:
                by_option = dict(zip(stack.members[name], weight.grad.unbind(0), strict=True))
                yield [by_option.get(option) for option in range(len(subject.options))]

    def _whole(self, subject: Subject[Any], stack: Stack) -> dict[str, nn.Parameter]:
        """The weights of a stack.

        Raises:
            InputError: Options use parts of one weight.
        """
        weights: dict[str, nn.Parameter] = {}
        for name, weight in stack.weights.items():
            if not isinstance(weight, nn.Parameter):
                raise InputError(
                    f"{self.name}: options of {subject.space.name} use parts of one weight, whose "
                    "gradients lie in other places; expected a space of whole weights"
                )
            weights[name] = weight
        return weights

    def _left_out(self, subject: Subject[Any]) -> frozenset[str]:
        """Names of the weights that do not count.

        Raises:
            InputError: The supernet does not know.
        """
        supernet = subject.networks()
        if self.own and self.ends:
            return frozenset()
        if not isinstance(supernet, NamedWeights):
            raise InputError(
                f"{self.name}: does not serve {subject.space.name}, whose supernet does not say "
                "which weights belong to a choice; a proxy such as zico does"
            )
        own = frozenset() if self.own else supernet.choice_weights(subject.place)
        ends = frozenset() if self.ends else supernet.end_weights()
        return own | ends

    def _distances(self, gradients: list[list[Tensor | None]], count: int) -> Tensor:
        """[o, o] of one repetition."""
        if self.measure == "filter":  # whose mean a weight without any gradient would change
            gradients = [tensors for tensors in gradients if any(map(_moves, tensors))]
        if not gradients:
            zeros = torch.zeros(count, count, dtype=torch.float64, device="cpu")
            return zeros if self.measure == "squared" else zeros + 1
        if self.measure == "filter":
            return 1 - torch.cat([_filter_cosines(tensors) for tensors in gradients]).mean(0)
        vectors = [[tensors[option] for tensors in gradients] for option in range(count)]
        if self.measure == "squared":
            return gram.sq_distance(vectors)
        products = gram.dot(vectors)
        lengths = products.diagonal().sqrt()
        return 1 - products / (lengths[:, None] * lengths + _EPSILON)


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def _filter_cosines(tensors: list[Tensor | None]) -> Tensor:
    """Cosines of each output channel's part, [channels, o, o]."""
    like = next(tensor for tensor in tensors if tensor is not None)
    filled = [torch.zeros_like(like) if tensor is None else tensor for tensor in tensors]
    channels = len(like) if like.dim() else 1
    parts = torch.stack(filled).double().reshape(len(filled), channels, -1)
    parts = parts.transpose(0, 1)  # [channels, o, *]
    lengths = parts.norm(dim=2)
    cosines: Tensor = (parts @ parts.mT) / (lengths[:, :, None] * lengths[:, None] + _EPSILON)
    return cosines


def gradient_matching_logits(repeats: int = 1, **options: Any) -> GradientMatching:
    """Cosines of the gradients of summed logits, of all weights (Ly-Manson et al., AutoML 2024).

    Args:
        repeats: As of `GradientMatching` (published: 1).
        **options: Others of `GradientMatching`.
    """
    options = {"objective": "logits", "ends": True, "own": True, **options}
    return GradientMatching(repeats, **options)
