"""`score_many`: many subnets of one supernet by several proxies, in shared passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sigeo.capture import (
    Batches,
    FirstGradient,
    LossFunction,
    MemoryFormat,
    batch_loss,
    call,
    preserved,
)
from sigeo.capture.batches import telling_dtypes
from sigeo.errors import InputError
from sigeo.kinds import is_of, named_arguments
from sigeo.proxies import OnGradient, OnSamples, OnStatistics, Outcome, Proxy, Score
from sigeo.scoring.score import (
    check_needs,
    naming_proxies,
    of_gradient,
    outcome_of,
    over_layers,
    resolve,
    score,
    seen_by,
)
from sigeo.spaces import Supernet
from sigeo.spaces.base import listed
from sigeo.supernet import (
    many_gradient_statistics,
    many_sample_statistics,
    shares_samples,
    supports,
)
from sigeo.supernet.many import backward
from sigeo.supernet.samples import OF_SUBNETS

AT_ONCE = {"cpu": 16, "cuda": 64}
"""Subnets in one pass by device, where nothing else bounds them."""

MEASURED = 8
"""Subnets that `measure_routes` is usually given."""


class Routes(NamedTuple):
    """What forward and backward passes took, in seconds a subnet."""

    together: float
    apart: float


def at_once_of(device: torch.device) -> int:
    """How many subnets go in one pass on a device, where nothing else bounds them."""
    return AT_ONCE.get(device.type, AT_ONCE["cpu"])


def measure_routes(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    data: Batches,
    proxies: Sequence[Proxy],
    loss_fn: LossFunction = nn.functional.cross_entropy,
    *,
    rounds: int = 2,
) -> Routes:
    """Time some subnets on the first batch in one pass and one by one, in turn; the faster round.

    A plain pass if a proxy is of gradients of batches, and one that measures single samples if a
    proxy is of those. Nothing else is done with what is computed.
    """
    inputs, labels = data[0]
    samples = [proxy for proxy in proxies if isinstance(proxy.measurement, OnSamples)]
    plain = len(samples) < len(proxies)

    def together() -> None:
        if plain:
            backward(supernet.stack(archs), inputs, labels, loss_fn)
        if samples:
            _score_samples(supernet, archs, data, samples, loss_fn)

    def apart() -> None:
        for subnet in subnets:
            if plain:
                batch_loss(loss_fn, call(subnet, inputs), labels).backward()
            if samples:
                score(subnet, data, samples, loss_fn=loss_fn)

    def seconds(run: Callable[[], None]) -> float:
        with preserved(module, parameters=False):
            module.train()
            if data.device.type == "cuda":
                torch.cuda.synchronize(data.device)
            began = time.perf_counter()
            run()
            if data.device.type == "cuda":
                torch.cuda.synchronize(data.device)
            return (time.perf_counter() - began) / len(archs)

    module: nn.Module = supernet  # type: ignore[assignment]
    subnets = [supernet.subnet(arch) for arch in archs]
    with torch.inference_mode(False), torch.enable_grad():
        times = [(seconds(together), seconds(apart)) for _ in range(rounds)]
    return Routes(min(t for t, _ in times), min(t for _, t in times))


def stackable(proxy: Proxy, supernet: Supernet[Any] | None = None) -> bool:
    """Whether a proxy can be measured on many subnets in one pass; else they go one by one.

    Args:
        proxy: The proxy.
        supernet: Of the subnets; None to ask whether there is any on which it can.
    """
    if proxy.whole_network:
        return False
    measurement = proxy.measurement
    if isinstance(measurement, OnStatistics):
        return supports(measurement.request)
    if isinstance(measurement, OnSamples):
        can = measurement.batch_norm == "contribution" and measurement.want <= OF_SUBNETS
        can = can and not over_layers(measurement)
        return can and (supernet is None or shares_samples(supernet))
    return isinstance(measurement, OnGradient)


@named_arguments("score_many")
@torch.inference_mode(False)
@torch.enable_grad()
def score_many(
    supernet: Supernet[Any],
    archs: Iterable[Any],
    batches: Iterable[object] | Batches,
    proxies: Iterable[str | Proxy] = ("sigeo", "zico"),
    *,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    memory_format: MemoryFormat = "auto",
    at_once: int | None = None,
    max_bytes: int | None = None,
) -> list[dict[str, Score]]:
    """Score subnets of a supernet, many in each pass.

    The scores are those of `sigeo.score` on ``supernet.subnet(arch)`` alone; for proxies of the
    whole network (`Proxy.whole_network`: ``params``, ``flops``, ``l2_norm`` and such), on
    ``supernet.subnet(arch, whole=True)``. Proxies that are measured on gradients of batches share
    the passes, and those of single samples where stacks show their layers (NAS-Bench-201); the
    others are measured one subnet after another. The supernet stays as it is.

    Args:
        supernet: Shared weights, such as ``space.supernet()``.
        archs: The subnets; equal ones are measured once.
        batches: As in `sigeo.score`; inputs are one tensor.
        proxies: Names (`sigeo.proxies.names()`) or objects.
        loss_fn: (output, labels) to the mean loss of one subnet's batch.
        memory_format: As in `sigeo.score`.
        at_once: Subnets in one pass; default `AT_ONCE`.
        max_bytes: Bound on the memory of one pass beside the supernet: at most as many subnets at
            once as fit, one at least.

    Returns:
        The scores of each subnet, in the order given.

    Raises:
        InputError: As `sigeo.score`; one architecture; or a number that is not at least 1.
    """
    wanted = resolve(proxies)
    if not callable(getattr(supernet, "stack", None)):
        kind = type(supernet).__name__
        raise InputError(f"supernet: expected shared weights that can stack subnets, got {kind}")
    for name, value in (("at_once", at_once), ("max_bytes", max_bytes)):
        if value is None:
            continue
        if not is_of(value, int) or value < 1:
            raise InputError(f"{name}: must be a whole number of at least 1, got {value!r}")
    module: nn.Module = supernet  # type: ignore[assignment]
    data = Batches.of(batches, module, memory_format)
    check_needs(wanted, batches=len(data), unlabelled=data.unlabelled)
    if not isinstance(data[0][0], Tensor):
        raise InputError(f"batches: inputs must be one tensor, got {type(data[0][0]).__name__}")
    archs = listed(archs)
    distinct = list(dict.fromkeys(archs))
    stacked = [proxy for proxy in wanted if stackable(proxy, supernet)]
    found: dict[Any, dict[str, Score]] = {arch: {} for arch in distinct}
    if stacked and distinct:
        size = at_once or at_once_of(data.device)
        if max_bytes is not None:
            size = min(size, fitting(supernet, distinct, data, stacked, loss_fn, max_bytes))
        for begin in range(0, len(distinct), size):
            part = distinct[begin : begin + size]
            for arch, scores in zip(
                part, _score_stack(supernet, part, data, stacked, loss_fn), strict=True
            ):
                found[arch] |= scores
    for arch in distinct:
        for whole in (False, True):
            alone = [p for p in wanted if p not in stacked and p.whole_network == whole]
            if alone:
                subnet = supernet.subnet(arch, whole=whole)
                found[arch] |= score(subnet, data, alone, loss_fn=loss_fn)
    return [{proxy.name: found[arch][proxy.name] for proxy in wanted} for arch in archs]


def _score_stack(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    data: Batches,
    proxies: Sequence[Proxy],
    loss_fn: LossFunction,
) -> list[dict[str, Score]]:
    """The scores of as many subnets as one pass takes."""
    samples = [proxy for proxy in proxies if isinstance(proxy.measurement, OnSamples)]
    others = [proxy for proxy in proxies if proxy not in samples]
    found: list[dict[str, Score]] = [{} for _ in archs]
    module: nn.Module = supernet  # type: ignore[assignment]
    for part, run in ((others, _score_batches), (samples, _score_samples)):
        if part:
            with telling_dtypes(module, lambda: data[0][0]):
                measured = run(supernet, archs, data, part, loss_fn)
            for scores, new in zip(found, measured, strict=True):
                scores |= new
    return found


def _score_batches(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    data: Batches,
    proxies: Sequence[Proxy],
    loss_fn: LossFunction,
) -> list[dict[str, Score]]:
    """By proxies of gradients of batches."""
    on_gradient = [proxy for proxy in proxies if isinstance(proxy.measurement, OnGradient)]
    on_statistics = {
        p.name: p.measurement for p in proxies if isinstance(p.measurement, OnStatistics)
    }
    outcomes: list[dict[str, Outcome]] = [{} for _ in archs]

    def observe(subnet: int, gradient: FirstGradient) -> None:
        outcomes[subnet].update((p.name, of_gradient(p, gradient)) for p in on_gradient)

    requests = list(dict.fromkeys(m.request for m in on_statistics.values()))
    results = many_gradient_statistics(
        supernet,
        archs,
        data,
        loss_fn,
        requests=requests,
        observer=observe if on_gradient else None,
    )
    whole: nn.Module = supernet  # type: ignore[assignment]
    read = any(m.reads_model for m in on_statistics.values())
    for arch, outcome, measured in zip(archs, outcomes, results, strict=True):
        by_request = dict(zip(requests, measured, strict=True))
        subnet = supernet.subnet(arch) if read else whole
        for name, m in on_statistics.items():
            statistics = by_request[m.request]
            outcome[name] = outcome_of(
                statistics.reached, statistics.losses, m.function, subnet, statistics
            )
    return [{p.name: p.score(outcome[p.name]) for p in proxies} for outcome in outcomes]


def _score_samples(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    data: Batches,
    proxies: Sequence[Proxy],
    loss_fn: LossFunction,
) -> list[dict[str, Score]]:
    """By proxies of single samples."""
    if len(archs) == 1:  # faster by itself
        return [score(supernet.subnet(archs[0]), data, proxies, loss_fn=loss_fn)]
    measurements = {p.name: p.measurement for p in proxies if isinstance(p.measurement, OnSamples)}
    want = frozenset().union(*(m.want for m in measurements.values()))
    with naming_proxies(list(measurements)):
        results = many_sample_statistics(supernet, archs, data, loss_fn, want=want)
    found = []
    for arch, (statistics, loss, reached) in zip(archs, results, strict=True):
        subnet = supernet.subnet(arch)
        outcomes = {}
        for name, m in measurements.items():
            seen = seen_by(m, statistics, subnet)
            outcomes[name] = outcome_of(reached, loss, m.function, subnet, seen, loss)
        found.append({p.name: p.score(outcomes[p.name]) for p in proxies})
    return found


def fitting(
    supernet: Supernet[Any],
    archs: Sequence[Any],
    data: Batches,
    proxies: Sequence[Proxy],
    loss_fn: LossFunction,
    max_bytes: int,
) -> int:
    """How many of some subnets fit into ``max_bytes`` in one pass, one at least.

    Counted are tensors: the inputs as a model takes them, with the copy that a pass gets; the
    largest tensor that a pass keeps twice, for the gradients on either side of a layer; of each
    subnet, the largest first, its statistics, gradients and weights that move, and twice what a
    pass keeps for the backward one, for what that makes on its way. Where subnets run one after
    another, what a pass keeps is there once in all, and beside it at most as much of outputs that
    later subnets take over.
    """
    subnets = ((sum(p.nbytes for p in supernet.subnet(arch).parameters()), arch) for arch in archs)
    sizes = sorted(subnets, key=lambda pair: pair[0], reverse=True)
    tensors = kept_bytes(supernet.subnet(sizes[0][1]), data, loss_fn)
    kept = sum(tensors)
    apart = supernet.stack(archs[:1]).apart
    inputs = sum(x.nbytes for x in tree_leaves(data[0][0]) if isinstance(x, Tensor))
    total = 2 * (inputs + max(tensors, default=0)) + (2 * kept if apart else 0)
    copies = _copies(proxies)
    needs = [copies * size + (0 if apart else 2 * kept) for size, _ in sizes]
    for count, need in enumerate(needs):
        total += need
        if total > max_bytes:
            return max(1, count)
    return len(needs) + (max_bytes - total) // needs[0]


def _copies(proxies: Sequence[Proxy]) -> int:
    """Tensors of the weights' size that a subnet has in a pass.

    Three sums over the batches, the gradients of the last one and weights that move; or as many
    sums as are wanted over the samples.
    """
    of_samples = [p.measurement.want for p in proxies if isinstance(p.measurement, OnSamples)]
    moving = any(
        isinstance(proxy.measurement, OnStatistics) and proxy.measurement.request.steps is not None
        for proxy in proxies
    )
    return max(4 + moving, len(frozenset().union(*of_samples)))


def kept_bytes(network: nn.Module, data: Batches, loss_fn: LossFunction) -> list[int]:
    """Bytes of each tensor, beside the weights, that a pass over the first batch keeps for later.

    The backward pass needs them.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = list(network.parameters())
    for parameter in parameters:
        kept[parameter.untyped_storage().data_ptr()] = 0
    with (
        preserved(network, parameters=False),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        network.train()
        inputs, labels = data[0]
        batch_loss(loss_fn, call(network, inputs), labels)
    for parameter in parameters:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return list(kept.values())
