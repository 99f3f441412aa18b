"""Accuracy and loss of many subnets, and nothing of the supernet changed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sigeo.capture import LossFunction, batch_loss
from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.spaces import ElasticSupernet, Stack, Supernet
from sigeo.spaces.base import listed
from sigeo.supernet.many import shared_pass
from sigeo.supernet.settings import Batch

Statistics = Literal["batch", "tracked", "recalibrated"]
_BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Evaluation:
    """How subnets do on a set of images.

    Attributes:
        accuracy: Share of the images that each classifies rightly, float64 [K].
        loss: Mean loss of each over all images, float64 [K].
        images: Images through one subnet each that it took, recalibration included.
    """

    accuracy: Tensor
    loss: Tensor
    images: int


@named_arguments("evaluate")
def evaluate(
    supernet: Supernet[Any],
    archs: Iterable[Any],
    batches: Iterable[Batch],
    *,
    norm: Statistics = "batch",
    calibration: Iterable[Batch] = (),
    at_once: int = 4,
    loss_fn: LossFunction = nn.functional.cross_entropy,
) -> Evaluation:
    """Evaluate subnets on the same batches, forward only, without dropout.

    With batch statistics the result depends on how the images are divided into batches, so numbers
    to be compared need the same batches in the same order.

    Args:
        supernet: The shared weights; weights, buffers, modes and gradients stay as they are.
        archs: The subnets.
        batches: Images and labels, at least one batch.
        norm: What batch norm normalises by: "batch", the batch's statistics; "tracked", the running
            statistics of training; "recalibrated", for each subnet the mean of the statistics of
            the batches of ``calibration``.
        calibration: Training batches, of "recalibrated" alone.
        at_once: Subnets that go in one pass where that is possible, with batch statistics. Of an
            elastic supernet those whose paths it keeps from earlier calls, the last 64 or fewer, go
            one by one, which is faster; a pass of several keeps none.
        loss_fn: (output, labels) to the mean loss of a batch.

    Raises:
        InputError: One architecture instead of several, no batch or no pairs, running statistics
            that are not there, or calibration that does not go with ``norm``.
    """
    archs, batches, calibration = listed(archs), list(batches), list(calibration)
    _check(norm, batches, calibration, at_once)
    module: nn.Module = supernet  # type: ignore[assignment]
    judge = _Judge(supernet, batches, loss_fn)
    with torch.no_grad(), _evaluating(module, norm) as norms:
        for first in range(0, len(archs), at_once):
            group = archs[first : first + at_once]
            stack = _stack(supernet, group) if norm == "batch" and at_once > 1 else None
            if stack is not None:
                judge.take(stack)
                continue
            for arch in group:
                if norm == "recalibrated":
                    _recalibrate(supernet, arch, norms, calibration)
                judge.one(arch)
    extra = sum(len(inputs) for inputs, _ in calibration)
    images = len(archs) * (judge.images + extra)
    return Evaluation(judge.accuracy(), judge.mean_loss(), images)


@named_arguments("recalibrated")
@torch.no_grad()
def recalibrated(network: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """A copy of a network whose batch norms normalise by the mean statistics of some batches.

    What `evaluate` judges a subnet by with "recalibrated", as a module to keep: to export it, or to
    capture gradients of single samples by running statistics.

    Args:
        network: A plain module, such as ``supernet.subnet(arch)`` or what `sigeo.elastic.extract`
            gives; it stays as it is. Its batch norms need not have running statistics.
        batches: Training images and labels, at least one batch; the labels do not matter.

    Returns:
        The copy, in eval mode.

    Raises:
        InputError: A supernet, no batch, or no pairs.
    """
    if hasattr(network, "subnet"):
        raise InputError(
            "network: expected a plain module, such as supernet.subnet(arch), got "
            f"{type(network).__name__}, which needs an architecture"
        )
    batches = list(batches)
    _check("recalibrated", batches, batches, 1)
    made = copy.deepcopy(network).eval()
    norms = [part for part in made.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    _estimate(norms, made, made, batches)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return made


@named_arguments("averaged")
def averaged(found: Sequence[Evaluation]) -> Evaluation:
    """The mean of evaluations of the same subnets, of a training's last checkpoints say.

    K. Yu, R. Ranftl, M. Salzmann, TPAMI 2021: of three consecutive ones.
    """
    return Evaluation(
        torch.stack([one.accuracy for one in found]).mean(0),
        torch.stack([one.loss for one in found]).mean(0),
        sum(one.images for one in found),
    )


def _check(
    norm: Statistics, batches: Sequence[Batch], calibration: Sequence[Batch], at_once: int
) -> None:
    if norm not in ("batch", "tracked", "recalibrated"):
        raise InputError(f"norm: must be batch, tracked or recalibrated, got {norm!r}")
    check_batches(batches)
    _check_pairs("calibration", calibration)
    if at_once < 1:
        raise InputError(f"at_once: must be at least 1, got {at_once}")
    if (norm == "recalibrated") != (len(calibration) > 0):
        expected = "at least one batch" if norm == "recalibrated" else "no batch"
        raise InputError(f"calibration: norm={norm!r} takes {expected}, got {len(calibration)}")


def check_batches(batches: Sequence[Batch]) -> None:
    """See that there are batches.

    Raises:
        InputError: There is no batch, or one is no pair.
    """
    if len(batches) == 0:
        raise InputError("batches: expected at least one, got none")
    _check_pairs("batches", batches)


def _check_pairs(name: str, batches: Sequence[Batch]) -> None:
    if not all(isinstance(one, (tuple, list)) and len(one) == 2 for one in batches):
        raise InputError(f"{name}: expected pairs, as [(images, labels)]")


def _stack(supernet: Supernet[Any], archs: Sequence[Any]) -> Stack | None:
    """A stack of subnets; None where they go one by one, as they must or faster."""
    if isinstance(supernet, ElasticSupernet) and all(map(supernet.keeps, archs)):
        return None  # a stack makes networks anew, which costs more than equal beginnings save
    return shared_pass(supernet, archs)


class _Judge:
    """Counts right answers and adds up losses."""

    def __init__(self, supernet: Supernet[Any], batches: Sequence[Batch], loss_fn: LossFunction):
        self.supernet, self.batches, self.loss_fn = supernet, batches, loss_fn
        self.images = sum(len(inputs) for inputs, _ in batches)
        self._right: list[Tensor] = []
        self._loss: list[Tensor] = []

    def one(self, arch: Any) -> None:
        self.take(lambda inputs: self.supernet(inputs, arch)[None])

    def take(self, outputs_of: Callable[[Tensor], Tensor]) -> None:
        rights, losses = [], []
        for inputs, labels in self.batches:
            outputs = outputs_of(inputs)
            rights.append((outputs.argmax(-1) == labels).sum(-1))
            batch = [batch_loss(self.loss_fn, output, labels).double() for output in outputs]
            losses.append(torch.stack(batch) * len(inputs))
        self._right.append(torch.stack(rights).sum(0))
        self._loss.append(torch.stack(losses).sum(0))

    def accuracy(self) -> Tensor:
        """[K], on the CPU."""
        return _joined(self._right).double() / self.images

    def mean_loss(self) -> Tensor:
        """[K], on the CPU."""
        return _joined(self._loss) / self.images


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).cpu() if parts else torch.zeros(0, dtype=torch.float64, device="cpu")


@contextlib.contextmanager
def _evaluating(module: nn.Module, norm: Statistics) -> Iterator[list[_BatchNorm]]:
    """Evaluation mode with the statistics asked for; all as before on exit.

    Args:
        module: The supernet.
        norm: What batch norm normalises by.

    Yields:
        The batch norms.

    Raises:
        InputError: Running statistics that are not there.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    modes = [(part, part.training) for part in module.modules()]
    kept = [(n, n.track_running_stats, n.momentum, dict(n._buffers)) for n in norms]
    if norm == "tracked" and any(n.running_mean is None for n in norms):
        raise InputError("norm: this supernet keeps no running statistics, so not 'tracked'")
    try:
        module.eval()
        for n in norms:
            if norm == "batch":
                n.training, n.track_running_stats = True, False
                n.running_mean = n.running_var = None
        yield norms
    finally:
        for n, tracked, momentum, buffers in kept:
            n.track_running_stats, n.momentum = tracked, momentum
            n._buffers.update(buffers)
        for part, mode in modes:
            part.training = mode


