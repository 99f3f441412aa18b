"""The options of proxies: which, with what options of their own, measured on what."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sigeo import option_text
from sigeo.cli import names, options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.proxies import Proxy
    from sigeo.scoring.networks import Init


def add(parser: argparse.ArgumentParser) -> None:
    """The proxies and what they are measured on."""
    group = parser.add_argument_group("proxies")
    group.add_argument(
        "--proxy",
        type=names.proxies,
        default="sigeo,zico,params,flops",
        metavar="A,B",
        help="names, separated by commas, each with options of its own as NAME:OPTION=VALUE,...; "
        "the first one ranks (default: %(default)s)",
    )
    group.add_argument(
        "--lambdas",
        type=_lambdas,
        metavar="A,B,C",
        help="SiGeo's weights of the ZiCo term, the Fisher-Rao term and the loss "
        "(default: 1,1,0; of sigeo and sigeo_cv_official with --init candidate 1,50,1)",
    )
    group.add_argument(
        "--inner-lr",
        type=options.step_size,
        metavar="LR",
        help="SiGeo's step size between the batches, 0 for no steps (default: 1)",
    )
    group.add_argument(
        "--batches",
        type=options.positive,
        default=4,
        help="batches to score on (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=options.at_least_two,
        default=64,
        help="images of one, 2 or more (default: %(default)s)",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse options that no proxy asked for takes.

    Raises:
        InputError: There is one, or no proxy.
    """
    asked = [option_text.parts(text) for text in option_text.listed(args.proxy)]
    if not asked:
        raise InputError("--proxy: expected at least one, got none")
    for option, key in (("--lambdas", "lambdas"), ("--inner-lr", "inner_lr")):
        if getattr(args, key) is not None and not any(
            key in names.proxy_options(name) and not any(p.startswith(f"{key}=") for p in own)
            for name, own in asked
        ):
            has = ", ".join(name for name, _ in asked)
            raise InputError(f"{option}: has no effect on {has}")


def given(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The names in a value of ``--proxy``, each with the options that are written with it.

    Raises:
        InputError: An unknown proxy.
    """
    from sigeo import proxies

    parted = map(option_text.parts, option_text.listed(text))
    return [
        (name, option_text.values(f"proxy {name}", parts, proxies.options_of(name)))
        for name, parts in parted
    ]


def made(args: argparse.Namespace, init: Init) -> tuple[Proxy, ...]:
    """The proxies asked for, SiGeo's with the weights that belong to the protocol.

    What is written with a proxy goes before ``--lambdas`` and ``--inner-lr``.

    Raises:
        InputError: A value that an option does not take.
    """
    from sigeo import proxies
    from sigeo.scoring.score import resolve

    return tuple(
        resolve(
            [
                proxies.get(name, **(_common(args, init, name, own) | own))
                for name, own in given(args.proxy)
            ]
        )
    )


def _common(
    args: argparse.Namespace, init: Init, name: str, own: Mapping[str, Any]
) -> dict[str, Any]:
    """What a proxy takes of ``--lambdas``, ``--inner-lr`` and the protocol."""
    from sigeo.proxies.sigeo import LAMBDAS_WARMED

    lambdas = args.lambdas
    preset = own.get("preset", "sigeo_cv_official" if name == "sigeo" else name)
    if lambdas is None and init == "candidate" and preset == "sigeo_cv_official":
        lambdas = LAMBDAS_WARMED  # published for networks warmed up alone, in the vision code
    found = {"lambdas": lambdas, "inner_lr": args.inner_lr}
    takes = names.proxy_options(name)
    return {key: value for key, value in found.items() if value is not None and key in takes}


def _lambdas(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"must be three finite numbers A,B,C, got {text!r}")
    return values
