"""Local intrinsic dimension: known dimensions, loops over pairs, profiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sigeo import InputError
from sigeo.capture import Batches
from sigeo.fewshot.metrics import LID, Subject, lid, two_nn
from sigeo.fewshot.metrics.dimension import nearest
from sigeo.spaces import Product
from tests.sigeo.elastic_spaces import batches as elastic_batches
from tests.sigeo.elastic_spaces import space as elastic_space
from tests.sigeo.fewshot.space import SPACE, WHOLE, batches


def subspace(dimension, count, seed=0, dtype=torch.float32):
    """Points of a random linear subspace of R^100."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(100, dimension, generator=generator, dtype=torch.float64)).Q
    inside = torch.rand(count, dimension, generator=generator, dtype=torch.float64)
    return (inside @ basis.T).to(dtype)


@pytest.mark.parametrize("dimension", [2, 5, 10])
def test_the_dimension_of_a_subspace_is_found(dimension):
    points = subspace(dimension, 2000)
    assert float(lid(points).mean()) == pytest.approx(dimension, rel=0.15)


def test_the_unbiased_divisor_is_nearer_where_there_are_no_edges():
    angles = 2 * math.pi * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
    points = torch.cat([angles.cos(), angles.sin()], 1)  # a flat torus
    published, unbiased = (float(lid(points, divisor=d).mean()) for d in ("k", "k-2"))
    assert abs(unbiased - 2) < 0.04 < abs(published - 2)


@pytest.mark.parametrize("dimension", [2, 5])
def test_two_neighbours_find_it_as_well(dimension):
    assert two_nn(subspace(dimension, 2000)) == pytest.approx(dimension, rel=0.15)


def direct(points, k, terms=0):
    """The formula, pair by pair."""
    rows = points.double().flatten(1).tolist()
    found = []
    for i, one in enumerate(rows):
        radii = sorted(math.dist(one, other) for j, other in enumerate(rows) if j != i)[:k]
        logs = sum(math.log(max(r / (radii[-1] + 1e-6), 1e-12)) for r in radii)
        found.append(0.0 if radii[-1] == 0 else -(k - terms) / (logs + 1e-6))
    return found


@pytest.mark.parametrize(("divisor", "terms"), [("k", 0), ("k-1", 1), ("k-2", 2)])
def test_estimates_equal_the_formula_pair_by_pair(divisor, terms):
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(40, 3, 5, generator=generator)
    found = lid(points, k=7, divisor=divisor)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(direct(points, 7, terms), rel=1e-6)
    found = lid(points.double(), k=7, divisor=divisor)
    assert found.tolist() == pytest.approx(direct(points, 7, terms), rel=1e-12)


def test_small_radii_far_from_the_origin_keep_their_digits():
    points = subspace(3, 60, dtype=torch.float64) * 1e-4
    shifted = points + 1000.0
    expected = nearest(points, 5)
    torch.testing.assert_close(nearest(shifted, 5), expected, rtol=1e-6, atol=0)
    squares = shifted.square().sum(1)
    product = (squares[:, None] + squares - 2 * shifted @ shifted.T).clamp_min(0).sqrt()
    product.fill_diagonal_(torch.inf)
    product = product.topk(5, largest=False).values
    assert float(((product - expected) / expected).abs().max()) > 1e-3  # what is not done here


def test_equal_samples_are_no_trouble():
    points = subspace(3, 50)
    doubled = torch.cat([points, points])
    found = lid(doubled, k=8)
    assert bool(found.isfinite().all())
    assert bool((found > 0).all())
    assert found.tolist() == pytest.approx(direct(doubled, 8), rel=1e-6)
    same = torch.ones(30, 4)
    assert lid(same, k=8).tolist() == [0.0] * 30
    assert two_nn(same) == 0.0
    assert two_nn(doubled) == 0.0


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 1e6])
@pytest.mark.parametrize("divisor", ["k", "k-2"])
def test_neighbours_that_are_all_equally_far_have_a_large_dimension(scale, divisor):
    corners = torch.eye(12, dtype=torch.float64) * scale
    found = lid(corners, k=5, divisor=divisor)
    usual = lid(subspace(5, 40), k=5, divisor=divisor)
    assert bool((found > usual.max()).all()) and float(found.max()) <= 1e6 * 5


def test_settings_of_profiles_are_checked():
    for given, message in (
        ({"k": 1}, "k must be a whole number of at least 2, got 1"),
        ({"k": 2.5}, "k must be a whole number of at least 2, got 2.5"),
        ({"k": 2, "divisor": "k-2"}, "k must be a whole number of at least 3, got 2"),
        ({"divisor": "n"}, "divisor must be one of k, k-1, k-2, got 'n'"),
    ):
        with pytest.raises(InputError, match=message):
            LID(**given)


