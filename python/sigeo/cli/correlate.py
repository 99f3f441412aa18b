"""Correlate scores with a benchmark table, always beside the baselines params and flops."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigeo.cli import console, names, options, table_options
from sigeo.cli.scores_file import read_any_scores
from sigeo.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sigeo.spaces import SearchSpace
    from sigeo.tables import Correlation, Estimate, Quality, Table

HELP = "correlate scores with a benchmark table"

BASELINES = ("params", "flops")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--scores",
        required=True,
        metavar="FILE",
        help="a run's folder, scores.parquet or JSON of rank, or a table of scores by arch_str",
    )
    parser.add_argument(
        "--table",
        type=options.existing_file,
        required=True,
        metavar="FILE",
        help="csv, csv.gz or parquet",
    )
    parser.add_argument("--metric", required=True, help="a column of it, such as cifar10.test")
    parser.add_argument(
        "--bootstrap", type=options.resamples, default=1000, help="resamples (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=options.seed,
        default=0,
        help="of the resampling, 0 to 2**63-1 (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=options.positive_number,
        default=0.1,
        help="differences in the metric, in its unit, that sparse Kendall takes for noise "
        "(default: %(default)s, for percent)",
    )
    for name, combined in (
        ("rank-sum", "the sum of the ranks, as TE-NAS takes ntk_cond,linear_regions"),
        ("log-rank-sum", "the sum of the logarithms of the ranks, as AZ-NAS takes its parts"),
    ):
        parser.add_argument(
            f"--{name}",
            type=_several,
            action="append",
            default=[],
            metavar="P,P,...",
            help=f"one more line: of these proxies {combined}; may be repeated",
        )
    table_options.add_top(parser)
    parser.add_argument(
        "--draws",
        type=options.positive,
        default=10,
        help="networks that random search measures (default: %(default)s)",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Correlate.

    Raises:
        InputError: Too few of the architectures are in the table, or fewer than are the best; or a
            proxy to combine has no scores.
    """
    given = Path(args.scores)
    scores_file = given / "scores.parquet" if given.is_dir() else given
    if not scores_file.is_file():
        raise InputError(f"--scores: found no file {scores_file}")

    import numpy as np

    from sigeo.tables import correlate, parts_first, quality, read_table

    given_scores = read_any_scores(scores_file)
    combined = _combined(args, given_scores.columns)
    table = read_table(args.table)
    truth = table.lookup(args.metric)
    table_options.say_if_code(table, args.metric)
    archs = given_scores.archs
    known = _known(archs, truth, table)
    top = table_options.top(args, len(known))
    values = np.array([truth[archs[i]] for i in known])
    scores = {p: column[known] for p, column in (given_scores.columns | combined).items()}
    scores |= _baselines([archs[i] for i in known], scores, given_scores.head)
    standing = None if given_scores.standing is None else given_scores.standing[known]
    if standing is not None:
        console.say(
            "parts of the space that the system prefers count first, whatever their scores; "
            "not for params and flops"
        )
    different = _different([archs[i] for i in known], given_scores.head)
    if different is not None and different < len(known):
        console.say(
            f"{different:,} different networks among the {len(known):,} architectures; each counts "
            "as often as it occurs"
        )
    results, qualities = {}, {}
    for proxy, column in scores.items():
        parts = None if proxy in BASELINES else standing
        results[proxy] = correlate(
            column, values, standing=parts, resamples=args.bootstrap, seed=args.seed
        )
        ranks = column if parts is None else parts_first(column, parts)
        qualities[proxy] = quality(
            ranks, values, threshold=args.threshold, top=top, draws=args.draws
        )
    column_name = table.column(args.metric)
    if args.json:
        document = _document(
            args, column_name, (len(archs), different), standing is not None, results, qualities
        )
        console.out(json.dumps(document, allow_nan=False))
    else:
        _show(column_name, len(known), len(archs), results)
        _show_quality(qualities)
    return 0


def _known(archs: list[str], truth: dict[str, float], table: Table) -> list[int]:
    """The places of the architectures that have a measured value.

    Raises:
        InputError: They are too few.
    """
    known = [i for i, arch in enumerate(archs) if arch in truth]
    if len(known) < 3:
        other = ""
        if not known and archs and table.archs:
            other = f": those ranked are like {archs[0]}, these like {table.archs[0]}"
        raise InputError(
            f"--table: needs values of at least 3 of the architectures scored, {table.path} has "
            f"{len(known)} of {len(archs)}{other}"
        )
    return known


