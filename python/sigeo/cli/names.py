"""Names that options take, known before torch is imported, so that a wrong one is refused at once.

Tests hold them equal to what the packages know; proxies and recipes of one's own are taken beside
them once they are registered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

from sigeo import option_text

PROXIES = (
    "az_expressivity",
    "az_progressivity",
    "az_trainability",
    "diag_fisher",
    "epe_nas",
    "fisher",
    "fisher_trace",
    "flops",
    "grad_norm",
    "gradient_noise_scale",
    "gradsign",
    "grasp",
    "jacov",
    "l2_norm",
    "linear_regions",
    "logsynflow",
    "meco",
    "naswot",
    "ntk_cond",
    "ntk_min_eig",
    "params",
    "plain",
    "sigeo",
    "sigeo_cv_official",
    "sigeo_paper",
    "sigeo_recsys_buggy",
    "sigeo_recsys_official",
    "sigeo_sample",
    "snip",
    "swap",
    "synflow",
    "zen",
    "zico",
    "zico_sample",
)

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
    """A converter that takes proxies' names, separated by commas.

    It raises argparse.ArgumentTypeError for anything else.
    """
    known = _registered("sigeo.proxies", PROXIES)
    for name in listed(text):
        _check(name, known)
    return text


def metric(text: str) -> str:
    """A converter that takes the names of a splitting's metrics and of proxies.

    It raises argparse.ArgumentTypeError for anything else.
    """
    _check(text, (*METRICS, *_registered("sigeo.proxies", PROXIES)))
    return text


def kind(text: str) -> str:
    """A converter that takes the names of functions by which spaces are divided.

    It raises argparse.ArgumentTypeError for anything else.
    """
    _check(text, _registered("sigeo.fewshot.kinds", KINDS))
    return text


def recipe(text: str) -> str:
    """A converter that takes ``NAME`` or ``NAME:OPTION=VALUE,...``; values are not looked at.

    Raises:
        ArgumentTypeError: There is no such recipe or option.
    """
    name, parts = option_text.parts(text)
    _check(name, _registered("sigeo.fewshot.recipes", RECIPES))
    imported = sys.modules.get("sigeo.fewshot.recipes")
    options = RECIPES[name] if imported is None else imported.entry(name).options
    for part in parts:
        option, equals, _ = part.partition("=")
        if option not in options or not equals:
            have = ", ".join(options) or "none"
            raise argparse.ArgumentTypeError(
                f"expected OPTION=VALUE of {name}, whose options are {have}, got {part!r}"
            )
    return text


def _registered(package: str, known: Iterable[str]) -> Iterable[str]:
    """All names of a package that takes more; whoever registered one has imported it."""
    imported = sys.modules.get(package)
    return known if imported is None else imported.names()


def _check(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(known)}, got {name!r}")
