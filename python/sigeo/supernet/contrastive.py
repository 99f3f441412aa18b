"""Cross-path learning without labels (Peng et al., Pi-NAS, ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigeo.capture.state import device_of
from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.spaces import Supernet
from sigeo.supernet.distillation import positive
from sigeo.supernet.pinas import TwoPaths
from sigeo.supernet.settings import Augment, Batch


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float = 0.2) -> Tensor:
    """Cross-entropy of each query's own key among its key and a queue of negatives.

    The logits are ``[q.k, q.Q] / T``; the first is the right one (van den Oord et al., 2018).
    Nothing flows to keys and queue.

    Args:
        queries: [B, D].
        keys: [B, D], each the positive of the query of its row.
        queue: [Q, D].
        temperature: T.
    """
    right = (queries * keys.detach()).sum(1, keepdim=True)
    wrong = queries @ queue.detach().T
    logits = torch.cat([right, wrong], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


class CrossPathContrast(TwoPaths):
    """Two disjoint paths that each find the other's view of an image among those of others.

    Of an image there are four views, x_q0, x_k0, x_q1, x_k1. With q_i the student's path i on x_qi
    and k_i the mean teacher's path i on x_ki, both of norm 1 and the teacher's weights on path i
    moved first, the loss is ``InfoNCE(q0, k1) + InfoNCE(q1, k0)`` with a queue of earlier keys as
    negatives. Into the queue goes ``(k0 + k1) / 2``, as published not of norm 1, in the place of
    the oldest. The outputs of the supernet are embeddings: see `project`. For `Disjoint`
    sampling.
    """

    name = "cross_path_contrast"

    def __init__(
        self,
        views: Augment,
        *,
        seed: int,
        queue: int = 49_152,
        size: int = 128,
        decay: float = 0.999,
        temperature: float = 0.2,
    ):
        """Set it up.

        Args:
            views: Makes the four views of the images.
            seed: Of the vectors of norm 1 that the queue begins with.
            queue: Keys in it, at least one batch.
            size: Numbers of an embedding.
            decay: Of the mean teacher.
            temperature: Of the cross-entropy.

        Raises:
            InputError: A size or temperature that is not positive, or a seed that is not one.
        """
        if queue < 1 or size < 1:
            raise InputError(f"{self.name}: queue and size must be at least 1, got {queue}, {size}")
        super().__init__(views, decay)
        self.seed = checked_seed(seed)
        self.temperature = positive(temperature, f"{self.name}: temperature")
        self._shape = queue, size
        self._fill(torch.device("cpu"))

    def start(self, supernet: Supernet[Any]) -> None:
        """The teacher begins as the student, the queue as drawn."""
        super().start(supernet)
        module: nn.Module = supernet  # type: ignore[assignment]
        self._fill(device_of(module))

    def _fill(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self._shape, generator=generator, device="cpu", dtype=torch.float32)
        self.queue = F.normalize(drawn, dim=1).to(device)
        self._oldest = 0

    def __call__(
        self, supernet: Supernet[Any], paths: Sequence[Any], batch: Batch, step: int
    ) -> Tensor:
        """Add the gradients of the two paths; the sum of the two terms.

        Raises:
            InputError: Another number of paths, a batch longer than the queue, or outputs that are
                no embeddings of the size.
        """
        inputs = batch[0]
        if len(inputs) > len(self.queue):
            raise InputError(
                f"{self.name}: the queue must hold a batch, {len(inputs)}, got {len(self.queue)}"
            )
        views = [self.views(inputs, step, view) for view in range(4)]  # q0, k0, q1, k1
        taught = self.taught(paths, views[1::2])
        keys = [F.normalize(self._checked(outputs).float(), dim=1) for outputs in taught]
        total = torch.zeros((), device=inputs.device)
        for view, path, key in zip(views[::2], paths, reversed(keys), strict=True):
            query = F.normalize(self._checked(supernet(view, path)).float(), dim=1)
            loss = info_nce(query, key, self.queue, temperature=self.temperature)
            loss.backward()
            total = total + loss.detach()
        self._enqueue((keys[0] + keys[1]) / 2)
        return total

    def _checked(self, outputs: Tensor) -> Tensor:
        if outputs.dim() != 2 or outputs.shape[1] != self.queue.shape[1]:
            raise InputError(
                f"{self.name}: outputs must be [B, {self.queue.shape[1]}], "
                f"got {list(outputs.shape)}; see sigeo.supernet.project"
            )
        return outputs

    def _enqueue(self, keys: Tensor) -> None:
        places = (self._oldest + torch.arange(len(keys), device="cpu")) % len(self.queue)
        self.queue[places.to(self.queue.device)] = keys
        self._oldest = (self._oldest + len(keys)) % len(self.queue)

    def memory(self) -> dict[str, Tensor]:
        """The teacher, the queue and the place of its oldest key."""
        return {
            **super().memory(),
            "queue": self.queue,
            "oldest": torch.tensor(self._oldest, device="cpu"),
        }

    def resume(self, memory: dict[str, Tensor]) -> None:
        """Go on where `memory` was taken."""
        super().resume(memory)
        self.queue = memory["queue"].to(self.queue.device)
        self._oldest = int(memory["oldest"])

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "views": self.views.describe(),
            "seed": self.seed,
            "queue": len(self.queue),
            "size": self.queue.shape[1],
            "decay": self.decay,
            "temperature": self.temperature,
        }
