"""What the moments ops refuse, and in which words."""

from __future__ import annotations

import copy

import pytest
import torch

from sigeo_ext import moments
from sigeo_ext.moments import op, reference

pytestmark = pytest.mark.filterwarnings("error")


def test_units_of_different_lengths_are_refused():
    a = torch.ones(3)
    with pytest.raises(ValueError, match="one tensor a layer, got 3, 1"):
        moments.rows_summary([[a, a, a], [a]])


@pytest.mark.parametrize("function", ["update_", "fold_rows_"])
def test_a_tensor_at_two_places_of_a_state_is_refused(function):
    a, b, c = (torch.ones(3) for _ in range(3))
    more = {"update_": {"grads": [c], "count": 1}, "fold_rows_": {}}[function]
    for state in (([a], [b], [a]), ([a, a], [b, torch.ones(3)], [c, torch.ones(3)])):
        if len(state[0]) > 1 and more:
            more = more | {"grads": [c, c]}
        message = f"^moments.{function}: .* a tensor of its own at each place, got one twice$"
        with pytest.raises(RuntimeError, match=message):
            getattr(moments, function)(*state, **more)


def test_layers_on_two_devices_are_refused():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    a, b = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="must be on the device of the other tensors"):
        moments.dot([b, a], [b, a])


A, B, HALF, DOUBLE = torch.ones(3), torch.ones(2, 2), torch.ones(3).half(), torch.ones(3).double()
BAD_CALLS = {
    "shape": (
        "update_",
        ([A], [A], [B], [A], 0),
        r"m2\[0\] must have its layer's shape \[3\], got \[2, 2\]",
    ),
    "long": (
        "update_",
        ([A], [A], [A], [A.long()], 0),
        r"grads\[0\] must be float32, float64, bfloat16 or float16, got Long$",
    ),
    "empty-first": (
        "update_",
        ([], [A], [A], [A], 0),
        r"mean must hold one tensor a layer, 0, got 1",
    ),
    "empty-summary": (
        "summary",
        ([], [A], [A], [], [], 2, 0),
        r"mean must hold one tensor a layer, 0, got 1",
    ),
    "empty-dot": ("dot", ([], [A]), r"b must hold one tensor a layer, 0, got 1"),
    "empty-fold": ("fold_rows_", ([], [A], [A]), r"second must hold one tensor a layer, 0, got 1"),
    "few-weights": (
        "rows_summary",
        ([A, B, A, B], [A], 2, 0),
        r"weights must hold one tensor a layer, 2, got 1",
    ),
    "many-weights": (
        "rows_summary",
        ([A, A], [A, A], 2, 0),
        r"weights must hold one tensor a layer, 1, got 2",
    ),
    "length": ("update_", ([A], [A], [A], [], 0), r"grads must hold one tensor a layer, 1, got 0"),
    "half-state": (
        "update_",
        ([HALF], [A], [A], [A], 0),
        r"abs_sum\[0\] must be float32 or float64, got Half",
    ),
    "mixed-list": (
        "update_",
        ([A, DOUBLE], [A] * 2, [A] * 2, [A] * 2, 0),
        r"abs_sum\[1\] must be Float like the rest of the state, got Double",
    ),
    "mixed-state": (
        "update_",
        ([DOUBLE], [A], [A], [A], 0),
        r"mean\[0\] must be Double like the rest of the state, got Float",
    ),
    "view": (
        "update_",
        ([torch.ones(6)[::2]], [A], [A], [A], 0),
        r"abs_sum\[0\] must fill one run of memory",
    ),
    "order": ("update_", ([B], [B.t()], [B], [B], 0), r"mean\[0\] must have the memory order"),
    "negative": ("update_", ([A], [A], [A], [A], -1), r"count must be at least 0, got -1"),
    "integer": (
        "update_",
        ([A], [A], [A], [A.int()], 0),
        r"grads\[0\] must be float32, float64, bfloat16 or float16, got Int$",
    ),
    "functional": ("update", ([A], [A], [A], [B], 0), r"grads\[0\] must have its layer's shape"),
    "fold": (
        "fold_rows_",
        ([A], [A], [B]),
        r"third\[0\] must have its layer's shape \[3\], got \[2, 2\]",
    ),
    "no-units": ("rows_summary", ([], [], 0, 0), r"count must be at least 1, got 0"),
    "many-units": ("rows_summary", ([A] * 5, [], 5, 0), r"count must be at most 4, got 5"),
    "row-shape": (
        "rows_summary",
        ([A, B], [], 2, 0),
        r"rows\[1\] must have its layer's shape \[3\], got \[2, 2\]",
    ),
    "uneven": ("rows_summary", ([A] * 3, [], 2, 0), r"rows must hold 2 tensors a layer, got 3"),
    "ddof": (
        "rows_summary",
        ([A], [], 1, 1),
        r"ddof must be at least 0 and below the 1 units, got 1",
    ),
    "weights": ("rows_summary", ([A, A], [B], 2, 0), r"must have its layer's shape"),
    "empty-state": ("summary", ([A], [A], [A], [], [], 0, 0), r"count must be at least 1, got 0"),
    "summary-grads": (
        "summary",
        ([A], [A], [A], [B], [], 3, 0),
        r"grads\[0\] must have its layer's shape",
    ),
    "dot-length": ("dot", ([A], [A, A]), r"b must hold one tensor a layer, 1, got 2"),
    "dot-shape": ("dot", ([A], [B]), r"b\[0\] must have its layer's shape \[3\], got \[2, 2\]"),
    "rows-shape": ("row_dots", (A, B), r"b\[0\] must have its layer's shape \[3\], got \[2, 2\]"),
    "rows-integer": ("row_dots", (A.int(), A), r"a\[0\] must be float32.*got Int$"),
    "rows-number": ("row_dots", (A[0], A[0]), r"a must be \[rows, \.\.\.\], got a number"),
}


@pytest.mark.parametrize("implementation", ["op", "reference"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_argument_expectation_and_what_came(implementation, name):
    function, arguments, message = BAD_CALLS[name]
    call = getattr(
        reference if implementation == "reference" else op,
        ("moments_" if implementation == "op" else "") + function,
    )
    with pytest.raises(RuntimeError, match=f"^moments_{function.rstrip('_')}_?: .*{message}"):
        call(*copy.deepcopy(arguments))


@pytest.mark.parametrize("derived", [False, True], ids=["leaf", "derived"])
def test_what_is_written_may_not_require_a_gradient(derived):
    leaf = torch.ones(3, requires_grad=True)
    needing = 1 * leaf if derived else leaf
    state = {name: [torch.zeros(3)] for name in ("abs_sum", "mean", "m2")}
    for name in state:
        message = rf"^moments\.update_: {name} is written in place and must not require a gradient"
        with pytest.raises(RuntimeError, match=message):
            moments.update_(**{**state, name: [needing]}, grads=[torch.ones(3)], count=1)
    with pytest.raises(RuntimeError, match=r"^moments\.fold_rows_: second is written in place"):
        moments.fold_rows_([torch.ones(3)], [needing], [torch.ones(3)])
    assert needing.tolist() == [1, 1, 1]
    with torch.no_grad():
        moments.update_(**{**state, "mean": [leaf]}, grads=[3 * torch.ones(3)], count=1)
    assert leaf.tolist() == [2, 2, 2]
