"""Divide a space among several supernets by what a metric says of its options.

Prints the tree of cuts and keeps it as plan.json and plan.svg; with a table it says where the good
architectures end up. Every cut is kept; the same command goes on from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigeo.cli import console, options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.fewshot import Analysis, Known, Plan, Splitting
    from sigeo.fewshot.metrics import Metric
    from sigeo.scoring.networks import Networks
    from sigeo.spaces import SearchSpace

HELP = "divide a space among several supernets"

# Sides of 2 and more, as published with these metrics; others are published with any.
_AT_LEAST_TWO = ("gradient_matching", "lid")
_WITHOUT_REPEATS = ("random", "table")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers separated by commas, got {text!r}"
        ) from None


def _groups(text: str) -> list[tuple[int, ...]]:
    return [_numbers(group) for group in text.split("/")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    options.add_space(parser)
    group = parser.add_argument_group("splitting")
    group.add_argument(
        "--metric",
        help="compares options: gradient_matching, gradient_matching_logits, lid, table, random, "
        "or a proxy's name (default: gradient_matching)",
    )
    group.add_argument("--leaves", type=options.positive, help="supernets (default: 4)")
    group.add_argument(
        "--factors",
        type=_numbers,
        metavar="A,B",
        help="parts of a cut, in ascending order level by level (default: 2)",
    )
    group.add_argument("--partition", help="how options are grouped (default: exact)")
    group.add_argument(
        "--smallest",
        type=options.positive,
        help="least options of a group, of exact and random partitions (default: 2 with "
        "gradient_matching and lid, else 1)",
    )
    group.add_argument(
        "--choice",
        help="which choice is split: in_turn, random, or the one with the best between_mean, "
        "between_sum, within_sum, separation or most_alike (default: separation with lid, else "
        "between_mean)",
    )
    group.add_argument(
        "--order",
        type=_numbers,
        metavar="A,B",
        help="places of the choices that are split in turn (default: 0,1,2,...)",
    )
    group.add_argument(
        "--repeats", type=options.positive, help="batches and drawn paths (default: 8)"
    )
    group.add_argument(
        "--batches", type=options.positive, default=4, help="batches measured on (default: 4)"
    )
    group.add_argument(
        "--batch-size", type=options.whole(2), default=64, help="images of one (default: 64)"
    )
    group.add_argument(
        "--kind",
        metavar="NAME",
        help="divide by a function of architectures instead, such as nonlinear_depth",
    )
    group.add_argument(
        "--groups",
        type=_groups,
        metavar="A,B/C",
        help="values of --kind that go together (default: each its own)",
    )
    options.add_warmup(parser, default=0.0)
    parser.add_argument("--table", metavar="FILE", help="benchmark table to look at the plan with")
    parser.add_argument("--metric-column", help=f"its column (default: {options.METRIC})")
    parser.add_argument(
        "--top", type=float, metavar="SHARE", help="of the table's best to find (default: 0.01)"
    )
    parser.add_argument("--out", metavar="DIR", help="default: runs/SPACE-DATA")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Split."""
    from sigeo.fewshot import analyse, draw_plan, plan_document, save_plan
    from sigeo.scoring import export

    _check(args)
    data, space = options.load_data_and_space(args)
    known, column = _known(args, space)
    if args.kind is not None:
        plan, settings = _by_kind(args, space)
    else:
        how = _splitting(args, known)
        plan, settings = _by_metric(args, space, data, how)
    seen = None
    if known is not None:
        seen = analyse(plan, known, top=0.01 if args.top is None else args.top)
    folder = options.run_folder(args)
    document = {
        "schema": export.SCHEMA,
        "plan": plan_document(plan, settings),
        "leaves": list(plan.sizes),
        "table": args.table,
        "column": column,
        "analysis": None if seen is None else _analysis(seen),
        "files": {kind: str(folder / f"plan.{kind}") for kind in ("json", "svg")},
        "env": export.environment(args.device),
    }
    if args.json:
        print(export.strict_dumps(document))
    else:
        _show(plan, seen, column)
    save_plan(folder / "plan.json", plan, settings)
    draw_plan(plan, folder / "plan.svg")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options without effect.

    Raises:
        InputError: There is one.
    """
    if args.table is None:
        for option in ("--metric-column", "--top"):
            if getattr(args, option[2:].replace("-", "_")) is not None:
                raise InputError(f"{option}: has no effect without --table")
    if args.kind is None and args.groups is not None:
        raise InputError("--groups: has no effect without --kind")
    if args.kind is not None:
        wanted = ("metric", "leaves", "factors", "partition", "smallest", "choice", "order")
        for name in (*wanted, "repeats"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name}: has no effect with --kind")
        if options.warms_up(args):
            raise InputError("--warmup: has no effect with --kind")
    if args.metric == "table" and args.table is None:
        raise InputError("--metric table: needs --table, got none")
    if args.repeats is not None and args.metric in _WITHOUT_REPEATS:
        raise InputError(f"--repeats: has no effect with --metric {args.metric}")
    if args.order is not None and args.choice != "in_turn":
        raise InputError("--order: has no effect without --choice in_turn")
    if args.smallest is not None and args.partition not in (None, "exact", "random"):
        raise InputError(f"--smallest: has no effect with --partition {args.partition}")


def _known(args: argparse.Namespace, space: SearchSpace[Any]) -> tuple[Known | None, str | None]:
    """The table's values and their column; read before anything is measured."""
    from sigeo.fewshot import Known
    from sigeo.tables import read_table

    if args.table is None:
        return None, None
    table = read_table(args.table)
    wanted = options.METRIC if args.metric_column is None else args.metric_column
    return Known(space, table.lookup(wanted)), table.column(wanted)


