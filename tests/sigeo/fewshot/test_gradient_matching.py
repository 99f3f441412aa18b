"""Gradient matching against one backward pass an option, in float64."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from sigeo import InputError
from sigeo.fewshot import metrics
from sigeo.fewshot.metrics import GradientMatching, Subject, gradient_matching_logits
from sigeo.fewshot.partition import Exact
from sigeo.spaces import Product
from tests.sigeo.fewshot.space import SPACE, WHOLE, batches
from tests.sigeo.fewshot.toy import SIGNS, ToySpace, toy_batches

SUPERNET = SPACE.supernet(seed=3)
BATCHES = batches()


def gradients(subject, repetition, *, logits=False, keep):
    """{name: gradient} of each option, from the supernet's own forward pass in float64."""
    supernet = SPACE.supernet(seed=3).double()
    inputs, labels = subject.batch(repetition)
    found = []
    for arch in subject.paths(repetition):
        output = supernet(inputs.double(), arch)
        value = output.sum() if logits else nn.functional.cross_entropy(output, labels)
        names = [name for name, _ in supernet.named_parameters() if keep(name)]
        values = [value_ for name, value_ in supernet.named_parameters() if keep(name)]
        grads = torch.autograd.grad(value, values, allow_unused=True)
        filled = [
            torch.zeros_like(v) if g is None else g for g, v in zip(grads, values, strict=True)
        ]
        found.append(dict(zip(names, filled, strict=True)))
    return found


def flat(gradient):
    return torch.cat([tensor.flatten() for tensor in gradient.values()])


def shared_layers(place):
    """Names of weights of convolutions in cells and reductions, outside the choice."""

    def keep(name):
        inside = name.startswith("blocks.") and f".slots.{place}_" not in name
        return inside and name.endswith(("conv.weight", "shortcut.weight"))

    return keep


def cosine_distance(a, b):
    return 1 - a @ b / (a.norm() * b.norm() + 1e-6)


@pytest.mark.parametrize("place", [0, 4])
def test_distances_equal_one_pass_an_option(place):
    region = WHOLE.limited(1, [0, 2, 3])
    subject = Subject(region, place, 5, SUPERNET, BATCHES)
    relation = GradientMatching(repeats=3)(subject)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for repetition in range(3):
        vectors = [flat(g) for g in gradients(subject, repetition, keep=shared_layers(place))]
        for i in range(5):
            for j in range(5):
                expected[i, j] += cosine_distance(vectors[i], vectors[j]) / 3
    expected.fill_diagonal_(0)
    assert relation.sense == "distance"
    torch.testing.assert_close(
        torch.tensor(relation.values, dtype=torch.float64), expected, rtol=1e-4, atol=1e-5
    )


def shared_weights(place):
    """The same, with those of norms."""
    return lambda name: name.startswith("blocks.") and f".slots.{place}_" not in name


@pytest.mark.parametrize(
    ("selection", "keep"), [("layers", shared_layers(3)), ("all", shared_weights(3))]
)
@pytest.mark.parametrize("region", [WHOLE, WHOLE.limited(0, [0]).limited(2, [2, 3])])
def test_squared_and_filter_distances(selection, keep, region):
    subject = Subject(region, 3, 1, SUPERNET, BATCHES)
    found = gradients(subject, 0, keep=keep)
    squared = GradientMatching(repeats=1, measure="squared", selection=selection)(subject)
    filters = GradientMatching(repeats=1, measure="filter", selection=selection)(subject)
    used = [name for name in found[0] if any(bool(g[name].any()) for g in found)]
    for i in range(5):
        for j in range(i):
            difference = flat(found[i]) - flat(found[j])
            assert squared.values[i][j] == pytest.approx(float(difference @ difference), rel=1e-3)
            channels = [
                cosine_distance(a.flatten(), b.flatten())
                for name in used
                for a, b in zip(found[i][name], found[j][name], strict=True)
            ]
            assert filters.values[i][j] == pytest.approx(
                float(torch.stack(channels).mean()), rel=1e-3, abs=1e-4
            )


def test_logits_count_all_weights_and_are_similarities():
    subject = Subject(WHOLE, 2, 7, SUPERNET, BATCHES)
    relation = gradient_matching_logits(repeats=2, selection="all")(subject)
    assert relation.sense == "similarity"
    for i in range(5):
        for j in range(i):
            expected = 0.0
            for repetition in range(2):
                found = gradients(subject, repetition, logits=True, keep=lambda name: True)
                expected += (1 - float(cosine_distance(flat(found[i]), flat(found[j])))) / 2
            assert relation.values[i][j] == pytest.approx(expected, abs=1e-4)


