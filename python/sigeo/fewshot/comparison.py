"""Several systems on the same ground, several seeds each, judged by a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sigeo import option_text
from sigeo.fewshot import recipes
from sigeo.fewshot.develop import develop
from sigeo.fewshot.family import PLAN, Family, ranked
from sigeo.fewshot.overhead import processed
from sigeo.fewshot.plan import Plan
from sigeo.fewshot.plan_file import load_plan, save_plan
from sigeo.fewshot.recipe import Recipe
from sigeo.fewshot.study import Study
from sigeo.kinds import named_arguments, plain
from sigeo.proxies import Proxy
from sigeo.scoring.rank import identity
from sigeo.spaces import SearchSpace
from sigeo.spaces.base import listed
from sigeo.store import Record, RunStore
from sigeo.supernet.checkpoint import OtherSettings, difference
from sigeo.supernet.randomness import drawing
from sigeo.supernet.settings import Progress
from sigeo.tables import Estimate, Quality, quality, repeated_kendall

Values = NDArray[np.float64]
ACCURACY, LOSS = "accuracy", "-loss"
_COST = "cost"
_AT_ONCE = 64
"""Architectures that are evaluated between two writes."""


@dataclass(frozen=True)
class Entrant:
    """A system that takes part.

    Attributes:
        recipe: Its name.
        options: Of the recipe, where they are not as published.
    """

    recipe: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """As on the command line: ``name`` or ``name:option=value,...``."""
        given = ",".join(f"{name}={json.dumps(plain(v))}" for name, v in self.options.items())
        return f"{self.recipe}:{given}" if given else self.recipe

    @classmethod
    @named_arguments("recipe")
    def parse(cls, text: str) -> Entrant:
        """Read ``name:option=value,option=value``; values are JSON, or else text.

        Raises:
            InputError: It is no such text, or there is no such recipe or option.
        """
        name, parts = option_text.parts(text)
        known = recipes.entry(name)
        options = option_text.values(f"recipe {name}", parts, known.options)
        known.checked(options)
        return cls(name, options)


def known_to(entrants: Sequence[Entrant], space: SearchSpace[Any]) -> frozenset[str]:
    """The architectures whose measured values a system learns; to rank them says nothing of it."""
    made = [recipes.get(one.recipe, space, **one.options) for one in entrants]
    tables = [one.gradual.known for one in made if one.gradual is not None]
    return frozenset(str(arch) for known in tables if known is not None for arch in known.archs)


@dataclass(frozen=True)
class Outcome:
    """What a system did with one seed.

    Attributes:
        plan: Which supernet served which architecture.
        rankings: By what ranks ("accuracy" and "-loss" on the images held out, proxies): a value an
            architecture, larger is better.
        processed: Images that training and dividing took, those that went forward only counted as
            a third.
        seconds: Time that they took.
        weights: Bytes of all weights at the end.
    """

    plan: Plan[Any]
    rankings: dict[str, Values]
    processed: float
    seconds: float
    weights: int


@named_arguments("compare")
def run(
    study: Study,
    entrant: Entrant,
    seed: int,
    archs: Iterable[Any],
    proxies: Iterable[Proxy],
    store_file: Path,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Outcome:
    """Carry out one system with one seed, or read what it did before.

    Args:
        study: The ground.
        entrant: The system.
        seed: Of everything.
        archs: The architectures that are ranked.
        proxies: What ranks them beside accuracy and loss, measured on the supernets that serve.
        store_file: Where results are kept.
        folder: Where trainings are kept while they go on.
        progress: Called with (images processed, images in all), then with (architectures evaluated,
            all that were missing), of which as many are kept.

    Raises:
        InputError: As of `develop`.
        OtherSettings: The plan in the folder is of another system or seed.
    """
    archs, proxies = listed(archs), list(proxies)
    recipe = recipes.get(entrant.recipe, study.space, **entrant.options)
    settings = {
        "comparison": 2,
        "study": json.loads(json.dumps(study.describe())),
        "recipe": entrant.recipe,
        "options": json.loads(json.dumps(recipe.options)),
        "seed": seed,
    }
    plan_file = folder / PLAN
    with RunStore(store_file, settings) as store:
        wanted = {ACCURACY: ACCURACY, LOSS: LOSS, **{p.name: identity(p) for p in proxies}}
        kept = {str(arch): store.get(str(arch)) for arch in archs}
        cost = store.get(_COST)
        missing = [arch for arch in archs if not set(wanted.values()) <= set(kept[str(arch)])]
        if missing or not cost or not plan_file.exists():
            family = develop(recipe, study, seed, folder=folder, progress=progress)
            save_plan(plan_file, family.plan, {**settings, "standing": list(family.standing)})
            for begin in range(0, len(missing), _AT_ONCE):
                some = missing[begin : begin + _AT_ONCE]
                _evaluate(study, recipe, family, seed, some, proxies, store)
                if progress is not None:
                    progress(begin + len(some), len(missing))
            store.put(_COST, _costs(family))
            cost = store.get(_COST)
            kept = {str(arch): store.get(str(arch)) for arch in archs}
    plan, system = load_plan(plan_file, study.space)
    standing = system.pop("standing", None)
    if system != settings or not isinstance(standing, list):
        differs = difference(system, settings) or "standing is no list"
        raise OtherSettings(
            f"plan {plan_file}: made with other settings than this comparison ({differs}); "
            "remove it, and the same command makes it anew"
        )
    rankings = {}
    for name, key in wanted.items():
        values = np.array([_value(kept[str(arch)][key]) for arch in archs])
        rankings[name] = ranked(plan, standing, archs, values)
    return Outcome(
        plan,
        rankings,
        _value(cost["processed"]),
        _value(cost["seconds"]),
        int(_value(cost["weights"])),
    )


def _evaluate(
    study: Study,
    recipe: Recipe,
    family: Family[Any],
    seed: int,
    archs: Sequence[Any],
    proxies: Sequence[Proxy],
    store: RunStore,
) -> None:
    calibration = study.calibration(seed, recipe.calibration) if recipe.calibration else ()
    accuracy, loss = family.evaluated(archs, study.validation(), calibration)
    values = {ACCURACY: accuracy, LOSS: -loss}
    if proxies:
        batches = study.metric_batches(seed, study.batch_size, 4)
        with drawing(f"{seed}/scores", torch.device(study.device)):
            scores = family.scored(archs, batches, proxies)
        values |= {identity(proxy): scores[proxy.name] for proxy in proxies}
    for place, arch in enumerate(archs):
        record = {name: float(found[place]) for name, found in values.items()}
        store.put(
            str(arch),
            {name: Record(v if math.isfinite(v) else None) for name, v in record.items()},
        )


def _costs(family: Family[Any]) -> dict[str, Record]:
    return {
        "processed": Record(processed(family.cost)),
        "seconds": Record(family.seconds),
        "weights": Record(float(family.weights)),
    }


def _value(record: Record) -> float:
    return float("nan") if record.value is None else record.value


@dataclass(frozen=True)
class Standing:
    """How a system ranks, over its seeds.

    Attributes:
        label: Of the system.
        by: What ranked the architectures.
        kendall: Mean tau-b over the seeds, with its interval over architectures.
        gain: The same less that of the first system, in pairs; None for the first.
        spread: Standard deviation of tau between seeds; NaN for one.
        quality: Of each seed's ranking, for finding the best.
        sizes: Architectures of each leaf, of each seed.
        processed: Images, mean over the seeds.
        seconds: Mean over the seeds.
        weights: Bytes, mean over the seeds.
    """

    label: str
    by: str
    kendall: Estimate
    gain: Estimate | None
    spread: float
    quality: tuple[Quality, ...]
    sizes: tuple[tuple[int | None, ...], ...]
    processed: float
    seconds: float
    weights: float

    def mean(self, what: Callable[[Quality], float]) -> float:
        """The mean of a measure over the seeds."""
        return float(np.mean([what(found) for found in self.quality]))

    def document(self) -> dict[str, Any]:
        """As JSON can hold it, but for numbers that are not finite."""
        return {
            "system": self.label,
            "by": self.by,
            "kendall": asdict(self.kendall),
            "gain": None if self.gain is None else asdict(self.gain),
            "spread": self.spread,
            "quality": [asdict(found) for found in self.quality],
            "sizes": [list(sizes) for sizes in self.sizes],
            "processed": self.processed,
            "seconds": self.seconds,
            "weights": self.weights,
        }


@named_arguments("judge")
def judge(
    outcomes: Mapping[str, Sequence[Outcome]],
    truth: Values,
    *,
    threshold: float,
    top: int,
    draws: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Standing]:
    """Compare rankings with measured values; the first system is the one to beat.

    Args:
        outcomes: By system, one a seed.
        truth: The measured values of the architectures that were ranked.
        threshold: As of `sigeo.tables.quality`.
        top: Likewise.
        draws: Likewise.
        resamples: Of the bootstrap.
        seed: Of the resampling.

    Returns:
        One a system and kind of ranking, the systems in their order.

    Raises:
        InputError: A number out of its range.
    """
    first = next(iter(outcomes.values()))
    standings = []
    for label, runs in outcomes.items():
        for by in runs[0].rankings:
            rankings = [run.rankings[by] for run in runs]
            taus = [repeated_kendall([r], truth, resamples=1).value for r in rankings]
            options: Any = {"resamples": resamples, "seed": seed}
            gain = None
            if runs is not first:
                base = [run.rankings[by] for run in first]
                gain = repeated_kendall(rankings, truth, baseline=base, **options)
            standings.append(
                Standing(
                    label,
                    by,
                    repeated_kendall(rankings, truth, **options),
                    gain,
                    float(np.std(taus, ddof=1)) if len(taus) > 1 else math.nan,
                    tuple(
                        quality(r, truth, threshold=threshold, top=top, draws=draws)
                        for r in rankings
                    ),
                    tuple(run.plan.sizes for run in runs),
                    float(np.mean([run.processed for run in runs])),
                    float(np.mean([run.seconds for run in runs])),
                    float(np.mean([run.weights for run in runs])),
                )
            )
    return standings
