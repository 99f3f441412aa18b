"""Values that arguments do not take are one line that names the argument."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, proxies
from sigeo.capture import Request, fisher_rao, fisher_trace
from sigeo.fewshot.partition import Relation
from sigeo.scoring.networks import Protocol

LAYER, BATCH = nn.Linear(4, 1), (torch.randn(3, 4), torch.randn(3, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Protocol((proxies.get("zico"),), init="super"),
            "protocol: init must be one of scratch, candidate, supernet, got 'super'",
        ),
        (
            lambda: Relation.of([[1, 0], [0, 1]], "similarty"),
            "relation: sense must be one of similarity, distance, got 'similarty'",
        ),
        (
            lambda: Request(selection="conv"),
            "request: selection must be one of layers, all, got 'conv'",
        ),
        (
            lambda: sigeo.score(LAYER, [BATCH], ["params"], memory_format="nchw"),
            "memory_format must be one of auto, preserve, channels_last, got 'nchw'",
        ),
        (
            lambda: fisher_trace(LAYER, [BATCH], F.mse_loss, labels="drawn"),
            "labels: can be drawn from outputs [samples, 2 classes or more], got [3, 1]",
        ),
        (
            lambda: fisher_rao(LAYER, [BATCH], F.mse_loss, labels="drawn"),
            "labels: can be drawn from outputs [samples, 2 classes or more], got [3, 1]",
        ),
    ],
)
def test_values_that_are_none(call, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call()
