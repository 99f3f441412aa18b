"""Divide a space among several supernets by what a metric says of its options.

Prints the tree of cuts and keeps it as plan.json and plan.svg; with a table it says where the good
architectures end up. Every cut is kept; the same command goes on from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigeo.cli import console, options, shared_weights, split_options, table_options, warmup_options
from sigeo.cli.split_options import add_arguments
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.fewshot import Analysis, Known, Plan, Splitting
    from sigeo.scoring.networks import Init, Networks, Protocol
    from sigeo.spaces import SearchSpace

__all__ = ["HELP", "add_arguments", "run"]

HELP = "divide a space among several supernets"

_ELSEWHERE = "give another --out, or remove it"


def run(args: argparse.Namespace) -> int:
    """Split.

    Raises:
        InputError: The folder holds another plan.
    """
    split_options.check(args)
    options.space_sizes(args)
    wanted = table_options.METRIC if args.metric_column is None else args.metric_column
    table = table_options.read(args.table, wanted)

    from sigeo.fewshot import Known, analyse, draw_plan, plan_document, save_plan
    from sigeo.fewshot.analysis import best_count
    from sigeo.scoring import export

    values = {} if table is None else table.lookup(wanted)
    top = 0.01 if args.top is None else args.top
    if values:  # a wrong share must not cost a split; a table without values is refused below
        best_count(top, len(values))
    outlined = options.space_before_images(args)
    _check(args, outlined, None if table is None else Known(outlined, values))
    data, space = options.load_data_and_space(args)
    known = None if table is None else Known(space, values)
    with options.run_folder(args) as folder:
        if args.kind is not None:
            plan, settings = _by_kind(args, space)
            kept = _kept(folder / "plan.json", space, settings)
            if kept is not None and kept != plan:
                raise InputError(f"plan {folder / 'plan.json'}: has other groups; {_ELSEWHERE}")
            save_plan(folder / "plan.json", plan, settings)
        else:
            how = split_options.splitting(args, space, known)
            plan, settings = _by_metric(args, space, data, how, folder)
    seen = None if known is None else analyse(plan, known, top=top)
    column = None if table is None else table.column(wanted)
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
        console.out(export.strict_dumps(document))
    else:
        _show(plan, seen, column)
    draw_plan(plan, folder / "plan.svg")
    return 0


def _check(args: argparse.Namespace, space: SearchSpace[Any], known: Known | None) -> None:
    """Refuse what no images would mend, before they are read.

    Raises:
        InputError: There is something.
    """
    from sigeo.fewshot.metrics import ProxyDifference
    from sigeo.scoring.score import check_needs
    from sigeo.spaces import Product

    if args.kind is not None:
        _by_kind(args, space)
        return
    split_options.check_sizes(args, space)
    how = split_options.splitting(args, space, known)
    how.check_cuts(Product.whole(space))
    warmed = warmup_options.warms_up(args)
    if isinstance(how.metric, ProxyDifference):
        check_needs((how.metric.proxy,), batches=args.batches, warmed=warmed)
    shared_weights.check(args, "supernet" if warmed else "scratch", space)


def _by_kind(args: argparse.Namespace, space: SearchSpace[Any]) -> tuple[Plan[Any], dict[str, Any]]:
    from sigeo.fewshot import kind_function, split_by_kind

    values = sorted(kind_function(space, args.kind).values)
    groups = [(value,) for value in values] if args.groups is None else args.groups
    return split_by_kind(space, args.kind, groups), {"kind": args.kind}


def _by_metric(
    args: argparse.Namespace, space: SearchSpace[Any], data: Any, how: Splitting, folder: Path
) -> tuple[Plan[Any], dict[str, Any]]:
    """Warm up if asked for, and split; a finished plan of the same settings is taken as it is."""
    from sigeo.fewshot import save_plan, split

    protocol = _protocol(args, data, how)
    text = json.dumps(_settings(protocol, space, data, how), sort_keys=True)
    settings = json.loads(text)
    name = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    finished, partial = folder / "plan.json", folder / f"plan-{name}.partial.json"
    kept = _kept(finished, space, settings)
    if kept is not None:
        return kept, settings
    networks = _networks(space, data, protocol, how, folder)
    with console.progress("splitting") as report:
        divided = split(
            space,
            how,
            seed=args.seed,
            supernet=networks.supernet,
            batches=networks.batches,
            warmed=networks.protocol.warmed,
            checkpoint=partial,
            settings=settings,
            progress=report,
        )
    save_plan(finished, divided.plan, settings)
    partial.unlink(missing_ok=True)
    return divided.plan, settings


def _kept(file: Path, space: SearchSpace[Any], settings: dict[str, Any]) -> Plan[Any] | None:
    """The finished plan of these settings, if it is there.

    Raises:
        InputError: The file holds a plan of others, which the weights beside it may be of.
    """
    from sigeo.fewshot import load_plan
    from sigeo.supernet.checkpoint import difference

    if not file.is_file():
        return None
    plan, found = load_plan(file, space)
    if found != settings:
        raise InputError(
            f"plan {file}: made with other settings than this splitting "
            f"({difference(found, settings)}); {_ELSEWHERE}"
        )
    return plan


def _protocol(args: argparse.Namespace, data: Any, how: Splitting) -> Protocol:
    from sigeo import proxies
    from sigeo.fewshot.metrics import ProxyDifference
    from sigeo.scoring.networks import Protocol

    warmup = warmup_options.warm_up(args, len(data.train), "supernet")
    init: Init = "scratch" if warmup is None else "supernet"
    by_proxy = isinstance(how.metric, ProxyDifference)
    return Protocol(
        proxies=(how.metric.proxy if by_proxy else proxies.get("params"),),  # type: ignore[union-attr]
        init=init,
        warmup=warmup,
        supernet=shared_weights.supernet_options(args, init),
        batches=args.batches,
        batch_size=args.batch_size,
        seed=args.seed,
        device=args.device,
    )


def _networks(
    space: SearchSpace[Any], data: Any, protocol: Protocol, how: Splitting, folder: Path
) -> Networks:
    from sigeo.scoring.networks import Networks
    from sigeo.spaces import Product

    if protocol.warmup is not None:  # what weights as drawn do not serve is refused before it
        drawn = Networks(space, data, replace(protocol, init="scratch", warmup=None))
        how.check(Product.whole(space), drawn.supernet, drawn.batches)
        del drawn
    with console.progress("warming up") as report:
        return Networks(space, data, protocol, folder=folder, progress=report)


def _settings(
    protocol: Protocol, space: SearchSpace[Any], data: Any, how: Splitting
) -> dict[str, Any]:
    """All that the plan depends on, as JSON can hold it."""
    from sigeo.scoring.networks import weights_settings

    return {
        "splitting": how.describe(),
        "batches": protocol.batches,
        "batch_size": protocol.batch_size,
        "weights": weights_settings(space, data, protocol, None),
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
    from sigeo.fewshot import plan_tree

    console.show(plan_tree(plan))
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
    console.out(
        f"entropy of the best over the supernets {shown(seen.entropy)} of 1; the supernet with the "
        f"highest mean is {mean}, and selecting it costs {seen.regret(mean):.3f}"
    )
