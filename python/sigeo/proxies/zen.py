"""Zen-score: how far features move with the input, at random weights.

Lin et al., "Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition", ICCV 2021, section 4,
and the published code. With every weight of convolutions and linear layers drawn from N(0, 1), no
biases, norms without scale and shift, x and e drawn from N(0, 1) in the shape of the inputs, and f
the features before the global pooling,

    log mean_b sum |f(x) - f(x + 0.01 e)| + sum over batch norms of log sqrt(mean_c v_c),

as a mean over repeats, each with weights and inputs of its own. Batch norms are on the statistics
of a batch and all else is in evaluation mode, so that the seed alone decides. v is what a running
variance is after the two passes: from 1, momentum 0.1, whatever the layer has. The published code
reads the layer's own, which goes on from repeat to repeat; its search takes one repeat, which is
the same as this, but removes residual connections before it measures, as cannot be done to modules
of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from sigeo.capture import call, preserved
from sigeo.capture.samples.mode import eager
from sigeo.errors import InputError
from sigeo.kinds import checked_seed
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.passes import draw_weights, gaussian, normalising, real_inputs
from sigeo.proxies.registry import register

_MOMENTUM = 0.1

_POOLINGS = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
)

_MEANS = (torch.mean, Tensor.mean)


class _LastPooling(TorchFunctionMode):
    """Keeps what the last global average pooling gets, be it a module, a function or a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.features: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _POOLINGS or func in _MEANS:
            x = args[0] if args else (kwargs or {})["input"]
            if x.dim() > 2 and _is_global(func, x, args[1:], kwargs or {}, result):
                self.features = x.clone()
        return result


def _is_global(
    func: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
) -> bool:
    """Whether y is x [B, C, ...] averaged over all its positions."""
    if func in _POOLINGS:
        return all(size == 1 for size in y.shape[2:])
    dims = args[0] if args else kwargs.get("dim", kwargs.get("axis"))
    of = [dims] if isinstance(dims, int) else dims or ()
    return {d % x.dim() for d in of} == set(range(2, x.dim()))


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A layer's input, which a subclass may call otherwise."""
    found: Tensor = next(iter((*args, *kwargs.values())))
    return found


class _Watched:
    """The features of a pass, and the running variances of batch norms over the passes so far."""

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.variances: dict[nn.Module, Tensor] = {}

    def keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.features = _first(args, kwargs)

    def keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            came = type(output).__name__
            raise InputError(f"features: must name a module that returns a tensor, got a {came}")
        self.features = output.clone()

    def update(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = _first(args, kwargs)
        channels = x.transpose(0, 1).flatten(1).double()
        before = self.variances.get(module, torch.ones_like(channels[:, 0]))
        self.variances[module] = (1 - _MOMENTUM) * before + _MOMENTUM * channels.var(1)


@contextmanager
def _watched(model: nn.Module, features: str | None) -> Iterator[_Watched]:
    """Watch the batch norms, and the module whose output is wanted or else all linear layers.

    Yields:
        What is seen.
    """
    seen = _Watched()
    handles = []
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(seen.update, with_kwargs=True))
        elif isinstance(module, nn.Linear) and features is None:
            handles.append(module.register_forward_pre_hook(seen.keep_input, with_kwargs=True))
    if features is not None:
        handles.append(model.get_submodule(features).register_forward_hook(seen.keep_output))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _features(model: nn.Module, inputs: Any, seen: _Watched, name: str | None) -> Tensor | None:
    """The features of one pass, [B, ...]."""
    seen.features = None
    with _LastPooling() as pooling:
        call(model, inputs)
    found: Tensor | None = seen.features
    return found if name is not None or pooling.features is None else pooling.features


def _score(
    model: nn.Module, inputs: Any, generator: torch.Generator, mixup: float, features: str | None
) -> tuple[float, float] | None:
    """The two terms of one repeat; None where there are no features."""
    draw_weights(model, generator, lambda weight: 1.0)
    x = gaussian(inputs, generator)
    e = gaussian(inputs, generator)

    def mix(a: Any, b: Any) -> Any:
        return a + mixup * b if isinstance(a, Tensor) and a.is_floating_point() else a

    near = tree_map(mix, x, e)
    with _watched(model, features) as seen:
        one = _features(model, x, seen, features)
        other = _features(model, near, seen, features)
    if one is None or other is None:
        return None
    moved = (one.double() - other.double()).abs().flatten(1).sum(1).mean()
    variances = [v.mean() for v in seen.variances.values()]
    norms = 0.5 * float(torch.stack(variances).log().sum()) if variances else 0.0
    return float(moved.log()), norms


def _zen(
    model: nn.Module, inputs: Any, repeats: int, mixup: float, features: str | None, seed: int
) -> Outcome:
    real_inputs(inputs, "zen")
    if features is not None and features not in dict(model.named_modules()):
        raise InputError(f"features: must be the name of a module of the model, got {features!r}")
    generator = torch.Generator().manual_seed(seed)
    terms = []
    with preserved(model, parameters=True), torch.no_grad(), eager():
        normalising(model)
        for _ in range(repeats):
            found = _score(model, inputs, generator, mixup, features)
            if found is None:
                note = (
                    "no features: the forward pass calls neither global average pooling nor a "
                    "linear layer; features=NAME takes the output of a module"
                    if features is None
                    else f"no features: the forward pass does not call {features}"
                )
                return Outcome(math.nan, {}, (note,))
            terms.append(found)
    moved, norms = (math.fsum(part) / repeats for part in zip(*terms, strict=True))
    notes = () if math.isfinite(moved + norms) else ("the features are 0 or beyond their dtype",)
    return Outcome(moved + norms, {"features": moved, "batch_norm": norms}, notes)


@register("zen")
def zen(
    *, repeats: int = 1, mixup: float = 0.01, features: str | None = None, seed: int = 0
) -> Proxy:
    """Zen-score; needs no data, only the inputs' shape, and no weights.

    Args:
        repeats: How often weights and inputs are drawn; two forward passes each.
        mixup: The factor of e.
        features: Name of the module whose output is f. By default f is the input of the last global
            average pooling that a forward pass calls (a module, a function or a mean over all
            positions of [B, C, ...]), else of the last linear layer.
        seed: Of weights and inputs.

    Raises:
        InputError: An option out of its range.
    """
    if repeats < 1:
        raise InputError(f"repeats: must be at least 1, got {repeats}")
    if not 0 < mixup < math.inf:
        raise InputError(f"mixup: must be a finite number above 0, got {mixup}")
    seed = checked_seed(seed)

    def function(model: nn.Module, inputs: Any) -> Outcome:
        return _zen(model, inputs, repeats, mixup, features, seed)

    return Proxy(
        name="zen",
        measurement=OnModel(function),
        source="Lin et al., Zen-NAS, ICCV 2021 (arXiv 2102.01063), section 4, and published code",
        cost="forward",
        options={"repeats": repeats, "mixup": mixup, "features": features, "seed": seed},
        images=lambda sizes: (0, 2 * repeats * sizes[0]),
    )
