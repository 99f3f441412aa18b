"""Scores for networks that nobody has trained. Importing the package registers them all."""

from sigeo.proxies import (
    gradient,
    grasp,
    linear_regions,
    naswot,
    ntk,
    samples,
    sigeo,
    size,
    swap,
    synflow,
    zico,
)
from sigeo.proxies.base import (
    OnGradient,
    OnInputs,
    OnLoss,
    OnModel,
    OnSamples,
    OnStatistics,
    Outcome,
    Proxy,
    Score,
)
from sigeo.proxies.registry import get, names, register

__all__ = [
    "OnGradient",
    "OnInputs",
    "OnLoss",
    "OnModel",
    "OnSamples",
    "OnStatistics",
    "Outcome",
    "Proxy",
    "Score",
    "get",
    "gradient",
    "grasp",
    "linear_regions",
    "names",
    "naswot",
    "ntk",
    "register",
    "samples",
    "sigeo",
    "size",
    "swap",
    "synflow",
    "zico",
]