def _by_kind(args: argparse.Namespace, space: SearchSpace[Any]) -> tuple[Plan[Any], dict[str, Any]]:
    from sigeo.fewshot import kind_function, split_by_kind

    values = sorted(kind_function(space, args.kind).values)
    groups = [(value,) for value in values] if args.groups is None else args.groups
    return split_by_kind(space, args.kind, groups), {"kind": args.kind}


def _splitting(args: argparse.Namespace, known: Known | None) -> Splitting:
    from sigeo.fewshot import Branching, Splitting, choice, partition

    name = args.metric or "gradient_matching"
    rule = args.choice or ("separation" if name == "lid" else "between_mean")
    cut = args.partition or "exact"
    smallest = args.smallest or (2 if name in _AT_LEAST_TWO else 1)
    sized = {"smallest": smallest} if cut in ("exact", "random") else {}
    ordered = {"order": args.order} if args.order is not None else {}
    leaves = 4 if args.leaves is None else args.leaves
    return Splitting(
        _metric(name, args.repeats or 8, known),
        Branching.of_leaves(leaves, args.factors or (2,)),
        partition.get(cut, **sized),
        choice.get(rule, **ordered),
    )


def _metric(name: str, repeats: int, known: Known | None) -> Metric:
    from sigeo.fewshot import metrics

    if name == "table":
        return metrics.get(name, known=known)
    if name in _WITHOUT_REPEATS:
        return metrics.get(name)
    return metrics.get(name, repeats=repeats)


def _by_metric(
    args: argparse.Namespace, space: SearchSpace[Any], data: Any, how: Splitting
) -> tuple[Plan[Any], dict[str, Any]]:
    """Warm up if asked for, and split; a finished plan of the same settings is taken as it is."""
    from sigeo.fewshot import load_plan, split

    folder = options.run_folder(args)
    networks = _networks(args, space, data, how, folder)
    settings = _settings(args, networks, how)
    text = json.dumps(settings, sort_keys=True)
    name = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    finished, partial = folder / "plan.json", folder / f"plan-{name}.partial.json"
    if finished.is_file():
        plan, found = load_plan(finished, space)
        if found == json.loads(text):
            return plan, found
    with console.progress("splitting") as report:
        divided = split(
            space,
            how,
            seed=args.seed,
            supernet=networks.supernet,
            batches=networks.batches,
            warmed=networks.protocol.warmed,
            checkpoint=partial,
            settings=json.loads(text),
            progress=report,
        )
    partial.unlink(missing_ok=True)
    return divided.plan, json.loads(text)


