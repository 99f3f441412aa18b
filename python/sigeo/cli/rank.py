"""Rank architectures of a space by proxies, after a warm-up if asked for.

Leaves scores.parquet, report.html and run.sqlite in a folder; the same command again goes on where
it was stopped and scores nothing twice.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from sigeo.cli import (
    architectures,
    console,
    options,
    proxy_options,
    shared_weights,
    table_options,
    warmup_options,
)
from sigeo.cli.init_option import Init, Loaded
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.proxies import Proxy
    from sigeo.scoring.many import Routes
    from sigeo.scoring.networks import Networks, Protocol
    from sigeo.scoring.rank import Row
    from sigeo.tables import Table

HELP = "rank architectures of a space"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    options.add_space(parser)
    which = architectures.add(parser)
    which.add_argument(
        "--no-dedup", action="store_true", help="score architectures that are the same network each"
    )
    proxy_options.add(parser)
    warmup_options.add_arguments(parser, default=0.0)
    warmup_options.add_keep(parser)
    shared_weights.add_arguments(parser)
    parser.add_argument(
        "--init",
        metavar="scratch|candidate|supernet[:PATH]|family:DIR",
        help="where weights come from: drawn; each network warmed up alone; shared weights warmed "
        "up here, or loaded from PATH; of the supernets that warmup --recipe left in DIR, the one "
        "that serves it (default: supernet with a warm-up, else scratch)",
    )
    parser.add_argument(
        "--many",
        type=options.networks_at_once,
        default="auto",
        metavar="K|auto|off",
        help="networks in one pass; auto measures on the first ones whether many are faster than "
        "one by one (default: %(default)s)",
    )
    table_options.add(parser, "for the report")
    options.add_out(parser)
    parser.add_argument(
        "--top",
        type=options.positive,
        default=10,
        help="rows of the table shown (default: %(default)s)",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Rank."""
    init = Init.parse(args)
    metric = table_options.metric(args)
    _check(args, init)
    table = table_options.read(args.table, metric)
    listed = architectures.lines(args)

    from sigeo.cli.report import write_report
    from sigeo.scoring import export
    from sigeo.scoring.networks import Networks
    from sigeo.scoring.rank import rank, unscored
    from sigeo.store import RunStore

    proxies, weights = _checked_before_images(args, init, listed, table)
    data, space = options.load_data_and_space(args)
    protocol = _protocol(args, init, proxies, len(data.train))
    shared = init.fitting(weights, space, args.seed)
    archs = architectures.chosen(args, listed, space)
    each_alone = protocol.init == "candidate"
    choices: list[tuple[int, Routes | None]] = []
    with options.run_folder(args) as folder, console.progress("warming up") as report:
        if protocol.warmup is not None and not each_alone:  # said if it is not there already
            report = console.announced(_warmup_line(protocol), report)
        networks = Networks(space, data, protocol, shared=shared, folder=folder, progress=report)
    with (
        RunStore(folder / "run.sqlite", networks.settings()) as store,
        console.progress("scoring") as report,
    ):
        if not unscored(networks, archs, store):
            console.say(f"all scores were there already, in {folder / 'run.sqlite'}")
        elif each_alone:
            console.say(_warmup_line(protocol))
        rows = rank(networks, archs, store, progress=report, chosen=lambda *c: choices.append(c))
    at_once, routes = choices[0]
    if routes is not None or at_once > 1:
        console.say(_many_line(at_once, routes))
    elif protocol.at_once not in ("auto", 1) and not networks.stacked(protocol.proxies):
        console.say(f"--many: on {space.name} these proxies need networks one by one")
    if networks.checkpoints > 1:
        console.say(f"scores are means over {networks.checkpoints} checkpoints of the weights")
    parted = len({row.standing for row in rows}) > 1
    if parted:
        console.say("parts of the space that the system prefers come first, whatever their scores")
    names = [proxy.name for proxy in protocol.proxies]
    document = export.as_json(networks, rows)
    # Printed before the files are written: a full disk must not cost the result.
    if args.json:
        console.out(export.strict_dumps(document))
    else:
        _show(rows, names, args.top, networks, parted)
    export.write_scores(folder / "scores.parquet", document, names)
    write_report(folder / "scores.parquet", folder / "report.html", table, metric)
    if not args.json:
        console.say(f"scores: {folder / 'scores.parquet'}\nreport: {folder / 'report.html'}")
    return 0


