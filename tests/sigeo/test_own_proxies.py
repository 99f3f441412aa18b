"""Proxies of one's own: what their functions may return, and what of a declaration is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import sigeo
from sigeo import InputError, proxies, spaces
from sigeo.capture import Request
from sigeo.proxies import (
    OnBatch,
    OnGradient,
    OnInputs,
    OnLoss,
    OnModel,
    OnSamples,
    OnStatistics,
    Outcome,
    Proxy,
)
from sigeo.scoring import score_many

NORMS = frozenset({"sample_sq_norm"})
MAKERS = {
    "OnModel": lambda value: OnModel(lambda model, inputs: value),
    "OnInputs": lambda value: OnInputs(lambda model, inputs: value, 2),
    "OnBatch": lambda value: OnBatch(lambda model, inputs, labels, loss_fn: value),
    "OnLoss": lambda value: OnLoss(lambda model, loss: value),
    "OnStatistics": lambda value: OnStatistics(lambda model, statistics: value, Request()),
    "OnSamples": lambda value: OnSamples(lambda model, statistics, loss: value, NORMS),
}


def own(measurement, **options):
    return Proxy("own", measurement, "here", **{"cost": "backward", **options})


def scored(measurement, **options):
    model = nn.Linear(3, 2)
    batches = [(torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(2)]
    return sigeo.score(model, batches, [own(measurement, **options)])["own"]


NUMBERS = [
    2,
    2.0,
    np.float32(2),
    np.array(2.0),
    torch.tensor(2.0),
    torch.tensor(2.0).requires_grad_(),
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: type(number).__name__)
def test_numbers_of_any_kind_become_floats(number):
    score = scored(OnModel(lambda model, inputs: Outcome(number, {"part": number}, ["noted"])))
    assert type(score.value) is type(score.terms["part"]) is float
    assert score == proxies.Score(2.0, {"part": 2.0}, True, ("noted",))
    assert json.dumps(score.terms)
    score = scored(OnGradient(lambda gradient: number), direction=-1)
    assert type(score.value) is float and score.value == -2


@pytest.mark.parametrize("number", [np.float64("nan"), torch.tensor(math.inf)], ids=["nan", "inf"])
def test_numbers_that_are_not_finite_rank_last(number):
    for measurement in (OnModel(lambda *_: Outcome(number)), OnGradient(lambda _: number)):
        score = scored(measurement)
        assert score.value == -math.inf and score.notes == (f"own is {float(number)}",)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_number_in_the_place_of_an_outcome_is_refused(kind):
    with pytest.raises(
        InputError, match=r"^proxy own: must return a sigeo.proxies.Outcome, got fl"
    ):
        scored(MAKERS[kind](3.0))


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (Outcome(torch.ones(3)), r"value must be one number, got Tensor \[3\]"),
        (Outcome(None), "value must be one number, got NoneType"),
        (Outcome(1j), "value must be one number, got complex"),
        (Outcome(1.0, {"part": np.ones(1)}), r"term part must be one number, got ndarray \[1\]"),
        (Outcome(1.0, {"part": "2"}), "term part must be one number, got str"),
        (Outcome(1.0, {3: 1.0}), r"terms must be numbers by name, got \{3: 1.0\}"),
        (Outcome(1.0, [1.0]), r"terms must be numbers by name, got \[1.0\]"),
        (Outcome(1.0, {}, "noted"), "notes must be a tuple of texts, got 'noted'"),
        (Outcome(1.0, {}, None), "notes must be a tuple of texts, got None"),
    ],
)
def test_outcomes_that_are_none(outcome, message):
    with pytest.raises(InputError, match=f"^proxy own: {message}$"):
        scored(OnModel(lambda model, inputs: outcome))


@pytest.mark.parametrize(
    ("returned", "got"),
    [(None, "NoneType"), (torch.ones(3), r"Tensor \[3\]"), (Outcome(1.0), "Outcome")],
)
def test_gradients_give_one_number_alone_and_in_shared_passes(returned, got):
    proxy = own(OnGradient(lambda gradient: returned))
    message = f"^proxy own: value must be one number, got {got}$"
    with pytest.raises(InputError, match=message):
        scored(proxy.measurement)
    space = spaces.get("nasbench201", spaces.InputShape(1, 8, 2), channels=2, cells=1)
    batches = [(torch.randn(4, 1, 8, 8), torch.randint(2, (4,)))]
    with pytest.raises(InputError, match=message):
        score_many(space.supernet(seed=0), [space.at(3)], batches, [proxy])


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"direction": 2}, "proxy own: direction must be 1 or -1, got 2"),
        ({"cost": "cheap"}, "proxy own: cost must be one of free, forward, .*, got 'cheap'"),
        ({"measurement": abs}, "proxy own: measurement must be one of OnModel, .*, got builtin_f"),
        ({"name": ""}, "proxy: name must be a text, got ''"),
        ({"name": 3}, "proxy: name must be a text, got 3"),
    ],
)
def test_declarations_that_are_none(declared, message):
    good = {"name": "own", "measurement": MAKERS["OnModel"](1.0), "source": "here", "cost": "free"}
    with pytest.raises(InputError, match=f"^{message}"):
        Proxy(**{**good, **declared})


def test_registrations_that_are_none(monkeypatch):
    monkeypatch.setattr(proxies.registry, "_FACTORIES", dict(proxies.registry._FACTORIES))
    for name in (3, "", " own", "a,b", "a:b", "a=b"):
        with pytest.raises(InputError, match="proxy name: must be a text without any of .* got "):
            proxies.register(name)
    with pytest.raises(InputError, match="proxy own: expected a function that builds it, got 3"):
        proxies.register("own")(3)
    proxies.register("own")(lambda: 5)
    with pytest.raises(InputError, match="proxy own: its function must return a Proxy, got 5"):
        proxies.get("own")


def test_what_is_no_proxy_is_refused():
    batch = (torch.randn(4, 3), torch.randint(2, (4,)))
    for wrong, kind in ((abs, "builtin_function_or_method"), (OnModel(abs), "OnModel")):
        with pytest.raises(
            InputError, match=f"expected names or objects of class Proxy, got {kind}"
        ):
            sigeo.score(nn.Linear(3, 2), [batch], [wrong])


def squares(model, statistics, loss):
    """Of the gradients of whatever is measured."""
    kept = [statistics[name].sq_sum for name in statistics.keys()]  # noqa: SIM118
    with pytest.raises(InputError, match="sample_sq_norm was not asked for"):
        _ = statistics.sample_sq_norm
    return Outcome(sum(float(value.sum()) for value in kept))


def norms(model, statistics, loss):
    return Outcome(float(statistics.sample_sq_norm.sum()))


@pytest.mark.parametrize(
    ("function", "want"), [(squares, frozenset({"sq_sum"})), (norms, NORMS)], ids=["sums", "norms"]
)
def test_statistics_of_layers_are_of_layers_whatever_else_is_measured(function, want):
    space = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=2, cells=1)
    supernet, archs = space.supernet(seed=0), [space.decode([3] * 6), space.decode([2] * 6)]
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 1, 8, 8, generator=generator), torch.arange(4))]
    alone, every = (
        own(OnSamples(function, want, "contribution", params)) for params in ("layers", "all")
    )
    model = supernet.subnet(archs[0])
    score = sigeo.score(model, batches, [alone])["own"]
    assert score.value < sigeo.score(model, batches, [every])["own"].value
    beside = sigeo.score(model, batches, ["sigeo_sample", alone, "fisher_trace"])["own"]
    assert beside.value == pytest.approx(score.value)
    assert score_many(supernet, archs, batches, [alone])[0]["own"].value == pytest.approx(
        score.value, rel=1e-5
    )
