"""Compare one-shot and few-shot systems: equal budgets, several seeds, judged by a table.

Leaves comparison.json and comparison.html in a folder, with the plan of each system and seed. Every
training is kept as it goes on; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigeo import option_text
from sigeo.cli import compare_options, console, options, proxy_options, table_options
from sigeo.cli.compare_options import add_arguments
from sigeo.errors import InputError
from sigeo.whole_files import write_whole_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sigeo.fewshot.comparison import Entrant, Outcome, Standing
    from sigeo.fewshot.study import Study
    from sigeo.proxies import Proxy
    from sigeo.spaces import SearchSpace
    from sigeo.tables import Table

__all__ = ["HELP", "add_arguments", "run"]

HELP = "compare one-shot and few-shot systems"

PAGE = "comparison.html"


def run(args: argparse.Namespace) -> int:
    """Compare.

    Raises:
        InputError: More that are the best than are ranked.
    """
    if args.list:
        return _list(args)
    compare_options.check(args)
    options.space_sizes(args)

    from sigeo.tables import read_table

    table = read_table(args.table)  # what it lacks is said before torch is imported
    ranked = _ranked(args, table)
    table_options.say_if_code(table, args.metric)
    top = table_options.top(args, len(ranked))

    from sigeo import proxies
    from sigeo.fewshot import comparison
    from sigeo.report.comparison import render_comparison
    from sigeo.scoring import export
    from sigeo.scoring.score import resolve

    outlined = options.space_before_images(args)
    compare_options.check_recipes(args, outlined)
    _parsed(ranked, outlined, table)
    given = proxy_options.given(args.proxy)
    wanted = resolve([proxies.get(name, **own) for name, own in given]) if given else []
    data, space = options.load_data_and_space(args)
    archs, truth = _parsed(ranked, space, table)
    study = compare_options.study(args, data, space)
    entrants = compare_options.entrants(args, study)
    archs, truth = _unknown(comparison.known_to(entrants, space), archs, truth)
    top = table_options.top(args, len(archs))
    with options.run_folder(args) as folder:
        outcomes = _outcomes(args, study, entrants, archs, wanted, folder)
    standings = comparison.judge(
        outcomes,
        truth,
        threshold=args.threshold,
        top=top,
        resamples=args.bootstrap,
        seed=args.seed,
    )
    ceiling = _ceiling(table, args.metric, archs)
    document = {
        "schema": export.SCHEMA,
        "study": _described(study),
        "table": args.table,
        "column": table.column(args.metric),
        "architectures": len(archs),
        "seeds": list(range(args.seed, args.seed + args.seeds)),
        "options": {proxy.name: dict(proxy.options) for proxy in wanted if proxy.options},
        "ceiling": export.finite_or_none(ceiling),
        "systems": [_finite(standing.document()) for standing in standings],
        "env": export.environment(args.device),
    }
    if args.json:
        console.out(export.strict_dumps(document))
    else:
        _show(standings, ceiling)
    text = export.strict_dumps(document, indent=1) + "\n"
    write_whole_text(folder / "comparison.json", text)
    page = render_comparison(
        f"{space.name} on {data.name}",
        f"{len(outcomes)} systems, {args.seeds} seed(s), {len(archs)} architectures",
        _facts(args, study, table, ceiling),
        standings,
        ceiling,
    )
    write_whole_text(folder / PAGE, page)
    if not args.json:
        console.say(f"report: {folder / PAGE}")
    return 0


def _described(study: Study) -> dict[str, Any]:
    """The ground, but for how long a training is, which follows from the budget."""
    described = study.describe()
    for length in ("images", "epochs", "steps"):
        del described["training"][length]
    return described


def _list(args: argparse.Namespace) -> int:
    from sigeo.fewshot import recipes
    from sigeo.scoring import export

    known = [recipes.entry(name) for name in recipes.names()]
    if args.json:
        rows = [
            {
                "name": entry.name,
                "summary": entry.summary,
                "options": entry.options,
                "source": entry.source,
            }
            for entry in known
        ]
        console.out(export.strict_dumps({"schema": export.SCHEMA, "recipes": rows}))
        return 0
    console.show_table(
        "recipes",
        [("name", False), ("what it does", False), ("options", False), ("source", False)],
        (
            [
                entry.name,
                entry.summary,
                ", ".join(option_text.written(*option) for option in entry.options.items()),
                entry.source,
            ]
            for entry in known
        ),
    )
    return 0


def _ranked(args: argparse.Namespace, table: Table) -> dict[str, float]:
    """Architectures of the table, drawn, and their measured values.

    Raises:
        InputError: The table has too few, or fewer than asked for.
    """
    truth_of = table.lookup(args.metric)
    has = f"architectures with {args.metric}"
    if len(truth_of) < 3:
        raise InputError(f"--table: expected at least 3 {has}, found {len(truth_of)}")
    if args.archs is not None and args.archs > len(truth_of):
        raise InputError(f"--archs: {table.path} has {len(truth_of)} {has}, got {args.archs}")
    known = sorted(truth_of)
    random.Random(args.seed).shuffle(known)
    return {name: truth_of[name] for name in known[: args.archs or compare_options.ARCHS]}


def _parsed(
    ranked: Mapping[str, float], space: SearchSpace[Any], table: Table
) -> tuple[list[Any], NDArray[np.float64]]:
    """The same as architectures of the space, and an array.

    Raises:
        InputError: The table is of another space.
    """
    import numpy as np

    try:
        archs = [space.parse(name) for name in ranked]
    except InputError as error:
        raise InputError(
            f"--table: expected architectures of {space.name}, {table.path} has others ({error})"
        ) from None
    return archs, np.array(list(ranked.values()))


def _unknown(
    known: Collection[str], archs: list[Any], truth: NDArray[np.float64]
) -> tuple[list[Any], NDArray[np.float64]]:
    """The architectures whose values no system is told, and theirs.

    Raises:
        InputError: They are too few.
    """
    left = [place for place, arch in enumerate(archs) if str(arch) not in known]
    if len(left) < len(archs):
        told = f"{len(archs) - len(left)} of {len(archs)} architectures, which a recipe knows"
        if len(left) < 3:
            raise InputError(f"--table: expected at least 3 to rank beside {told}")
        console.say(f"left out: {told}")
    return [archs[place] for place in left], truth[left]


def _outcomes(
    args: argparse.Namespace,
    study: Study,
    entrants: list[Entrant],
    archs: list[Any],
    wanted: list[Proxy],
    folder: Path,
) -> dict[str, list[Outcome]]:
    from sigeo.fewshot import comparison
    from sigeo.supernet.checkpoint import OtherSettings

    outcomes: dict[str, list[Outcome]] = {entrant.label: [] for entrant in entrants}
    for seed in range(args.seed, args.seed + args.seeds):
        for entrant in entrants:
            own = folder / options.file_name(entrant.label) / str(seed)
            store = folder / "run.sqlite"
            with console.progress(f"{entrant.label}, seed {seed}") as report:
                try:
                    found = comparison.run(
                        study, entrant, seed, archs, wanted, store, own, progress=report
                    )
                except OtherSettings as error:
                    raise InputError(
                        f"{error} (a folder serves one budget, data and training: give another "
                        "--out to keep both)"
                    ) from None
            outcomes[entrant.label].append(found)
    return outcomes


def _ceiling(table: Table, metric: str, archs: list[Any]) -> float:
    """Tau between the runs of the metric that the table has, on the architectures ranked."""
    import numpy as np

    from sigeo.tables import noise_ceiling

    column = table.column(metric)
    runs = [table.lookup(name) for name in table.values if name.startswith(f"{column}_run")]
    if len(runs) < 2:
        return float("nan")
    return noise_ceiling([np.array([run.get(str(arch), np.nan) for arch in archs]) for run in runs])


def _facts(
    args: argparse.Namespace, study: Study, table: Table, ceiling: float
) -> list[tuple[str, str]]:
    sizes = study.space.describe()
    training = study.describe()["training"]
    mean = f", mean over up to {study.keep} checkpoints a pass apart" if study.keep > 1 else ""
    facts = [
        ("networks", ", ".join(f"{k} {v}" for k, v in sizes.items() if k != "name")),
        ("budget", f"{study.budget:,} images processed by each system and seed"),
        (
            "training",
            f"batches of {training['batch_size']}, lr {training['lr']} along a cosine, momentum "
            f"{training['momentum']}, weight decay {training['weight_decay']}"
            + (", mirrored and cut at random" if study.augment is not None else ""),
        ),
        (
            "evaluated on",
            f"{study.held_out} training images held out, batch statistics{mean}",
        ),
        ("judged by", f"{table.column(args.metric)} of {table.path.name}"),
    ]
    if ceiling == ceiling:
        facts.append(("noise ceiling", f"Kendall's tau {ceiling:.3f} between the table's runs"))
    return facts


def _finite(value: Any) -> Any:
    """The same with null for numbers that are not finite."""
    from sigeo.scoring.export import finite_or_none

    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return finite_or_none(value) if isinstance(value, float) else value


def _show(standings: list[Standing], ceiling: float) -> None:
    from sigeo.report.comparison import cost_table, main_table, ranked_table

    sections = [main_table(standings), cost_table(standings)]
    if len({standing.by for standing in standings}) > 1:
        sections.insert(1, ranked_table(standings))
    for section in sections:
        headings = [(heading, place > 0) for place, heading in enumerate(section.headings)]
        console.show_table(section.title, headings, section.rows)
        if section.note:
            console.say(section.note)
    if ceiling == ceiling:
        console.say(f"noise ceiling: Kendall's tau {ceiling:.3f} between the table's runs")
