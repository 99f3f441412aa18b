"""Gradient statistics of many subnets of a supernet from shared passes.

A *stack* (`sigeo.spaces.Stack`) is K subnets as one function of a batch. Its weights hold one row a
subnet; the gradient of the sum of the subnets' losses is, row by row, what each subnet alone gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sigeo.capture import (
    SGD,
    Batches,
    FirstGradient,
    GradientStatistics,
    LossFunction,
    Request,
    Selection,
    batch_loss,
)
from sigeo.capture.state import RandomState, device_of
from sigeo.errors import InputError
from sigeo.spaces import Stack, Supernet
from sigeo.spaces.base import Rows, leaves
from sigeo_ext.moments import Moments, Summary

Observer = Callable[[int, FirstGradient], None]
Gradients = dict[str, Tensor | list[Tensor]]
"""By the weight's name, row by row."""


def supports(request: Request) -> bool:
    """Whether a request can be measured on a stack.

    Statistics of single samples, kept gradients and optimisers that look at all gradients of a
    network together need the subnets one by one.
    """
    still = request.steps is None or isinstance(request.steps, SGD)
    return still and not request.samples and not request.rows


def many_gradient_statistics(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    batches: Batches,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    requests: Sequence[Request] = (Request(),),
    observer: Observer | None = None,
) -> list[list[GradientStatistics]]:
    """`sigeo.capture.gradient_statistics` of each subnet alone, from passes that all of them share.

    Weights that do not move are read where they are. With steps between the batches every subnet
    gets a copy of its weights.

    Args:
        supernet: The shared weights; they stay as they are.
        archs: The subnets.
        batches: Of all subnets alike.
        loss_fn: (output, labels) to the mean loss of one subnet's batch.
        requests: What to measure, each such as `supports` accepts.
        observer: Called with each subnet's number and its first gradient, zeros where the loss does
            not reach a weight.

    Returns:
        For each subnet, one result a request. Parameters have the supernet's names.
    """
    random = RandomState(batches.device)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _Run(supernet, archs, batches, loss_fn, requests).measure(observer)
    finally:
        random.restore()


def add_gradients(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    inputs: Tensor,
    labels: Any,
    *,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    average: bool = False,
) -> Tensor:
    """Add the gradients of several paths' losses on one batch to those of the shared weights.

    One pass for all paths, as fair, balanced and greedy sampling take several a step.

    Args:
        supernet: The shared weights.
        archs: The paths, any of them more than once.
        inputs: Of the batch.
        labels: Of the batch.
        loss_fn: (output, labels) to the mean loss of one path's batch.
        average: Whether to add the mean of the paths' gradients rather than their sum.

    Returns:
        Each path's loss [K], detached.

    Raises:
        InputError: No path.
    """

    def losses(outputs: Tensor) -> Tensor:
        return torch.stack([batch_loss(loss_fn, output, labels) for output in outputs])

    return add_joint_gradients(supernet, archs, inputs, losses, average=average)


def add_joint_gradients(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    inputs: Tensor,
    losses_fn: Callable[[Tensor], Tensor],
    *,
    average: bool = False,
) -> Tensor:
    """As `add_gradients`, for losses that look at the outputs of all paths.

    Args:
        supernet: The shared weights.
        archs: The paths.
        inputs: Of the batch.
        losses_fn: All paths' outputs [K, B, ...] to their losses [K].
        average: Whether to add the mean of the losses' gradients rather than their sum.

    Returns:
        The losses [K], detached.

    Raises:
        InputError: No path.
    """
    if len(archs) == 0:
        raise InputError("archs: expected at least one path, got none")
    stack = shared_pass(supernet, archs)
    if stack is None:
        losses = losses_fn(torch.stack([supernet(inputs, arch) for arch in archs]))
    else:
        losses = losses_fn(stack(inputs))
    if losses.requires_grad:
        (losses.mean() if average else losses.sum()).backward()
    if stack is not None:
        _collect(supernet, stack)
    return losses.detach()


def shares_passes(supernet: Supernet[Any]) -> bool:
    """Whether a stack computes what the paths compute one by one, in the mode that is on.

    Not where norms keep running statistics or use them, where the supernet says that it draws
    random numbers (``noisy``), under autocast, and where a supernet has no stacks. Elastic
    supernets with dropout say so in any mode, as their stacks run in train mode alone: the paths
    then go one by one in eval mode, too, where nothing is drawn.
    """
    module: nn.Module = supernet  # type: ignore[assignment]
    if not hasattr(supernet, "stack") or getattr(supernet, "noisy", False):
        return False
    if torch.is_autocast_enabled(device_of(module).type):
        return False
    return not any(
        isinstance(part, nn.modules.batchnorm._BatchNorm)
        and part.running_mean is not None
        and (part.track_running_stats or not part.training)
        for part in module.modules()
    )


