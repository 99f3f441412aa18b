"""Whether options make features of like dimension, layer by layer (He et al., NAS-LID, AAAI 2023).

The *profile* of a network is the mean local intrinsic dimension of each block's output. Forward
passes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sigeo.capture import call, preserved
from sigeo.errors import InputError
from sigeo.fewshot.metrics.base import Subject
from sigeo.fewshot.metrics.dimension import Divisor, check_divisor, check_samples, lid, two_nn
from sigeo.fewshot.partition import Relation
from sigeo.supernet import Budget

Blocks = Callable[[nn.Module], Sequence[nn.Module]]


def network_blocks(network: nn.Module) -> Sequence[nn.Module]:
    """The modules of a network's ``blocks``: of NAS-Bench-201 its cells and reductions.

    Raises:
        InputError: It has none.
    """
    if not _has_blocks(network):
        raise InputError(f"lid: expected a network with blocks, got {type(network).__name__}")
    return list(network.blocks)  # type: ignore[arg-type]


def _has_blocks(network: nn.Module) -> bool:
    return isinstance(getattr(network, "blocks", None), (nn.ModuleList, nn.Sequential))


@dataclass(frozen=True)
class LID:
    """Similarities of dimension profiles.

    Attributes:
        repeats: Batches and drawn paths (published: 50, of 128 images).
        k: Neighbours (published: 20); batches must be larger.
        compare: "correlation", the default; "cosine" as published, which of positive profiles is
            near 1 for all pairs; "distance" for 1 / (1 + Euclidean distance).
        estimator: "mle", or "two_nn".
        divisor: See `lid`.
        blocks: A network to the modules whose outputs are looked at.
    """

    repeats: int = 50
    k: int = 20
    compare: Literal["correlation", "cosine", "distance"] = "correlation"
    estimator: Literal["mle", "two_nn"] = "mle"
    divisor: Divisor = "k"
    blocks: Blocks = network_blocks
    name: str = "lid"
    initial_weights: bool = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: No repetition, too few neighbours, or an unknown way to compare or estimate.
        """
        if self.repeats < 1:
            raise InputError(f"lid: repeats must be at least 1, got {self.repeats}")
        if self.compare not in ("correlation", "cosine", "distance"):
            raise InputError(
                f"lid: compare must be correlation, cosine or distance, got {self.compare!r}"
            )
        if self.estimator not in ("mle", "two_nn"):
            raise InputError(f"lid: estimator must be mle or two_nn, got {self.estimator!r}")
        check_divisor(self.divisor, self.k)

    def __call__(self, subject: Subject[Any]) -> Relation:
        """The similarities, averaged over the repetitions.

        Raises:
            InputError: Networks of different numbers of blocks.
        """
        count = len(subject.options)
        total = torch.zeros(count, count, dtype=torch.float64, device="cpu")
        supernet = subject.networks()
        for repetition in range(self.repeats):
            inputs, _ = subject.batch(repetition)
            profiles = [
                self.profile(supernet.subnet(arch), inputs) for arch in subject.paths(repetition)
            ]
            if len({len(profile) for profile in profiles}) > 1:
                raise InputError(
                    f"lid: the networks of {subject.name} must have as many blocks each, got "
                    f"{[len(profile) for profile in profiles]}"
                )
            total += self._similarities(torch.stack(profiles))
        return Relation.of((total / self.repeats).tolist(), "similarity")

    def cost(self, subject: Subject[Any]) -> Budget:
        """A forward pass an option and repetition."""
        return Budget(evaluated=subject.images(self.repeats))

    def check(self, subject: Subject[Any]) -> None:
        """See `sigeo.fewshot.metrics.base.check`.

        Raises:
            InputError: Networks without the blocks that are looked at, or a batch of k samples or
                fewer.
        """
        network = subject.networks().subnet(subject.paths(0)[0])
        if self.blocks is network_blocks and not _has_blocks(network):
            raise InputError(
                f"lid: does not serve {subject.space.name}, whose networks do not say what their "
                "blocks are; a proxy such as zico does"
            )
        self.blocks(network)
        data = subject.data()
        check_samples(min(len(data[place][1]) for place in range(len(data))), self.k)

    def profile(self, network: nn.Module, inputs: Any) -> Tensor:
        """Dimensions of the outputs of the blocks, float64 [blocks], batch norm in batch mode.

        Raises:
            InputError: A batch with not more than k samples, or outputs that are not finite.
        """
        found: list[float] = []

        def look(_: nn.Module, __: Any, output: Tensor) -> None:
            if not bool(output.isfinite().all()):
                raise InputError("lid: outputs of a block are not finite")
            if self.estimator == "two_nn":
                found.append(two_nn(output))
            else:
                found.append(float(lid(output, k=self.k, divisor=self.divisor).mean()))

        hooks = [block.register_forward_hook(look) for block in self.blocks(network)]
        try:
            with preserved(network, parameters=False), torch.no_grad():
                network.train()
                call(network, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.tensor(found, dtype=torch.float64, device="cpu")

    def _similarities(self, profiles: Tensor) -> Tensor:
        """[o, blocks] to [o, o]; a profile that does not vary correlates with none."""
        if self.compare == "distance":
            direct = "donot_use_mm_for_euclid_dist"
            return 1 / (1 + torch.cdist(profiles, profiles, compute_mode=direct))
        if self.compare == "correlation":
            profiles = profiles - profiles.mean(1, keepdim=True)
        lengths = profiles.norm(dim=1, keepdim=True)
        units = profiles / lengths.where(lengths > 0, torch.ones_like(lengths))
        cosines: Tensor = units @ units.t()
        return cosines