def test_profiles_of_an_elastic_space():
    space = elastic_space("mlp")
    data = Batches(elastic_batches(count=1, size=24), nn.Identity(), torch.device("cpu"))
    metric = LID(repeats=1, k=6, blocks=lambda network: list(network.children())[1:])

    def measured(place, region):
        return metric(Subject(region, place, 0, space.supernet(), data))

    fixed = Product.whole(space).limited(0, (2,))
    assert measured(1, fixed).count == 2
    with pytest.raises(InputError, match=r"of depth must have as many blocks each, got \[2, 3, 4"):
        measured(0, Product.whole(space))
    with pytest.raises(InputError, match="expected a network with blocks, got Sequential"):
        LID(repeats=1, k=6)(Subject(fixed, 1, 0, space.supernet(), data))


def test_too_few_samples_are_refused():
    for count in (1, 20):
        with pytest.raises(InputError, match="more samples than neighbours"):
            lid(torch.randn(count, 4))
    assert lid(torch.randn(21, 4)).shape == (21,)
    with pytest.raises(InputError, match="divisor must be one of"):
        lid(torch.randn(30, 4), divisor="2")


def test_a_profile_has_the_dimension_of_every_blocks_output():
    supernet = SPACE.supernet(seed=1)
    supernet.eval()
    arch = SPACE.decode((3, 1, 2, 4, 1, 3))
    images = batches(1, 24)[0][0]
    metric = LID(repeats=1, k=6)
    network = supernet.subnet(arch)
    found = metric.profile(network, images)
    x = supernet.stem(images)
    expected = []
    for block in supernet.subnet(arch).blocks:
        x = block(x)
        expected.append(sum(direct(x.detach(), 6)) / 24)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert len(found) == 5
    assert not supernet.stem.training
    assert all(not block._forward_hooks for block in network.blocks)


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (a.norm() * b.norm()))


COMPARISONS = {
    "correlation": correlation,
    "cosine": lambda a, b: float(a @ b / (a.norm() * b.norm())),
    "distance": lambda a, b: 1 / (1 + math.dist(a.tolist(), b.tolist())),
}


@pytest.mark.parametrize("compare", COMPARISONS)
def test_similarities_are_those_of_profiles(compare):
    supernet = SPACE.supernet(seed=1)
    subject = Subject(WHOLE, 4, 3, supernet, batches(2, 24))
    metric = LID(repeats=3, k=6, compare=compare)
    relation = metric(subject)
    assert relation.sense == "similarity"
    expected = torch.zeros(5, 5)
    for repetition in range(3):
        images = subject.batch(repetition)[0]
        profiles = [metric.profile(supernet.subnet(a), images) for a in subject.paths(repetition)]
        for i in range(5):
            for j in range(i):
                expected[i, j] += COMPARISONS[compare](profiles[i], profiles[j]) / 3
    for i in range(5):
        assert list(relation.values[i][:i]) == pytest.approx(expected[i, :i].tolist(), abs=1e-5)


def test_cosines_of_positive_profiles_hide_what_correlations_show():
    subject = Subject(WHOLE, 4, 3, SPACE.supernet(seed=1), batches(2, 24))

    def spread(compare):
        values = LID(repeats=2, k=6, compare=compare)(subject).values
        pairs = [values[i][j] for i in range(5) for j in range(i)]
        return max(pairs) - min(pairs)

    assert spread("cosine") < 0.2
    assert spread("correlation") > 2 * spread("cosine")


def test_the_other_estimator_serves_profiles_too():
    subject = Subject(WHOLE, 4, 3, SPACE.supernet(seed=1), batches(1, 24))
    other = LID(repeats=1, estimator="two_nn")(subject)
    assert other != LID(repeats=1, k=6)(subject)


def test_bad_input_is_one_line():
    for options in ({"repeats": 0}, {"compare": "angle"}, {"estimator": "fisher"}):
        with pytest.raises(InputError, match="lid: "):
            LID(**options)
    subject = Subject(WHOLE, 0, 0, SPACE.supernet(), batches(1, 16))
    with pytest.raises(InputError, match="got 16 samples and k = 20"):
        LID(repeats=1)(subject)
    with pytest.raises(InputError, match="a network with blocks, got Linear"):
        LID().profile(nn.Linear(2, 2), torch.randn(30, 2))
    images = torch.full((24, 3, 8, 8), float("nan"))
    network = SPACE.supernet().subnet(SPACE.at(5))
    with pytest.raises(InputError, match="not finite"):
        LID(k=6).profile(network, Batches([(images, None)], network, torch.device("cpu"))[0][0])
