"""The gather ops: against plain torch and its autograd, the references, and themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sigeo_ext import gather, implementations
from sigeo_ext.gather import Norm, Term, op, reference
from sigeo_ext.testing import assert_close, poison_empty, threads

WIDE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# (positions, channels): one of each, odd, prime, fewer and more channels than a step's lanes, and
# enough for several pieces.
SHAPES = pytest.mark.parametrize(
    "shape", [(1, 1), (5, 3), (64, 16), (331, 7), (40, 130), (9, 5000), (5000, 16)], ids=str
)


def randn(*shape, dtype=torch.float64, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device, dtype)


def places(*blocks, device="cpu"):
    return torch.tensor(blocks, dtype=torch.int64, device=device)


def lists(device="cpu"):
    """Blocks of five: repeated, none, all, one."""
    rectified = [places(0, 3, 3, 1, device=device), places(device=device)]
    return rectified, [places(4, 2, 1, 0, 3, device=device), places(2, device=device)]


def dispatched(x, rectified, plain):
    return [x[i].relu() for i in rectified] + [x[i] for i in plain]


@SHAPES
@WIDE
def test_dispatch_equals_indexing(shape, dtype, device):
    x = randn(5, *shape, dtype=dtype, device=device).requires_grad_()
    rectified, plain = lists(device)
    first, second = gather.dispatch(x, rectified, plain)
    got = [*first, *second]
    expected = dispatched(x, rectified, plain)
    assert len(got) == len(expected) == 4
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    weights = [randn(*b.shape, dtype=dtype, seed=i, device=device) for i, b in enumerate(expected)]
    total = [sum((a * w).sum() for a, w in zip(o, weights, strict=True)) for o in (got, expected)]
    assert_close(*(torch.autograd.grad(t, x)[0] for t in total), tolerance=TOLERANCE[dtype])


def test_dispatch_of_unused_copies_has_a_gradient_of_zero(device):
    x = randn(5, 3, 2, device=device).requires_grad_()
    rectified, plain = lists(device)
    _, (copy, _) = gather.dispatch(x, rectified, plain)
    (grad,) = torch.autograd.grad(copy.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))


def test_dispatch_keeps_a_nan(device):
    x = torch.tensor([[[float("nan"), -1.0, 2.0]]], device=device)
    ((copy,), _) = gather.dispatch(x, [places(0, device=device)])
    assert copy[0, 0].isnan().tolist() == [True, False, False] and copy[0, 0, 1] == 0


def batch_normed(x: Tensor, norm: Norm, eps: float = 1e-5) -> Tensor:
    """Each block by torch's batch norm, positions as samples."""
    blocks = [
        F.batch_norm(b, None, None, w, s, training=True, eps=eps)
        for b, w, s in zip(x, *norm, strict=True)
    ]
    return torch.stack(blocks) if blocks else x


def sum_of(terms, blocks):
    like = terms[0].x
    total = like.new_zeros(blocks, *like.shape[1:])
    for term in terms:
        value = term.x if term.norm is None else batch_normed(term.x, term.norm)
        total = total.index_add(0, term.target, value)
    return total


def some_terms(shape, dtype, device="cpu"):
    """Terms of six blocks, of which block 5 gets none and block 4 a plain one alone."""
    positions, channels = shape

    def term(seed, *target, normed):
        x = 3 + 2 * randn(len(target), positions, channels, dtype=dtype, seed=seed, device=device)
        norm = None
        if normed:
            rows = randn(2, len(target), channels, dtype=dtype, seed=seed + 9, device=device)
            norm = Norm(*(row.clone().requires_grad_() for row in rows))
        return Term(x.requires_grad_(), places(*target, device=device), norm)

    return [
        term(0, 3, 0, 1, normed=True),
        term(1, 4, 0, normed=False),
        term(2, 2, normed=True),
        term(3, normed=True),
        term(4, 1, 2, 3, normed=False),
    ]


def leaves_of(terms):
    found = [term.x for term in terms]
    return found + [value for term in terms if term.norm is not None for value in term.norm]


@SHAPES
@WIDE
def test_combine_equals_batch_norm_and_sums(shape, dtype, device):
    if shape[0] == 1:
        pytest.skip("torch's batch norm refuses one value a channel")
    terms = some_terms(shape, dtype, device)
    got, expected = gather.combine(terms, 6), sum_of(terms, 6)
    assert not got[5].any()
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    weight = randn(*got.shape, dtype=dtype, seed=77, device=device)
    leaves = leaves_of(terms)
    found = torch.autograd.grad((got * weight).sum(), leaves)
    judge = torch.autograd.grad((expected * weight).sum(), leaves, allow_unused=True)
    for a, b in zip(found, judge, strict=True):
        if b is None:  # of the term without blocks
            assert a.numel() == 0
            continue
        assert_close(a, b, tolerance=20 * TOLERANCE[dtype])


def test_combine_of_a_large_mean_keeps_the_variance(device):
    x = (1e4 + randn(2, 4096, 3, device=device)).float()
    norm = Norm(torch.ones(2, 3, device=device), torch.zeros(2, 3, device=device))
    got = gather.combine([Term(x, places(0, 1, device=device), norm)], 2)
    assert_close(got, batch_normed(x.double(), Norm(*(v.double() for v in norm))), tolerance=1e-3)


