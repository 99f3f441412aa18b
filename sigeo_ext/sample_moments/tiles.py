"""Which tiles the Triton kernels of the family use: one table, by the classes of a layer's sizes.

`python -m bench.tune_sample_moments` measures the candidates on a GPU and writes the table anew.
Nothing here needs Triton.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from sigeo_ext.sample_moments.reference import ABS_SUM, SQ_NORM, SQ_SUM, SUM

TABLE = Path(__file__).with_name("tiles.json")

SIDES = (16, 32, 64)
"""Classes of a group's outputs and of its columns: the smallest that holds them, or the last."""
FEW = SUM | ABS_SUM | SQ_SUM | SQ_NORM
"""With m2 or sign_sum there are more tiles to keep."""
FEWEST_CHANNELS = 8
"""Groups with fewer outputs or columns go to the kernel of single pairs."""
FEWEST_POSITIONS = 4
"""So do units with fewer positions."""
FOLDED_CHANNELS = 32
"""With fewer input channels a group the taps lie side by side in the columns of one tile."""


@dataclass(frozen=True)
class Tile:
    """How `convolution_kernel` is compiled.

    Attributes:
        outputs: Output channels of a tile.
        columns: Input channels, or taps and input channels.
        positions: Rows of one step of the matrix product.
        warps: Of a program.
        stages: Of the software pipeline over steps.
    """

    outputs: int
    columns: int
    positions: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Class:
    """Layers that share a tile.

    Attributes:
        outputs: One of `SIDES`.
        columns: One of `SIDES`.
        many: Whether m2 or sign_sum is wanted.
    """

    outputs: int
    columns: int
    many: bool


@dataclass(frozen=True)
class Table:
    """What `TABLE` holds.

    Attributes:
        tiles: Of each class.
        programs: How many programs a launch should have at least: the units of a segment are spread
            over parts until it does. A constant, so that results do not depend on the card.
        pairs: Pairs and positions of a program of `pairs_kernel`, at most.
        rows: Columns of a program of the kernels of gradients that are there, at most.
        scale: Of a step of `scale_kernel`, at most: values side by side, and such runs.
    """

    tiles: dict[Class, Tile]
    programs: int
    pairs: tuple[int, int]
    rows: int
    scale: tuple[int, int]


def classes() -> list[Class]:
    """All classes."""
    return [Class(o, c, many) for o, c, many in itertools.product(SIDES, SIDES, (False, True))]


def class_of(outputs: int, columns: int, want: int) -> Class:
    """The class of a layer with so many outputs and columns in a group."""
    return Class(_side(outputs), _side(columns), bool(want & ~FEW))


def _side(size: int) -> int:
    return next((side for side in SIDES if size <= side), SIDES[-1])


def parts(programs: int, units: int, least: int) -> tuple[int, int]:
    """Into how many runs a segment's units are cut, and the length of each but the last.

    Args:
        programs: Of a launch with one run a segment.
        units: Of a segment.
        least: Programs that the launch should have.
    """
    length = -(-units // max(1, min(units, least // programs)))
    return -(-units // length), length


def power_of_two(size: int, most: int, least: int = 1) -> int:
    """The smallest power of two that holds ``size``, within limits."""
    return max(least, min(most, 1 << max(0, size - 1).bit_length()))


def write(table: Table, path: Path = TABLE) -> None:
    """Write a table, one class a line."""
    lines = [
        json.dumps({**asdict(key), "tile": list(astuple(tile))})
        for key, tile in table.tiles.items()
    ]
    rest = {
        "programs": table.programs,
        "pairs": list(table.pairs),
        "rows": table.rows,
        "scale": list(table.scale),
    }
    values = [f'  "{name}": {json.dumps(value)}' for name, value in rest.items()]
    values.append('  "tiles": [\n    ' + ",\n    ".join(lines) + "\n  ]")
    path.write_text("{\n" + ",\n".join(values) + "\n}\n")


def read(path: Path = TABLE) -> Table:
    """Read what `write` wrote.

    Raises:
        ValueError: A class is missing.
    """
    content = json.loads(path.read_text())
    tiles = {}
    for entry in content["tiles"]:
        tile = Tile(*entry.pop("tile"))
        tiles[Class(**entry)] = tile
    missing = [key for key in classes() if key not in tiles]
    if missing:
        raise ValueError(f"{path}: no tile for {missing[0]}")
    pairs, scale = content["pairs"], content["scale"]
    return Table(
        tiles, content["programs"], (pairs[0], pairs[1]), content["rows"], (scale[0], scale[1])
    )


@functools.cache
def shipped() -> Table:
    """The table beside this file."""
    return read()
