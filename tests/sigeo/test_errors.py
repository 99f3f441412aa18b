"""Objects where objects belong: what came instead is said in a line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from sigeo import InputError, data, proxies, spaces
from sigeo.errors import check_kind
from sigeo.fewshot import Branching, Metric, Splitting, choice, partition
from sigeo.fewshot.metrics import ProxyDifference, RandomDistances, WeightedSum
from sigeo.fewshot.study import Study
from sigeo.scoring import score
from sigeo.scoring.networks import Networks, Protocol
from sigeo.supernet import Source, Training, train_supernet

TWO = Branching((2,))
RANDOM = RandomDistances()
SPACE = spaces.get("mlp", spaces.InputShape(1, 8, 10))
DIGITS = data.load("digits")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Splitting("zico", TWO), "split: metric must be a Metric, got 'zico'"),
        (lambda: Splitting(RANDOM, 4), "split: branching must be a Branching, got 4"),
        (
            lambda: Splitting(RANDOM, TWO, "exact"),
            "split: partitioner must be a Partitioner, got 'exact'",
        ),
        (
            lambda: Splitting(RANDOM, TWO, partition.Exact),
            "split: partitioner must be a Partitioner, got the class Exact",
        ),
        (
            lambda: Splitting(RANDOM, TWO, choice="in_turn"),
            "split: choice must be a ChoiceRule, got 'in_turn'",
        ),
        (lambda: ProxyDifference("zico"), "metric: proxy must be a Proxy, got 'zico'"),
        (
            lambda: WeightedSum(((1.0, "zico"),)),
            "metric: each part of a weighted sum must be a Metric, got 'zico'",
        ),
        (
            lambda: Networks(SPACE, DIGITS, Protocol(("zico",))),
            "protocol: proxies must be a list, each a Proxy, got ('zico',)",
        ),
        (
            lambda: Networks(SPACE, DIGITS, Protocol(())),
            "proxies: expected at least one, got none",
        ),
        (
            lambda: train_supernet(
                SPACE.supernet(),
                Training(64),
                Source(DIGITS.order(0), DIGITS.batch, seed=0),
                "uniform",
                settings={},
            ),
            "train: sampler must be a Sampler, got 'uniform'",
        ),
    ],
)
def test_a_name_in_the_place_of_an_object_is_refused(make, expected):
    with pytest.raises(InputError) as raised:
        make()
    assert str(raised.value) == expected


def test_what_an_object_lacks_of_a_protocol_is_named():
    partly = SimpleNamespace(name="own", cost=None)
    with pytest.raises(InputError) as raised:
        check_kind(partly, Metric, "metric")
    assert str(raised.value) == (
        "metric must be a Metric, got SimpleNamespace without initial_weights, __call__"
    )
    for proxy in map(proxies.get, ("params", "zico")):
        check_kind(ProxyDifference(proxy), Metric, "metric")
    for name in partition.names():
        check_kind(partition.get(name), partition.Partitioner, "partitioner")
    for name in choice.names():
        check_kind(choice.get(name), choice.ChoiceRule, "choice")


MODEL = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
X, Y = DIGITS.batch(DIGITS.order(0)[:8])


@pytest.mark.parametrize(
    ("batches", "came"),
    [
        ([X], "one tensor"),
        ((X, Y), "one tensor"),  # one pair, in the place of a list of pairs
        ([(X, Y, Y)], "a tuple of 3"),
        ([{"input": X, "labels": Y}], "a dict of input, labels"),
    ],
)
def test_what_came_without_labels_is_said(batches, came):
    with pytest.raises(InputError) as raised:
        score(MODEL, batches, ["snip"])
    assert str(raised.value) == (
        f"snip needs labels: expected batches (inputs, labels), got {came} as the first batch"
    )


def test_a_model_a_loss_and_as_many_labels_as_samples_are_asked_for():
    with pytest.raises(InputError, match="model must be a Module, got None"):
        score(None, [(X, Y)], ["snip"])
    for proxy in ("snip", "grasp", "fisher_trace", "fisher"):
        with pytest.raises(InputError, match=r"function of \(output, labels\), got None"):
            score(MODEL, [(X, Y)], [proxy], loss_fn=None)
        with pytest.raises(InputError, match="one for each of the 8 samples of the output, got 7"):
            score(MODEL, [(X, Y[1:])], [proxy])

    def failing(output, labels):
        raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        score(MODEL, [(X, Y)], ["snip"], loss_fn=failing)


@pytest.mark.parametrize("shape", [(3, 8, 10), (1, 16, 10), (1, 8, 9)])
def test_networks_are_of_the_images_sizes(shape):
    space = spaces.get("mlp", spaces.InputShape(*shape))
    channels, size, classes = shape
    expected = (
        f"space mlp: made for images {channels}x{size}x{size} of {classes} classes, "
        f"{DIGITS.name} has 1x8x8 of 10; see InputShape"
    )
    for make in (
        lambda: Study(space, DIGITS, 3000),
        lambda: Networks(space, DIGITS, Protocol((proxies.get("params"),))),
    ):
        with pytest.raises(InputError) as raised:
            make()
        assert str(raised.value) == expected
    more = spaces.get("mlp", spaces.InputShape(1, 8, 11))
    assert Study(more, DIGITS, 3000).space is more


def test_a_setting_that_trainings_do_not_have_is_named():
    with pytest.raises(InputError, match="settings must be some of epochs, .*, got batchsize$"):
        Study(SPACE, DIGITS, 3000, settings={"batchsize": 3})


def test_a_description_of_an_unknown_space_is_refused_by_its_name():
    described = SPACE.describe()
    assert spaces.described(described).describe() == described
    with pytest.raises(InputError, match="^space must be one of .*, got 'own'$"):
        spaces.described({**described, "name": "own"})
    with pytest.raises(InputError, match="^space: expected a description with all sizes"):
        spaces.described({"name": "mlp"})
