"""The Triton kernels against the references: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import pytest
import torch

from sigeo_ext import sample_moments as sm
from sigeo_ext.sample_moments import reference, tiles
from sigeo_ext.testing import assert_close, poison_empty
from tests.cases import needs_triton

kernels = pytest.importorskip("sigeo_ext.sample_moments.triton", reason="needs triton")
pytestmark = needs_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVERYTHING = 63
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def tolerance_of(dtype):
    return 1e-10 if dtype == torch.float64 else 1e-5


@dataclass(frozen=True)
class Layer:
    """A convolution's sizes; by default one of one tap, a linear layer."""

    samples: int
    size: tuple[int, ...]
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = (1,)
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    unit: int = 1
    segments: int = 1

    def arguments(self, dtype=torch.float32, want=EVERYTHING, factor=1.5):
        """The op's, with random values."""
        generator = torch.Generator().manual_seed(0)
        out = [
            (n + 2 * p - e * (k - 1) - 1) // s + 1
            for n, k, s, p, e in zip(
                self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]
        x, d = (
            torch.randn(self.samples, *sizes, generator=generator, dtype=torch.float64)
            .to(dtype)
            .to(DEVICE)
            for sizes in ((*self.size, self.inputs), (*out, self.outputs))
        )
        geometry = (self.kernel, self.stride, self.padding, self.dilation)
        return (x, d, *map(list, geometry), self.groups, self.unit, self.segments, want, factor)


def square(kernel, stride=1, padding=0, dilation=1):
    """The geometry of a layer that is alike in two dimensions."""
    return {
        "kernel": (kernel,) * 2,
        "stride": (stride,) * 2,
        "padding": (padding,) * 2,
        "dilation": (dilation,) * 2,
    }


LAYERS = {
    "3x3 folded": Layer(3, (5, 6), 8, 16, **square(3, 1, 1)),
    "3x3 wide": Layer(2, (4, 4), 33, 40, **square(3, 1, 1)),
    "stem": Layer(3, (9, 9), 3, 17, **square(3, 2, 1)),
    "beyond": Layer(3, (2, 2), 3, 9, **square(5, 1, 2)),
    "pointwise": Layer(5, (3, 4), 12, 20, **square(1)),
    "strided pointwise": Layer(3, (5, 5), 12, 20, **square(1, 2)),
    "padded pointwise": Layer(3, (3, 3), 8, 8, **square(1, 1, 1)),
    "dilated": Layer(2, (9, 8), 5, 10, (3, 2), (1, 1), (2, 1), (2, 3)),
    "groups": Layer(3, (5, 5), 16, 32, **square(3, 1, 1), groups=2),
    "narrow groups": Layer(3, (5, 5), 8, 12, **square(3, 2), groups=4),
    "depthwise": Layer(4, (5, 5), 19, 19, **square(3, 1, 1), groups=19),
    "multiplier": Layer(3, (5, 4), 6, 12, **square(3, 1, 1), groups=6),
    "signal": Layer(3, (23,), 6, 10, (5,), (2,), (2,), (1,)),
    "volume": Layer(2, (4, 5, 3), 4, 9, (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 1)),
    "linear": Layer(6, (7,), 20, 35),
    "one position": Layer(6, (1,), 20, 35),
    "one sample": Layer(1, (7,), 20, 35),
    "many positions": Layer(2, (4500,), 9, 10),
    "odd": Layer(3, (5,), 1, 9),
    "one output": Layer(3, (5,), 40, 1),
    "units": Layer(12, (3, 3), 8, 9, **square(3, 1, 1), unit=3),
    "units of one position": Layer(12, (1,), 9, 10, unit=6),
    "segments": Layer(12, (3, 3), 8, 9, **square(3, 1, 1), segments=3),
    "units in segments": Layer(12, (5,), 9, 10, unit=2, segments=2),
    "more units than parts": Layer(40, (4,), 8, 8, segments=2),
}
DOUBLE = ("3x3 folded", "dilated", "narrow groups", "volume", "many positions", "units in segments")


@pytest.fixture
def programs(request, monkeypatch):
    """Launches of at least so many programs, instead of the table's number."""
    table = tiles.shipped()
    changed = tiles.Table(table.tiles, request.param, table.pairs, table.rows, table.scale)
    monkeypatch.setattr(tiles, "shipped", lambda: changed)


ONE_PART_OR_SEVERAL = pytest.mark.parametrize("programs", [1, 64], indirect=True)


@pytest.mark.parametrize("name", LAYERS)
def test_convolution_equals_reference(name):
    arguments = LAYERS[name].arguments()
    got, expected = kernels.convolution(*arguments), reference.convolution(*arguments)
    assert_close(got, expected, tolerance=1e-5)
    for value, like in zip(got, expected, strict=True):
        assert value.is_contiguous() and value.dtype == like.dtype


@pytest.mark.parametrize("name", DOUBLE)
def test_convolution_in_float64_equals_reference(name):
    arguments = LAYERS[name].arguments(torch.float64)
    assert_close(
        kernels.convolution(*arguments), reference.convolution(*arguments), tolerance=1e-10
    )


@ONE_PART_OR_SEVERAL
@pytest.mark.parametrize("name", ["units in segments", "more units than parts", "narrow groups"])
def test_parts_of_a_segment_are_put_together(name, programs):
    arguments = LAYERS[name].arguments()
    assert_close(kernels.convolution(*arguments), reference.convolution(*arguments), tolerance=1e-5)


@ONE_PART_OR_SEVERAL
@pytest.mark.parametrize("layer", ["3x3 folded", "narrow groups"])
@pytest.mark.parametrize("bit", range(6), ids=sm.STATISTICS)
def test_a_statistic_alone_equals_reference(bit, layer, programs):
    arguments = LAYERS[layer].arguments(want=1 << bit)
    (got,), (expected,) = kernels.convolution(*arguments), reference.convolution(*arguments)
    assert_close(got, expected, tolerance=1e-5)


@ONE_PART_OR_SEVERAL
@pytest.mark.parametrize("layer", ["linear", "depthwise"])
def test_nan_stays_in_its_unit_and_place(layer, programs):
    x, *rest = LAYERS[layer].arguments()
    x.view(len(x), -1)[1, 3] = torch.nan
    got, expected = kernels.convolution(x, *rest), reference.convolution(x, *rest)
    for value, like in zip(got, expected, strict=True):
        assert torch.equal(value.isnan(), like.isnan()) and value.isnan().any()
    assert_close(got, expected, tolerance=1e-5)


@ONE_PART_OR_SEVERAL
def test_m2_of_a_large_mean_and_a_small_spread(programs):
    x = torch.ones(8, 4, 8, device=DEVICE)
    d = 1000 + torch.randn(8, 4, 9, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    arguments = (x, d, [1], [1], [0], [1], 1, 1, 1, 8, 1.0)
    assert_close(kernels.convolution(*arguments), reference.convolution(*arguments), tolerance=1e-3)


@pytest.mark.parametrize("layer", [Layer(0, (3,), 9, 10), Layer(4, (3,), 0, 10)], ids=str)
def test_nothing_to_add_up_gives_zeros(layer):
    x, d, *rest = layer.arguments()
    expected = reference.convolution(x.cpu(), d.cpu(), *rest)
    for value, like in zip(kernels.convolution(x, d, *rest), expected, strict=True):
        assert torch.equal(value.cpu(), like)


def test_same_bits_every_time_and_every_entry_is_written():
    arguments = LAYERS["units in segments"].arguments()
    with poison_empty():
        first, second = kernels.convolution(*arguments), kernels.convolution(*arguments)
    for a, b in zip(first, second, strict=True):
        assert torch.isfinite(a).all() and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", ["3x3 folded", "depthwise"])
def test_narrow_inputs_give_wide_statistics(layer, dtype):
    arguments = LAYERS[layer].arguments(dtype)
    assert_close(kernels.convolution(*arguments), reference.convolution(*arguments), tolerance=1e-5)


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_precision_bounds_the_error(precision):
    before = sm.matmul_precision()
    arguments = LAYERS["linear"].arguments(want=7)
    sm.set_matmul_precision(precision)
    try:
        got = kernels.convolution(*arguments)
    finally:
        sm.set_matmul_precision(before)
    limit = 5e-3 if precision == "tf32" else 1e-5
    assert_close(got, reference.convolution(*arguments), tolerance=limit)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision: must be of ieee, tf32x3, tf32, got 'fast'"):
        sm.set_matmul_precision("fast")


@ONE_PART_OR_SEVERAL
@pytest.mark.parametrize(("unit", "segments"), [(1, 1), (2, 3)])
@FLOATS
def test_rows_equal_reference(unit, segments, dtype, programs):
    values = torch.randn(12, 300, dtype=dtype, device=DEVICE)
    arguments = (values, unit, segments, EVERYTHING, 1.5)
    got, expected = kernels.rows(*arguments), reference.rows(*arguments)
    assert_close(got, expected, tolerance=tolerance_of(dtype))


@ONE_PART_OR_SEVERAL
@pytest.mark.parametrize("statistics", ["channel", "sample", "position", "none"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("sizes", [(3, 50, 16), (2, 1, 5), (2, 130, 70)], ids=str)
def test_scale_equals_reference(sizes, channels_last, statistics, programs):
    samples, positions, channels = sizes
    if statistics == "position" and not channels_last:
        pytest.skip("statistics of positions come with channels last")
    shape = sizes if channels_last else (samples, channels, positions)
    of = {"channel": (channels,), "sample": (samples, channels), "position": (*sizes[:2], 1)}
    mean = rstd = None
    if statistics != "none":
        mean = torch.randn(of[statistics], device=DEVICE)
        rstd = torch.rand(of[statistics], device=DEVICE) + 0.5
    x, d = torch.randn(shape, device=DEVICE), torch.randn(shape, device=DEVICE)
    factor = torch.randn(channels, device=DEVICE)
    arguments = (x, d, mean, rstd, factor, channels_last, True)
    assert_close(kernels.scale(*arguments), reference.scale(*arguments), tolerance=1e-5)


@pytest.mark.parametrize("asked", ["scale", "shift", "dx"])
@FLOATS
def test_scale_computes_what_is_asked(asked, dtype):
    x, d = (torch.randn(3, 9, 6, dtype=dtype, device=DEVICE) for _ in range(2))
    channel = torch.rand(6, dtype=dtype, device=DEVICE)
    norm = (channel, channel + 1) if asked == "scale" else (None, None)
    arguments = (x, d, *norm, channel if asked == "dx" else None, True, asked == "shift")
    (got,), (expected,) = kernels.scale(*arguments), reference.scale(*arguments)
    assert_close(got, expected, tolerance=tolerance_of(dtype))


@pytest.mark.parametrize("entries", [0, 1, 90])
@FLOATS
def test_embedding_equals_reference(entries, dtype):
    generator = torch.Generator().manual_seed(entries)
    rows = torch.randint(0, 11, (entries,), generator=generator).to(DEVICE)
    units = torch.randint(0, 7, (entries,), generator=generator).to(DEVICE)
    gradients = torch.randn(entries, 300, generator=generator, dtype=dtype).to(DEVICE)
    for arguments in (
        (rows, units, gradients, 8, 1, 3, EVERYTHING, 1.5),
        (rows, None, gradients, 30, 3, -1, EVERYTHING, 1.5),
    ):
        got, expected = kernels.embedding(*arguments), reference.embedding(*arguments)
        assert torch.equal(got[0], expected[0])
        assert_close(got[1:], expected[1:], tolerance=tolerance_of(dtype))


@pytest.mark.parametrize("want", [EVERYTHING, 32, 3])
@pytest.mark.parametrize("samples", [0, 12])
def test_tables_equal_reference(samples, want):
    rows = torch.randint(0, 9, (samples, 4)).to(DEVICE)
    gradients = torch.randn(samples, 4, 6).to(DEVICE)
    arguments = (rows, gradients, 2, want, 1.5)
    got, expected = kernels.tables(*arguments), reference.tables(*arguments)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert_close(got[2:], expected[2:], tolerance=1e-5)


@pytest.mark.parametrize("name", ["convolution", "rows", "scale", "embedding", "tables"])
def test_functions_take_the_arguments_of_the_reference(name):
    ours, theirs = (inspect.signature(getattr(module, name)) for module in (kernels, reference))
    assert list(ours.parameters) == list(theirs.parameters)


def test_errors_are_those_of_the_reference():
    x, d, *rest = LAYERS["linear"].arguments()
    for arguments in ((x[:3], d, *rest), (x.int(), d, *rest), (x.double(), d, *rest)):
        with pytest.raises(RuntimeError) as ours:
            kernels.convolution(*arguments)
        with pytest.raises(RuntimeError) as theirs:
            reference.convolution(*arguments)
        assert str(ours.value) == str(theirs.value)
    bad = (torch.tensor([2, -5]).to(DEVICE), None, torch.ones(2, 3).to(DEVICE), 2, 1, 9, 1, 1.0)
    with pytest.raises(RuntimeError, match=r"rows\[1\] must be from 0 to .*, got -5"):
        kernels.embedding(*bad)


def test_the_table_of_tiles_can_be_written_and_read(tmp_path):
    tiles.write(tiles.shipped(), tmp_path / "tiles.json")
    assert tiles.read(tmp_path / "tiles.json") == tiles.shipped()
    assert (tmp_path / "tiles.json").read_text() == tiles.TABLE.read_text()


@pytest.mark.parametrize(
    ("programs", "units", "least"), [(1, 1, 512), (3, 100, 512), (600, 7, 512)]
)
def test_parts_cover_the_units_once(programs, units, least):
    parts, length = tiles.parts(programs, units, least)
    assert (parts - 1) * length < units <= parts * length
    assert parts == 1 or math.ceil(units / length) == parts
