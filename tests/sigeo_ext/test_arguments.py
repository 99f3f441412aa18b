"""Arguments that no function can serve: of another kind, without values, or with a sign to come."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sigeo_ext import gather, gram, moments, saliency, sample_moments
from sigeo_ext.gather import Norm, Term, grouped, slices
from sigeo_ext.testing import assert_close, error_ratio

A, W, FIRST = torch.ones(3, 4), torch.ones(5, 4), torch.zeros(1, dtype=torch.int64)
WRONG = {
    "a tensor for a list": (
        lambda: saliency.sums(A, [A], want="product"),
        "saliency.sums: weights must be a list of tensors, got a tensor",
    ),
    "an array in a list": (
        lambda: saliency.sums([A], [np.ones((3, 4))], want="product"),
        "saliency.sums: gradients[0] must be a tensor or None, got ndarray",
    ),
    "no sequence": (
        lambda: saliency.sums([A], [A], want=3),
        "saliency.sums: want must be a list of strings, got int",
    ),
    "a list for a tensor": (
        lambda: grouped.linear([A], [W]),
        "grouped.linear: weight must be a tensor, got list",
    ),
    "a tensor for subnets": (
        lambda: grouped.linear(A, W),
        "grouped.linear: x must be a list of tensors, got a tensor",
    ),
    "a window's bound": (
        lambda: grouped.linear([A], W, outputs=["all"]),
        "grouped.linear: outputs[0] must be None, an int, a slice or an int64 tensor, got str",
    ),
    "a slice's bound": (
        lambda: slices.linear(A, W, outputs=slice(0.0, 2.0)),
        "slices.linear: outputs must be a slice of step 1 from 0 to 5, got slice(0.0, 2.0, None)",
    ),
    "None in a list": (
        lambda: moments.dot([None], [A]),
        "moments.dot: a[0] must be a tensor, got None",
    ),
    "a string for a number": (
        lambda: moments.update_([A + 1], [A + 1], [A + 1], [A], count="2"),
        "moments.update_: count must be an int, got str",
    ),
    "tensors for a state": (
        lambda: moments.fold_rows_(A, A + 1, A + 2),
        "moments.fold_rows_: first must be a list of tensors, got a tensor",
    ),
    "a list of lists": (
        lambda: moments.rows_summary([[A], None]),
        "moments.rows_summary: rows[1] must be a list of tensors and Nones, got None",
    ),
    "an array for a gradient": (
        lambda: moments.Moments([A]).add([np.ones((3, 4))]),
        "Moments: grads[0] must be a tensor or None, got ndarray",
    ),
    "a tensor for layers": (
        lambda: moments.Moments(A),
        "Moments: like must be a list of tensors, got a tensor",
    ),
    "no gradients": (
        lambda: moments.Moments([A]).add(None),
        "Moments: grads must be a list of tensors and Nones, got None",
    ),
    "a field of a term": (
        lambda: gather.combine([Term(torch.ones(1, 3, 4), FIRST, Norm(A, "bias"))], 1),
        "gather.combine: terms[0].norm.bias must be a tensor, got str",
    ),
    "a tuple for a term": (
        lambda: gather.combine([(A, FIRST)], 1),
        "gather.combine: terms[0] must be a Term, got tuple",
    ),
    "lists of vectors": (
        lambda: gram.cosine([[A], ["A"]]),
        "gram.cosine: vectors[1][0] must be a tensor or None, got str",
    ),
    "a dtype": (
        lambda: gram.spectrum(A[:3, :3], "float32"),
        "gram.spectrum: dtype must be a torch.dtype, got str",
    ),
    "a number for a flag": (
        lambda: sample_moments.scale(A[None], A[None], channels_last="yes"),
        "sample_moments.scale: channels_last must be a bool, got str",
    ),
    "a number of NumPy": (
        lambda: slices.convolution(A[None], W[..., None], stride=np.float64(2)),
        "slices.convolution: stride must be an int or a list of ints, got float64",
    ),
    "a number or numbers": (
        lambda: sample_moments.convolution(A[None], A[None], [1], stride="1"),
        "sample_moments.convolution: stride must be an int or a list of ints, got str",
    ),
    "a norm's input": (
        lambda: slices.layer_norm([1.0], A[0], None),
        "slices.layer_norm: x must be a tensor, got list",
    ),
    "a sparse tensor": (
        lambda: moments.rows_summary([[A.to_sparse()], [A]]),
        "rows[0][0] must be a tensor or None, got a torch.sparse_coo one, which is not dense",
    ),
    "sparse tensors that torch adds up": (
        lambda: moments.rows_summary([[A.to_sparse()], [A.to_sparse()]]),
        "rows[0][0] must be a tensor or None, got a torch.sparse_coo one, which is not dense",
    ),
    "compressed rows": (
        lambda: gram.pack_signs(A.to_sparse_csr()),
        "gram.pack_signs: values must be a tensor, got a torch.sparse_csr one, which is not dense",
    ),
    "a judge's": (
        lambda: error_ratio([1.0], A),
        "error_ratio: actual must be a tensor, got list",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_an_argument_of_another_kind_is_named(call, message):
    with pytest.raises((TypeError, RuntimeError), match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_is_wrong_in_another_way_is_said_as_ever():
    with pytest.raises(RuntimeError, match="^gram_lists: rows\\[0\\] must be float32"):
        gram.dot(torch.ones(2, 3, dtype=torch.int64))  # in the place of a list, which serves
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'want'"):
        saliency.sums([A], [A])
    with pytest.raises(TypeError, match="unexpected keyword argument 'weight'"):
        saliency.sums([A], weight=[A], want="product")


class NoMemory(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise torch.OutOfMemoryError("out of memory")


def test_other_errors_than_of_kinds_go_through():
    linear = functools.partial(sample_moments.linear, A, A, unit=np.int64(1), want={"sum", "m2"})
    assert linear().m2.shape == (4, 4)
    with NoMemory(), pytest.raises(torch.OutOfMemoryError, match="^out of memory$"):
        linear()
    with pytest.raises(TypeError, match="linear: x must be a tensor, got list") as caught:
        sample_moments.linear([A], A, want={"sum"})
    assert isinstance(caught.value.__cause__, AttributeError)


META = {
    "state": lambda meta: moments.summary([A], [A], [A], count=2, weights=[meta]),
    "gradients": lambda meta: saliency.sums([A], [meta], want="product"),
    "written": lambda meta: moments.update_([A + 1], [A + 1], [A + 1], [meta], count=1),
    "products": lambda meta: gram.dot([A, meta]),
    "samples": lambda meta: sample_moments.linear(A[None], meta[None]),
}


@pytest.mark.parametrize("call", META.values(), ids=META)
def test_tensors_without_values_are_refused_beside_others(call):
    with pytest.raises(RuntimeError, match="all tensors must be on one device, got meta and cpu"):
        call(torch.empty(3, 4, device="meta"))


def test_places_on_another_device_serve_where_there_are_no_values(small_weights_through_ops):
    x, weight = torch.empty(3, 4, device="meta"), torch.empty(5, 4, device="meta")
    assert slices.linear(x, weight, outputs=torch.tensor([2, 0])).shape == (3, 2)


def negative(t):
    """A view of values whose signs are to be turned when they are read."""
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg() and torch.equal(view, t)
    return view


def test_negative_views_are_read_as_what_they_stand_for():
    g = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for view, plain in (([negative(g), None], [g, None]), ([negative(g), W], [g, W])):
        got, expected = (saliency.sums([A, W], t, want="product") for t in (view, plain))
        assert torch.equal(got["product"], expected["product"])
        for got, expected in zip(*(moments.rows_summary([t]) for t in (view, plain)), strict=True):
            assert torch.equal(got, expected)
    assert torch.equal(gram.dot([[negative(g)], [A]]), gram.dot([[g], [A]]))
    state = moments.update([A], [A], [A], [negative(g)], count=2)
    assert_close(state[1], moments.update([A], [A], [A], [g], count=2)[1], tolerance=0)
    with pytest.raises(RuntimeError, match="mean is written in place and must not hold negative"):
        moments.update_([A.clone()], [negative(g)], [A.clone()], [g], count=2)


def test_errors_of_values_whose_squares_are_beyond_float64():
    for size in (1e-200, 1e200):
        expected = torch.tensor([2.0, 0.0], dtype=torch.float64) * size
        assert error_ratio(expected * 0.5, expected) == 0.5
    with pytest.raises(AssertionError, match="1 tensors, expected 2"):
        assert_close([A], [A, A])
