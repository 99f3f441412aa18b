"""Linear layers and embeddings on a part of a super-weight, a program a tile of the results.

What is selected along a dimension of the super-weight is a window that begins somewhere or, where
an index is given, the places that it lists; so many of them. One compiled kernel serves whatever
numbers of rows and tokens, which say nothing of alignment.
"""

import triton
import triton.language as tl


@triton.jit
def _places(index, begin, number, count):
    """The places that are selected ``number``-th, below ``count``."""
    if index is None:
        place = (begin + number).to(tl.int64)
    else:
        place = tl.load(index + number, number < count, 0)
    return place


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    a, weight, bias, into, inner_index, column_index, inner_begin, column_begin,
    rows, inner, columns, a_row, a_column, of_inner, of_column, into_row,
    MASKED: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """A tile of y = x W^T + b, or of the gradient of x, d W, by what is called inner.

    ``inner`` is what is summed over, ``columns`` are the result's; the weight's strides are those
    along the two. ``MASKED`` has them at their places in ``a`` and ``into``, too, and nothing is
    written beside them. ``into`` has its columns side by side.
    """
    across = tl.cdiv(columns, BLOCK_COLUMNS)
    row = (tl.program_id(0) // across * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = tl.program_id(0) % across * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    is_row, is_column = row < rows, column < columns
    column_place = _places(column_index, column_begin, column, columns)
    a += row[:, None] * a_row
    weight += column_place[None, :] * of_column
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, inner, BLOCK_INNER):
        k = first + tl.arange(0, BLOCK_INNER)
        is_k = k < inner
        place = _places(inner_index, inner_begin, k, inner)
        at = place if MASKED else k.to(tl.int64)
        values = tl.load(a + at[None, :] * a_column, is_row[:, None] & is_k[None, :], 0.0)
        weights = tl.load(
            weight + place[:, None] * of_inner, is_k[:, None] & is_column[None, :], 0.0
        )
        total = tl.dot(values, weights, total, input_precision=PRECISION)
    if bias is not None:
        total += tl.load(bias + column_place, is_column, 0.0).to(tl.float32)[None, :]
    at = column_place if MASKED else column
    tl.store(
        into + row[:, None] * into_row + at[None, :], total.to(DTYPE),
        is_row[:, None] & is_column[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "length"])
