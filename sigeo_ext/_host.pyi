# Types of the compiled module; csrc/host/host.cpp holds its source.
from typing import Any

import numpy as np
from numpy.typing import NDArray

def build_info() -> dict[str, Any]: ...
def cpu_info() -> dict[str, Any]: ...
def moments_update_(
    abs_sum: list[NDArray[Any]],
    mean: list[NDArray[Any]],
    m2: list[NDArray[Any]],
    grads: list[NDArray[Any]],
    count: int,
) -> None: ...
def moments_summary(
    abs_sum: list[NDArray[Any]],
    mean: list[NDArray[Any]],
    m2: list[NDArray[Any]],
    weights: list[NDArray[Any]],
    count: int,
    ddof: int,
) -> NDArray[np.float64]: ...
def moments_rows_summary(
    rows: list[NDArray[Any]], weights: list[NDArray[Any]], count: int, ddof: int
) -> NDArray[np.float64]: ...
def stream(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    g: NDArray[np.float32],
    threads: int,
) -> None: ...
def read_pairs(a: NDArray[np.float32], b: NDArray[np.float32], threads: int) -> float: ...
