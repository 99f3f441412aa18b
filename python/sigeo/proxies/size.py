"""The baselines that belong into every table: params, flops, l2_norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sigeo.capture import call, preserved, select
from sigeo.capture.process_setting import PLAIN_ATTENTION, ProcessSetting
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.passes import first_samples
from sigeo.proxies.registry import register
from sigeo_ext import saliency


def _params(model: nn.Module, inputs: Any) -> Outcome:
    return Outcome(float(sum(p.numel() for p in model.parameters() if p.requires_grad)))


@contextmanager
def _without_libraries() -> Iterator[None]:
    """Attention and recurrent layers as the products that they are made of, which are counted."""
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled = [library.enabled for library in libraries]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for library, value in zip(libraries, enabled, strict=True):
            library.enabled = value


_PLAIN_LAYERS = ProcessSetting(_without_libraries)


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Both products, which torch does not count where a model chooses this kernel itself."""
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


_COUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def _flops(model: nn.Module, inputs: Any) -> Outcome:
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which takes long

    with (
        preserved(model, parameters=False),
        torch.no_grad(),
        PLAIN_ATTENTION,
        _PLAIN_LAYERS,
        FlopCounterMode(display=False, custom_mapping=_COUNTED) as counter,
    ):
        model.eval()
        call(model, first_samples(inputs, 1))
    return Outcome(counter.get_total_flops() / 2)


def _l2_norm(model: nn.Module, inputs: Any) -> Outcome:
    weights = [w.detach() for w in select(model, "layers").values()]
    squares = saliency.sums(weights, want=["weight_sq"])["weight_sq"]
    return Outcome(float(squares.sqrt().sum()))


@register("params")
def params() -> Proxy:
    """Number of trainable scalars."""
    return Proxy("params", OnModel(_params), source="baseline", cost="free", whole_network=True)


@register("flops")
def flops() -> Proxy:
    """Multiply-adds of convolutions and matrix products for one sample.

    Where a search space ranks, it counts its published networks by its own published rule instead.
    """
    return Proxy(
        "flops",
        OnModel(_flops),
        source="baseline",
        cost="forward",
        whole_network=True,
        images=lambda sizes: (0, 1),
    )


@register("l2_norm")
def l2_norm() -> Proxy:
    """Sum over layers of the norm of the layer's weights."""
    return Proxy(
        "l2_norm",
        OnModel(_l2_norm),
        source="Abdelfattah et al., ICLR 2021",
        cost="free",
        whole_network=True,
    )
