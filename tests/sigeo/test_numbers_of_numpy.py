"""NumPy's numbers serve where Python's do; seeds are whole numbers that torch takes."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, data, elastic, proxies, spaces
from sigeo.capture import capture, fisher_rao, fisher_trace
from sigeo.fewshot import Branching
from sigeo.fewshot.comparison import Entrant
from sigeo.fewshot.metrics.dimension import lid
from sigeo.fewshot.partition import Exact, GaussianMixture
from sigeo.fewshot.study import Study
from sigeo.kinds import named_arguments
from sigeo.supernet import Balanced, Disjoint, Fair, Greedy, Sandwich, Uniform

SHAPE = spaces.InputShape(1, 8, 2)
NASBENCH201 = spaces.get("nasbench201", SHAPE, channels=2, cells=1)
MLP = spaces.get("mlp", SHAPE, widths=(8, 16), depths=(1, 2))
SPACES = (NASBENCH201, MLP)
DIGITS = spaces.get("mlp", spaces.InputShape(1, 8, 10))
X, Y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
MODEL = nn.Linear(4, 2)


def one(number):
    """A number of NumPy's, of the width that is not its default; a text is left as it is."""
    kinds = {int: np.int32, float: np.float32, str: str}
    return kinds[type(number)](number)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("nasbench201", {"channels": 8, "cells": 1}),
        ("mlp", {"widths": (8, 16), "depths": (1, 2), "dropout": 0.5}),
        ("resnet", {"channels": 8, "stem": 3, "least": 1, "ratios": (0.5, 1.0)}),
        ("mobilenet", {"width": 0.5, "stem": 8, "stem_stride": 1, "kernels": (3, 5)}),
        ("transformer", {"patch": 4, "head_width": 8, "pool": "mean"}),
    ],
)
def test_sizes_of_spaces(name, sizes):
    shape = spaces.InputShape(3, 32, 10)
    made = {
        key: np.array(value) if isinstance(value, tuple) else one(value)
        for key, value in sizes.items()
    }
    expected = spaces.get(name, shape, **sizes)
    same = spaces.InputShape(*map(one, (3, 32, 10)))
    for space in (spaces.get(name, shape, **made), type(expected)(same, **made)):
        assert json.dumps(space.describe()) == json.dumps(expected.describe())


@pytest.mark.parametrize("classes", [2.5, "2", None, True])
def test_shapes_are_of_whole_numbers(classes):
    message = f"^input shape: classes must be a whole number, got {classes!r}$"
    with pytest.raises(InputError, match=message):
        spaces.InputShape(1, 8, classes)
    with pytest.raises(InputError, match=r"widths must be a whole number .*, got array\(2\)$"):
        spaces.get("mlp", SHAPE, widths=np.array(2))


def captured(unit):
    with capture(MODEL, {"sample_sq_norm"}, unit=unit) as stats:
        F.cross_entropy(MODEL(X), Y).backward()
    return stats.sample_sq_norm.tolist()


def scored(samples, seed, mixup):
    names = [
        proxies.get("ntk_cond", samples=samples, batches=samples),
        proxies.get("zen", seed=seed, mixup=mixup),
    ]
    json.dumps([dict(proxy.options) for proxy in names])
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    found = sigeo.score(model, [(X, Y)] * 2, names)
    return [score.value for score in found.values()]


def converted(outputs, kernel, depth):
    torch.manual_seed(0)
    layer = elastic.ElasticConv2d(1, 4, 5, padding=2)
    deep = elastic.ElasticDepth(nn.Conv2d(2, 2, 1), nn.ReLU())
    return deep(layer(torch.ones(1, 1, 5, 5), outputs=outputs, kernel=kernel), depth=depth).tolist()


