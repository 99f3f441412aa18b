"""Jacov, from the gradients of the outputs with respect to the inputs.

The row of a sample is the gradient of the sum of all outputs of the batch with respect to that
sample's input, in train mode: batch norm on the statistics of the batch couples the samples. With v
the eigenvalues of the correlation matrix of the rows and k = 1e-5, the score is minus the sum of
log(v + k) + 1 / (v + k): high where the rows are unlike. Mellor et al., "Neural Architecture Search
without Training", arXiv 2006.04647 version 1; Abdelfattah et al., ICLR 2021, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sigeo.capture import call, preserved
from sigeo.errors import InputError
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.correlations import correlations
from sigeo.proxies.passes import real_inputs, summed
from sigeo.proxies.registry import register

K = 1e-5
"""Added to what a logarithm is taken of."""


def input_gradients(model: nn.Module, inputs: Any, name: str) -> tuple[Tensor, Any]:
    """The samples' rows over all inputs that are real numbers, and the model's output.

    Args:
        model: Any module; comes back as it was.
        inputs: Of one batch of B samples.
        name: Of the proxy that needs the rows.

    Returns:
        [B, numbers of a sample], and whatever the model returns.

    Raises:
        InputError: No input is made of real numbers, or not each of those has a row a sample.
    """
    real_inputs(inputs, name)
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1].clone()  # the model may change it in place, which no leaf allows

    with preserved(model, parameters=False):
        model.train()
        output = call(model, tree_map_only(Tensor, leaf, inputs))
        total = summed(output)
        grads: Any = [torch.zeros_like(x) for x in leaves]
        if total.requires_grad:
            grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten(1) for grad in grads], 1), output


def uncorrelated(rows: Tensor, constant: Tensor, output: Any) -> Outcome | None:
    """The outcome where some of the rows [n, m] have no correlations, else None."""
    if not rows.isfinite().all():
        return Outcome(math.nan, {}, ("the gradient with respect to the inputs is not finite",))
    if not summed(output).isfinite():
        return Outcome(math.nan, {}, ("the outputs are not finite",))
    if not constant.any():
        return None
    note = (
        f"{int(constant.sum())} of {len(rows)} samples have a constant gradient with respect to "
        "their input, which correlates with nothing"
    )
    return Outcome(math.nan, {}, (note,))


def _jacov(model: nn.Module, inputs: Any) -> Outcome:
    rows, output = input_gradients(model, inputs, "jacov")
    if len(rows) < 2:
        raise InputError(f"jacov: needs a batch of at least 2 samples, got {len(rows)}")
    matrix, constant = correlations(rows)
    outcome = uncorrelated(rows, constant, output)
    if outcome is not None:
        return outcome
    values = torch.linalg.eigvalsh(matrix)
    score = -((values + K).log() + 1 / (values + K)).sum()
    terms = {"smallest": float(values[0]), "largest": float(values[-1])}
    count, numbers = rows.shape
    note = f"{count} samples of {numbers} numbers have singular correlations: take fewer samples"
    return Outcome(float(score), terms, (note,) if numbers <= count else ())


@register("jacov")
def jacov() -> Proxy:
    """How unlike the samples' gradients with respect to their inputs are; needs no labels."""
    return Proxy(
        name="jacov",
        measurement=OnModel(_jacov),
        source="Mellor et al., arXiv 2006.04647v1; Abdelfattah et al., ICLR 2021, section 3",
        cost="backward",
    )
