"""Chooses the tiles of the Triton kernels of sample_moments on the GPU that is there.

``python -m bench.tune_sample_moments [--precision ieee|tf32x3|tf32] [--outputs N] [--out FILE]``
runs the kernels' tests, measures the candidates of each class of layers, and writes the table that
`sigeo_ext.sample_moments.tiles` reads. `.ci/check_triton.py` then says whether each choice compiles
for the other architectures without spills; where it does not, take that class from the old table.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from unittest import mock

import torch

from bench.bench_sample_moments import Layer
from sigeo_ext.sample_moments import tiles
from sigeo_ext.sample_moments.precision import PRECISIONS, set_matmul_precision
from sigeo_ext.sample_moments.tiles import Class, Table, Tile

EVERYTHING = 63
TESTS = ("tests/sigeo_ext/test_sample_moments_triton.py",)


Clock = Callable[[Table, Layer, int], float | None]
"""Milliseconds of a layer with a table, None where a kernel cannot run or spills."""


def layers_of(key: Class) -> list[Layer]:
    """Layers whose tile is that of a class: images, and tokens."""
    size = {16: 32, 32: 16, 64: 8}[key.outputs]
    channels = {16: 1, 32: 3, 64: 64}[key.columns]  # of few channels, the nine taps are columns
    found = [
        Layer(64, (size, size), channels, key.outputs, (3, 3)),
        Layer(64, (64,), key.columns, key.outputs, (1,)),
    ]
    if key.columns == key.outputs == tiles.SIDES[-1]:
        found.append(Layer(16, (14, 14), 256, 256, (3, 3)))
        found.append(Layer(16, (128,), 768, 768, (1,)))
    return found


DEPTHWISE = (
    Layer(64, (16, 16), 96, 96, (3, 3), 96),
    Layer(64, (8, 8), 384, 384, (5, 5), 384),
)


def candidates(key: Class) -> list[Tile]:
    """The tiles that a class may get: not much wider than its layers."""
    found = []
    for outputs, columns in itertools.product(tiles.SIDES, tiles.SIDES):
        if outputs <= key.outputs and columns <= max(32, key.columns):
            for positions, warps, stages in itertools.product((16, 32), (4, 8), (2, 3)):
                if outputs * columns >= warps * 32:  # at least one value a thread
                    found.append(Tile(outputs, columns, positions, warps, stages))
    return [t for t in found if 2 * t.outputs * t.columns >= key.outputs * key.columns]


def options_of(table: Table, key: Class) -> list[Table]:
    """The table with each candidate in the place of a class's tile."""
    return [dataclasses.replace(table, tiles={**table.tiles, key: c}) for c in candidates(key)]


def best(options: Iterable[Table], layers: Sequence[Layer], want: int, clock: Clock) -> Table:
    """The option whose times have the smallest geometric mean, the first of equals.

    Raises:
        RuntimeError: None of them runs.
    """
    chosen, least = None, math.inf
    for option in options:
        total = 0.0
        for layer in layers:
            time = clock(option, layer, want)
            total = math.inf if time is None else total + math.log(time)
            if total == math.inf:
                break
        if total < least:
            chosen, least = option, total
    if chosen is None:
        raise RuntimeError(f"no candidate runs on {layers[0]}")
    return chosen


def tune(
    table: Table,
    clock: Clock,
    *,
    outputs: Sequence[int] = tiles.SIDES,
    say: Callable[[str], object] = print,
) -> Table:
    """Choose each class's tile, then the pairs' block, then the number of programs.

    Args:
        table: What to start from; kept where no candidate is faster.
        clock: Measures.
        outputs: Of the classes whose tiles to choose.
        say: Takes a line a choice.
    """
    for key in (key for key in tiles.classes() if key.outputs in outputs):
        want = EVERYTHING if key.many else tiles.FEW
        table = best([table, *options_of(table, key)], layers_of(key), want, clock)
        say(f"{key}: {table.tiles[key]}")
    blocks = itertools.product((32, 64, 128, 256), (4, 8, 16, 32))
    options = [table, *(dataclasses.replace(table, pairs=block) for block in blocks)]
    table = best(options, DEPTHWISE, tiles.FEW, clock)
    say(f"pairs: {table.pairs}")
    options = [table, *(dataclasses.replace(table, programs=2**n) for n in range(7, 13))]
    every = [layer for key in tiles.classes() if not key.many for layer in layers_of(key)]
    table = best(options, [*every, *DEPTHWISE], tiles.FEW, clock)
    say(f"programs: {table.programs}")
    return table


def measure(table: Table, layer: Layer, want: int) -> float | None:
    """The clock on a GPU: the median of repeated launches, from CUDA events."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    from sigeo_ext.sample_moments.triton.product_kernels import convolution_kernel, pairs_kernel

    kernels = (convolution_kernel, pairs_kernel)
    for kernel in kernels:
        kernel.device_caches.clear()
    with mock.patch.object(tiles, "shipped", return_value=table):
        call = layer.statistics(want, "cuda")
        try:
            call()
        except OutOfResources:
            return None
        caches = [c[0] for kernel in kernels for c in kernel.device_caches.values()]
        if any(compiled.n_spills for cache in caches for compiled in cache.values()):
            return None
        return float(do_bench(call, warmup=5, rep=30, return_mode="median"))


def main() -> int:
    """Tune and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument("--outputs", type=int, choices=tiles.SIDES, help="only classes of these")
    parser.add_argument("--out", type=Path, default=tiles.TABLE, help="default: the shipped table")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("tuning needs a CUDA device, torch finds none", file=sys.stderr)
        return 2
    from bench.run import gate

    if not gate(TESTS):
        print("the kernels' tests fail, nothing is measured", file=sys.stderr)
        return 1
    set_matmul_precision(given.precision)
    print(f"{torch.cuda.get_device_name()}, {given.precision}")
    outputs = tiles.SIDES if given.outputs is None else (given.outputs,)
    tiles.write(tune(tiles.shipped(), measure, outputs=outputs), given.out)
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