def gradient_kernel(
    d, x, into, partial, output_index, input_index, output_begin, input_begin,
    rows, outputs, inputs, length, d_row, d_column, x_row, x_column, output_stride, input_stride,
    MASKED: tl.constexpr, ADD: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """A tile of the weight's gradient, d^T x, over one run of ``length`` rows.

    With all rows in one run it goes ``into`` the selected places of the super-weight's gradient,
    written or, with ``ADD``, added to what is there. Otherwise into ``partial``, [runs, outputs,
    inputs].
    """
    across = tl.cdiv(inputs, BLOCK_INPUTS)
    tiles = tl.cdiv(outputs, BLOCK_OUTPUTS) * across
    tile = tl.program_id(0) % tiles
    run = tl.program_id(0) // tiles
    output = tile // across * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    input = tile % across * BLOCK_INPUTS + tl.arange(0, BLOCK_INPUTS)
    is_output, is_input = output < outputs, input < inputs
    output_place = _places(output_index, output_begin, output, outputs)
    input_place = _places(input_index, input_begin, input, inputs)
    d += (output_place if MASKED else output.to(tl.int64))[:, None] * d_column
    x += (input_place if MASKED else input.to(tl.int64))[None, :] * x_column
    total = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
    for first in range(run * length, tl.minimum(rows, (run + 1) * length), BLOCK_ROWS):
        row = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        is_row = row < rows
        ds = tl.load(d + row[None, :] * d_row, is_output[:, None] & is_row[None, :], 0.0)
        xs = tl.load(x + row[:, None] * x_row, is_row[:, None] & is_input[None, :], 0.0)
        total = tl.dot(ds, xs, total, input_precision=PRECISION)
    there = is_output[:, None] & is_input[None, :]
    if partial is not None:
        at = (run.to(tl.int64) * outputs + output[:, None]) * inputs + input[None, :]
        tl.store(partial + at, total, there)
    else:
        at = into + output_place[:, None] * output_stride + input_place[None, :] * input_stride
        if ADD:
            total += tl.load(at, there, 0.0).to(tl.float32)
        tl.store(at, total.to(DTYPE), there)


@triton.jit(do_not_specialize=["rows", "count"])
def rows_kernel(
    tokens, table, into, index, begin, count, rows, columns, row_stride, column_stride,
    BLOCK_TOKENS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The selected columns of the rows that tokens name, [tokens, columns].

    NaN for a token that the table does not have.
    """
    across = tl.cdiv(columns, BLOCK_COLUMNS)
    number = tl.program_id(0) // across * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    column = tl.program_id(0) % across * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    place = _places(index, begin, column, columns)
    token = tl.load(tokens + number, number < count, 0).to(tl.int64)
    has = (token >= 0) & (token < rows)
    there = (number < count)[:, None] & (column < columns)[None, :]
    at = table + token[:, None] * row_stride + place[None, :] * column_stride
    values = tl.load(at, there & has[:, None], float("nan"))
    tl.store(into + number.to(tl.int64)[:, None] * columns + column[None, :], values, there)


@triton.jit
def _sum_of_run(
    d, ordered, order, first, count, token, column, columns, d_row, d_column,
    DTYPE: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of a token from ``first`` of the ordered tokens on, within that one's chunk."""
    number = first + tl.arange(0, LENGTH)
    in_chunk = (number < count) & (number // LENGTH == first // LENGTH)
    found = in_chunk & (tl.load(ordered + number, in_chunk, -1) == token)
    total = tl.zeros((BLOCK,), DTYPE)
    for n in range(first, first + tl.sum(found.to(tl.int32), 0)):
        at = d + tl.load(order + n) * d_row + column * d_column
        total += tl.load(at, column < columns, 0.0).to(DTYPE)
    return total


@triton.jit(do_not_specialize=["count", "padding"])
def chunks_kernel(
    d, ordered, order, partial, count, columns, padding, d_row, d_column,
    DTYPE: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What the chunks of ``LENGTH`` ordered tokens begin with that began before them.

    ``partial`` is [chunks, columns]; chunks that begin with a token of their own stay unwritten.
    """
    across = tl.cdiv(columns, BLOCK)
    chunk = tl.program_id(0) // across
    column = (tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    first = chunk * LENGTH
    token = tl.load(ordered + first)
    before = tl.load(ordered + first - 1, first > 0, -1)
    if (token == before) & (token != padding):
        total = _sum_of_run(
            d, ordered, order, first, count, token, column, columns, d_row, d_column,
            DTYPE, LENGTH, BLOCK,
        )  # fmt: skip
        tl.store(partial + chunk.to(tl.int64) * columns + column, total, column < columns)


@triton.jit(do_not_specialize=["rows", "count", "padding"])
def scatter_kernel(
    d, ordered, order, partial, into, index, begin, count, rows, columns, padding,
    d_row, d_column, row_stride, column_stride,
    ADD: tl.constexpr, DTYPE: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of each token of the table but ``padding``, in its row of ``into``.

    ``order`` says which gradients those of the ordered tokens are. A program a token and tile of
    columns works where the token is the first of its kind: up to the end of its chunk, then
    through the ``partial`` sums of the chunks that go on with it. ``ADD`` adds to what is there.
    """
    across = tl.cdiv(columns, BLOCK)
    first = tl.program_id(0) // across
    column = (tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    token = tl.load(ordered + first).to(tl.int64)
    is_first = token != tl.load(ordered + first - 1, first > 0, -1)
    if is_first & (token >= 0) & (token < rows) & (token != padding):
        total = _sum_of_run(
            d, ordered, order, first, count, token, column, columns, d_row, d_column,
            DTYPE, LENGTH, BLOCK,
        )  # fmt: skip
        chunk = first // LENGTH + 1
        while tl.load(ordered + chunk * LENGTH, chunk * LENGTH < count, -1) == token:
            at = partial + chunk.to(tl.int64) * columns + column
            total += tl.load(at, column < columns, 0.0)
            chunk += 1
        place = _places(index, begin, column, columns)
        at = into + token * row_stride + place * column_stride
        if ADD:
            total += tl.load(at, column < columns, 0.0).to(DTYPE)
        tl.store(at, total.to(into.dtype.element_ty), column < columns)
