"""Networks of a space ready to be scored: built once, weights in place, equal ones known."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sigeo.capture import Batches, image_format, preserved
from sigeo.data import ImageData
from sigeo.errors import InputError, check_kind
from sigeo.kinds import check_fields, named_arguments
from sigeo.proxies import Proxy, Score
from sigeo.scoring.averages import mean_records
from sigeo.scoring.costs import COUNTED, counted
from sigeo.scoring.devices import available_bytes, parse_device, put_on
from sigeo.scoring.many import (
    MEASURED,
    Routes,
    at_once_of,
    fitting,
    measure_routes,
    score_many,
    stackable,
)
from sigeo.scoring.score import check_needs, resolve, score
from sigeo.scoring.shared_weights import (
    SharedWeights,
    distinct,
    load_shared_weights,
    make_supernet,
    part_of,
)
from sigeo.scoring.sized import check_sized
from sigeo.spaces import SearchSpace, Supernet
from sigeo.store import Record
from sigeo.supernet import Budget, Source, WarmUp, versions, warm_up_alone, warm_up_supernet
from sigeo.supernet.checkpoint import Weights
from sigeo.supernet.randomness import drawing
from sigeo.supernet.settings import Progress

Init = Literal["scratch", "candidate", "supernet"]

SCORES_VERSION = 2
"""Raised when the same input would get another score; older scores are then not found again."""


@dataclass(frozen=True)
class Protocol:
    """How networks are scored.

    Attributes:
        proxies: The proxies.
        init: Where weights come from: "scratch", the seed alone; "candidate", each network warmed
            up alone; "supernet", shared weights warmed up.
        warmup: The warm-up; None for none, or where ``checkpoint`` holds warmed weights.
        checkpoint: Shared weights to load.
        supernet: Options of the space's supernet where a warm-up trains it, beside its seed; loaded
            weights bring theirs along.
        batches: Number of scoring batches.
        batch_size: Images of one.
        seed: Of weights, order of images, sampled paths, and what networks draw, as by dropout.
        device: Where the networks run.
        deduplicate: Whether equal networks share one score.
        at_once: Networks in one pass, 1 or more; "auto" measures whether many are faster.
    """

    proxies: tuple[Proxy, ...]
    init: Init = "scratch"
    warmup: WarmUp | None = None
    checkpoint: str | Path | None = None
    supernet: Mapping[str, Any] = field(default_factory=dict)
    batches: int = 4
    batch_size: int = 64
    seed: int = 0
    device: str | torch.device = "cpu"
    deduplicate: bool = True
    at_once: int | Literal["auto"] = 1

    def __post_init__(self) -> None:
        """Check the settings, each by itself.

        Raises:
            InputError: One is not what it may be.
        """
        check_fields(self, "protocol")
        least = {"batches": self.batches, "batch_size": self.batch_size}
        least |= {} if self.at_once == "auto" else {"at_once": self.at_once}
        for name, value in least.items():
            if value < 1:
                raise InputError(f"protocol: {name} must be at least 1, got {value}")

    @property
    def warmed(self) -> bool:
        """Whether weights have moved from their draw when a network is scored."""
        return self.init != "scratch"


class Networks:
    """All networks of a space under one protocol.

    The weights of all of them lie in one supernet, drawn from the seed by place, so a network is
    taken out of it without being built or drawn again; whatever moves them puts them back.

    Attributes:
        budget: What the warm-up of the shared weights has cost; nothing where there was none.
    """

    @named_arguments("networks")
    def __init__(
        self,
        space: SearchSpace[Any],
        data: ImageData,
        protocol: Protocol,
        *,
        shared: SharedWeights | None = None,
        folder: str | Path | None = None,
        progress: Progress | None = None,
    ):
        """Draw or load the weights, and warm them up.

        Args:
            space: The space, sized for the data.
            data: Images to score and warm up on.
            protocol: How.
            shared: Weights that are there already, in the place of the protocol's checkpoint.
            folder: Where a warm-up of shared weights is kept, and goes on from.
            progress: Called with (steps taken, steps in all) during that warm-up.

        Raises:
            InputError: Too few images, no such device, a checkpoint that does not fit, or weights
                of several passes to be kept of networks warmed up alone.
        """
        check_kind(protocol, Protocol, "networks: protocol")
        resolve(protocol.proxies)
        check_sized(space, data)
        self.space, self.data, self.protocol = space, data, protocol
        self.device = parse_device(protocol.device)
        wanted = protocol.batches * protocol.batch_size
        if len(data.train) < wanted:
            raise InputError(
                f"data: {protocol.batches} batches of {protocol.batch_size} need {wanted} training "
                f"images, {data.name} has {len(data.train)}"
            )
        check_needs(protocol.proxies, batches=protocol.batches, warmed=protocol.warmed)
        keep = 1 if protocol.warmup is None else protocol.warmup.keep
        if protocol.init == "candidate" and keep > 1:
            raise InputError(f"warm-up: keep must be 1 for networks warmed up alone, got {keep}")
        order = data.order(protocol.seed)
        self.budget = Budget()
        self._source = Source(order, self._batch, protocol.seed)
        self._loaded = shared
        if shared is None and protocol.checkpoint is not None:
            self._loaded = load_shared_weights(protocol.checkpoint, space, protocol.seed)
        self._options = dict(protocol.supernet if self._loaded is None else self._loaded.options)
        self._supernet = (
            make_supernet(space, protocol.seed, self._options)
            if self._loaded is None
            else self._loaded.supernet
        )
        # Scores are means over these; the last one is the supernet as it is.
        self._versions = (*(() if self._loaded is None else self._loaded.earlier), self._supernet)
        self._module: nn.Module = self._supernet  # type: ignore[assignment]
        self._layout = image_format(self._module, self.device)
        for version in self._versions:
            put_on(self.device, version, self._layout)
        self._warm_up(None if folder is None else Path(folder), progress)
        places = order[:wanted].view(protocol.batches, protocol.batch_size)
        pairs = [self._batch(place) for place in places]
        self._batches = Batches(pairs, self._module, self.device)

    @property
    def supernet(self) -> Supernet[Any]:
        """The weights of all networks, warmed up if the protocol shares warmed ones."""
        return self._supernet

    @property
    def checkpoints(self) -> int:
        """Over how many checkpoints of the shared weights scores are averaged; 1 for no average.

        Parts of a system that has fewer of them are averaged over theirs.
        """
        return len(self._versions)

    @property
    def batches(self) -> Batches:
        """What networks are scored on."""
        return self._batches

    def settings(self) -> dict[str, Any]:
        """All that a score depends on beside network and proxy."""
        protocol = self.protocol
        return {
            "scores_version": SCORES_VERSION,
            **self.weights_settings(),
            "batches": protocol.batches,
            "batch_size": protocol.batch_size,
            "deduplicate": protocol.deduplicate,
        }

    def weights_settings(self) -> dict[str, Any]:
        """All that the weights depend on."""
        return weights_settings(self.space, self.data, self.protocol, self._loaded)

    def checkpoint_path(self, folder: Path) -> Path:
        """Where a warm-up of these settings is kept in a folder."""
        text = json.dumps(self.weights_settings(), sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return folder / f"supernet-{name}.safetensors"

    def _warm_up(self, folder: Path | None, progress: Progress | None) -> None:
        protocol = self.protocol
        if protocol.init == "supernet" and protocol.warmup is not None:
            kept: list[Weights] = []
            self.budget = warm_up_supernet(
                self._supernet,
                self.space,
                protocol.warmup,
                self._source,
                settings=self.weights_settings(),
                checkpoint=None if folder is None else self.checkpoint_path(folder),
                progress=progress,
                kept=kept,
            )
            self._versions = versions(self._supernet, kept)

    def _batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.data.batch(places)
        return images.to(self.device, memory_format=self._layout), labels.to(self.device)

    def key(self, arch: Any) -> Any:
        """The architecture that is scored in the place of ``arch``.

        With weights of their own, all architectures that are the same network share the score of
        one; with shared weights, those that use the same weights in the same way.
        """
        if not self.protocol.deduplicate:
            return arch
        if self.protocol.init != "supernet":
            return self.space.representative(arch)
        pruned = self.space.pruned(arch)
        return pruned if self.part(pruned) is self.part(arch) else arch

    def part(self, arch: Any) -> Supernet[Any]:
        """The weights that serve an architecture; of several sub-supernets, its own.

        Raises:
            InputError: No sub-supernet serves it.
        """
        return part_of(self._supernet, arch)

    def _parts(self, arch: Any) -> list[Supernet[Any]]:
        """What `part` was at each of the checkpoints; one that was not trained then counts once."""
        return distinct([part_of(version, arch) for version in self._versions])

    def standing(self, arch: Any) -> int | None:
        """An architecture with a larger number ranks above all with a smaller.

        None for all where no parts of the space are preferred.
        """
        return None if self._loaded is None else self._loaded.standing_of(arch)

    def stacked(self, proxies: Iterable[Proxy]) -> list[Proxy]:
        """Those that can be measured on many of these networks in one pass."""
        return [proxy for proxy in proxies if stackable(proxy, self._supernet)]

    def choose_at_once(self, archs: Sequence[Any]) -> tuple[int, Routes | None]:
        """How many of these networks go in one pass, and the measurement that it rests on.

        Too few networks to be worth a measurement, and proxies that need networks one by one, go as
        is usual for the device: one by one on a CPU.
        """
        wanted = self.protocol.at_once
        stacked = self.stacked(self.protocol.proxies)
        if self.protocol.init == "candidate" or not archs or not stacked or wanted == 1:
            return 1, None
        few = len(archs) < 8 * MEASURED
        if wanted == "auto" and few and self.device.type != "cuda":
            return 1, None
        size = at_once_of(self.device) if wanted == "auto" else wanted
        of_part: dict[Supernet[Any], list[Any]] = {}
        for arch in archs[: 8 * MEASURED]:
            of_part.setdefault(self.part(arch), []).append(arch)
        bound = available_bytes(self.device)
        if bound is not None:
            loss_fn = nn.functional.cross_entropy
            fits = (
                fitting(part, some, self._batches, stacked, loss_fn, bound)
                for part, some in of_part.items()
            )
            size = min(size, *fits)
        if wanted != "auto" or few or size == 1:
            return size, None
        usual, alike = max(of_part.items(), key=lambda pair: len(pair[1]))
        routes = measure_routes(usual, alike[: min(size, MEASURED)], self._batches, stacked)
        return (size if routes.together < routes.apart else 1), routes

    def score_many(self, archs: Sequence[Any], proxies: Sequence[Proxy]) -> list[dict[str, Record]]:
        """Score networks of one `part` in one pass, by proxies that are not of whole networks."""
        found = []
        for part in self._parts(archs[0]):
            began = time.perf_counter()
            with self._drawing():
                scored = score_many(part, archs, self._batches, proxies, at_once=len(archs))
            seconds = (time.perf_counter() - began) / len(archs)
            found.append([_records(scores, seconds) for scores in scored])
        return [mean_records(records) for records in zip(*found, strict=True)]

    def score(self, arch: Any, proxies: Sequence[Proxy]) -> dict[str, Record]:
        """Score one network by proxies of one kind: all of the whole network, or none."""
        whole = any(proxy.whole_network for proxy in proxies)
        costs = {
            proxy.name: Record(counted(self.space.cost(arch), proxy.name))
            for proxy in proxies
            if proxy.name in COUNTED
        }
        measured = [proxy for proxy in proxies if proxy.name not in COUNTED]
        if not measured:
            return costs
        found = []
        for part in self._parts(arch):
            began = time.perf_counter()
            module = part.subnet(arch, whole=whole)
            with self._warmed(module), self._drawing():
                scores = score(module, self._batches, measured)
            found.append(_records(scores, time.perf_counter() - began))
        return costs | mean_records(found)

    def _drawing(self) -> AbstractContextManager[None]:
        """What dropout draws inside follows from the seed, and is the same for all networks."""
        return drawing(f"{self.protocol.seed}/scores", self.device)

    @contextmanager
    def _warmed(self, module: nn.Module) -> Iterator[None]:
        """Warm the network up alone for the body, if the protocol says so."""
        protocol = self.protocol
        if protocol.init != "candidate" or protocol.warmup is None:
            yield
            return
        with preserved(module, parameters=True):
            warm_up_alone(module, protocol.warmup, self._source)
            for parameter in module.parameters():
                parameter.grad = None
            yield


def weights_settings(
    space: SearchSpace[Any], data: ImageData, protocol: Protocol, loaded: SharedWeights | None
) -> dict[str, Any]:
    """All that the weights of networks depend on, before they are made; ``loaded`` are theirs."""
    options = dict(protocol.supernet if loaded is None else loaded.options)
    return {
        "space": space.describe(),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "images": len(data.train),
        },
        "seed": protocol.seed,
        "device": parse_device(protocol.device).type,
        "init": protocol.init,
        "warmup": None if protocol.warmup is None else protocol.warmup.describe(),
        "checkpoint": None if loaded is None else dict(loaded.identity),
        **({"supernet": options} if options else {}),
    }


def _records(scores: Mapping[str, Score], seconds: float) -> dict[str, Record]:
    return {
        name: Record(score.value if score.finite else None, score.terms, score.notes, seconds)
        for name, score in scores.items()
    }
