"""Train architectures alone, several times each, and tabulate their test accuracies.

The table is one that correlate, report and compare take. Each training is kept as soon as it ends;
the same command goes on from there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sigeo.cli import architectures, console, options
from sigeo.errors import InputError
from sigeo.whole_files import write_whole_table

if TYPE_CHECKING:
    from sigeo.scoring.standalone import Measurements, Standalone

HELP = "train architectures alone, for a benchmark table of a small space"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    options.add_space(parser)
    architectures.add(parser, default=100)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--runs", type=options.positive, default=3, help="of each (default: %(default)s)"
    )
    group.add_argument(
        "--share",
        type=options.share,
        default=1.0,
        help="of the training images, above 0, at most 1 (default: %(default)s)",
    )
    group.add_argument(
        "--epochs", type=options.positive, default=12, help="passes (default: %(default)s)"
    )
    group.add_argument(
        "--batch-size",
        type=options.at_least_two,
        default=64,
        help="images a step (default: %(default)s)",
    )
    group.add_argument(
        "--lr",
        type=options.positive_step_size,
        default=0.1,
        help="first step size of SGD with Nesterov momentum 0.9 and weight decay 0.0005, which "
        "falls to 0 along a cosine (default: %(default)s)",
    )
    options.add_out(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train.

    Raises:
        InputError: Too few images for a step.
    """
    options.space_sizes(args)
    listed = architectures.lines(args)

    from sigeo.scoring import export, standalone
    from sigeo.store import RunStore
    from sigeo.supernet import WarmUp

    outlined = options.space_before_images(args)
    architectures.chosen(args, listed, outlined)  # refused before images are read
    data, space = options.load_data_and_space(args)
    archs = architectures.chosen(args, listed, space)
    images = round(args.share * len(data.train))
    training = WarmUp(
        images, args.epochs, args.batch_size, lr=args.lr, schedule="cosine", floor=0.0, clip=None
    )
    if training.steps == 0:
        raise InputError(
            f"--share: {args.share} of {len(data.train)} training images is less than one step"
        )
    protocol = standalone.Standalone(training, args.runs, args.seed, args.device)
    settings = standalone.settings(space, data, protocol)
    with (
        options.run_folder(args) as folder,
        RunStore(folder / "run.sqlite", settings) as store,
        console.progress("training") as report,
    ):
        found = standalone.measure(space, data, archs, protocol, store, progress=report)
    table = standalone.as_table(space, found)
    path = folder / "table.parquet"
    document = {
        "schema": export.SCHEMA,
        "table": str(path),
        "settings": settings,
        "runs": args.runs,
        "seed": args.seed,
        "noise": export.finite_or_none(found.noise),
        "ceiling": export.finite_or_none(found.ceiling),
        "rows": [
            {"arch": str(arch), "accuracy": list(map(export.finite_or_none, row))}
            for arch, row in zip(archs, found.accuracy.tolist(), strict=True)
        ],
        "env": export.environment(args.device),
    }
    if args.json:  # before the file: a full disk must not cost the result
        console.out(export.strict_dumps(document))
    else:
        _show(found, protocol)
    head = {key: value for key, value in document.items() if key != "rows"}
    table = table.replace_schema_metadata({"sigeo.training": export.strict_dumps(head)})
    write_whole_table(path, table)
    if not args.json:
        console.say(f"table: {path}")
    return 0


def _show(found: Measurements, protocol: Standalone) -> None:
    mean = found.accuracy.mean(1)
    order = mean.argsort()[::-1][:10]
    config = protocol.training
    console.show_table(
        f"{len(order)} best of {len(mean)} after {config.steps} steps of {config.batch_size}, "
        f"{protocol.runs} run(s)",
        [("#", True), ("test accuracy", True), ("runs", True), ("architecture", False)],
        (_row(place, found, int(which)) for place, which in enumerate(order, start=1)),
    )
    if protocol.runs > 1:
        console.say(f"noise: {found.noise:.2f} points between runs, {_ceiling(found)}")


def _ceiling(found: Measurements) -> str:
    if found.ceiling == found.ceiling:
        return f"Kendall's tau {found.ceiling:.3f}"
    if len(found.archs) < 2:
        return "Kendall's tau undefined: it needs two architectures or more"
    return "Kendall's tau undefined: in one of the runs all architectures are equally accurate"


def _row(place: int, found: Measurements, which: int) -> list[Any]:
    runs = found.accuracy[which]
    shown = ", ".join(f"{value:.2f}" for value in runs)
    return [str(place), f"{runs.mean():.2f}", shown, str(found.archs[which])]
