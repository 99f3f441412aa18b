"""Options that several verbs share, and what they stand for."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.data import ImageData
    from sigeo.proxies import Proxy
    from sigeo.scoring.networks import Init
    from sigeo.spaces import SearchSpace
    from sigeo.supernet import WarmUp


def positive(text: str) -> int:
    """A whole number from 1.

    Raises:
        argparse.ArgumentTypeError: A smaller one.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def _lambdas(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"must be three finite numbers A,B,C, got {text}")
    return values


def add_space(parser: argparse.ArgumentParser) -> None:
    """The space, its sizes and the data."""
    group = parser.add_argument_group("networks and data")
    group.add_argument("--space", default="nasbench201", help="search space (default: %(default)s)")
    group.add_argument("--channels", type=positive, help="width of the first stage (published: 16)")
    group.add_argument("--cells", type=positive, help="cells of each stage (published: 5)")
    group.add_argument(
        "--data",
        default="digits",
        help="'digits', an official CIFAR folder, or an .npz file (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="of weights, images and architectures")
    group.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    group.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")


def add_proxies(parser: argparse.ArgumentParser) -> None:
    """The proxies and what they are measured on."""
    group = parser.add_argument_group("proxies")
    group.add_argument(
        "--proxy",
        default="sigeo,zico,params,flops",
        help="names, separated by commas; the first one ranks (default: %(default)s)",
    )
    group.add_argument(
        "--lambdas",
        type=_lambdas,
        metavar="A,B,C",
        help="SiGeo's weights of the ZiCo term, the Fisher-Rao term and the loss "
        "(default: 1,1,0; with --init candidate 1,50,1)",
    )
    group.add_argument(
        "--inner-lr",
        type=float,
        metavar="LR",
        help="SiGeo's step size between the batches, 0 for no steps (default: 1)",
    )
    group.add_argument("--batches", type=positive, default=4, help="default: %(default)s")
    group.add_argument("--batch-size", type=positive, default=64, help="default: %(default)s")


def add_warmup(parser: argparse.ArgumentParser, *, default: float) -> None:
    """How long and how to warm up."""
    group = parser.add_argument_group("warm-up")
    group.add_argument(
        "--warmup",
        type=_fraction,
        default=default,
        metavar="FRACTION",
        help="share of the training images to train on first, 0 to 1 (default: %(default)s)",
    )
    group.add_argument("--epochs", type=positive, default=1, help="passes (default: %(default)s)")
    group.add_argument("--warmup-lr", type=float, help="step size (default: 0.025; candidate: 1)")
    group.add_argument(
        "--warmup-batch", type=positive, help="images a step (default: 64; candidate: 128)"
    )
    group.add_argument("--schedule", choices=("constant", "cosine"), default="constant")


def load_data_and_space(args: argparse.Namespace) -> tuple[ImageData, SearchSpace[Any]]:
    """The data, and the space sized for it."""
    import torch

    from sigeo import data, spaces

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    images = data.load(args.data)
    shape = spaces.InputShape(images.channels, images.size, images.classes)
    sizes = {n: getattr(args, n) for n in ("channels", "cells") if getattr(args, n) is not None}
    return images, spaces.get(args.space, shape, **sizes)


def proxies(args: argparse.Namespace, init: Init) -> tuple[Proxy, ...]:
    """The proxies asked for, SiGeo's with the weights that belong to the protocol."""
    from sigeo import proxies as registry
    from sigeo.proxies.sigeo import LAMBDAS, LAMBDAS_WARMED
    from sigeo.scoring.score import resolve

    names = [name.strip() for name in args.proxy.split(",") if name.strip()]
    lambdas = args.lambdas or (LAMBDAS_WARMED if init == "candidate" else LAMBDAS)
    own = {"lambdas": lambdas, "inner_lr": args.inner_lr}
    chosen = [registry.get(n, **own) if n.startswith("sigeo") else registry.get(n) for n in names]
    return tuple(resolve(chosen))


def warm_up(args: argparse.Namespace, images: int, init: Init) -> WarmUp | None:
    """The warm-up asked for; None for none.

    Raises:
        InputError: The share is less than one step.
    """
    from dataclasses import replace

    from sigeo.supernet import WarmUp

    if args.warmup == 0:
        return None
    count = round(args.warmup * images)
    config = (
        WarmUp.published(count, args.epochs)
        if init == "candidate"
        else WarmUp(count, args.epochs, schedule=args.schedule)
    )
    if args.warmup_lr is not None:
        config = replace(config, lr=args.warmup_lr)
    if args.warmup_batch is not None:
        config = replace(config, batch_size=args.warmup_batch)
    if config.steps == 0:
        raise InputError(
            f"--warmup: {args.warmup} of {images} training images is less than one step"
        )
    return config


def run_folder(args: argparse.Namespace) -> Path:
    """The folder of a run, made if it is not there."""
    name = re.sub(r"[^\w.-]+", "-", f"{args.space}-{Path(args.data).stem}")
    folder = Path(args.out) if args.out is not None else Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
