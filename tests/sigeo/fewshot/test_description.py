"""What tells the parts of a splitting apart in checkpoints."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch

from sigeo import proxies
from sigeo.fewshot import Known, metrics
from sigeo.fewshot.description import description
from sigeo.fewshot.metrics import LID, GradientMatching, RandomDistances
from tests.sigeo.fewshot.space import SPACE


def test_parts_are_described_by_what_they_do():
    table, other = (Known(SPACE, {str(SPACE.at(7)): value}) for value in (1.0, 2.0))
    parts = [
        metrics.TableOracle(table),
        metrics.TableOracle(other),
        metrics.ProxyDifference(proxies.get("zico")),
        metrics.ProxyDifference(proxies.get("snip")),
        metrics.WeightedSum(((0.5, RandomDistances()), (1.0, LID()))),
        metrics.WeightedSum(((0.5, RandomDistances()), (2.0, LID()))),
        GradientMatching(loss_fn=torch.nn.CrossEntropyLoss(label_smoothing=0.1)),
        GradientMatching(loss_fn=torch.nn.CrossEntropyLoss()),
        RandomDistances(),
    ]
    texts = [json.dumps(description(part), sort_keys=True) for part in parts]
    assert len(set(texts)) == len(parts)
    assert texts == [json.dumps(description(part), sort_keys=True) for part in parts]
    assert not any(" at 0x" in text for text in texts)


class Weighing:
    """A part of a user's that says nothing of itself."""

    def __init__(self, weight):
        self.weight, self.own = weight, self

    def weigh(self, value):
        return value * self.weight


def test_parts_that_say_nothing_of_themselves_are_described_by_what_they_hold():
    def parts():
        yield from (functools.partial(pow, 2), functools.partial(pow, 3))
        yield from (functools.partial(pow, exp=2), functools.partial(pow, exp=3))
        yield from (Weighing(1), Weighing(2), Weighing(1).weigh, Weighing(2).weigh)
        yield from (Weighing(np.float32(0.5)), Weighing(np.int64(4)), np.int64(5))
        yield from (np.arange(3), np.arange(1, 4), np.arange(3.0), np.zeros((3, 1)), np.zeros(3))
        yield from (torch.arange(3), torch.ones(()), torch.ones(3, dtype=torch.bfloat16))
        yield from (np.array([None, 1]), np.array([None, 2]), torch.float16, torch.float32)
        yield from (1 + 2j, Path("a"), Path("b"), torch.device("cpu"), object())

    texts = [json.dumps(description(part), sort_keys=True) for part in parts()]
    assert len(set(texts)) == len(texts)
    assert texts == [json.dumps(description(part), sort_keys=True) for part in parts()]
    assert not any(" at 0x" in text for text in texts)
    assert description(np.float64(0.5)) == description(np.float32(0.5)) == 0.5
    assert description(np.bool_(True)) is True
