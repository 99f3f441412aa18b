"""The space that the tests divide, small enough to train in a moment."""

from __future__ import annotations

from sigeo import spaces

SPACE = spaces.get("nasbench201", spaces.InputShape(3, 8, 10), channels=4, cells=1)
WHOLE = spaces.Product.whole(SPACE)
EVERYTHING = [SPACE.at(index) for index in range(SPACE.size)]
