"""Values that a table knows, by the options that architectures take."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.spaces import Product, SearchSpace


class Known:
    """Tabulated values of a space's architectures.

    Attributes:
        space: The space.
        archs: The architectures that have a value, in the table's order.
        values: Theirs, float64 [n].
        codes: The options they take, int64 [n, choices].
    """

    @named_arguments("known")
    def __init__(self, space: SearchSpace[Any], values: Mapping[str, float]):
        """Read the architectures.

        Args:
            space: The space.
            values: Architecture string to value, as `sigeo.tables.Table.lookup` gives them.

        Raises:
            InputError: A string that is no architecture, a value that is not finite, or none.
        """
        if not values:
            raise InputError("table: expected at least one architecture with a value, got none")
        self.space = space
        self.archs = [space.parse(text) for text in values]
        self.values: NDArray[np.float64] = np.array(list(values.values()), dtype=np.float64)
        if not np.isfinite(self.values).all():
            raise InputError("table: values must be finite")
        self.codes: NDArray[np.int64] = np.array(
            [space.encode(arch) for arch in self.archs], dtype=np.int64
        )

    def fingerprint(self) -> str:
        """A hash of architectures and values."""
        hashed = hashlib.blake2b(digest_size=16)
        hashed.update("\n".join(map(str, self.archs)).encode())
        hashed.update(self.values.tobytes())
        return hashed.hexdigest()

    def inside(self, region: Product[Any]) -> NDArray[np.bool_]:
        """Which architectures belong to a region, [n]."""
        inside = np.ones(len(self.values), dtype=bool)
        for column, options in zip(self.codes.T, region.allowed, strict=True):
            inside &= np.isin(column, options)
        return inside