def test_none_that_leaves_no_gradient_is_at_distance_one():
    # The one way through the cell is 0->3, so with none there nothing comes back.
    region = Product(SPACE, ((0,), (0,), (0,), (0, 1, 4), (0,), (0,)))
    relation = GradientMatching(repeats=1, selection="all")(
        Subject(region, 3, 0, SUPERNET, BATCHES)
    )
    assert relation.values[0][1] == pytest.approx(1, abs=1e-6)
    assert relation.values[0][2] == pytest.approx(1, abs=1e-6)
    assert abs(relation.values[1][2] - 1) > 1e-3


def test_options_that_make_the_same_network_are_at_distance_zero():
    # Nothing enters node 1, so what leaves it (1->2) does not matter unless it is a convolution.
    region = Product(SPACE, ((0,), (3,), (0, 1, 4), (1,), (0,), (3,)))
    relation = GradientMatching(repeats=2)(Subject(region, 2, 0, SUPERNET, BATCHES))
    assert relation.values[0][1] == pytest.approx(0, abs=1e-5)
    assert relation.values[0][2] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_opposed_families_are_separated(seed):
    space = ToySpace()
    subject = Subject(Product.whole(space), 0, seed, space.supernet(seed=seed), toy_batches())
    relation = GradientMatching(repeats=4)(subject)
    groups = Exact(smallest=2)(relation, 2, random.Random(0))
    assert groups == ((0, 2, 4), (1, 3))
    assert {SIGNS[option] for option in groups[0]} == {1.0}
    assert relation.values[0][2] < 0.3 < 1.7 < relation.values[0][1]
    # Without the direction that the loss gives, signs alone decide: cosines of 1 and -1.
    logits = gradient_matching_logits(repeats=1, own=False)(subject)
    assert logits.values[0][1] == pytest.approx(-1, abs=1e-5)
    assert logits.values[0][2] == pytest.approx(1, abs=1e-5)


def test_metrics_leave_the_supernet_as_it_was_and_repeat():
    before = {name: value.clone() for name, value in SUPERNET.state_dict().items()}
    subject = Subject(WHOLE, 1, 2, SUPERNET, BATCHES)
    first = GradientMatching(repeats=2)(subject)
    assert all(parameter.grad is None for parameter in SUPERNET.parameters())
    assert all(torch.equal(before[n], v) for n, v in SUPERNET.state_dict().items())
    assert GradientMatching(repeats=2)(subject) == first


def test_paths_differ_in_the_choice_alone_and_reach_the_output():
    subject = Subject(WHOLE.limited(4, [0]), 5, 0, SUPERNET, BATCHES)
    for repetition in range(20):
        paths = subject.paths(repetition)
        assert [SPACE.encode(path)[5] for path in paths] == list(range(5))
        assert len({SPACE.encode(path)[:5] for path in paths}) == 1
        assert any(map(SPACE.connected, paths))
        every = subject.paths(repetition, every=True)
        assert all(map(SPACE.connected, every))
    dead = Product(SPACE, ((0,), (0,), (3,), (0,), (3,), (0, 3)))
    with pytest.raises(InputError, match="found no path through 2->3"):
        Subject(dead, 5).paths(0)


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="objective must be loss or logits, got 'logit'"):
        GradientMatching(objective="logit")
    with pytest.raises(InputError, match="selection must be layers or all, got 'norms'"):
        GradientMatching(selection="norms")
    with pytest.raises(InputError, match="repeats must be at least 1"):
        GradientMatching(repeats=0)
    with pytest.raises(InputError, match="cosine, filter or squared"):
        GradientMatching(measure="angle")
    with pytest.raises(InputError, match="got no supernet"):
        GradientMatching(repeats=1)(Subject(WHOLE, 0, 0, None, BATCHES))
    with pytest.raises(InputError, match="got no batches"):
        GradientMatching(repeats=1)(Subject(WHOLE, 0, 0, SUPERNET, None))
    with pytest.raises(InputError, match="metric must be one of gradient_matching"):
        metrics.get("colour")
    with pytest.raises(InputError, match="metric lid"):
        metrics.get("lid", colour=3)
    broken = SPACE.supernet(seed=0)
    with torch.no_grad():
        broken.head.linear.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="gradients on 0->1 are not finite"):
        GradientMatching(repeats=1)(Subject(WHOLE, 0, 0, broken, BATCHES))
