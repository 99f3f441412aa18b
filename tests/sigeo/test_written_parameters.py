"""`capture` on models that write parameters to tensors in place, beside another use of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES, check
from tests.sigeo.zoo import CLASSES, Function

ALL = slice(None)


def model_of(write) -> nn.Module:
    """A bias and a matrix that layers use, and that ``write`` writes to what they made."""

    def run(m, x):
        z = (m.first(x) * m.matrix[0] + m.matrix[1]).clone()
        write(z, m.first.bias, m.matrix)
        return m.out(z.tanh())

    torch.manual_seed(0)
    parts = {"first": nn.Linear(4, 4), "out": nn.Linear(4, CLASSES)}
    return Function(run, matrix=nn.Parameter(torch.randn(2, 4)), **parts).double()


def labelled():
    torch.manual_seed(1)
    return (torch.randn(SAMPLES, 4, dtype=torch.float64),), torch.arange(SAMPLES) % CLASSES


def put(index, value):
    """A function that writes ``z[index] = value``; an index may be made of z."""

    def write(z, bias, matrix):
        z[index(z) if callable(index) else index] = value(bias, matrix)

    return write


@pytest.mark.parametrize(
    "write",
    [
        put((ALL, 0), lambda b, w: b[1]),
        put((ALL, slice(0, 2)), lambda b, w: b[1:3]),
        put((ALL, [0, 2]), lambda b, w: b[::2]),
        put((ALL, torch.tensor([True, False, True, False])), lambda b, w: b[:2]),
        put(lambda z: z > 0.5, lambda b, w: b[0]),
        put(lambda z: z[:, 0] > 0, lambda b, w: b),
        put((Ellipsis, 3), lambda b, w: b[1]),
        put((None, ALL, 1), lambda b, w: b[2]),
        put(Ellipsis, lambda b, w: w[1]),
        put((ALL, slice(0, 2)), lambda b, w: w.t()[2]),
        put(ALL, lambda b, w: b.expand(2, 1, 4)[0]),
        put((ALL, slice(0, 2)), lambda b, w: w[:, 1].expand(1, 2)),
        lambda z, b, w: z.view(-1, 2, 2)[:, 1].__setitem__((ALL, 0), b[1]),
        lambda z, b, w: (z.__setitem__((ALL, 0), b[0]), z.__setitem__((ALL, 1), b[0])),
        lambda z, b, w: z[:, 1].copy_(b[1]),
        lambda z, b, w: torch._foreach_mul_([z], [b]),
        lambda z, b, w: z.mul_(torch.stack(list(b))),
        lambda z, b, w: z.addcmul_(*w),
    ],
    ids=[
        "number",
        "slice",
        "list",
        "mask of entries",
        "mask",
        "mask of samples",
        "ellipsis",
        "None",
        "everywhere",
        "transposed view",
        "expanded",
        "expanded view",
        "to a view",
        "twice",
        "copied",
        "lists of tensors",
        "entries",
        "rows",
    ],
)
def test_a_parameter_that_is_written_is_used(write):
    check(model_of(write), *labelled())


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (put(0, lambda b, w: b), "by their places"),
        (put(slice(0, 2), lambda b, w: b), "by their places"),
        (put((Ellipsis, slice(0, 2), 0), lambda b, w: b[0]), "by their places"),
        (put([0], lambda b, w: b), "by their places"),
        (put(torch.arange(SAMPLES) > 1, lambda b, w: b), "by their places"),
        (put((torch.arange(2), [1, 2]), lambda b, w: b[0]), "by their places"),
        (lambda z, b, w: z.t().__setitem__((1, 0), b[1]), "by their places"),
        (lambda z, b, w: z[0].add_(b), "one sample"),
        (lambda z, b, w: z[:2].mul_(b), "part of the samples"),
        (lambda z, b, w: z.index_put_((z > 0,), b[0]), "index_put"),
        (lambda z, b, w: z.put_(torch.arange(4), b), "put_"),
    ],
)
def test_parameters_of_some_samples_are_refused(write, reason):
    model, (inputs, labels) = model_of(write), labelled()
    with pytest.raises(InputError, match=reason), capture(model):
        F.cross_entropy(model(*inputs), labels).backward()


def test_what_is_written_without_gradients_is_no_use():
    def write(z, bias, matrix):
        with torch.no_grad():
            z.detach()[:, 0] = bias[0]

    check(model_of(write), *labelled())


def test_a_parameter_that_is_written_to_a_constant_before_the_samples_are():
    def run(m, x):
        z = torch.zeros(len(x), 3, 4, dtype=x.dtype)
        z[:] = m.border.view(3, 1)
        z[:, :, 1:3] = x[:, None, 1:3]
        return m.out(z.flatten(1).tanh())

    torch.manual_seed(0)
    border = nn.Parameter(torch.randn(3))
    check(Function(run, border=border, out=nn.Linear(12, CLASSES)).double(), *labelled())