def _combined(
    args: argparse.Namespace, columns: dict[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """The sums of ranks asked for, over all architectures scored, by what names them.

    Raises:
        InputError: A proxy has no scores.
    """
    from sigeo.tables import log_rank_sum, rank_sum

    found = {}
    for option, function in (("rank-sum", rank_sum), ("log-rank-sum", log_rank_sum)):
        for proxies in getattr(args, option.replace("-", "_")):
            missing = [proxy for proxy in proxies if proxy not in columns]
            if missing:
                raise InputError(
                    f"--{option}: expected of {', '.join(columns)}, which have scores, got "
                    f"{missing[0]}"
                )
            name = f"{option.replace('-', '_')}({','.join(proxies)})"
            found[name] = function([columns[proxy] for proxy in proxies])
    return found


def _several(text: str) -> list[str]:
    """A converter to the names of proxies to combine.

    Raises:
        ArgumentTypeError: One alone, or one twice.
    """
    proxies = names.listed(text)
    if len(set(proxies)) != len(proxies) or len(proxies) < 2:
        raise argparse.ArgumentTypeError(f"expected two proxies or more, each once, got {text!r}")
    return proxies


def _baselines(
    archs: list[str], columns: dict[str, Any], head: dict[str, Any]
) -> dict[str, NDArray[np.float64]]:
    """The costs of the networks, where the scores do not hold them.

    Of nasbench201 those of the published networks, which tables measure; of another space those of
    its sizes, if the scores say them.
    """
    import numpy as np

    missing = [name for name in BASELINES if name not in columns]
    if not missing:
        return {}
    unknown = f"{' and '.join(missing)}: not known"
    sizes = _sizes(head)
    try:
        space = _space(sizes)
    except InputError as error:
        console.say(f"{unknown}, the scores are of no space known here ({error})")
        return {}
    costs = []
    try:
        with console.progress("counting params and flops") as report:
            for arch in archs:
                costs.append(space.cost(space.parse(arch)))
                report(len(costs), len(archs))
    except InputError as error:
        if not isinstance(sizes, dict):
            console.say(f"{unknown}, the scores do not say of which space they are")
        else:
            console.say(f"{unknown}, the scores are of {space.name}: {error}")
        return {}
    made = {
        "params": np.array([float(cost.parameters) for cost in costs]),
        "flops": np.array([float(cost.flops) for cost in costs]),
    }
    return {name: made[name] for name in missing}


def _different(archs: list[str], head: dict[str, Any]) -> int | None:
    """How many different networks architectures are; None of a space that is not known."""
    try:
        space = _space(_sizes(head))
        return len({space.representative(space.parse(arch)) for arch in archs})
    except InputError:
        return None


def _sizes(head: dict[str, Any]) -> Any:
    """The description of the space that scores are of; None where they do not say."""
    settings = head.get("settings")
    return settings.get("space") if isinstance(settings, dict) else None


def _space(sizes: Any) -> SearchSpace[Any]:
    """The space of a description; nasbench201 as published where there is none."""
    from sigeo import spaces

    if isinstance(sizes, dict) and sizes.get("name") != "nasbench201":
        return spaces.described(sizes)
    return spaces.get("nasbench201", spaces.InputShape(channels=3, size=32, classes=10))


def _document(
    args: argparse.Namespace,
    column: str,
    counts: tuple[int, int | None],
    standing: bool,
    results: dict[str, Correlation],
    qualities: dict[str, Quality],
) -> dict[str, Any]:
    from sigeo.scoring.export import SCHEMA, finite_or_none

    def estimate(value: Estimate) -> dict[str, Any]:
        return {
            "value": finite_or_none(value.value),
            "low": finite_or_none(value.low),
            "high": finite_or_none(value.high),
        }

    return {
        "schema": SCHEMA,
        "scores": args.scores,
        "table": args.table,
        "metric": args.metric,
        "column": column,
        "architectures": counts[0],
        "different": counts[1],
        "standing": standing,
        "confidence": 0.95,
        "resamples": args.bootstrap,
        "proxies": {
            proxy: {
                "spearman": estimate(c.spearman),
                "kendall": estimate(c.kendall),
                "count": c.count,
                "not_finite": c.not_finite,
                **_measures(qualities[proxy]),
            }
            for proxy, c in results.items()
        },
    }


def _measures(found: Quality) -> dict[str, Any]:
    from sigeo.scoring.export import finite_or_none

    return {
        "sparse_kendall": finite_or_none(found.sparse_kendall),
        "sparse_kendall_official": finite_or_none(found.sparse_kendall_official),
        "threshold": found.threshold,
        "top": found.top,
        "top_kendall": finite_or_none(found.top_kendall),
        "top_hits": found.hits,
        "pick": {
            "value": finite_or_none(found.pick.value),
            "regret": finite_or_none(found.pick.regret),
            "percentile": found.pick.percentile,
        },
        "random_surpasses": found.random_surpasses,
        "draws": found.draws,
    }


def _show_quality(qualities: dict[str, Quality]) -> None:
    from sigeo.tables import FEWEST

    def shown(value: float) -> str:
        return "undefined" if value != value else f"{value:.3f}"

    one = next(iter(qualities.values()))
    console.show_table(
        "for finding the best",
        [
            ("proxy", False),
            (f"sparse Kendall ({one.threshold:g})", True),
            (f"Kendall, best {one.top}", True),
            (f"of the best {one.top}", True),
            ("first", True),
            ("regret", True),
            ("percentile", True),
            (f"{one.draws} random better", True),
        ],
        (
            [
                proxy,
                shown(q.sparse_kendall),
                shown(q.top_kendall),
                f"{q.hits:.0%}",
                f"{q.pick.value:.5g}",
                f"{q.pick.regret:.3g}",
                f"{q.pick.percentile:.4g}",
                f"{q.random_surpasses:.0%}",
            ]
            for proxy, q in qualities.items()
        ),
    )
    if one.top < FEWEST:
        console.say(
            f"Kendall, best {one.top}: takes {FEWEST} architectures or more, the order of fewer "
            "may be chance"
        )


def _show(column: str, known: int, count: int, results: dict[str, Correlation]) -> None:
    def shown(estimate: Estimate) -> list[str]:
        if estimate.value != estimate.value:
            return ["undefined", ""]
        return [f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}"]

    def order(item: tuple[str, Correlation]) -> tuple[bool, float]:
        value = item[1].spearman.value
        return value != value, -abs(value)  # what is undefined comes last

    ordered = sorted(results.items(), key=order)
    console.show_table(
        f"rank correlation with {column}, {known} of {count} architectures",
        [
            ("proxy", False),
            ("Spearman", True),
            ("95 % interval", True),
            ("Kendall", True),
            ("95 % interval", True),
            ("not finite", True),
        ],
        ([proxy, *shown(c.spearman), *shown(c.kendall), str(c.not_finite)] for proxy, c in ordered),
    )
