"""Products of many subnets over one super-weight, a program a tile of the results.

Subnets' tensors are anywhere in memory; a table, int64 [subnets, COLUMNS], says where and how large
they are. Nothing is said of their alignment.
"""

import triton
import triton.language as tl

COLUMNS = 10
"""Of the table: addresses of a tensor that is read and of a second one; the two strides of the
first; rows; the windows' beginnings and lengths, of the outputs, then of the inputs; and a number
of tiles that come before the subnet's own.
"""


@triton.jit
def _pointer(table, subnet, column: tl.constexpr, DTYPE: tl.constexpr):
    return tl.load(table + subnet * 10 + column).to(tl.pointer_type(DTYPE))


@triton.jit
def rows_kernel(
    table, tiles, weight, bias, of_inner, of_column,
    DTYPE: tl.constexpr, BACKWARD: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """A tile of y = x W^T + b of one subnet; ``BACKWARD``: of the gradient of x, d W.

    ``tiles`` gives each program its subnet. The weight's strides are those along what is summed
    over and along the result's columns.
    """
    subnet = tl.load(tiles + tl.program_id(0))
    place = table + subnet * 10
    a, into = _pointer(table, subnet, 0, DTYPE), _pointer(table, subnet, 1, DTYPE)
    row_stride, column_stride = tl.load(place + 2), tl.load(place + 3)
    rows = tl.load(place + 4)
    if BACKWARD:
        inner_begin, inner = tl.load(place + 5), tl.load(place + 6)
        column_begin, columns = tl.load(place + 7), tl.load(place + 8)
    else:
        column_begin, columns = tl.load(place + 5), tl.load(place + 6)
        inner_begin, inner = tl.load(place + 7), tl.load(place + 8)
    tile = tl.program_id(0) - tl.load(place + 9)
    across = tl.cdiv(columns, BLOCK_COLUMNS)
    row = tile // across * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tile % across * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    a += row[:, None] * row_stride
    weight += (column_begin + column[None, :]) * of_column + inner_begin * of_inner
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for begin in range(0, inner, BLOCK_INNER):
        k = begin + tl.arange(0, BLOCK_INNER)
        xs = tl.load(
            a + k[None, :] * column_stride, (row < rows)[:, None] & (k < inner)[None, :], 0.0
        )
        ws = tl.load(
            weight + k[:, None] * of_inner, (k < inner)[:, None] & (column < columns)[None, :], 0.0
        )
        total = tl.dot(xs, ws, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + column_begin + column, column < columns, 0.0)[None, :]
    at = into + row[:, None] * columns + column[None, :]
    tl.store(at, total.to(DTYPE), (row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def weight_kernel(
    table, into, subnets, outputs, inputs, output_stride, input_stride,
    DTYPE: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """A tile of the weight's gradient: the sum of d^T x over the subnets, in their order.

    The table's tensors are d and x, and x is dense. ``ADD`` adds to what is there.
    """
    across = tl.cdiv(inputs, BLOCK_INPUTS)
    first_output = tl.program_id(0) // across * BLOCK_OUTPUTS
    first_input = tl.program_id(0) % across * BLOCK_INPUTS
    output = (first_output + tl.arange(0, BLOCK_OUTPUTS)).to(tl.int64)
    input = (first_input + tl.arange(0, BLOCK_INPUTS)).to(tl.int64)
    total = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
    for subnet in range(subnets):
        place = table + subnet * 10
        rows = tl.load(place + 4)
        output_begin, of_outputs = tl.load(place + 5), tl.load(place + 6)
        input_begin, of_inputs = tl.load(place + 7), tl.load(place + 8)
        apart = (first_output >= output_begin + of_outputs) | (
            first_input >= input_begin + of_inputs
        )
        apart |= first_output + BLOCK_OUTPUTS <= output_begin
        apart |= first_input + BLOCK_INPUTS <= input_begin
        # No rows where the subnet has nothing in this tile.
        rows = tl.where(apart, 0, rows)
        d, x = _pointer(table, subnet, 0, DTYPE), _pointer(table, subnet, 1, DTYPE)
        o, i = output - output_begin, input - input_begin
        d += o[:, None] * tl.load(place + 3)
        row_stride = tl.load(place + 2)
        is_output, is_input = (o >= 0) & (o < of_outputs), (i >= 0) & (i < of_inputs)
        own = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
        for begin in range(0, rows, BLOCK_ROWS):
            row = begin + tl.arange(0, BLOCK_ROWS)
            ds = tl.load(
                d + row[None, :] * row_stride, is_output[:, None] & (row < rows)[None, :], 0.0
            )
            xs = tl.load(
                x + row[:, None] * of_inputs + i[None, :],
                (row < rows)[:, None] & is_input[None, :], 0.0,
            )  # fmt: skip
            own = tl.dot(ds, xs, own, input_precision=PRECISION)
        total += own
    at = into + output[:, None] * output_stride + input[None, :] * input_stride
    there = (output < outputs)[:, None] & (input < inputs)[None, :]
    if ADD:
        total += tl.load(at, there, 0.0).to(tl.float32)
    tl.store(at, total.to(DTYPE), there)
