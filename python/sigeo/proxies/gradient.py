"""Proxies of one mini-batch's gradient: grad_norm, snip, plain.

Over the weights of convolutions and linear layers, g the gradient of the mean loss, as collected
by Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sigeo.capture import FirstGradient
from sigeo.proxies.base import OnGradient, Proxy
from sigeo.proxies.registry import register
from sigeo_ext import moments


def _present(gradient: FirstGradient) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients that are there, and their weights; the others are zero and add nothing."""
    pairs = zip(gradient.grads, gradient.weights, strict=True)
    present = [(g, w.detach()) for g, w in pairs if g is not None]
    return [g for g, _ in present], [w for _, w in present]


def _grad_norm(gradient: FirstGradient) -> Tensor:
    grads, _ = _present(gradient)
    return moments.dot(grads, grads).sqrt().sum()


def _plain(gradient: FirstGradient) -> Tensor:
    return moments.dot(*_present(gradient)).sum()


def _snip(gradient: FirstGradient) -> Tensor:
    products = [
        (g * w).abs().sum(dtype=torch.float64) for g, w in zip(*_present(gradient), strict=True)
    ]
    return torch.stack(products).sum() if products else torch.zeros((), dtype=torch.float64)


@register("grad_norm")
def grad_norm() -> Proxy:
    """Sum over layers of the norm of the layer's gradient (not the norm of them all)."""
    return Proxy(
        name="grad_norm",
        measurement=OnGradient(_grad_norm),
        source="Abdelfattah et al., ICLR 2021, section 3",
        cost="backward",
        labels=True,
    )


@register("snip")
def snip() -> Proxy:
    """Sum of |g * theta|."""
    return Proxy(
        name="snip",
        measurement=OnGradient(_snip),
        source="Lee et al., SNIP, ICLR 2019; Abdelfattah et al., ICLR 2021",
        cost="backward",
        labels=True,
    )


@register("plain")
def plain() -> Proxy:
    """Sum of g * theta, with its sign."""
    return Proxy(
        name="plain",
        measurement=OnGradient(_plain),
        source="Mozer and Smolensky, 1989; Abdelfattah et al., ICLR 2021",
        cost="backward",
        labels=True,
    )
