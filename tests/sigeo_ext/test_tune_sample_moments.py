"""The tuner's choices, by a clock that is told what is fast."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench import bench_sample_moments
from bench import tune_sample_moments as tuner
from sigeo_ext.sample_moments import reference, tiles
from sigeo_ext.testing import assert_close
from tests.cases import needs_triton

FASTEST = tiles.Tile(16, 32, 32, 4, 3)


def fastest_first(table, layer, want):
    """One tile is fast wherever it may be used, some do not run, 256 programs are right."""
    columns = layer.inputs * math.prod(layer.kernel)
    if layer.inputs >= tiles.FOLDED_CHANNELS:
        columns = layer.inputs
    if layer.groups > 1:
        return 1.0 + abs(table.pairs[0] - 64) + abs(table.pairs[1] - 4)
    tile = table.tiles[tiles.class_of(layer.outputs, columns, want)]
    if tile.warps == 8 and tile.outputs == 16:
        return None
    return (1.0 if tile == FASTEST else 2.0) * (1 + abs(table.programs - 256))


def test_the_fastest_that_runs_is_chosen():
    lines = []
    table = tuner.tune(tiles.shipped(), fastest_first, say=lines.append)
    for key, tile in table.tiles.items():
        assert (tile == FASTEST) == (FASTEST in tuner.candidates(key)), key
    assert table.pairs == (64, 4) and table.programs == 256
    assert len(lines) == len(tiles.classes()) + 2


def test_the_table_is_kept_where_nothing_is_faster():
    table = replace(tiles.shipped(), programs=300)
    assert tuner.tune(table, lambda *_: 1.0, say=str) == table


def test_classes_that_are_not_asked_for_keep_their_tiles():
    table = tuner.tune(tiles.shipped(), fastest_first, outputs=(16,), say=str)
    for key, tile in table.tiles.items():
        assert key.outputs == 16 or tile == tiles.shipped().tiles[key]


def test_a_clock_that_fails_everywhere_is_an_error():
    with pytest.raises(RuntimeError, match="no candidate runs on 3x3 1->16"):
        tuner.tune(tiles.shipped(), lambda *_: None, say=str)


@pytest.mark.parametrize("key", tiles.classes(), ids=str)
def test_layers_of_a_class_use_its_tile(key):
    assert tuner.candidates(key)
    for layer in tuner.layers_of(key):
        folded = layer.inputs < tiles.FOLDED_CHANNELS
        columns = layer.inputs * (math.prod(layer.kernel) if folded else 1)
        want = tuner.EVERYTHING if key.many else tiles.FEW
        assert tiles.class_of(layer.outputs, columns, want) == key


def test_a_layer_calls_the_op():
    layer = bench_sample_moments.Layer(2, (3, 4), 5, 6, (3, 3))
    x, d = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 6)
    expected = reference.convolution(x, d, [3, 3], [1, 1], [1, 1], [1, 1], 1, 1, 1, 1, 1.0)
    (got,) = layer.statistics(1, "cpu")()
    assert got.shape == expected[0].shape


@needs_triton
@pytest.mark.parametrize("outputs", tiles.SIDES)
def test_a_candidate_computes_what_the_reference_does(outputs, monkeypatch):
    from sigeo_ext.sample_moments import triton

    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = tiles.Class(outputs, 32, True)
    table = tuner.options_of(tiles.shipped(), key)[-1]
    monkeypatch.setattr(tiles, "shipped", lambda: table)
    x, d = torch.randn(2, 9, 20, device=device), torch.randn(2, 9, outputs, device=device)
    arguments = (x, d, [1], [1], [0], [1], 1, 1, 1, 63, 1.0)
    assert_close(triton.convolution(*arguments), reference.convolution(*arguments), tolerance=1e-5)
