"""What a system leaves: sub-supernets, and the plan that says which serves which architecture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sigeo.capture import Batches
from sigeo.errors import InputError
from sigeo.fewshot.plan import Plan
from sigeo.fewshot.plan_file import load_plan, plan_document, save_plan
from sigeo.fewshot.study import narrowed
from sigeo.kinds import named_arguments
from sigeo.proxies import Proxy
from sigeo.scoring.many import score_many
from sigeo.scoring.shared_weights import SharedWeights, distinct, make_supernet
from sigeo.spaces import ElasticSupernet, Groups, SearchSpace, Supernet
from sigeo.supernet import (
    Budget,
    RoutedSupernet,
    TrainingState,
    averaged,
    digest,
    evaluate,
    load_checkpoint,
    load_weights,
    versions,
)
from sigeo.supernet.checkpoint import difference, save_checkpoint
from sigeo.supernet.evaluation import Statistics
from sigeo.supernet.settings import Batch
from sigeo.tables import parts_first

A = TypeVar("A")
T = TypeVar("T")
Values = NDArray[np.float64]


class NoWeights(InputError):
    """A folder that has a plan, but no supernets."""


@dataclass(frozen=True)
class Family(Generic[A]):
    """Sub-supernets that together serve a space.

    Attributes:
        plan: Which of them serves which architecture.
        supernets: One a leaf of the plan.
        standing: One a leaf: architectures of a leaf with a larger number rank above all of one
            with a smaller. All equal where leaves were not chosen among.
        cost: Images that training and splitting took.
        seconds: Time that they took.
        trainings: Steps of each, settings where they are not the study's, and tau after its passes
            where a checkpoint was selected by it; not read from files.
        earlier: The supernets at the ends of earlier passes of their last training, oldest first,
            one a leaf each, see `aligned`. Values of architectures are averaged over these and
            ``supernets``, each once.
    """

    plan: Plan[A]
    supernets: tuple[Supernet[A], ...]
    standing: tuple[int, ...] = ()
    cost: Budget = field(default_factory=Budget)
    seconds: float = 0.0
    trainings: tuple[dict[str, Any], ...] = ()
    earlier: tuple[tuple[Supernet[A], ...], ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: Not one supernet a leaf.
        """
        leaves = len(self.plan.leaves)
        counts = [len(supernets) for supernets in self._versions]
        if set(counts) != {leaves} or len(self.standing) not in (0, leaves):
            raise InputError(
                f"family: expected a supernet for each of {leaves} leaves, "
                f"got {', '.join(map(str, counts))}"
            )

    @property
    def _versions(self) -> tuple[tuple[Supernet[A], ...], ...]:
        return (*self.earlier, self.supernets)

    def _of_leaf(self, leaf: int) -> list[Supernet[A]]:
        return distinct([version[leaf] for version in self._versions])

    @property
    def weights(self) -> int:
        """Bytes of all weights, those that supernets have in common once."""
        modules: list[nn.Module] = [one for version in self._versions for one in version]  # type: ignore[misc]
        parameters = {id(p): p for module in modules for p in module.parameters()}
        return sum(p.nbytes for p in parameters.values())

    def supernet(self, arch: A) -> Supernet[A]:
        """The one that serves an architecture."""
        return self.supernets[self.plan.route(arch)]

    def evaluated(
        self, archs: Sequence[A], batches: Sequence[Batch], calibration: Sequence[Batch] = ()
    ) -> tuple[Values, Values]:
        """Accuracy and mean loss of each architecture on the supernet that serves it, [n] each.

        Args:
            archs: The architectures.
            batches: What they are evaluated on.
            calibration: Training batches on which batch norm is recalibrated for each of them; with
                none it uses the statistics of each batch that is evaluated.
        """
        accuracy, loss = np.empty(len(archs)), np.empty(len(archs))
        norm: Statistics = "recalibrated" if calibration else "batch"
        for leaf, places in self._by_leaf(archs):
            chosen = [archs[place] for place in places]
            found = averaged(
                [
                    evaluate(one, chosen, batches, norm=norm, calibration=calibration)
                    for one in self._of_leaf(leaf)
                ]
            )
            accuracy[places], loss[places] = found.accuracy.numpy(), found.loss.numpy()
        return accuracy, loss

    def scored(
        self, archs: Sequence[A], batches: Batches, proxies: Sequence[Proxy]
    ) -> dict[str, Values]:
        """Each proxy's values on the supernets that serve the architectures, [n] each."""
        values = {proxy.name: np.zeros(len(archs)) for proxy in proxies}
        for leaf, places in self._by_leaf(archs):
            chosen = [archs[place] for place in places]
            supernets = self._of_leaf(leaf)
            for supernet in supernets:
                found = score_many(supernet, chosen, batches, proxies, at_once=1)
                for place, scores in zip(places, found, strict=True):
                    for name, score in scores.items():
                        values[name][place] += score.value / len(supernets)
        return values

    def _by_leaf(self, archs: Sequence[A]) -> list[tuple[int, list[int]]]:
        places: dict[int, list[int]] = {}
        for place, arch in enumerate(archs):
            places.setdefault(self.plan.route(arch), []).append(place)
        return sorted(places.items())

    def save(self, folder: str | Path, settings: dict[str, Any]) -> None:
        """Write the plan and the weights, a file a leaf, in the place of what was saved before.

        The plan goes first and comes last, so that a folder that has one is whole.

        Args:
            folder: Where; made if it is not there.
            settings: How it was made, as JSON can hold it. What is loaded has networks by those of
                the recipe: ``width``, and ``supernet``, the options of the space's supernet.

        Raises:
            InputError: A file cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in (folder / PLAN, *folder.glob("leaf-*.safetensors")):
                old.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror or error}") from None
        for leaf, supernet in enumerate(self.supernets):
            module: nn.Module = supernet  # type: ignore[assignment]
            earlier: list[Any] = self._of_leaf(leaf)[:-1]
            kept = [dict(one.state_dict()) for one in earlier]
            state = TrainingState(0, dict(module.state_dict()), {}, kept=kept)
            groups = [one.describe() for one in getattr(supernet, "groups", ())]
            complete = {**settings, "groups": groups} if groups else settings
            save_checkpoint(leaf_file(folder, leaf), state, complete)
        save_plan(folder / PLAN, self.plan, {**settings, "standing": list(self.standing)})


def aligned(leaves: Sequence[Sequence[T]]) -> tuple[tuple[T, ...], ...]:
    """Versions of each leaf, oldest first, as versions of all leaves.

    A training may end after fewer passes than others: its leaf's oldest version then stands in the
    older ones of all.
    """
    most = max(map(len, leaves))
    filled = ([one[0]] * (most - len(one)) + list(one) for one in leaves)
    return tuple(zip(*filled, strict=True))


@named_arguments("ranked")
def ranked(
    plan: Plan[Any], standing: Sequence[int], archs: Sequence[Any], values: Values
) -> Values:
    """Values that rank architectures as a system does, its choice of leaves included.

    Where leaves were chosen among these are ranks, so they only hold for these architectures.

    Args:
        plan: Of the system.
        standing: Of its leaves, see `Family`.
        archs: All that are compared.
        values: Of each [n], larger is better.
    """
    if len(set(standing)) < 2:
        return values
    of_leaf = np.array([standing[plan.route(arch)] for arch in archs])
    return parts_first(values, of_leaf)


PLAN = "plan.json"


def leaf_file(folder: Path, leaf: int) -> Path:
    """Where a leaf's weights are."""
    return folder / f"leaf-{leaf}.safetensors"


