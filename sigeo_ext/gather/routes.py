"""Which calls go through ops of our own, and which must be plain torch's."""

from __future__ import annotations

import torch
from torch import Tensor


def must_be_plain(weight: Tensor) -> bool:
    """Whether autocast, `torch.func` or someone who watches functions must see a layer's call."""
    if weight.is_complex():
        return True
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(weight.device.type):
        return True
    if torch.compiler.is_compiling():
        return False
    transformed: bool = torch._C._are_functorch_transforms_active()
    return transformed or torch._C._is_torch_function_mode_enabled()