def _recalibrate(
    supernet: Supernet[Any], arch: Any, norms: list[_BatchNorm], calibration: Sequence[Batch]
) -> None:
    """Give the norms running statistics of one subnet, in tensors of their own."""
    module: nn.Module = supernet  # type: ignore[assignment]
    _estimate(norms, module, lambda inputs: supernet(inputs, arch), calibration)


def _estimate(
    norms: list[_BatchNorm],
    module: nn.Module,
    run: Callable[[Tensor], object],
    batches: Sequence[Batch],
) -> None:
    """Give norms of a module the mean statistics of batches that run, in tensors of their own."""
    for n in norms:
        like = n.weight if n.weight is not None else next(module.parameters())
        n.running_mean = torch.zeros(n.num_features, device=like.device, dtype=like.dtype)
        n.running_var = torch.ones(n.num_features, device=like.device, dtype=like.dtype)
        n.num_batches_tracked = torch.zeros((), device=like.device, dtype=torch.long)
        n.track_running_stats, n.momentum = True, None
    with _norms_in_training(norms):
        for inputs, _ in batches:
            run(inputs)


@contextlib.contextmanager
def _norms_in_training(norms: list[_BatchNorm]) -> Iterator[None]:
    """Norms estimate their statistics, while all else is evaluated.

    A supernet may set the mode of its parts in every pass, so each norm is set as it begins.
    """

    def begin(norm: nn.Module, inputs: Any) -> None:
        norm.training = True

    handles = [n.register_forward_pre_hook(begin) for n in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for n in norms:
            n.training = False
