"""The saliency op as a citizen of torch: opcheck, compile, autograd, vmap, FLOP counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sigeo_ext import saliency
from sigeo_ext.saliency import COLUMNS, op
from sigeo_ext.testing import assert_close
from tests.cases import tensors

LAYERS = [(3, 4), (), (5,), (0,)]
EVERY = (1 << len(COLUMNS)) - 1


def arguments(device, dtype=torch.float64, layers=LAYERS):
    """Weights, and gradients whose log1p has a derivative."""
    gradients = tensors(layers, dtype, seed=1, device=device)
    return tensors(layers, dtype, device=device), [g.abs() + 0.1 for g in gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(dtype, device):
    weights, gradients = arguments(device, dtype)
    for want in (1, 24, EVERY):
        torch.library.opcheck(op.saliency_sums, (weights, gradients, want))
    torch.library.opcheck(op.saliency_sums, (weights, [gradients[0], None, None, None], EVERY))
    torch.library.opcheck(op.saliency_sums, (weights, [], 1 << COLUMNS.index("weight_sq")))


def test_opcheck_with_gradients(device):
    weights, gradients = arguments(device)
    for value in (*weights, *gradients):
        value.requires_grad_()
    torch.library.opcheck(op.saliency_sums, (weights, gradients, EVERY & ~4))


@pytest.mark.parametrize("name", COLUMNS)
def test_gradients_equal_finite_differences(name, device):
    weights, gradients = arguments(device, layers=[(4,), (2, 3)])
    flat = [value.requires_grad_() for value in (*weights, *gradients)]

    def call(*flat):
        return saliency.sums(flat[:2], flat[2:], want=[name])[name]

    assert torch.autograd.gradcheck(call, flat)
    assert torch.autograd.gradgradcheck(call, flat)


def test_gradients_reach_weights_beside_absent_gradients(device):
    weights, gradients = arguments(device)
    leaves = [w.requires_grad_() for w in weights]
    total = saliency.sums(leaves, [gradients[0], None, None, None], want=["product", "weight_sq"])
    found = torch.autograd.grad(sum(v.sum() for v in total.values()), leaves)
    assert_close(found[0], gradients[0] + 2 * weights[0])
    assert_close(found[2], 2 * weights[2])
    (alone,) = torch.autograd.grad(
        saliency.sums(leaves, want=["weight_sq"])["weight_sq"].sum(), leaves[:1]
    )
    assert_close(alone, 2 * weights[0])


def test_a_gradient_through_a_list_with_holes_is_refused(device):
    weights, gradients = arguments(device)
    weights[0].requires_grad_()
    with pytest.raises(RuntimeError, match="gradients that require gradients must all be there"):
        saliency.sums(weights, [gradients[0].requires_grad_(), None, None, None], want=["product"])


def test_vmap_equals_a_loop(device):
    weights, gradients = arguments(device, layers=[(3, 4), (3, 2, 3)])

    def one(w, g):
        return saliency.sums(w, g, want=COLUMNS)

    batched = torch.vmap(one)(weights, gradients)
    shared = torch.vmap(one, in_dims=(None, 0))([w[0] for w in weights], gradients)
    for m in range(3):
        g = [t[m] for t in gradients]
        alone, other = one([t[m] for t in weights], g), one([t[0] for t in weights], g)
        for name in COLUMNS:
            assert_close(batched[name][m], alone[name])
            assert_close(shared[name][m], other[name])


@pytest.mark.slow
def test_fullgraph_compile(device):
    def run(weights, gradients):
        some = saliency.sums(weights, gradients, want=["abs_product", "log1p_product"])
        return some["abs_product"].sum() + some["log1p_product"].sum()

    weights, gradients = arguments(device)
    leaves = [value.requires_grad_() for value in (*weights, *gradients)]
    expected = run(weights, gradients)
    got = torch.compile(run, fullgraph=True)(weights, gradients)
    assert_close(got, expected)
    assert_close(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves))


def test_flops_are_counted(device):
    weights, gradients = arguments(device)
    with FlopCounterMode(display=False) as counter:
        saliency.sums(weights, gradients, want=["abs_product", "weight_sq"])
    assert counter.get_total_flops() == 5 * (12 + 1 + 5)