@pytest.mark.parametrize(
    ("call", "numbers"),
    [
        (captured, (2,)),
        (lambda probes, seed: fisher_trace(MODEL, [(X, Y)], estimator="signs", probes=probes,
                                           seed=seed), (2, 3)),
        (lambda seed: fisher_rao(MODEL, [(X, Y)], labels="drawn", seed=seed), (3,)),
        (scored, (2, 3, 0.5)),
        (converted, (2, 3, 1)),
        (lambda k: lid(X, k=k).tolist(), (3,)),
        (lambda smallest: Exact(smallest), (2,)),
        (lambda starts: GaussianMixture(starts), (2,)),
        (lambda seed: data.load("digits").order(seed).tolist(), (3,)),
        (lambda seed: Uniform(MLP, seed=seed, paths=seed).paths(0), (3,)),
        (lambda seed: json.dumps(Uniform(MLP, seed=seed).describe()), (3,)),
        (lambda seed: [p.tolist() for p in MLP.build(MLP.at(0), seed=seed).parameters()], (3,)),
        (lambda count: spaces.distinct(MLP, count, random.Random(0)), (2,)),
        (lambda place: json.dumps([space.encode(space.at(place)) for space in SPACES]), (2,)),
        (lambda code: json.dumps([space.encode(space.decode([code] * len(space.choices)))
                                  for space in SPACES]), (1,)),
        (lambda factor: Branching((factor, (factor,) * 2)).paths, (2,)),
        (lambda repeats: Entrant("gm-nas", {"repeats": repeats}).label, (2,)),
    ],
)  # fmt: skip
def test_arguments(call, numbers):
    assert call(*map(one, numbers)) == call(*numbers)


def test_functions_get_pythons_values():
    @named_arguments("thing")
    def thing(*values: object, **named: object) -> list[type]:
        return [type(value) for value in (*values, *named.values())]

    given = [np.int8(1), np.float32(0.5), np.bool_(True), np.str_("a"), np.zeros(2), torch.ones(1)]
    assert thing(*given, last=np.int64(2)) == [
        int, float, bool, str, np.ndarray, torch.Tensor, int
    ]  # fmt: skip


SEEDED = {
    "build": lambda seed: NASBENCH201.build(NASBENCH201.at(5000), seed=seed),
    "supernet": lambda seed: NASBENCH201.supernet(seed=seed),
    "build of widths": lambda seed: MLP.build(MLP.at(0), seed=seed),
    "supernet of widths": lambda seed: MLP.supernet(seed=seed),
    "uniform": lambda seed: Uniform(MLP, seed=seed),
    "fair": lambda seed: Fair(NASBENCH201, seed=seed),
    "disjoint": lambda seed: Disjoint(NASBENCH201, seed=seed),
    "sandwich": lambda seed: Sandwich(MLP, seed=seed),
    "balanced": lambda seed: Balanced(MLP, [MLP], seed=seed),
    "greedy": lambda seed: Greedy(MLP, len, seed=seed, start=0, full=0, sampled=2, kept=1),
    "order": lambda seed: data.load("digits").order(seed),
    "study": lambda seed: Study(DIGITS, data.load("digits"), 64).source(seed),
    "fisher_trace": lambda seed: fisher_trace(MODEL, [(X, Y)], seed=seed),
    "fisher_rao": lambda seed: fisher_rao(MODEL, [(X, Y)], seed=seed),
}


@pytest.mark.parametrize("seed", [-1, 1.5, "3", None, True, 1 << 63])
@pytest.mark.parametrize("call", SEEDED.values(), ids=SEEDED)
def test_seeds_that_are_none(call, seed):
    message = f"^seed: must be a whole number from 0 to 9223372036854775807, got {seed!r}$"
    with pytest.raises(InputError, match=message):
        call(seed)
    call((1 << 63) - 1)


def test_a_seed_of_numpys_that_is_none_is_shown():
    with pytest.raises(InputError, match=r"from 0 to \d+, got np.int64\(-1\)$"):
        Uniform(MLP, seed=np.int64(-1))


def test_paths_of_a_step_are_those_of_its_sampler():
    assert Uniform(MLP, seed=np.int64(3)).paths(7) == Uniform(MLP, seed=3).paths(7)
