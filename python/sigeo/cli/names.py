"""Names that options take, known before torch is imported, so that a wrong one is refused at once.

Tests hold them equal to what the packages know; proxies and recipes of one's own are taken beside
them once they are registered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

from sigeo import option_text

PROXIES = {
    "az_expressivity": ("blocks", "seed"),
    "az_progressivity": ("blocks", "seed"),
    "az_trainability": ("blocks", "seed"),
    "diag_fisher": ("batch_norm",),
    "epe_nas": (),
    "fisher": ("weighting",),
    "fisher_trace": ("batch_norm",),
    "flops": (),
    "grad_norm": (),
    "gradient_noise_scale": ("batch_norm",),
    "gradsign": ("batch_norm",),
    "grasp": (),
    "jacov": (),
    "l2_norm": (),
    "linear_regions": ("samples", "size", "seed"),
    "logsynflow": (),
    "meco": ("modules", "size", "seed"),
    "naswot": (),
    "ntk_cond": ("samples", "batches", "batch_norm"),
    "ntk_min_eig": ("samples", "batches", "batch_norm"),
    "params": (),
    "plain": (),
    "sigeo": ("preset", "lambdas", "inner_lr"),
    "sigeo_cv_official": ("lambdas", "inner_lr"),
    "sigeo_paper": ("lambdas", "inner_lr"),
    "sigeo_recsys_buggy": ("lambdas", "inner_lr"),
    "sigeo_recsys_official": ("lambdas", "inner_lr"),
    "sigeo_sample": ("lambdas", "batch_norm"),
    "snip": (),
    "swap": ("mu", "sigma"),
    "synflow": (),
    "zen": ("repeats", "mixup", "features", "seed"),
    "zico": (),
    "zico_sample": ("batch_norm",),
}
"""With their options."""

RECIPES = {
    "one-shot": ("over", "paths", "width", "affine"),
    "fair": ("width", "affine"),
    "balanced": ("kind", "groups", "form", "width", "affine"),
    "greedy": ("sampled", "kept", "pool", "epsilon", "images", "start", "full", "alpha"),
    "pi-nas": ("decay", "temperature", "flip", "padding"),
    "few-shot": ("choice", "before", "after", "transfer", "affine"),
    "gm-nas": ("repeats", "criterion", "before", "after", "restart", "smallest", "batch"),
    "efs-nas": ("kind", "groups", "width", "route", "shared", "affine"),
    "metric-driven": (
        "metric",
        "leaves",
        "factors",
        "order",
        "smallest",
        "batch",
        "batches",
        "draws",
        "before",
        "after",
    ),
    "nas-lid": (
        "repeats",
        "k",
        "compare",
        "partition",
        "criterion",
        "before",
        "after",
        "batch",
    ),
    "random-split": ("before", "after", "smallest"),
    "hep-nas": (
        "repeats",
        "before",
        "children",
        "after",
        "restart",
        "teachers",
        "rounds",
        "judged",
        "smallest",
        "batch",
    ),
    "gradual": (
        "groups",
        "before",
        "after",
        "rates",
        "rise",
        "count",
        "dropout",
        "drop_path",
        "label_smoothing",
        "calibration",
        "known",
        "metric",
    ),
}
"""With their options."""

METRICS = ("gradient_matching", "gradient_matching_logits", "lid", "random", "table")
"""Of a splitting, beside those of proxies."""

PARTITIONS = ("exact", "exhaustive", "in_order", "mixture", "random", "spectral", "stoer_wagner")

KINDS = ("convolution_count", "nonlinear_count", "nonlinear_depth")

CHOICES = (
    "in_turn",
    "random",
    "between_mean",
    "between_sum",
    "within_sum",
    "separation",
    "most_alike",
)


def one_of(known: Iterable[str]) -> Callable[[str], str]:
    """A converter that takes these names alone.

    It raises argparse.ArgumentTypeError for anything else.
    """

    def convert(text: str) -> str:
        _check(text, known)
        return text

    return convert


def listed(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def proxies(text: str) -> str:
    """A converter that takes proxies, separated by commas; values of options are not looked at.

    Each is ``NAME`` or ``NAME:OPTION=VALUE,...``.

    Raises:
        ArgumentTypeError: There is no such proxy or option, or one is given twice.
    """
    found: list[str] = []
    for one in option_text.listed(text):
        name, parts = option_text.parts(one)
        _check(name, _registered("sigeo.proxies", PROXIES))
        _check_options(name, parts, proxy_options(name))
        if name in found:
            raise argparse.ArgumentTypeError(f"expected each once, got {name} twice")
        found.append(name)
    return text


def proxy_options(name: str) -> Iterable[str]:
    """The options of a proxy."""
    imported = sys.modules.get("sigeo.proxies")
    return PROXIES[name] if imported is None else imported.options_of(name)


def metric(text: str) -> str:
    """A converter that takes the names of a splitting's metrics, and proxies as `proxies` does.

    It raises argparse.ArgumentTypeError for anything else.
    """
    if text not in METRICS:
        name, parts = option_text.parts(text)
        _check(name, (*METRICS, *_registered("sigeo.proxies", PROXIES)))
        _check_options(name, parts, () if name in METRICS else proxy_options(name))
    return text


def kind(text: str) -> str:
    """A converter that takes the names of functions by which spaces are divided.

    It raises argparse.ArgumentTypeError for anything else.
    """
    _check(text, _registered("sigeo.fewshot.kind_functions", KINDS))
    return text


def recipe(text: str) -> str:
    """A converter that takes ``NAME`` or ``NAME:OPTION=VALUE,...``; values are not looked at.

    Raises:
        ArgumentTypeError: There is no such recipe or option, or an option is given twice.
    """
    name, parts = option_text.parts(text)
    _check(name, _registered("sigeo.fewshot.recipes", RECIPES))
    imported = sys.modules.get("sigeo.fewshot.recipes")
    options = RECIPES[name] if imported is None else imported.entry(name).options
    _check_options(name, parts, options)
    return text


def _check_options(name: str, parts: Iterable[str], options: Iterable[str]) -> None:
    found: list[str] = []
    for part in parts:
        option, equals, _ = part.partition("=")
        if option not in options or not equals:
            have = ", ".join(options) or "none"
            raise argparse.ArgumentTypeError(
                f"expected OPTION=VALUE of {name}, whose options are {have}, got {part!r}"
            )
        if option in found:
            raise argparse.ArgumentTypeError(f"{name}: {option} is given more than once")
        found.append(option)


def _registered(package: str, known: Iterable[str]) -> Iterable[str]:
    """All names of a package that takes more; whoever registered one has imported it."""
    imported = sys.modules.get(package)
    return known if imported is None else imported.names()


def _check(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(known)}, got {name!r}")
