"""Argument checks of the reference ops, in the words of csrc/common/tensor.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

_NAMES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.bool: "Bool",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
}
_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require(condition: bool, op: str, message: str) -> None:
    """Check one condition.

    Raises:
        RuntimeError: It does not hold; the text is ``op: message``.
    """
    if not condition:
        raise RuntimeError(f"{op}: {message}")


def units(op: str, count: int, ddof: int) -> None:
    """Require at least one unit, and ``ddof`` below their number."""
    require(count > 0, op, f"count must be at least 1, got {count}")
    require(
        0 <= ddof < count,
        op,
        f"ddof must be at least 0 and below the {count} units, got {ddof}",
    )


def eps(op: str, value: float) -> None:
    """Require what may be added to a variance."""
    require(value >= 0, op, f"eps must be at least 0, got {value}")


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor's values can be looked at: none are there while a graph is traced."""
    return not torch.compiler.is_compiling() and detect_fake_mode(tensor) is None


def lists(
    op: str,
    *,
    state: Mapping[str, Sequence[Tensor]] | None = None,
    inputs: Mapping[str, Sequence[Tensor | None]] | None = None,
    rows: Sequence[Tensor | None] = (),
    layers: int | None = None,
    in_place: bool = True,
) -> None:
    """Require lists of one tensor a layer that fit together.

    Args:
        op: The op's name, for messages.
        state: Lists of float32 or float64, one for all. Written if ``in_place``: then each tensor
            must fill one run of memory, in the same order in all lists.
        inputs: Lists that are read.
        rows: Several lists end to end, ``layers`` tensors each.
        layers: Number of layers; that of the first list if not given.
        in_place: Whether the state is written.
    """
    like: list[Tensor | None] = [None] * (layers or 0)
    known = layers is not None
    state_dtype: torch.dtype | None = None
    anywhere: torch.device | None = None
    for is_state, name, tensors in (
        *((True, name, tensors) for name, tensors in (state or {}).items()),
        *((False, name, tensors) for name, tensors in (inputs or {}).items()),
        *([(False, "rows", rows)] if rows else []),
    ):
        if not known:
            like, known = [None] * len(tensors), True
        if name != "rows":
            message = f"{name} must hold one tensor a layer, {len(like)}, got {len(tensors)}"
            require(len(tensors) == len(like), op, message)
        for index, tensor in enumerate(tensors):
            if tensor is None:
                continue
            place = f"{name}[{index}]"
            dtype = dtype_of(tensor)
            if is_state:
                wide = tensor.dtype in (torch.float32, torch.float64)
                require(wide, op, f"{place} must be float32 or float64, got {dtype}")
                state_dtype = state_dtype or tensor.dtype
                message = f"must be {_NAMES[state_dtype]} like the rest of the state, got {dtype}"
                require(tensor.dtype == state_dtype, op, f"{place} {message}")
                run = "must fill one run of memory; a view into a larger tensor cannot be a state"
                require(not in_place or is_dense(tensor), op, f"{place} {run}")
            kinds = "must be float32, float64, bfloat16 or float16"
            require(tensor.dtype in _FLOATING, op, f"{place} {kinds}, got {dtype}")
            anywhere = tensor.device if anywhere is None else anywhere
            same = "must be on the device of the other tensors"
            require(tensor.device == anywhere, op, f"{place} {same}")
            first = like[index % len(like)]
            if first is None:
                like[index % len(like)] = tensor
                continue
            shape = f"must have its layer's shape {list(first.shape)}, got {list(tensor.shape)}"
            require(tensor.shape == first.shape, op, f"{place} {shape}")
            order = "must have the memory order (strides) of the other tensors of its layer"
            free = not (is_state and in_place)
            require(free or memory_order(tensor) == memory_order(first), op, f"{place} {order}")


def memory_order(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have any; equal for tensors of one shape and memory order."""
    return [s for size, s in zip(tensor.shape, tensor.stride(), strict=True) if size != 1]


def is_dense(tensor: Tensor) -> bool:
    """Whether the values fill one run of memory, in whatever order of dimensions."""
    if tensor.numel() < 2:
        return True
    run = 1
    dims = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted(d for d in dims if d[1] != 1):
        if stride != run:
            return False
        run *= size
    return True


def dtype_of(tensor: Tensor) -> str:
    """The name of a tensor's dtype as the compiled ops write it."""
    return _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.").capitalize())


def form_of(tensor: Tensor) -> str:
    """Dtype and shape, as messages have them: "Float [2, 3]"."""
    return f"{dtype_of(tensor)} {list(tensor.shape)}"


def is_floating(tensor: Tensor) -> bool:
    """Whether the dtype is one of the four that the ops take."""
    return tensor.dtype in _FLOATING
