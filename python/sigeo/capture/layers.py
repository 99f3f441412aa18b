"""Which parameters of a model a statistic is about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sigeo.errors import InputError, check_one_of
from sigeo.kinds import named_arguments

Selection = Literal["layers", "all"]
"""``layers``: the weights of all convolution and linear modules, as the gradient proxies of the
field mean it (no biases, no norms). ``all``: every trainable parameter."""


def parameters_of(modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Parameter]]:
    """``named_parameters`` of a model from its ``named_modules``, which take long to walk."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in found:
                found[id(parameter)] = f"{prefix}.{name}" if prefix else name, parameter
    return list(found.values())


def buffers_of(modules: Iterable[tuple[str, nn.Module]]) -> list[Tensor]:
    """The buffers of a model from its ``named_modules``."""
    return [b for _, module in modules for b in module._buffers.values() if b is not None]


def check_made(named: Iterable[tuple[str, Tensor]]) -> None:
    """Check that a model's parameters, and buffers, are there and can be measured.

    Raises:
        InputError: A lazy layer has not been run yet, or one was made in ``torch.inference_mode``.
    """
    for name, tensor in named:
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise InputError(
                f"model: {name} has no shape yet; run the lazy model once before it is measured"
            )
        if tensor.is_inference():
            raise InputError(
                f"model: {name} was made in torch.inference_mode, where nothing has gradients; "
                "make the model, or copy.deepcopy it, outside"
            )


@named_arguments("select")
def select(model: nn.Module, selection: Selection) -> dict[str, nn.Parameter]:
    """The selected parameters by qualified name, each once however often the model uses it.

    A weight that is computed, by a parametrization or by weight norm, is represented by the
    parameters that it is computed from.

    Raises:
        InputError: There is none, one is complex, or there is no selection of that name.
    """
    check_one_of("selection", selection, get_args(Selection))
    if selection == "all":
        chosen = {name: p for name, p in model.named_parameters() if p.requires_grad}
    else:
        chosen = {}
        names = {id(p): name for name, p in model.named_parameters()}
        for module in model.modules():
            if not isinstance(module, (_ConvNd, nn.Linear)):
                continue
            owned = list(module.named_parameters(recurse=False))
            if "parametrizations" in module._modules:
                owned += list(module.parametrizations.named_parameters())  # type: ignore[union-attr]
            for name, parameter in owned:
                if not name.startswith("bias"):
                    chosen[names[id(parameter)]] = parameter
        # In the model's own order, whatever the modules' is.
        chosen = {name: chosen[name] for name in names.values() if name in chosen}
    if not chosen:
        what = "trainable parameter" if selection == "all" else "convolution or linear weight"
        raise InputError(f"model: expected at least one {what}, found none")
    for name, parameter in chosen.items():
        if parameter.is_complex():
            raise InputError(
                f"model: parameter {name} is complex, and statistics are of real numbers"
            )
    return chosen
