"""Shared weights that are there already: from where, and what a ranking remembers of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from sigeo.errors import InputError
from sigeo.spaces import SearchSpace, Supernet
from sigeo.supernet import RoutedSupernet, digest, load_checkpoint, load_weights, versions
from sigeo.supernet.checkpoint import difference

S = TypeVar("S")


class SystemWeights(InputError):
    """A folder, or weights of a system, in the place of one supernet for the whole space."""


@dataclass(frozen=True)
class SharedWeights:
    """Weights that architectures inherit.

    Attributes:
        supernet: One supernet for all; or a `RoutedSupernet`, several, each for its part.
        identity: What they are, as JSON can hold it: scores of other weights are not theirs.
        options: What the space's supernet was made with beside its seed.
        standing: Of several supernets, one a part: architectures of a part with a larger number
            rank above all of one with a smaller. Empty where parts are equal.
        earlier: The same at the ends of earlier passes of its training, over all of which scores
            are averaged.
    """

    supernet: Supernet[Any]
    identity: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    standing: tuple[int, ...] = ()
    earlier: tuple[Supernet[Any], ...] = ()

    def standing_of(self, arch: Any) -> int | None:
        """The number of its part in ``standing``; None where parts are equal."""
        if len(set(self.standing)) < 2 or not isinstance(self.supernet, RoutedSupernet):
            return None
        return self.standing[self.supernet.route(arch)]


def load_shared_weights(path: str | Path, space: SearchSpace[Any], seed: int) -> SharedWeights:
    """Those of a warm-up.

    Args:
        path: Its checkpoint.
        space: The space that it was of, of the same sizes.
        seed: Of what weights are drawn from before they are replaced.

    Raises:
        SystemWeights: It is a folder, or of a system.
        InputError: It is of another space, of another kind of training, or of a warm-up that is not
            at its end; or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise SystemWeights(f"checkpoint {path}: expected a file, got a folder")
    state, settings = load_checkpoint(path)
    if "recipe" in settings:
        what = "a training's checkpoint" if "phase" in settings else "a supernet"
        raise SystemWeights(
            f"checkpoint {path}: {what} of the system {settings['recipe']}, which may serve a part "
            "of the space alone"
        )
    if "warmup" not in settings or "space" not in settings:
        raise InputError(
            f"checkpoint {path}: weights of another training, expected those of a warm-up"
        )
    described = json.loads(json.dumps(space.describe()))
    if settings["space"] != described:
        differs = difference(settings["space"], described)
        raise InputError(f"checkpoint {path}: made for other networks ({differs})")
    try:
        steps, data = int(settings["warmup"]["steps"]), settings["data"]
        options = dict(settings.get("supernet", {}))
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__} {error}"
        raise InputError(f"checkpoint {path}: damaged metadata ({what})") from None
    if state.step < steps:
        raise InputError(
            f"checkpoint {path}: stands at step {state.step} of {steps}; "
            "the command that began it goes on from there"
        )
    supernet = make_supernet(space, seed, options)
    module: nn.Module = supernet  # type: ignore[assignment]
    load_weights(module, state, path)
    identity = {
        "warmup": settings["warmup"],
        "data": data,
        "weights": digest(state.weights),
    }
    if state.kept:
        identity["kept"] = [digest(weights) for weights in state.kept]
    earlier = versions(supernet, state.kept)[:-1]
    return SharedWeights(supernet, identity, options, earlier=earlier)


def part_of(supernet: Supernet[Any], arch: Any) -> Supernet[Any]:
    """The supernet that serves an architecture: of several behind one call, its own.

    Raises:
        InputError: None does.
    """
    return supernet.part(arch) if isinstance(supernet, RoutedSupernet) else supernet


def distinct(supernets: Sequence[S]) -> list[S]:
    """Each once, in their order; of versions of which one stands for several, say."""
    return list({id(supernet): supernet for supernet in supernets}.values())


def make_supernet(space: SearchSpace[Any], seed: int, options: Mapping[str, Any]) -> Supernet[Any]:
    """A space's supernet with options of its own.

    Raises:
        InputError: It has no such option.
    """
    check_options(space, options)
    make: Any = space.supernet
    made: Supernet[Any] = make(seed=seed, **options)
    return made


def check_options(space: SearchSpace[Any], options: Iterable[str]) -> None:
    """Check that a space's supernet has options of these names.

    Raises:
        InputError: One that it has not.
    """
    known = inspect.signature(space.supernet).parameters
    for name in options:
        if name not in known:
            raise InputError(f"supernet: that of {space.name} has no option {name!r}")
