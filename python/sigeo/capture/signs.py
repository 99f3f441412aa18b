"""The sum of the samples' squared gradient norms, by random signs.

With independent signs e_b, ||sum_b e_b g_b||^2 is on average sum_b ||g_b||^2: the products of two
different samples' gradients cancel. Its variance is 2 sum over b != c of <g_b, g_c>^2 (Hutchinson,
Communications in Statistics 1989, on the samples' Gram matrix). No sample's loss is needed alone:
a sample's gradient changes sign with that of its rows of the outputs' gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from sigeo.capture.batches import call
from sigeo.capture.losses import LossFunction, check_trainable
from sigeo.capture.samples import BatchNormPolicy, capture
from sigeo.capture.samples.axis import Axis, where
from sigeo.capture.state import undistributed
from sigeo.errors import InputError


def sq_norms_by_signs(
    model: nn.Module,
    inputs: Any,
    label: Callable[[Any], Any],
    loss_fn: LossFunction,
    *,
    probes: int,
    generator: torch.Generator,
    batch_norm: BatchNormPolicy,
) -> tuple[Tensor, int]:
    """Estimates of sum_b ||grad of sample b's share of the loss||^2: one forward pass.

    Args:
        model: Any module; ``.grad`` must be empty, and is left so.
        inputs: Of one batch.
        label: The output to its labels.
        loss_fn: (output, labels) to the loss of the batch, made of no parameter of the model.
        probes: How many estimates, with a backward pass each.
        generator: Of the signs.
        batch_norm: "refuse" or "frozen", as in `capture`.

    Returns:
        float64 [probes], and the number of samples.

    Raises:
        InputError: An output or a loss that this cannot be done for, or a model that `capture`
            refuses.
    """
    estimates = []
    with undistributed(model), capture(model, (), batch_norm=batch_norm) as followed:
        output = call(model, inputs)
        outputs, gradients = _output_gradients(model, output, label(output), loss_fn)
        axes = [_axis(tensor) for tensor in outputs]
        for probe in range(probes):
            # The same draws on every device.
            signs = (
                torch.randint(0, 2, (followed.units,), generator=generator, device="cpu") * 2 - 1
            )
            flipped = [_flipped(g, axis, signs) for g, axis in zip(gradients, axes, strict=True)]
            products = [(t * g).sum() for t, g in zip(outputs, flipped, strict=True)]
            # In the body, where a checkpointed forward pass is repeated as the first was.
            torch.stack(products).sum().backward(retain_graph=probe + 1 < probes)
            estimates.append(sum(_taken_sq_norm(p) for p in model.parameters()))
    return torch.tensor(estimates, dtype=torch.float64, device="cpu"), followed.units


def _output_gradients(
    model: nn.Module, output: Any, labels: Any, loss_fn: LossFunction
) -> tuple[list[Tensor], list[Tensor]]:
    """The output's tensors that the loss depends on, and its gradients with respect to them.

    Raises:
        InputError: The loss depends on no parameter, or on one by another way.
    """
    values, spec = tree_flatten(output)
    outputs = [v for v in values if isinstance(v, Tensor) and v.requires_grad]
    cut = [t.detach().requires_grad_() for t in outputs]
    given = iter(cut)
    leaves = [next(given) if isinstance(v, Tensor) and v.requires_grad else v for v in values]
    loss = check_trainable(loss_fn(tree_unflatten(leaves, spec), labels))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, [*cut, *named.values()], allow_unused=True)
    gradients = found[: len(cut)]
    for name, gradient in zip(named, found[len(cut) :], strict=True):
        if gradient is not None:
            raise InputError(f'loss_fn: estimator="signs" needs a loss without parameter {name}')
    reached = [(t, g) for t, g in zip(outputs, gradients, strict=True) if g is not None]
    return [t for t, _ in reached], [g for _, g in reached]


def _axis(output: Tensor) -> Axis:
    """Where the samples of an output are.

    Raises:
        InputError: They are mixed, or nobody knows.
    """
    place = where(output)
    if isinstance(place, Axis):
        return place
    reason = place.reason if place else "it is the same for all samples"
    raise InputError(f'model: estimator="signs" needs the samples apart in the output: {reason}')


def _flipped(gradient: Tensor, axis: Axis, signs: Tensor) -> Tensor:
    """The gradient of an output, each sample's part times its sign."""
    along = signs.to(gradient).repeat_interleave(axis.inner).repeat(axis.outer)
    shape = [1] * gradient.dim()
    shape[axis.dim] = -1
    return gradient * along.view(shape)


def _taken_sq_norm(parameter: nn.Parameter) -> float:
    """The squared norm of a parameter's gradient, which is taken out of it."""
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        return 0.0
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
