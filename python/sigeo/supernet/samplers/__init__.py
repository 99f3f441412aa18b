"""Samplers: which paths a training step takes."""

from sigeo.supernet.samplers.balanced import Balanced
from sigeo.supernet.samplers.base import Sampler, Stateless, draw_connected
from sigeo.supernet.samplers.greedy import Greedy, ValidationLoss, confidence
from sigeo.supernet.samplers.pool import CandidatePool
from sigeo.supernet.samplers.products import Disjoint, Fair
from sigeo.supernet.samplers.sandwich import Sandwich
from sigeo.supernet.samplers.uniform import Uniform

__all__ = [
    "Balanced",
    "CandidatePool",
    "Disjoint",
    "Fair",
    "Greedy",
    "Sampler",
    "Sandwich",
    "Stateless",
    "Uniform",
    "ValidationLoss",
    "confidence",
    "draw_connected",
]
