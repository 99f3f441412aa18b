"""Proxies of one mini-batch's gradient: grad_norm, snip, plain.

Over the weights of convolutions and linear layers, g the gradient of the mean loss, as collected
by Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021, section 3.
"""

from __future__ import annotations

from torch import Tensor

from sigeo.capture import FirstGradient
from sigeo.proxies.base import OnGradient, Proxy
from sigeo.proxies.registry import register
from sigeo_ext import saliency


def _sum(gradient: FirstGradient, column: str) -> Tensor:
    """A column of `saliency.sums`, of every layer."""
    weights = [weight.detach() for weight in gradient.weights]
    return saliency.sums(weights, gradient.grads, want=[column])[column]


def _grad_norm(gradient: FirstGradient) -> Tensor:
    return _sum(gradient, "gradient_sq").sqrt().sum()


def _plain(gradient: FirstGradient) -> Tensor:
    return _sum(gradient, "product").sum()


def _snip(gradient: FirstGradient) -> Tensor:
    return _sum(gradient, "abs_product").sum()


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
