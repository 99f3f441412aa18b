"""Scores for networks that nobody has trained. Importing the package registers them all."""

from sigeo.proxies import (
    epe_nas,
    gradient,
    grasp,
    jacov,
    ntk,
    samples,
    sigeo,
    size,
    synflow,
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
from sigeo.proxies.registry import get, names, register

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
    "epe_nas",
    "get",
    "gradient",
    "grasp",
    "jacov",
    "names",
    "ntk",
    "register",
    "samples",
    "sigeo",
    "size",
    "synflow",
    "zico",
]
