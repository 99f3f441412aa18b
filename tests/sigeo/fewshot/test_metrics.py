"""Proxies, tables, draws and sums as metrics."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

import sigeo
from sigeo import InputError, proxies
from sigeo.fewshot import metrics
from sigeo.fewshot.known import Known
from sigeo.fewshot.metrics import (
    GradientMatching,
    ProxyDifference,
    RandomDistances,
    Subject,
    TableOracle,
    WeightedSum,
)
from sigeo.proxies import OnModel, Outcome, Proxy
from sigeo.spaces import Product
from sigeo.supernet import Budget
from tests.sigeo.fewshot.space import EVERYTHING, SPACE, WHOLE, batches

SUPERNET = SPACE.supernet(seed=2)
BATCHES = batches()


def test_a_proxys_distances_are_differences_of_its_scores():
    subject = Subject(WHOLE, 2, 4, SUPERNET, BATCHES)
    relation = ProxyDifference(proxies.get("grad_norm"), repeats=3)(subject)
    scores = [
        [
            sigeo.score(SUPERNET.subnet(arch), BATCHES, ["grad_norm"])["grad_norm"].value
            for arch in subject.paths(repetition, every=True)
        ]
        for repetition in range(3)
    ]
    reference = sum(map(sum, scores)) / 15
    for i, j in itertools.combinations(range(5), 2):
        expected = sum(abs(row[i] - row[j]) for row in scores) / 3 / reference
        assert relation.values[i][j] == pytest.approx(expected)


@pytest.mark.parametrize(
    "proxy",
    [
        *map(proxies.get, proxies.names()),
        proxies.get("zen", repeats=2),
        proxies.get("linear_regions", samples=7, size=None),
        proxies.get("ntk_cond", samples=5, batches=2),
        proxies.get("meco", size=None),
        proxies.get("sigeo", preset="sigeo_paper"),
    ],
    ids=lambda proxy: proxy.name,
)
def test_a_proxy_is_charged_the_images_that_it_runs(proxy):
    data = batches(3)
    cost = ProxyDifference(proxy, repeats=3).cost(Subject(WHOLE, 2, 0, SUPERNET, data))
    if proxy.name in ("params", "flops"):  # of the published networks
        assert cost == Budget()
        return
    network = SPACE.build(SPACE.at(6000), seed=0)
    both, forward = 0, 0

    def count(module, inputs, output):
        nonlocal both, forward
        if isinstance(output, torch.Tensor) and output.requires_grad:
            both += len(inputs[0])
        else:
            forward += len(inputs[0])

    network.register_forward_hook(count)
    sigeo.score(network, data, [proxy])
    through = 2 if proxy.cost == "second" else 1
    assert cost == Budget(trained=3 * 5 * both * through, evaluated=3 * 5 * forward)


def test_coupled_samples_take_a_backward_pass_each():
    coupled = proxies.get("ntk_cond", samples=5, batches=2, batch_norm="coupled")
    assert coupled.processed([8, 4, 8]) == (25 + 16, 0)


def test_parameters_are_the_published_ones():
    subject = Subject(WHOLE, 0, 0)
    relation = metrics.get("params", repeats=2)(subject)
    costs = [[SPACE.cost(a).parameters for a in subject.paths(r, every=True)] for r in range(2)]
    reference = sum(map(sum, costs)) / 10
    larger = sum(abs(row[3] - row[0]) for row in costs) / 2 / reference
    assert relation.values[0][3] == pytest.approx(larger)
    assert relation.values[0][1] == relation.values[1][4] == 0
    assert 0 < relation.values[0][2] < relation.values[0][3]


def test_options_without_finite_scores_are_far_from_all():
    region = Product(SPACE, ((0,), (0,), (0,), (0, 2, 3), (0,), (0,)))
    subject = Subject(region, 3, 0, SUPERNET, BATCHES)
    calls = iter([math.nan, 2.0, 5.0, math.nan, 2.0, 5.0])
    listed = Proxy("listed", OnModel(lambda model, inputs: Outcome(next(calls))), "here", "free")
    relation = ProxyDifference(listed, 2)(subject)
    assert relation.values[1][2] == pytest.approx(3 / 3.5)
    assert relation.values[0][1] == relation.values[0][2] == relation.values[1][2]
    calls = iter([math.nan, 2.0, math.inf])
    with pytest.raises(InputError, match="listed: not finite on two options of 0->3 together"):
        ProxyDifference(listed, 1)(subject)


def table(seed=0, share=0.5):
    rng = random.Random(seed)
    return {str(arch): rng.uniform(10, 90) for arch in EVERYTHING if rng.random() < share}


@pytest.mark.parametrize("of", ["mean", "max"])
def test_the_tables_distances_equal_a_recount(of):
    values = table()
    region = WHOLE.limited(1, [1, 2]).limited(5, [0, 3, 4])
    relation = TableOracle(Known(SPACE, values), of)(Subject(region, 5))
    found = []
    for option in (0, 3, 4):
        known = [
            values[str(arch)]
            for arch in region
            if str(arch) in values and arch.operations[5] == option
        ]
        found.append(max(known) if of == "max" else sum(known) / len(known))
    for i, j in itertools.combinations(range(3), 2):
        assert relation.values[i][j] == pytest.approx(abs(found[i] - found[j]))


def test_draws_follow_the_seed_and_the_choice():
    draw = RandomDistances()
    one, again = draw(Subject(WHOLE, 0, 1)), draw(Subject(WHOLE, 0, 1))
    assert one == again
    assert one != draw(Subject(WHOLE, 0, 2)) != draw(Subject(WHOLE, 1, 2))
    assert all(0 <= value < 1 for row in one.values for value in row)


def test_a_weighted_sum_adds_distances():
    oracle = TableOracle(Known(SPACE, table()))
    draw = RandomDistances()
    subject = Subject(WHOLE, 3, 6)
    total = WeightedSum(((2.0, oracle), (0.5, draw)))(subject)
    one, other = oracle(subject), draw(subject)
    for i, j in itertools.combinations(range(5), 2):
        expected = 2 * one.values[i][j] + 0.5 * other.values[i][j]
        assert total.values[i][j] == pytest.approx(expected)
    cosines = GradientMatching(1, objective="logits", ends=True, own=True)
    subject = Subject(WHOLE, 3, 6, SUPERNET, BATCHES)
    assert WeightedSum(((1.0, cosines),))(subject).values[0][1] == -cosines(subject).values[0][1]
    synflow = ProxyDifference(proxies.get("synflow"))
    assert WeightedSum(((1.0, draw), (1.0, synflow))).initial_weights == synflow.initial_weights


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="table: of must be mean or max, got 'median'"):
        TableOracle(Known(SPACE, {str(SPACE.at(7)): 1.0}), of="median")
    with pytest.raises(InputError, match="at least one metric"):
        WeightedSum(())(Subject(WHOLE, 0))
    with pytest.raises(InputError, match="repeats must be at least 1"):
        metrics.get("grad_norm", repeats=0)
    with pytest.raises(InputError, match="at least one architecture"):
        Known(SPACE, {})
    with pytest.raises(InputError, match="expected 3 nodes"):
        Known(SPACE, {"none": 1.0})
    with pytest.raises(InputError, match="must be finite"):
        Known(SPACE, {str(EVERYTHING[0]): math.inf})
    few = Known(SPACE, {str(EVERYTHING[0]): 1.0})
    with pytest.raises(InputError, match="has no architecture with"):
        TableOracle(few)(Subject(WHOLE, 0))


def test_a_proxy_with_options_of_its_own_by_name():
    metric = metrics.get("zen:repeats=2,mixup=0.1", repeats=3)
    assert metric.proxy.options == proxies.get("zen", repeats=2, mixup=0.1).options
    assert metric.repeats == 3
    for name, message in (
        ("zen:beta=1", "proxy zen: got an unexpected keyword argument 'beta', options are repeats"),
        ("lid:k=2", "metric must be one of gradient_matching, .*, got 'lid:k=2'"),
        (3, "metric must be one of gradient_matching, .*, got 3"),
    ):
        with pytest.raises(InputError, match=message):
            metrics.get(name)
