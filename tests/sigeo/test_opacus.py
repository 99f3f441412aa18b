"""Opacus as a second judge of `capture`, on the models that it takes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from bench import peers
from sigeo.capture import capture
from tests.sigeo import matrix, zoo
from tests.sigeo.sample_loop import EVERYTHING, assert_statistics, error

pytestmark = [
    pytest.mark.skipif(not peers.has("opacus"), reason="Opacus is not installed (extra: peers)"),
    pytest.mark.filterwarnings("ignore"),  # Opacus' own
]
SAMPLES = 6
# Opacus refuses batch norm, in-place operations, attention and unused modules, gives no gradient
# to a weight that is used outside of its module, and takes the padding mode "reflect" for zeros.
OF_MATRIX = [
    "plain", "shared_module", "bare_parameter", "depthwise", "gn", "in", "darts_mixed_op",
    "drop_path", "layer_norm", "sparse_embedding",
]  # fmt: skip
OF_ZOO = [
    "smooth convolutions", "inverted residual", "layer scale", "vision transformer", "siamese",
    "transformer, sequence first", "slices", "bare matrix", "norms", "transposed",
]  # fmt: skip


def made(name):
    torch.manual_seed(0)
    return (matrix if name in OF_MATRIX else zoo).made(name, SAMPLES)


@pytest.mark.parametrize("name", [*OF_MATRIX, *OF_ZOO])
def test_statistics_equal_those_of_opacus_gradients(name):
    model, inputs, labels = made(name)
    judge = peers.opacus_gradients(model)
    torch.manual_seed(1)  # of numbers drawn in the forward pass
    rows = {name: g.detach() for name, g in judge(inputs, labels).items()}
    torch.manual_seed(1)
    with capture(model, EVERYTHING) as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    assert_statistics(stats, rows, model)


@pytest.mark.parametrize("name", [*OF_MATRIX, *OF_ZOO])
def test_norms_equal_opacus_ghost_norms(name):
    model, inputs, labels = made(name)
    judge = peers.opacus_norms(model)
    torch.manual_seed(1)
    norms = judge(inputs, labels).detach()
    torch.manual_seed(1)
    with capture(model, {"sample_sq_norm"}, grads=False) as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    assert error(stats.sample_sq_norm.sqrt(), norms) <= 1e-10


def test_single_precision_is_as_near_to_double_as_that_of_opacus():
    model, inputs, labels = made("smooth convolutions")
    exact = peers.opacus_gradients(model)(inputs, labels)
    single = copy.deepcopy(model).float()
    images = inputs[0].float()
    theirs = peers.opacus_gradients(single)((images,), labels)
    with capture(single, {"abs_sum"}) as stats:
        F.cross_entropy(single(images), labels).backward()
    for name, g in exact.items():
        expected = g.detach().abs().sum(0)
        near = error(theirs[name].detach().abs().sum(0), expected)
        assert error(stats[name].abs_sum, expected) <= max(2 * near, 1e-6), name
