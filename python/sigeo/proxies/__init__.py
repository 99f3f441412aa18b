"""Scores for networks that nobody has trained. Importing the package registers them all."""

from sigeo.proxies import gradient, ntk, samples, sigeo, size, synflow, zico
from sigeo.proxies.base import (
    OnGradient,
    OnInputs,
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
    "OnModel",
    "OnSamples",
    "OnStatistics",
    "Outcome",
    "Proxy",
    "Score",
    "get",
    "gradient",
    "names",
    "ntk",
    "register",
    "samples",
    "sigeo",
    "size",
    "synflow",
    "zico",
]
