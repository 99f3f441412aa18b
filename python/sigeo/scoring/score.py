"""`score`: several proxies on one model, in as few passes as they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sigeo import proxies as registry
from sigeo.capture import (
    Batches,
    FirstGradient,
    LossFunction,
    MemoryFormat,
    NoInnerProducts,
    SampleStatistics,
    Selection,
    all_served,
    batch_loss,
    call,
    capture,
    check_reduction,
    gradient_statistics,
    preserved,
    select,
)
from sigeo.capture.batches import telling_layouts
from sigeo.capture.process_setting import PLAIN_ATTENTION
from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo.proxies import (
    OnBatch,
    OnGradient,
    OnInputs,
    OnLoss,
    OnModel,
    OnSamples,
    OnStatistics,
    Outcome,
    Proxy,
    Score,
)
from sigeo.proxies.base import of_losses
from sigeo_ext.sample_moments import SampleMoments


def resolve(proxies: Iterable[str | Proxy]) -> list[Proxy]:
    """Proxies by name or as objects, each name once.

    Raises:
        InputError: An unknown name, something else, none at all, or one twice.
    """
    if isinstance(proxies, str):
        raise InputError(f"proxies: expected a list of names, got the text {proxies!r}")
    resolved = [registry.get(p) if isinstance(p, str) else p for p in proxies]
    for proxy in resolved:
        if not isinstance(proxy, Proxy):
            kind = type(proxy).__name__
            raise InputError(f"proxies: expected names or objects of class Proxy, got {kind}")
    if not resolved:
        raise InputError("proxies: expected at least one, got none")
    seen: set[str] = set()
    for proxy in resolved:
        if proxy.name in seen:
            raise InputError(f"proxies: expected each once, got {proxy.name} twice")
        seen.add(proxy.name)
    return resolved


def check_needs(
    proxies: Sequence[Proxy], *, batches: int, unlabelled: str = "", warmed: bool = False
) -> None:
    """Check that data and weights serve every proxy.

    Args:
        proxies: The proxies.
        batches: Number of batches.
        unlabelled: What the first of them is, if it comes without labels: `Batches.unlabelled`.
        warmed: Whether the weights have been trained.

    Raises:
        InputError: They do not; the message names the proxy and what it needs.
    """
    for proxy in proxies:
        if proxy.initial_weights and warmed:
            raise InputError(f"{proxy.name} needs weights as drawn, got warmed-up ones")
        if proxy.labels and unlabelled:
            raise InputError(
                f"{proxy.name} needs labels: expected batches (inputs, labels), "
                f"got {unlabelled} as the first batch"
            )
        least = getattr(proxy.measurement, "batches", 1)
        if batches < least:
            raise InputError(f"{proxy.name} needs at least {least} batches, got {batches}")


@named_arguments("score")
@torch.inference_mode(False)
@torch.enable_grad()
def score(
    model: nn.Module,
    batches: Iterable[object] | Batches,
    proxies: Iterable[str | Proxy] = ("sigeo", "zico"),
    *,
    loss_fn: LossFunction = nn.functional.cross_entropy,
    memory_format: MemoryFormat = "auto",
    max_bytes: int | None = None,
) -> dict[str, Score]:
    """Score a model by several proxies, which share one set of passes.

    The model comes back as it was: parameters, gradients, buffers, modes and random states. A
    parameter that the loss does not reach has a zero gradient. A network on which a proxy is not
    finite gets -inf and a note, as where all labels of a batch are ignored, so that it has no loss;
    only input that could not be measured raises.

    Gradients of batches are those in train mode, whatever mode the model is in. Proxies of single
    samples and of the tangent kernel take it in its mode: after ``model.eval()``, with the running
    statistics of batch norm and without dropout, their scores are others.

    Args:
        model: Any module, on any device.
        batches: Pairs (inputs, labels), see `sigeo.capture.Batches`; the first serves the proxies
            of one batch. Inputs are one tensor, a tuple of positional or a dict of keyword
            arguments.
        proxies: Names (`sigeo.proxies.names()`) or objects.
        loss_fn: (output, labels) to the mean loss of a batch.
        memory_format: Of images; "auto" is channels_last on a CPU for models with 2-d convolutions.
        max_bytes: Bound on the memory of the gradient statistics, see
            `sigeo.capture.gradient_statistics`.

    Returns:
        A `Score` for each proxy, in the order given.

    Raises:
        InputError: An unknown proxy, one whose needs the batches or the model do not meet, an
            output or labels that the loss does not take, or sparse or nested tensors where
            something fails on them.
    """
    wanted = resolve(proxies)
    data = Batches.of(batches, model, memory_format)
    check_needs(wanted, batches=len(data), unlabelled=data.unlabelled)
    outcomes = _measure_models(model, data, wanted, loss_fn)
    outcomes |= _measure_gradients(model, data, wanted, loss_fn, max_bytes)
    outcomes |= _measure_losses(model, data, wanted, loss_fn)
    outcomes |= _measure_samples(model, data, wanted, loss_fn)
    return {proxy.name: proxy.score(outcomes[proxy.name]) for proxy in wanted}


def _measure_models(
    model: nn.Module, data: Batches, proxies: Sequence[Proxy], loss_fn: LossFunction
) -> dict[str, Outcome]:
    """The outcomes of the proxies that run the model themselves, if they run it at all."""
    outcomes: dict[str, Outcome] = {}
    for proxy in proxies:
        with naming_proxies([proxy.name]), telling_layouts(data):
            if isinstance(proxy.measurement, OnModel):
                outcomes[proxy.name] = proxy.measurement.function(model, data[0][0])
            elif isinstance(proxy.measurement, OnInputs):
                inputs = [data[index][0] for index in range(proxy.measurement.batches)]
                outcomes[proxy.name] = proxy.measurement.function(model, inputs)
            elif isinstance(proxy.measurement, OnBatch):
                outcomes[proxy.name] = proxy.measurement.function(model, *data[0], loss_fn)
    return outcomes


@contextmanager
def naming_proxies(names: Sequence[str], refusal: type[InputError] = InputError) -> Iterator[None]:
    """Begin the message of an error with the proxies that asked for what is refused.

    Args:
        names: Of the proxies. A message that begins with one of them stays as it is.
        refusal: The class of the errors that get the names; others go through.

    Yields:
        Once, while errors get the names.

    Raises:
        InputError: One was raised.
    """
    try:
        yield
    except refusal as error:
        if str(error).startswith(tuple(f"{name}:" for name in names)):
            raise
        raise InputError(f"{', '.join(names)}: {error}") from error


def _measure_gradients(
    model: nn.Module,
    data: Batches,
    proxies: Sequence[Proxy],
    loss_fn: LossFunction,
    max_bytes: int | None,
) -> dict[str, Outcome]:
    """The outcomes of the proxies of gradients, from one call of `gradient_statistics`."""
    on_gradient = [proxy for proxy in proxies if isinstance(proxy.measurement, OnGradient)]
    on_statistics = {
        p.name: p.measurement for p in proxies if isinstance(p.measurement, OnStatistics)
    }
    if not on_gradient and not on_statistics:
        return {}
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return {name: unreached() for name in (*(p.name for p in on_gradient), *on_statistics)}
    values: dict[str, Outcome] = {}

    def observe(gradient: FirstGradient) -> None:
        values.update((proxy.name, of_gradient(proxy, gradient)) for proxy in on_gradient)

    requests = list(dict.fromkeys(m.request for m in on_statistics.values()))
    of_samples = [name for name, m in on_statistics.items() if m.request.samples]
    with naming_proxies(of_samples, NoInnerProducts), telling_layouts(data):
        results = gradient_statistics(
            model,
            data,
            loss_fn,
            requests=requests,
            observer=observe if on_gradient else None,
            max_bytes=max_bytes,
        )
    measured = dict(zip(requests, results, strict=True))
    for name, m in on_statistics.items():
        statistics = measured[m.request]
        values[name] = outcome_of(
            statistics.reached, statistics.losses, m.function, model, statistics
        )
    return values


def _measure_losses(
    model: nn.Module, data: Batches, proxies: Sequence[Proxy], loss_fn: LossFunction
) -> dict[str, Outcome]:
    """The outcomes of the proxies that differentiate the loss themselves: one forward pass each."""
    outcomes: dict[str, Outcome] = {}
    for proxy in proxies:
        if not isinstance(proxy.measurement, OnLoss):
            continue
        with (
            naming_proxies([proxy.name]),
            telling_layouts(data),
            preserved(model, parameters=False),
            PLAIN_ATTENTION,
        ):
            model.train()
            inputs, labels = data[0]
            loss = batch_loss(loss_fn, call(model, inputs), labels)
            outcomes[proxy.name] = outcome_of(
                loss.requires_grad, loss, proxy.measurement.function, model, loss
            )
    return outcomes


def _measure_samples(
    model: nn.Module, data: Batches, proxies: Sequence[Proxy], loss_fn: LossFunction
) -> dict[str, Outcome]:
    """The outcomes of the proxies of single samples.

    One pass for each meaning of batch norm, and another one for norms over the layers alone.
    """
    measurements = {p.name: p.measurement for p in proxies if isinstance(p.measurement, OnSamples)}
    passes = {name: (m.batch_norm, over_layers(m)) for name, m in measurements.items()}
    outcomes: dict[str, Outcome] = {}
    for which in dict.fromkeys(passes.values()):
        policy = which[0]
        group = {name: m for name, m in measurements.items() if passes[name] == which}
        want = frozenset().union(*(m.want for m in group.values()))
        layers = all(m.params == "layers" for m in group.values())
        params: Selection = "layers" if layers else "all"
        inputs, labels = data[0]
        with (
            naming_proxies(list(group)),
            telling_layouts(data),
            all_served(),
            preserved(model, parameters=False),
            capture(model, want, params=params, batch_norm=policy, grads=False) as statistics,
        ):
            output = call(model, inputs)
            loss = batch_loss(loss_fn, output, labels)
            check_reduction(loss_fn, output, labels, loss, "mean", fixed=True)
            if loss.requires_grad:
                loss.backward()
        mean = float(loss.detach())
        for name, m in group.items():
            seen = seen_by(m, statistics, model)
            outcomes[name] = outcome_of(loss.requires_grad, mean, m.function, model, seen, mean)
    return outcomes


def over_layers(measurement: OnSamples) -> bool:
    """Whether it wants statistics over all layers together, which other parameters add to."""
    together = {"sample_sq_norm", "fisher_rao", "gram"}
    return measurement.params == "layers" and not measurement.want.isdisjoint(together)


def seen_by(
    measurement: OnSamples, statistics: SampleStatistics, model: nn.Module
) -> SampleStatistics:
    """What a measurement gets of statistics that others share, not `over_layers`."""
    if measurement.params == "all" or over_layers(measurement):
        return statistics
    return _OfLayers(statistics, measurement.want, frozenset(select(model, "layers")))


class _OfLayers(SampleStatistics):
    """Those of the layers among statistics of all parameters."""

    def __init__(self, found: SampleStatistics, want: frozenset[str], layers: frozenset[str]):
        super().__init__(want)
        self._found, self._layers = found, layers

    @property
    def unsupported(self) -> Mapping[str, str]:
        return {n: why for n, why in self._found.unsupported.items() if n in self._layers}

    @property
    def units(self) -> int:
        return self._found.units

    def keys(self) -> list[str]:
        return [name for name in self._found.keys() if name in self._layers]  # noqa: SIM118

    def __getitem__(self, name: str) -> SampleMoments:
        if name not in self._layers:
            raise KeyError(f"{name}: not among the parameters that are measured")
        return self._found[name]

    def _over_parameters(self, name: str) -> Tensor:
        raise InputError(f"want: {name} was not asked for")


def of_gradient(proxy: Proxy, gradient: FirstGradient) -> Outcome:
    """The outcome of a proxy of gradients."""
    assert isinstance(proxy.measurement, OnGradient)
    function = proxy.measurement.function
    return outcome_of(
        gradient.reached, gradient.loss, lambda: Outcome(proxy.number(function(gradient)))
    )


def outcome_of(
    reached: bool, losses: Tensor | float, function: Callable[..., Outcome], *args: object
) -> Outcome:
    """What a proxy's function makes of gradients, if there are any.

    Args:
        reached: Whether the losses depend on a parameter that asks for a gradient.
        losses: Of the batches.
        function: The proxy's.
        *args: Its arguments.
    """
    return of_losses(function(*args), losses) if reached else unreached()


def unreached() -> Outcome:
    """The outcome where no gradient comes."""
    note = "the loss depends on no parameter that asks for a gradient"
    return Outcome(math.nan, {}, (note,))