@named_arguments("load_family")
def load_family(folder: str | Path, space: SearchSpace[Any]) -> Family[Any]:
    """What `Family.save` wrote, for a space of the same sizes.

    Raises:
        InputError: A file is missing, damaged, of other networks or of another system.
    """
    return _load(Path(folder), space)[0]


@named_arguments("family_weights")
def family_weights(folder: str | Path, space: SearchSpace[Any]) -> SharedWeights:
    """What `Family.save` wrote as weights to rank on: each architecture inherits from its leaf's.

    Raises:
        InputError: As `load_family`.
    """
    family, settings = _load(Path(folder), space)
    plan = json.dumps(plan_document(family.plan), sort_keys=True)
    identity: dict[str, Any] = {
        "family": settings,
        "plan": hashlib.blake2b(plan.encode(), digest_size=16).hexdigest(),
        "weights": _digests(family.supernets),
    }
    if family.earlier:
        identity["kept"] = [_digests(version) for version in family.earlier]
    routed: list[Any] = [
        RoutedSupernet(supernets, family.plan.leaves)
        for supernets in (*family.earlier, family.supernets)
    ]
    *earlier, supernet = routed
    options = settings.get("supernet", {})
    return SharedWeights(supernet, identity, options, family.standing, tuple(earlier))


def _digests(supernets: Sequence[Any]) -> list[str]:
    return [digest(dict(module.state_dict())) for module in supernets]


def _load(folder: Path, space: SearchSpace[Any]) -> tuple[Family[Any], dict[str, Any]]:
    if folder.is_file():
        raise InputError(f"family {folder}: expected the folder of {PLAN}, got a file")
    plan, settings = load_plan(folder / PLAN, space)
    study, width, standing = (settings.get(name) for name in ("study", "width", "standing"))
    options = settings.get("supernet", {})
    if not isinstance(options, dict):
        raise InputError(f"family {folder}: supernet must be an object of options, got {options!r}")
    made_for = study.get("space") if isinstance(study, dict) else None
    described = json.loads(json.dumps(space.describe()))
    if made_for is not None and made_for != described:
        raise InputError(
            f"family {folder}: made for other networks ({difference(made_for, described)})"
        )
    if not leaf_file(folder, 0).is_file():
        raise NoWeights(
            f"family {folder}: has a plan but no weights, {leaf_file(folder, 0).name} and so on"
        )
    narrow = narrowed(space, width if isinstance(width, (int, float)) else 1.0)
    of_leaves = {name: value for name, value in settings.items() if name != "standing"}
    grown = []
    for leaf in range(len(plan.leaves)):
        state, kept = load_checkpoint(leaf_file(folder, leaf))
        if "phase" in kept:
            raise InputError(
                f"checkpoint {leaf_file(folder, leaf)}: a training's checkpoint, expected the "
                "weights of a system at its end"
            )
        if {name: value for name, value in kept.items() if name != "groups"} != of_leaves:
            raise InputError(
                f"checkpoint {leaf_file(folder, leaf)}: of another system than {folder / PLAN}"
            )
        supernet = make_supernet(narrow, 0, options)
        if "groups" in kept and isinstance(supernet, ElasticSupernet):
            supernet = supernet.divided([Groups.read(one) for one in kept["groups"]])
        load_weights(supernet, state, leaf_file(folder, leaf))  # type: ignore[arg-type]
        grown.append(versions(supernet, state.kept))
    *earlier, supernets = aligned(grown)
    order = tuple(standing) if isinstance(standing, list) else ()
    return Family(plan, supernets, order, earlier=tuple(earlier)), settings