def test_one_value_a_channel_is_normalised_to_the_shift(device):
    x, norm = randn(2, 1, 3, device=device), Norm(*randn(2, 2, 3, seed=1, device=device))
    got = gather.combine([Term(x, places(1, 0, device=device), norm)], 2)
    assert_close(got[[1, 0], 0], norm.bias)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (2, {"padding": 1}),
        (2, {"stride": 2, "padding": 1, "dilation": 2}),
        (2, {"groups": 2}),
        (1, {"padding": 2}),
        (3, {}),
    ],
)
@WIDE
def test_convolutions_equal_a_loop(dims, options, own, dtype, device):
    size = [7, 6, 5][:dims]
    x = randn(3, 2, *size, 4, dtype=dtype, device=device).requires_grad_()
    shape = (6, 4 // options.get("groups", 1), *[3] * dims)
    weight = randn(3 if own else 1, *shape, dtype=dtype, seed=1, device=device)
    weight = weight.expand(3, *shape).detach().requires_grad_()
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def plain():
        blocks = [
            function(b.movedim(-1, 1), w, **options).movedim(1, -1)
            for b, w in zip(x, weight, strict=True)
        ]
        return torch.stack(blocks)

    got, expected = gather.convolution(x, weight, **options), plain()
    assert_close(got, expected, tolerance=TOLERANCE[dtype])
    d = randn(*got.shape, dtype=dtype, seed=2, device=device)
    for a, b in zip(
        torch.autograd.grad((got * d).sum(), [x, weight]),
        torch.autograd.grad((expected * d).sum(), [x, weight]),
        strict=True,
    ):
        assert_close(a, b, tolerance=TOLERANCE[dtype])


def test_linear_equals_a_loop(device):
    x, weight, bias = (randn(*s, device=device) for s in ((3, 2, 4), (3, 5, 4), (3, 5)))
    got = gather.linear(x, weight, bias)
    for k in range(3):
        assert_close(got[k], F.linear(x[k], weight[k], bias[k]))
        assert_close(gather.linear(x, weight)[k], F.linear(x[k], weight[k]))


def test_one_block_for_all_is_computed_once(device):
    """From an input that all blocks share to a sum over several terms, with full gradients."""
    x = randn(1, 2, 5, 5, 3, device=device).expand(3, 2, 5, 5, 3)
    weight = randn(1, 4, 3, 3, 3, seed=1, device=device).expand(3, 4, 3, 3, 3)
    weight = weight.detach().requires_grad_()
    norm = Norm(*(v.expand(3, 4).detach().requires_grad_() for v in randn(2, 1, 4, device=device)))
    everyone = places(0, 1, 2, device=device)

    def run(x, weight, norm):
        y = gather.convolution(x, weight, padding=1)
        z = gather.combine([Term(y.flatten(1, -2), everyone, norm)], 3)
        (first,), (second,) = gather.dispatch(z, [everyone[:2]], [everyone[1:]])
        return y, z, first, second

    shared = run(x, weight, norm)
    full = run(x.contiguous(), weight.contiguous(), Norm(*(v.contiguous() for v in norm)))
    d = [randn(*t.shape, seed=i, device=device) for i, t in enumerate(full)]
    for a, b in zip(shared, full, strict=True):
        assert a.stride(0) == 0 and b.stride(0) != 0
        assert_close(a, b)
    leaves = [weight, *norm]
    for a, b in zip(
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(shared, d, strict=True)), leaves),
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(full, d, strict=True)), leaves),
        strict=True,
    ):
        assert a.shape == b.shape
        assert_close(a, b)


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
    x, weight = (randn(*s, device=device).requires_grad_() for s in ((2, 1, 4, 3), (2, 5, 3, 2)))
    torch.library.opcheck(op.gather_convolution, (x, weight, [1], [1], [1], 1))


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


def test_flops_of_convolutions_are_counted(device):
    x, weight = randn(2, 3, 5, 5, 4, device=device), randn(2, 6, 4, 3, 3, device=device)
    with FlopCounterMode(display=False) as counter:
        gather.convolution(x, weight.requires_grad_()).sum().backward()
    forward = 2 * (2 * 3 * 3 * 3 * 6) * (4 * 3 * 3)
    counts = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    assert counts["sigeo_ext.gather_convolution"] == forward
    assert counts["sigeo_ext.gather_convolution_backward"] == forward


X = randn(3, 2, 4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: gather.dispatch(X[0], [places(0)]), "x must be float32 or float64 [blocks, pos"),
        (lambda: gather.dispatch(X, [places(3)]), "must be blocks below 3"),
        (lambda: gather.dispatch(X, [places(0).int()]), "index[0] must be int64 [1], got Int"),
        (lambda: gather.combine([], 3), "expected at least one term, got none"),
        (lambda: gather.combine([Term(X, places(0))], 3), "must be int64 [3]"),
        (lambda: gather.combine([Term(X, places(0, 1, 5))], 3), "must be blocks below 3"),
        (
            lambda: gather.combine([Term(X, places(0, 1, 2)), Term(X[:, :1], places(0, 1, 2))], 3),
            "plain[1] must be blocks like the other terms'",
        ),
        (
            lambda: gather.combine([Term(X, places(0, 1, 2), Norm(X[:, 0, :3], X[:, 0]))], 3),
            "weight must be [3, 4] like its term, got [3, 3]",
        ),
        (
            lambda: gather.convolution(X[:, :, None], randn(2, 5, 4, 3)),
            "weight must be [blocks, outputs, inputs, *kernel]",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, text):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert text in str(caught.value)