def shared_pass(supernet: Supernet[Any], archs: Sequence[Any]) -> Stack | None:
    """A stack that computes what the paths compute one by one, in the mode that is on.

    None where there is none: see `shares_passes`, and where one of these networks draws random
    numbers, be it that the largest, by which an elastic supernet is called noisy, does not.
    """
    if not shares_passes(supernet):
        return None
    stack: Stack = supernet.stack(archs)
    return stack if stack.random is None else None


def _collect(supernet: Supernet[Any], stack: Stack) -> None:
    """Add the rows' gradients to the shared weights'."""
    module: nn.Module = supernet  # type: ignore[assignment]
    for name, parameter in module.named_parameters():
        gradient = stack.gradient(name) if name in stack.weights else None
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def backward(
    stack: Stack, inputs: Tensor, labels: Any, loss_fn: LossFunction
) -> tuple[Tensor, list[bool]]:
    """One pass: the gradients of each subnet's loss into its rows.

    Where a stack lets them, subnets go forward and backward one after another, so that the
    activations of one only are kept.

    Args:
        stack: The subnets.
        inputs: Of the batch.
        labels: Of the batch.
        loss_fn: (output, labels) to the mean loss of one subnet's batch.

    Returns:
        The losses [K], detached, and of each whether it depends on anything that asks for a
        gradient.
    """
    if not stack.apart:
        losses = torch.stack([batch_loss(loss_fn, y, labels) for y in stack(inputs)])
        if losses.requires_grad:
            losses.sum().backward()
        trained = _trained(stack) if losses.requires_grad else frozenset()
        return losses.detach(), [subnet in trained for subnet in range(len(losses))]
    found, reached = [], []
    for output in stack.each(inputs):
        loss = batch_loss(loss_fn, output, labels)
        if loss.requires_grad:
            loss.backward()
        reached.append(loss.requires_grad)
        found.append(loss.detach().reshape(()))
    return torch.stack(found), reached


