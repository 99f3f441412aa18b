"""Other packages that compute per-sample gradients: peers in benchmarks, second judges in tests.

Each function takes a model, of which it makes a copy, and returns a function of a batch's inputs
and labels; losses are the mean cross-entropy. docs/benchmarks.md says which models a package takes.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


def has(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def _contiguous(model: nn.Module) -> nn.Module:
    """A copy in the default memory format: Opacus 1.6 is wrong in silence on channels_last."""
    twin = copy.deepcopy(model)
    twin.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return twin


def opacus_gradients(model: nn.Module) -> Callable[[Inputs, Tensor], dict[str, Tensor]]:
    """Per-sample gradients by Opacus' hooks, [samples, *shape] by the parameter's name."""
    from opacus import GradSampleModule

    hooked: Any = GradSampleModule(_contiguous(model), loss_reduction="mean")

    def gradients(inputs: Inputs, labels: Tensor) -> dict[str, Tensor]:
        hooked.zero_grad()
        F.cross_entropy(hooked(*(x.contiguous() for x in inputs)), labels).backward()
        return {name: p.grad_sample for name, p in hooked._module.named_parameters()}

    return gradients


def opacus_norms(model: nn.Module) -> Callable[[Inputs, Tensor], Tensor]:
    """Norms of per-sample gradients by Opacus' ghost clipping, [samples]."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    hooked: Any = GradSampleModuleFastGradientClipping(
        _contiguous(model), loss_reduction="mean", use_ghost_clipping=True
    )

    def norms(inputs: Inputs, labels: Tensor) -> Tensor:
        hooked.zero_grad()
        F.cross_entropy(hooked(*(x.contiguous() for x in inputs)), labels).backward()
        found: Tensor = hooked.get_norm_sample()
        return found

    return norms


def backpack_gradients(model: nn.Module) -> Callable[[Inputs, Tensor], dict[str, Tensor]]:
    """Per-sample gradients by BackPACK's ``BatchGrad``, [samples, *shape] by the name."""
    from backpack import backpack, extend, extensions

    loss = extend(nn.CrossEntropyLoss())
    extended = extend(copy.deepcopy(model))

    def gradients(inputs: Inputs, labels: Tensor) -> dict[str, Tensor]:
        extended.zero_grad()
        with backpack(extensions.BatchGrad()):
            loss(extended(*inputs), labels).backward()
        found: dict[str, Tensor] = {}
        for name, parameter in extended.named_parameters():
            found[name] = parameter.grad_batch  # of a mean loss: divided by the number of samples
            del parameter.grad_batch
        return found

    return gradients
