"""The gather ops: against their references, as custom ops, and wherever memory is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sigeo_ext import gather, implementations
from sigeo_ext.gather import Norm, Term, op, reference
from sigeo_ext.testing import assert_close, poison_empty, threads
from tests.sigeo_ext.gather_blocks import SHAPES, TOLERANCE, leaves_of, lists, places, some_terms
from tests.slices import WIDE, randn


def arguments(shape, dtype=torch.float64, device="cpu"):
    """Of each op, without graphs."""
    rectified, plain = lists(device)
    x = randn(5, *shape, dtype=dtype, device=device)
    index = [*rectified, *plain]
    copies = [randn(len(i), *shape, dtype=dtype, seed=3, device=device) for i in index]
    terms = some_terms(shape, dtype, device)
    normed = [t for t in terms if t.norm is not None]
    others = [t for t in terms if t.norm is None]
    tensors = (
        [t.x.detach() for t in normed],
        [t.norm.weight.detach() for t in normed],
        [t.norm.bias.detach() for t in normed],
    )
    target = [t.target for t in (*normed, *others)]
    combine = (*tensors, [t.x.detach() for t in others], target, 6, 1e-5)
    _, mean, rstd = reference.combine(*combine)
    d = randn(6, *shape, dtype=dtype, seed=4, device=device)
    backward = (d, *tensors[:2], target[: len(normed)], mean, rstd)
    return {
        "gather_dispatch": (x, index, 2),
        "gather_dispatch_backward": (copies, x, index, 2),
        "gather_combine": combine,
        "gather_combine_backward": backward,
    }


def flat(values):
    return [t for v in values for t in ([v] if isinstance(v, Tensor) else v)]


OPS = pytest.mark.parametrize("name", list(arguments((2, 2))))


@OPS
@SHAPES
@WIDE
def test_op_equals_reference(name, shape, dtype, device):
    given = arguments(shape, dtype, device)[name]
    got = getattr(op, name)(*given)
    expected = getattr(reference, name.removeprefix("gather_"))(*given)
    # The deviation of one value is 0, and 1/sqrt(eps) of it is large.
    tolerance = (1 if shape[0] > 1 else 100) * 10 * TOLERANCE[dtype]
    for a, b in zip(flat(got), flat(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert_close(a, b, tolerance=tolerance)


def needs_compiled(name, device):
    if implementations()[name][device] != device:
        pytest.skip(f"no compiled kernel serves {name} on {device} here")


@OPS
def test_bits_do_not_depend_on_threads_or_old_memory(name, device):
    needs_compiled(name, device)
    given = arguments((331, 7), torch.float32, device)[name]
    run = getattr(op, name)
    with threads(1):
        first = flat(run(*given))
    with threads(2), poison_empty():
        again = flat(run(*given))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_more_lists_than_a_kernel_takes_at_once(device):
    x = randn(3, 5, 2, device=device)
    index = [places(i % 3, (i + 1) % 3, device=device) for i in range(101)]
    copies = op.gather_dispatch(x, index, 60)
    for a, b in zip(copies, reference.dispatch(x, index, 60), strict=True):
        assert torch.equal(a, b)
    given = (copies, x, index, 60)
    assert_close(op.gather_dispatch_backward(*given), reference.dispatch_backward(*given))
    norms = [randn(70, 2, 2, seed=seed, device=device) for seed in (1, 2)]
    rows = [list(norm.unbind()) for norm in norms]
    combine = (copies[:70], *rows, copies[70:], index, 3, 1e-5)
    y, mean, rstd = op.gather_combine(*combine)
    assert_close([y, *mean, *rstd], flat(reference.combine(*combine)))
    backward = (randn(3, 5, 2, seed=3, device=device), copies[:70], rows[0], index[:70], mean, rstd)
    found, expected = op.gather_combine_backward(*backward), reference.combine_backward(*backward)
    assert_close(flat(found), flat(expected), tolerance=1e-10)


def test_tensors_that_begin_anywhere_in_memory(device):
    """Blocks of whole vectors that no vector load may take."""

    def moved(value):
        if isinstance(value, list):
            return [moved(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        room = value.new_empty(value.numel() + 1)
        return room[1:].view(value.shape).copy_(value)

    for name, given in arguments((64, 16), torch.float32, device).items():
        got, expected = (flat(getattr(op, name)(*g)) for g in (map(moved, given), given))
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


def test_blocks_that_are_not_there_are_left_out_on_a_gpu(device):
    if device == "cpu":
        pytest.skip("refused there")
    needs_compiled("gather_combine", device)
    x = randn(4, 300, 7, device=device)
    index = [places(0, 4, -1, 3, 2**62, device=device), places(-(2**62), device=device)]
    first, second = op.gather_dispatch(x, index, 1)
    assert torch.equal(first[[0, 3]], x[[0, 3]].relu())
    assert first[[1, 2, 4]].isnan().all() and second.isnan().all()
    grads = [randn(len(i), 300, 7, seed=1, device=device) for i in index]
    into = op.gather_dispatch_backward(grads, x, index, 1)
    kept = ([grads[0][[0, 3]]], x, [places(0, 3, device=device)], 1)
    assert_close(into, reference.dispatch_backward(*kept))

    weight, bias = randn(2, 4, 7, seed=2, device=device)
    y, mean, rstd = op.gather_combine(
        [x], [weight], [bias], [x[:1]], [places(2, 6, 0, -1, device=device), index[1]], 4, 1e-5
    )
    chosen, target = [0, 2], places(2, 0, device=device)
    kept = ([x[chosen]], [weight[chosen]])
    assert_close(y, reference.combine(*kept, [bias[chosen]], [], [target], 4, 1e-5)[0])
    d = randn(4, 300, 7, seed=3, device=device)
    found = flat(
        op.gather_combine_backward(
            d, [x], [weight], [places(2, 6, 0, -1, device=device)], mean, rstd
        )
    )
    rows = ([mean[0][chosen]], [rstd[0][chosen]])
    expected = flat(reference.combine_backward(d, *kept, [target], *rows))
    for a, b in zip(found, expected, strict=True):
        assert_close(a[chosen], b, tolerance=1e-10)
        assert not a[[1, 3]].any()


def test_tensors_of_two_devices_are_refused(device):
    if device == "cpu":
        pytest.skip("needs another device")
    needs_compiled("gather_dispatch", device)
    with pytest.raises(RuntimeError, match="must be on the device of the other tensors"):
        gather.dispatch(randn(3, 2, 4, device=device), [places(0)])


@OPS
def test_strided_arguments(name, device):
    def strided(value):
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.stack([value, value], -1)[..., 0]
        return [strided(v) for v in value] if isinstance(value, list) else value

    given = arguments((5, 3), device=device)[name]
    got = flat(getattr(op, name)(*map(strided, given)))
    for a, b in zip(got, flat(getattr(op, name)(*given)), strict=True):
        assert torch.equal(a, b)


@OPS
@WIDE
def test_opcheck(name, dtype, device):
    torch.library.opcheck(getattr(op, name), arguments((4, 3), dtype, device)[name])


def test_opcheck_with_gradients(device):
    given = arguments((4, 3), device=device)
    x, index, rectified = given["gather_dispatch"]
    torch.library.opcheck(op.gather_dispatch, (x.requires_grad_(), index, rectified))
    for values in given["gather_combine"][:4]:
        for value in values:
            value.requires_grad_()
    torch.library.opcheck(op.gather_combine, given["gather_combine"])


def test_gradients_equal_finite_differences(device):
    terms = some_terms((4, 2), torch.float64, device)

    def call(*leaves):
        given = iter(leaves[len(terms) :])
        made = [
            Term(x, t.target, None if t.norm is None else Norm(next(given), next(given)))
            for x, t in zip(leaves, terms, strict=False)
        ]
        return gather.combine(made, 6)

    assert torch.autograd.gradcheck(call, leaves_of(terms))


@pytest.mark.slow
def test_fullgraph_compile(device):
    rectified, plain = lists(device)
    x = randn(5, 6, 3, device=device).requires_grad_()
    norm = Norm(*randn(2, 4, 3, seed=1, device=device))

    def run(x):
        (first, _), (second, _) = gather.dispatch(x, rectified, plain)
        everyone = torch.arange(5, device=x.device)
        return gather.combine([Term(first, everyone[:4], norm), Term(second, everyone)], 5).sum()

    got, expected = torch.compile(run, fullgraph=True)(x), run(x)
    assert_close(got, expected)
    assert_close(*(torch.autograd.grad(value, x)[0] for value in (got, expected)))
