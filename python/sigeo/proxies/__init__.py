"""Scores for networks that nobody has trained. Importing the package registers them all."""

from sigeo.proxies import gradient, grasp, samples, sigeo, size, synflow, zico
from sigeo.proxies.base import (
    OnGradient,
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
    "names",
    "register",
    "samples",
    "sigeo",
    "size",
    "synflow",
    "zico",
]