def _check(args: argparse.Namespace, init: Init) -> None:
    """Refuse options that do not go together; before anything is loaded.

    Raises:
        InputError: There are some.
    """
    warmed = warmup_options.warms_up(args)
    option = "--warmup" if args.warmup_steps is None else "--warmup-steps"
    if init.path is not None and warmed:
        given = f"{init.kind}:{'DIR' if init.kind == 'family' else 'PATH'}"
        raise InputError(f"{option}: cannot be given with --init {given}, which is warmed up")
    if init.kind == "candidate" and not warmed:
        raise InputError("--init candidate: needs --warmup or --warmup-steps, got none")
    if init.kind == "candidate" and args.many not in ("auto", 1):
        raise InputError("--many: networks that are warmed up alone are scored one by one")
    if init.kind == "scratch" and warmed:
        raise InputError(f"--init scratch: cannot be given with {option}")
    proxy_options.check(args)
    options.space_sizes(args)
    warmup_options.settings(args, init.weights)
    shared_weights.supernet_options(args, init.weights)
    if init.path is not None and not init.path.exists():
        what = "folder" if init.kind == "family" else "file"
        raise InputError(f"--init {init.kind}: found no {what} {init.path}")


def _checked_before_images(
    args: argparse.Namespace, init: Init, listed: list[str] | None, table: Table | None
) -> tuple[tuple[Proxy, ...], Loaded | None]:
    """The proxies and the weights of a file, once all is refused that no images would mend.

    Raises:
        InputError: Something is.
    """
    from sigeo.scoring.many import stackable
    from sigeo.scoring.score import check_needs

    space = options.space_before_images(args)
    proxies = proxy_options.made(args, init.weights)
    if args.many not in ("auto", 1) and not any(map(stackable, proxies)):
        names = ", ".join(proxy.name for proxy in proxies)
        raise InputError(f"--many: has no effect on {names}, which need networks one by one")
    warmed = init.weights != "scratch"
    check_needs(proxies, batches=args.batches, warmed=warmed)
    shared_weights.check(args, init.weights, space)
    archs = architectures.chosen(args, listed, space)
    if table is not None:
        table_options.check_scored(table, table_options.metric(args), list(map(str, archs)))
    return proxies, init.loaded(args, space)


def _protocol(
    args: argparse.Namespace, init: Init, proxies: tuple[Proxy, ...], images: int
) -> Protocol:
    from sigeo.scoring.networks import Protocol

    return Protocol(
        proxies=proxies,
        init=init.weights,
        warmup=warmup_options.warm_up(args, images, init.weights),
        supernet=shared_weights.supernet_options(args, init.weights),
        batches=args.batches,
        batch_size=args.batch_size,
        seed=args.seed,
        device=args.device,
        deduplicate=not args.no_dedup,
        at_once=args.many,
    )


def _many_line(at_once: int, routes: Routes | None) -> str:
    how = f"{at_once} networks in one pass" if at_once > 1 else "networks one by one"
    if routes is None:
        return f"scored {how}"
    return (
        f"scored {how}: a pass takes {routes.together:.3g} s a network together, "
        f"{routes.apart:.3g} s alone"
    )


def _warmup_line(protocol: Protocol) -> str:
    warmup = protocol.warmup
    assert warmup is not None
    what = "each network alone" if protocol.init == "candidate" else "shared weights"
    return (
        f"warm-up of {what}: {warmup.images} images, {warmup.epochs} pass(es), "
        f"{warmup.steps} steps of {warmup.batch_size}"
    )


def _show(rows: list[Row], names: list[str], top: int, networks: Networks, parted: bool) -> None:
    from sigeo.report import not_finite_notes

    shown = rows[:top]
    columns = [
        ("#", True),
        *((name, True) for name in names),
        ("index", True),
        ("architecture", False),
    ]
    console.show_table(
        f"{networks.space.name} on {networks.data.name}: {len(shown)} best of {len(rows)}",
        columns,
        (
            [
                str(place),
                *(console.number(row.scores[name]) for name in names),
                str(row.index),
                row.arch,
            ]
            for place, row in enumerate(shown, start=1)
        ),
    )
    scores = {name: [row.scores[name] for row in rows] for name in names}
    for note in (*not_finite_notes(scores, parted), *_notes_on_most(rows, names)):
        console.say(note)


def _notes_on_most(rows: list[Row], names: list[str]) -> list[str]:
    """What a proxy notes on more than half of the networks, but for the numbers in it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        notes = [note for note in row.notes if note.partition(": ")[0] in names]
        for kind, note in {re.sub(r"[\d.]+", "#", note): note for note in notes}.items():
            found.setdefault(kind, []).append(note)
    said = []
    for same in found.values():
        name, _, note = same[0].partition(": ")
        if 2 * len(same) > len(rows):
            said.append(f"{name}, {len(same)} of {len(rows)} networks: {note}")
    return said
