"""Options of the verbs that train shared weights: paths, norms, dropout."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sigeo.cli import options, warmup_options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.scoring.networks import Init
    from sigeo.spaces import SearchSpace

SAMPLERS = ("uniform", "operations", "fair", "balanced", "sandwich", "disjoint", "greedy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("shared weights, where a warm-up trains them")
    group.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="architectures that a step trains (default: uniform)",
    )
    group.add_argument(
        "--balance",
        metavar="CHOICE",
        help="of --sampler balanced: the choice whose options are trained as often (default: the "
        "first)",
    )
    group.add_argument(
        "--objective",
        choices=("cross_entropy", "in_place", "cross_path"),
        help="what paths are trained on: the labels; the first path's predictions, for all others; "
        "a mean teacher's of the other path, with --sampler disjoint (default: cross_entropy)",
    )
    group.add_argument(
        "--label-smoothing",
        type=options.rate,
        metavar="SHARE",
        help="of the target, spread over all classes (default: 0)",
    )
    group.add_argument(
        "--augment",
        choices=("crop", "flip"),
        help="random crops of the padded images, with flip mirrored images as well (default: none)",
    )
    group.add_argument(
        "--norm",
        choices=("batch", "tracked"),
        help="statistics of batch norm: the batch's, or running ones as well (default: batch)",
    )
    group.add_argument(
        "--no-affine", action="store_true", default=None, help="batch norm without scale and shift"
    )
    group.add_argument(
        "--path-dropout",
        type=options.rate,
        metavar="RATE",
        help="drop edges, at this rate in the last layer at the end (default: 0)",
    )
    group.add_argument(
        "--dropout", type=options.rate, metavar="RATE", help="drop features before the last layer"
    )
    group.add_argument(
        "--autocast", choices=("bfloat16",), help="train in lower precision where torch does"
    )


def check(args: argparse.Namespace, init: Init, space: SearchSpace[Any]) -> None:
    """Refuse a warm-up that the space or its supernet does not serve, whatever the images.

    Raises:
        InputError: Settings do not go together, or one does not go with the space.
    """
    from sigeo.scoring.shared_weights import check_options
    from sigeo.supernet import WarmUp
    from sigeo.supernet.warmup import check_sampler

    given = warmup_options.settings(args, init)
    if given is not None:
        check_sampler(WarmUp(0, **given), space)
    check_options(space, supernet_options(args, init))


def supernet_options(args: argparse.Namespace, init: Init) -> dict[str, Any]:
    """Options of the space's supernet.

    Raises:
        InputError: One without effect.
    """
    given = {
        "track": None if args.norm is None else args.norm == "tracked",
        "affine": None if args.no_affine is None else False,
        "path_dropout": args.path_dropout,
        "dropout": args.dropout,
    }
    spelled = {"track": "--norm", "affine": "--no-affine", "path_dropout": "--path-dropout"}
    for name, value in given.items():
        if value is not None and (init != "supernet" or not warmup_options.warms_up(args)):
            option = spelled.get(name, f"--{name}")
            raise InputError(f"{option}: is of shared weights that a warm-up trains")
    usual = {"track": False, "affine": True, "path_dropout": 0.0, "dropout": 0.0}
    return {n: value for n, value in given.items() if value is not None and value != usual[n]}