def _networks(
    args: argparse.Namespace, space: SearchSpace[Any], data: Any, how: Splitting, folder: Path
) -> Networks:
    from sigeo import proxies
    from sigeo.fewshot.metrics import ProxyDifference
    from sigeo.scoring.networks import Networks, Protocol

    warmup = options.warm_up(args, len(data.train), "supernet")
    by_proxy = isinstance(how.metric, ProxyDifference)
    protocol = Protocol(
        proxies=(how.metric.proxy if by_proxy else proxies.get("params"),),  # type: ignore[union-attr]
        init="scratch" if warmup is None else "supernet",
        warmup=warmup,
        batches=args.batches,
        batch_size=args.batch_size,
        seed=args.seed,
        device=args.device,
    )
    with console.progress("warming up") as report:
        return Networks(space, data, protocol, folder=folder, progress=report)


def _settings(args: argparse.Namespace, networks: Networks, how: Splitting) -> dict[str, Any]:
    """All that the plan depends on, as JSON can hold it."""
    from sigeo.fewshot.metrics import TableOracle

    metric = how.metric.name if how.metric is not None else None
    return {
        "metric": metric,
        "repeats": None if metric in _WITHOUT_REPEATS else args.repeats or 8,
        "partition": repr(how.partitioner),
        "choice": repr(how.choice),
        "levels": how.branching.levels,
        "batches": args.batches,
        "batch_size": args.batch_size,
        "table": how.metric.known.fingerprint() if isinstance(how.metric, TableOracle) else None,
        "weights": networks.weights_settings(),
    }


def _analysis(seen: Analysis) -> dict[str, Any]:
    from sigeo.scoring.export import finite_or_none

    selected = {by: seen.selected(by) for by in ("mean", "best")}
    return {
        "top": seen.top,
        "best": seen.best,
        "entropy": finite_or_none(seen.entropy),
        "selected": {
            by: {"leaf": leaf, "regret": seen.regret(leaf)} for by, leaf in selected.items()
        },
        "leaves": [
            {
                "size": child.size,
                "known": child.known,
                "top": child.top,
                "mean": finite_or_none(child.mean),
                "best": finite_or_none(child.best),
                "best_rank": child.best_rank,
            }
            for child in seen.children
        ],
    }


def _show(plan: Plan[Any], seen: Analysis | None, column: str | None) -> None:
    from rich.console import Console

    from sigeo.fewshot import plan_tree

    terminal = Console()
    if not terminal.is_terminal:
        terminal.width = 200  # a file or a pipe: no reason to fold
    terminal.print(plan_tree(plan))
    if seen is None:
        return

    def shown(value: float) -> str:
        return "unknown" if value != value else f"{value:.3f}"

    console.show_table(
        f"{column} of the {len(seen.children)} supernets' architectures",
        [
            ("supernet", True),
            ("size", True),
            ("known", True),
            (f"of the best {seen.top}", True),
            ("mean", True),
            ("best", True),
            ("rank of the best", True),
        ],
        (
            [
                str(leaf),
                "not counted" if child.size is None else f"{child.size:,}",
                f"{child.known:,}",
                str(child.top),
                shown(child.mean),
                shown(child.best),
                "unknown" if child.best_rank is None else f"{child.best_rank:,}",
            ]
            for leaf, child in enumerate(seen.children)
        ),
    )
    mean = seen.selected("mean")
    print(
        f"entropy of the best over the supernets {shown(seen.entropy)} of 1; the supernet with the "
        f"highest mean is {mean}, and selecting it costs {seen.regret(mean):.3f}"
    )