class _Run:
    """The passes of one stack."""

    def __init__(
        self,
        supernet: Supernet[Any],
        archs: Sequence[Any],
        batches: Batches,
        loss_fn: LossFunction,
        requests: Sequence[Request],
    ):
        self.supernet, self.archs, self.batches = supernet, archs, batches
        self.loss_fn, self.requests = loss_fn, requests
        self.reached = [False] * len(archs)

    def measure(self, observer: Observer | None) -> list[list[GradientStatistics]]:
        """All courses, those without steps first."""
        still = self.supernet.stack(self.archs)
        losses, first = self._backward(still, 0)
        if observer is not None:
            self._show(still, losses, first, observer)
        drawn = None if still.random is None else still.random.copy()
        courses = sorted({r.steps for r in self.requests}, key=lambda steps: steps is not None)
        found: dict[Request, list[GradientStatistics]] = {}
        for index, steps in enumerate(courses):
            stack = still if steps is None else self.supernet.stack(self.archs, own=True)
            if drawn is not None and steps is not None:  # they have seen the first batch, too
                stack.random = drawn.copy()
            last = index + 1 == len(courses)
            found |= self._course(stack, steps, losses, first, owned=last)
        return [[found[r][subnet] for r in self.requests] for subnet in range(len(self.archs))]

    def _backward(self, stack: Stack, index: int) -> tuple[Tensor, Gradients]:
        """Each subnet's loss [K], and the gradients' rows."""
        losses, reached = backward(stack, *self.batches[index], self.loss_fn)
        self.reached = [a or b for a, b in zip(self.reached, reached, strict=True)]
        return losses, {name: _taken(rows) for name, rows in _moving(stack).items()}

    def _show(self, stack: Stack, losses: Tensor, grads: Gradients, observer: Observer) -> None:
        for subnet, loss in enumerate(losses):
            rows = {
                name: stack.members[name].index(subnet)
                for name in _chosen(stack, "layers")
                if subnet in stack.members[name]
            }
            observer(
                subnet,
                FirstGradient(
                    tuple(rows),
                    tuple(grads[name][row] for name, row in rows.items()),
                    tuple(stack.weights[name][row].detach() for name, row in rows.items()),
                    loss,
                    self.reached[subnet],
                ),
            )

    def _course(
        self,
        stack: Stack,
        steps: SGD | Any | None,
        losses: Tensor,
        first: Gradients,
        *,
        owned: bool,
    ) -> dict[Request, list[GradientStatistics]]:
        """All batches with one way of moving; ``owned`` if no other course needs ``first``."""
        requests = [request for request in self.requests if request.steps == steps]
        selections = list(dict.fromkeys(request.selection for request in requests))
        states = {s: _new_state(_rows(stack, stack.weights, s)) for s in selections}
        moving = _leaves(stack)
        step = steps.start(moving) if steps is not None and moving else None
        all_losses, grads = [losses], first
        for index in range(len(self.batches)):
            if index > 0:
                grads = {}  # what the state has not kept is freed before the next pass
                loss, grads = self._backward(stack, index)
                all_losses.append(loss)
            if step is not None:
                self._take_step(stack, step, grads)
            if index + 1 < len(self.batches):
                keep = "own" if len(selections) == 1 and (owned or index > 0) else "borrow"
                for selection, state in states.items():
                    state.add(_rows(stack, grads, selection), keep=keep)  # type: ignore[arg-type]
        return {
            request: self._results(stack, request, states[request.selection], grads, all_losses)
            for request in requests
        }

    @staticmethod
    def _take_step(stack: Stack, step: Callable[[], None], grads: Gradients) -> None:
        for name, rows in _moving(stack).items():
            given = grads[name]
            parts = [given] if isinstance(given, Tensor) else given
            for leaf, grad in zip(leaves(rows), parts, strict=True):
                leaf.grad = grad
        step()
        for leaf in _leaves(stack):
            leaf.grad = None

    def _results(
        self, stack: Stack, request: Request, state: Moments, last: Gradients, losses: list[Tensor]
    ) -> list[GradientStatistics]:
        selection = request.selection
        summary = state.summary(
            last=_rows(stack, last, selection),
            weights=_rows(stack, stack.weights, selection),
            ddof=request.ddof,
        )
        table = torch.stack(losses)  # [batches, K]
        names: list[list[str]] = [[] for _ in self.archs]
        places: list[list[int]] = [[] for _ in self.archs]
        place = 0
        for name in _chosen(stack, selection):
            for subnet in stack.members[name]:
                names[subnet].append(name)
                places[subnet].append(place)
                place += 1
        return [
            GradientStatistics(
                names=tuple(names[subnet]),
                summary=Summary(*(column[places[subnet]] for column in summary)),
                losses=table[:, subnet],
                count=len(self.batches),
                reached=self.reached[subnet],
            )
            for subnet in range(len(self.archs))
        ]


def _moving(stack: Stack) -> dict[str, Rows]:
    """The weights that ask for a gradient."""
    return {
        name: rows
        for name, rows in stack.weights.items()
        if any(leaf.requires_grad for leaf in leaves(rows))
    }


def _trained(stack: Stack) -> frozenset[int]:
    """The subnets that have a weight that asks for a gradient."""
    return frozenset(member for name in _moving(stack) for member in stack.members[name])


def _leaves(stack: Stack) -> list[nn.Parameter]:
    """All tensors that the weights consist of that ask for a gradient."""
    return [leaf for rows in _moving(stack).values() for leaf in leaves(rows)]


def _taken(rows: Rows) -> Tensor | list[Tensor]:
    """The gradients of rows, moved out of them; zeros where there is none."""
    found = []
    for leaf in leaves(rows):
        grad, leaf.grad = leaf.grad, None
        found.append(torch.zeros_like(leaf) if grad is None else grad)
    return found[0] if isinstance(rows, Tensor) else found


def _chosen(stack: Stack, selection: Selection) -> list[str]:
    return [name for name in _moving(stack) if selection == "all" or name in stack.layers]


def _rows(stack: Stack, values: Any, selection: Selection) -> list[Tensor]:
    """The selected tensors' rows, one a parameter and subnet."""
    return [row for name in _chosen(stack, selection) for row in _unbound(values[name])]


def _unbound(rows: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return rows.detach().unbind(0) if isinstance(rows, Tensor) else [r.detach() for r in rows]


def _new_state(rows: list[Tensor]) -> Moments:
    wide = any(row.dtype == torch.float64 for row in rows)
    return Moments(rows, dtype=torch.float64 if wide else torch.float32)
