"""Options of a warm-up: how long, with what settings."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sigeo.cli import options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.scoring.networks import Init
    from sigeo.supernet import WarmUp

SHARED = ("sampler", "balance", "objective", "label_smoothing", "augment", "autocast")
"""Settings of a warm-up that are of shared weights alone; see `sigeo.cli.shared_weights`."""


def add_arguments(parser: argparse.ArgumentParser, *, default: float) -> None:
    """How long and how to warm up."""
    group = parser.add_argument_group("warm-up")
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--warmup",
        type=options.fraction,
        default=default,
        metavar="FRACTION",
        help="share of the training images to train on first, 0 to 1 (default: %(default)s)",
    )
    length.add_argument(
        "--warmup-steps",
        type=options.positive,
        metavar="N",
        help="train this many steps first instead, on as many images as they take",
    )
    group.add_argument(
        "--epochs",
        type=options.positive,
        help="passes over the share, not with --warmup-steps (default: 1)",
    )
    group.add_argument(
        "--warmup-lr",
        type=options.positive_step_size,
        help="step size (default: 0.025; candidate: 1)",
    )
    group.add_argument(
        "--warmup-batch",
        type=options.at_least_two,
        help="images a step (default: 64; candidate: 128)",
    )
    group.add_argument(
        "--paths",
        type=options.positive,
        help="architectures that a step trains on its batch, of shared weights only (default: 1)",
    )
    group.add_argument(
        "--schedule",
        choices=("constant", "cosine", "linear"),
        help="of the step size, not for candidates (default: constant)",
    )


def add_keep(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Checkpoints to average over."""
    parser.add_argument(
        "--keep",
        type=options.positive,
        metavar="N",
        help="keep the weights at the ends of a training's last N passes over its images, and "
        "average what networks are judged by over them (default: 1; published: 3)",
    )


def warms_up(args: argparse.Namespace) -> bool:
    """Whether a warm-up is asked for."""
    return args.warmup_steps is not None or bool(args.warmup > 0)


def settings(args: argparse.Namespace, init: Init) -> dict[str, Any] | None:
    """The settings of the warm-up asked for that are given; None for no warm-up.

    Raises:
        InputError: An option has no effect.
    """
    given = {
        "epochs": args.epochs,
        "lr": args.warmup_lr,
        "batch_size": args.warmup_batch,
        "schedule": args.schedule,
        "paths": args.paths,
        "keep": args.keep,
        **{name: getattr(args, name) for name in SHARED},
    }
    spelled = {"lr": "--warmup-lr", "batch_size": "--warmup-batch"}
    given = {name: value for name, value in given.items() if value is not None}
    if not warms_up(args):
        for name in given:
            option = spelled.get(name, f"--{name.replace('_', '-')}")
            raise InputError(f"{option}: has no effect without --warmup or --warmup-steps")
        return None
    if init == "candidate" and "schedule" in given:
        raise InputError("--schedule: --init candidate keeps the published constant step size")
    for name in ("paths", "keep", *SHARED):
        if init == "candidate" and name in given:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: with --init candidate each network is trained alone")
    if args.warmup_steps is not None and "epochs" in given:
        raise InputError("--epochs: has no effect with --warmup-steps")
    return given


def warm_up(args: argparse.Namespace, images: int, init: Init) -> WarmUp | None:
    """The warm-up asked for; None for none.

    Raises:
        InputError: The share is less than one step, or an option has no effect.
    """
    from sigeo.supernet import WarmUp

    given = settings(args, init)
    if given is None:
        return None
    own = WarmUp.published_settings() if init == "candidate" else {}
    if args.warmup_steps is not None:
        return WarmUp.of_steps(args.warmup_steps, images, **(own | given))
    config = WarmUp(round(args.warmup * images), **(own | given))
    if config.steps == 0:
        raise InputError(
            f"--warmup: {args.warmup} of {images} training images is less than one step"
        )
    return config
