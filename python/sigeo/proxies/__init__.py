"""Scores for networks that nobody has trained. Importing the package registers them all."""

from sigeo.proxies import (  # noqa: F401  (each registers its own)
    az_nas,
    epe_nas,
    fisher,
    gradient,
    grasp,
    jacov,
    linear_regions,
    meco,
    naswot,
    ntk,
    samples,
    sigeo,
    size,
    swap,
    synflow,
    zen,
    zico,
)
from sigeo.proxies.base import (
    OnBatch,
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
from sigeo.proxies.registry import get, names, options_of, register

__all__ = [
    "OnBatch",
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
    "names",
    "options_of",
    "register",
]
