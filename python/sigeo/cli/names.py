"""Names that options take, known before torch is imported, so that a wrong one is refused at once.

Tests hold them equal to what the packages know; proxies and recipes of one's own are taken beside
them once they are registered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

SPACES = ("mlp", "mobilenet", "nasbench201", "resnet", "transformer")

PROXIES = (
    "diag_fisher",
    "fisher_trace",
    "flops",
    "grad_norm",
    "gradient_noise_scale",
    "gradsign",
    "grasp",
    "l2_norm",
    "logsynflow",
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
    "synflow",
    "zico",
    "zico_sample",
)

RECIPES = (
    "one-shot",
    "fair",
    "balanced",
    "greedy",
    "pi-nas",
    "few-shot",
    "gm-nas",
    "efs-nas",
    "metric-driven",
    "nas-lid",
    "random-split",
    "hep-nas",
    "gradual",
)

METRICS = ("gradient_matching", "gradient_matching_logits", "lid", "random", "table")
"""Of a splitting, beside those of proxies."""

PARTITIONS = ("exact", "exhaustive", "in_order", "mixture", "random", "spectral", "stoer_wagner")

CHOICES = (
    "in_turn",
    "random",
    "between_mean",
    "between_sum",
    "within_sum",
    "separation",
    "most_alike",
)


def one_of(known: Sequence[str]) -> Callable[[str], str]:
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


def recipe(text: str) -> str:
    """A converter that takes ``NAME`` or ``NAME:OPTION=VALUE,...`` with a recipe's name.

    It raises argparse.ArgumentTypeError for anything else.
    """
    _check(text.partition(":")[0], _registered("sigeo.fewshot.recipes", RECIPES))
    return text


def _registered(package: str, known: Sequence[str]) -> Sequence[str]:
    """All names of a package that takes more; whoever registered one has imported it."""
    imported = sys.modules.get(package)
    return known if imported is None else imported.names()


def _check(name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(known)}, got {name!r}")
