"""Proxies of gradients where there are none, or no loss to take them of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sigeo
from sigeo import spaces

X, Y = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
IGNORED = (X, torch.full_like(Y, -100))
OF_LOSSES = [
    "zico", "sigeo_recsys_official", "sigeo_recsys_buggy", "sigeo_paper", "grad_norm", "snip",
    "grasp", "fisher_trace", "diag_fisher", "gradsign", "zico_sample",
]  # fmt: skip


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def test_a_frozen_model_has_no_gradients():
    found = sigeo.score(network().requires_grad_(False), [(X, Y)] * 2, OF_LOSSES)
    for score in found.values():
        assert score.notes[0] == "the loss depends on no parameter that asks for a gradient"
        assert score.value == -math.inf


@pytest.mark.parametrize("name", [*OF_LOSSES, "fisher"])
def test_a_batch_whose_labels_are_all_ignored_has_no_loss(name):
    score = sigeo.score(network(), [IGNORED] * 2, [name])[name]
    assert score.value == -math.inf and " is nan" in " ".join(score.notes)


def test_proxies_of_the_first_batch_do_not_mind_the_others():
    found = sigeo.score(network(), [(X, Y), IGNORED], ["snip", "zico"])
    assert found["snip"].finite
    assert found["zico"].notes == ("the loss of a batch is nan", "zico is nan")


def test_many_subnets():
    space = spaces.get("nasbench201", spaces.InputShape(1, 4, 3), channels=2, cells=1)
    archs, names = [space.at(7000), space.at(9000)], ["zico", "snip", "fisher_trace"]
    for scores in sigeo.score_many(space.supernet(), archs, [IGNORED] * 2, names):
        assert [scores[name].value for name in names] == [-math.inf] * 3
