"""The Triton kernels of slices against the reference: on a GPU, or else interpreted."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sigeo_ext.gather import slices_reference as reference
from sigeo_ext.gather.selection import add_block, window_of
from sigeo_ext.testing import assert_close, poison_empty
from tests.cases import needs_triton
from tests.slices import INPUTS, MODES, SELECTIONS, chosen, randn

kernels = pytest.importorskip("sigeo_ext.gather.triton.slices", reason="needs triton")
pytestmark = needs_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = [torch.bfloat16, torch.float16]
LISTED = pytest.mark.parametrize(
    "selections",
    [pair for pair in itertools.product(SELECTIONS, SELECTIONS) if "list" in pair],
    ids="-".join,
)


def strided(tensor):
    """The same values with others between them."""
    return torch.stack([tensor, torch.full_like(tensor, 77)], -1)[..., 0]


def linear_arguments(
    outputs, inputs, masked, *, size=(7, 6), batch=(3, 4), spread=False, order="rows"
):
    """Arguments of the three ops, by their names."""
    (rows, o), (columns, i) = chosen(outputs, size[0], DEVICE), chosen(inputs, size[1], DEVICE)
    weight = randn(*size, seed=1, device=DEVICE)
    if order == "columns":
        weight = weight.t().contiguous().t()
    bias = randn(size[0], seed=2, device=DEVICE)
    x = randn(*batch, size[1] if masked else len(i), seed=3, device=DEVICE)
    d = randn(*batch, size[0] if masked else len(o), seed=4, device=DEVICE)
    (first, row_index), (second, column_index) = (
        window_of("", "", rows, size[0]), window_of("", "", columns, size[1])
    )  # fmt: skip
    if spread:
        x, d, weight, bias = (strided(t) for t in (x, d, weight, bias))
        row_index, column_index = (
            None if t is None else strided(t) for t in (row_index, column_index)
        )
    selection = (first, second, row_index, column_index, masked)
    return {
        "linear": (x, weight, bias, *selection, False),
        "linear_backward": (d, x, weight, *selection, [True] * 3),
        "linear_accumulate": (d, x, weight, *selection),
    }


def embedding_arguments(inputs, tokens, *, size=(9, 6), padding=-1, spread=False):
    """Arguments of the three ops, by their names."""
    columns, places = chosen(inputs, size[1], DEVICE)
    tokens = tokens.to(DEVICE)
    table = randn(*size, seed=1, device=DEVICE)
    d = randn(*tokens.shape, len(places), seed=2, device=DEVICE)
    window, index = window_of("", "", columns, size[1])
    if spread:
        d, table, tokens = strided(d), strided(table.t()).t(), strided(tokens)
        index = None if index is None else strided(index)
    selection = (window, index, padding)
    return {
        "embedding": (tokens, table, *selection, False),
        "embedding_backward": (d, tokens, table, *selection),
        "embedding_accumulate": (d, tokens, table, *selection),
    }


def copied(tensor, dtype):
    """In the same strides; values that are no indices in a dtype."""
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    device = tensor.device
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
    return copy.copy_(tensor)


def converted(arguments, dtype):
    """Copies of all arguments."""
    return [copied(v, dtype) if isinstance(v, Tensor) else v for v in arguments]


def outcome(function, arguments):
    """Results, or what was written, which is the third argument."""
    if function.__name__.endswith("accumulate"):
        into = copied(arguments[2], arguments[2].dtype)
        function(*arguments[:2], into, *arguments[3:])
        return [into]
    result = function(*arguments)
    return [result] if isinstance(result, Tensor) else list(result)


def agree(arguments, dtype=torch.float32, tolerance=None):
    """Results of the kernels, in memory that was not cleared, and of the reference in float64."""
    for name, given in arguments.items():
        given = converted(given, dtype)
        with poison_empty():
            got = outcome(getattr(kernels, name), given)
        expected = outcome(getattr(reference, name), converted(given, torch.float64))
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == dtype
            assert_close(a, b, tolerance=tolerance)


@LISTED
@MODES
def test_linear_equals_the_reference(selections, masked):
    agree(linear_arguments(*selections, masked))


@MODES
def test_windows_alone_need_no_kernel(masked, monkeypatch):
    monkeypatch.delattr(kernels, "product_kernel")
    monkeypatch.delattr(kernels, "gradient_kernel")
    agree(linear_arguments("chunk", "prefix", masked))


@pytest.mark.parametrize("order", ["rows", "columns"])
@MODES
def test_layers_larger_than_a_tile_in_another_memory_order(order, masked):
    for outputs, inputs in (("list", "chunk"), ("prefix", "list"), ("list", "list")):
        case = {"size": (150, 140), "batch": (70,), "order": order}
        agree(linear_arguments(outputs, inputs, masked, **case))


@MODES
def test_strided_arguments(masked):
    agree(linear_arguments("list", "chunk", masked, spread=True))
    agree(linear_arguments("prefix", "list", masked, spread=True))
    tokens = torch.tensor([[3, 0, 3], [8, 3, 1]])
    agree(embedding_arguments("list", tokens, spread=True))
    agree(embedding_arguments("chunk", tokens, spread=True))


@pytest.mark.parametrize("batch", [(), (0,), (2, 0, 3), (2, 3, 4, 1)], ids=str)
@MODES
def test_linear_of_any_batch(batch, masked):
    agree(linear_arguments("list", "chunk", masked, batch=batch))


@pytest.mark.parametrize("selections", [("list", "chunk"), ("chunk", "list"), ("list", "list")])
@pytest.mark.parametrize("rows", [33, 100])
@MODES
def test_a_weight_gradient_of_many_rows_is_summed_in_runs(selections, rows, masked, monkeypatch):
    placed = []

    def watched(part, *given):
        placed.append(part)
        add_block(part, *given)

    monkeypatch.setattr(kernels, "_ROWS", 16)
    monkeypatch.setattr(kernels, "add_block", watched)
    arguments = linear_arguments(*selections, masked, batch=(rows,))
    del arguments["linear"]
    agree(arguments)
    assert len(placed) == 2


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
@MODES
def test_linear_in_other_dtypes(dtype, masked):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 values as integers")
    agree(linear_arguments("list", "chunk", masked), dtype)


@pytest.mark.parametrize("need", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)], ids=str)
@MODES
def test_only_what_is_needed(need, masked):
    *given, _ = linear_arguments("list", "prefix", masked)["linear_backward"]
    given = [*given, [bool(n) for n in need]]
    got = kernels.linear_backward(*converted(given, torch.float32))
    assert [t.numel() > 0 for t in got] == given[-1]
    agree({"linear_backward": given})


def test_without_a_bias():
    x, weight, _, *rest = linear_arguments("list", "prefix", False)["linear"]
    agree({"linear": (x, weight, None, *rest)})


@pytest.mark.parametrize("outputs", ["prefix", "list"])
@pytest.mark.parametrize("inputs", ["prefix", "list"])
def test_what_is_not_selected_is_not_read(outputs, inputs):
    for name, given in linear_arguments(outputs, inputs, True).items():
        given = converted(given, torch.float32)
        expected = outcome(getattr(kernels, name), given)
        (_, o), (_, i) = chosen(outputs, 7, DEVICE), chosen(inputs, 6, DEVICE)
        hidden_o, hidden_i = (
            [n for n in range(size) if n not in places] for size, places in ((7, o), (6, i))
        )
        tensors = [t for t in given if isinstance(t, Tensor) and t.is_floating_point()]
        for tensor in tensors:
            if tensor.shape[-1] == 7:
                tensor[..., hidden_o] = float("nan")
            elif tensor.dim() == 3:
                tensor[..., hidden_i] = float("nan")
            elif "accumulate" not in name:
                tensor[hidden_o] = float("nan")
                tensor[:, hidden_i] = float("nan")
        for a, b in zip(outcome(getattr(kernels, name), given), expected, strict=True):
            assert torch.equal(a, b)


@INPUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("padding", [-1, 2])
def test_embedding_equals_the_reference(inputs, dtype, kind, padding):
    tokens = torch.tensor([[1, 2, 2], [8, 1, 0]], dtype=kind)
    agree(embedding_arguments(inputs, tokens, padding=padding), dtype)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (70,)], ids=str)
@pytest.mark.parametrize("inputs", ["prefix", "list"])
def test_embedding_of_any_number_of_tokens(shape, inputs):
    tokens = torch.randint(9, shape, generator=torch.Generator().manual_seed(0))
    agree(embedding_arguments(inputs, tokens))


def test_embedding_of_more_columns_than_a_tile():
    tokens = torch.tensor([3, 0, 3])
    agree(embedding_arguments("chunk", tokens, size=(4, 1100)))


@pytest.mark.parametrize("tokens_of_chunk", [1, 4, 8])
@pytest.mark.parametrize("padding", [-1, 3])
def test_tokens_that_fill_chunks_are_added_up_across_them(tokens_of_chunk, padding, monkeypatch):
    monkeypatch.setattr(kernels, "_TOKENS", tokens_of_chunk)
    tokens = torch.tensor([3] * 13 + [0] * 4 + [8] * 8 + [1, 3, 7, 3, 0])
    tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    agree(embedding_arguments("list", tokens, padding=padding))


@pytest.mark.parametrize("inputs", ["chunk", "list"])
def test_a_token_that_the_table_does_not_have_is_nan_and_gets_no_gradient(inputs, monkeypatch):
    monkeypatch.setattr(kernels, "_TOKENS", 2)
    tokens = torch.tensor([9, 1, -1, 9, 9, -1, 1, -1, 1 << 40])
    arguments = embedding_arguments(inputs, tokens)
    has = (tokens == 1).to(DEVICE)
    got = kernels.embedding(*arguments["embedding"])
    assert got[~has].isnan().all() and not got[has].isnan().any()
    d, tokens, table, *selection = arguments["embedding_backward"]
    expected = reference.embedding_backward(d[has], tokens[has], table, *selection)
    assert_close(kernels.embedding_backward(d, tokens, table, *selection), expected)


def test_bits_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr(kernels, "_ROWS", 16)
    monkeypatch.setattr(kernels, "_TOKENS", 4)
    tokens = torch.randint(5, (60,), generator=torch.Generator().manual_seed(0))
    cases = {
        **linear_arguments("list", "list", False, size=(70, 66), batch=(50,)),
        **embedding_arguments("list", tokens),
    }
    for name, given in cases.items():
        given = converted(given, torch.float32)
        first = outcome(getattr(kernels, name), given)
        for _ in range(3):
            with poison_empty():
                again = outcome(getattr(kernels, name), given)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def wrong(name, position, change):
    """Call an op with one argument changed."""
    tokens = torch.tensor([1, 0])
    cases = linear_arguments("list", "list", False) | embedding_arguments("list", tokens)
    given = converted(cases[name], torch.float32)
    given[position] = change(given[position])
    getattr(kernels, name)(*given)


@pytest.mark.parametrize(
    ("name", "position", "change", "text"),
    [
        ("linear", 0, lambda x: x[..., :2], "x must have the selected 4 values"),
        ("linear", 2, lambda bias: bias[:2], "bias must be [7] of the weight's dtype"),
        ("linear", 6, lambda index: index * 0, "inputs must be without repeats"),
        ("linear", 6, lambda index: index + 9, "inputs must be from 0 to 5"),
        ("linear", 0, lambda x: x.to("meta"), "tensors must be on the weight's device"),
        ("linear_backward", 0, lambda d: d[:2], "d must be Float [3, 4] but for its last"),
        ("linear_backward", 0, lambda d: d[..., :2], "d must have the selected 4 values"),
        ("linear_accumulate", 0, lambda d: d.half(), "d must be Float [3, 4] but for its last"),
        ("embedding", 0, lambda tokens: tokens.float(), "tokens must be int64 or int32"),
        ("embedding", 1, lambda table: table.long(), "weight must be float32, float64, bfloat16"),
        ("embedding", 0, lambda tokens: tokens.to("meta"), "tensors must be on the weight's"),
        ("embedding_backward", 0, lambda d: d[:1], "d must be Float [2, 4], got Float [1, 4]"),
        ("embedding_accumulate", 0, lambda d: d.half(), "d must be Float [2, 4], got Half"),
    ],
)
def test_a_wrong_argument_is_named(name, position, change, text):
    with pytest.raises(RuntimeError) as caught:
        wrong(name, position, change)
    assert text in str(caught.value)
