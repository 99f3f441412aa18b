"""Warm a supernet up on a share of the data and keep it for ``rank --init supernet:PATH``.

The checkpoint is written every few seconds; the same command goes on from it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from sigeo.cli import console, options, shared_weights
from sigeo.errors import InputError

HELP = "warm a supernet up and keep it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    options.add_space(parser)
    options.add_warmup(parser, default=0.1)
    shared_weights.add_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="default: runs/SPACE-DATA")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Warm up.

    Raises:
        InputError: No warm-up is asked for.
    """
    from sigeo import proxies
    from sigeo.scoring import export
    from sigeo.scoring.networks import Networks, Protocol

    data, space = options.load_data_and_space(args)
    config = options.warm_up(args, len(data.train), "supernet")
    if config is None:
        raise InputError("--warmup: must be above 0, got 0")
    protocol = Protocol(
        proxies=(proxies.get("params"),),
        init="supernet",
        warmup=config,
        supernet=shared_weights.supernet_options(args, "supernet"),
        batches=1,
        batch_size=2,
        seed=args.seed,
        device=args.device,
    )
    folder = options.run_folder(args)
    with console.progress("warming up") as report:
        networks = Networks(space, data, protocol, folder=folder, progress=report)
    document = {
        "schema": export.SCHEMA,
        "checkpoint": str(networks.checkpoint_path(folder)),
        "images": config.images,
        "epochs": config.epochs,
        "steps": config.steps,
        "budget": asdict(networks.budget),
        "settings": networks.weights_settings(),
        "env": export.environment(args.device),
    }
    if args.json:
        print(export.strict_dumps(document))
    else:
        budget = networks.budget
        scored = f", {budget.evaluated} to score paths" if budget.evaluated else ""
        print(
            f"{config.steps} steps of {config.batch_size} on {config.images} images, "
            f"{budget.trained} processed{scored}: {document['checkpoint']}"
        )
    return 0
