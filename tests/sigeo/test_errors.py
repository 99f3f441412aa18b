"""Objects where objects belong: what came instead is said in a line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sigeo import InputError, data, proxies, spaces
from sigeo.errors import check_kind
from sigeo.fewshot import Branching, Metric, Splitting, choice, partition
from sigeo.fewshot.metrics import ProxyDifference, RandomDistances, WeightedSum
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
            "protocol: each of proxies must be a Proxy, got 'zico'",
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
