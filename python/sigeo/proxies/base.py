"""What a proxy is: a function from one measurement to a score, and what it needs to be measured."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from sigeo.capture import (
    BatchNormPolicy,
    FirstGradient,
    GradientStatistics,
    LossFunction,
    Request,
    SampleStatistics,
    Selection,
)
from sigeo.errors import InputError, check_one_of

Cost = Literal["free", "forward", "backward", "second", "batches"]


@dataclass(frozen=True)
class Score:
    """The result of one proxy on one network.

    Attributes:
        value: Higher is better; -inf if the proxy is not finite there.
        terms: The parts that the value is made of, by name; not finite ones included.
        finite: Whether the value is a number to rank by.
        notes: What a reader should know, such as why the value is not finite.
    """

    value: float
    terms: Mapping[str, float] = field(default_factory=dict)
    finite: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a proxy's function returns: its value before the sign, and what else it knows.

    Numbers may be those of NumPy, or 0-d tensors or arrays; the `Score` has floats.
    """

    value: float
    terms: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def of_losses(outcome: Outcome, losses: Tensor | float) -> Outcome:
    """An outcome of gradients, which is no number where a batch has no loss to take them of.

    A batch whose labels are all ignored has the loss NaN, and gradients of zeros.
    """
    lost = math.isnan(losses) if isinstance(losses, float) else bool(losses.isnan().any())
    if not lost or not isinstance(outcome, Outcome) or outcome.value != outcome.value:
        return outcome  # what is no outcome, `Proxy.score` refuses
    return replace(outcome, value=math.nan, notes=(*outcome.notes, "the loss of a batch is nan"))


@dataclass(frozen=True)
class OnModel:
    """The function gets the model and the inputs of one batch: ``f(model, inputs) -> Outcome``.

    The model is in the mode the user left it in and must be left as it was.
    """

    function: Callable[[nn.Module, Any], Outcome]


@dataclass(frozen=True)
class OnInputs:
    """The function gets the inputs of several batches: ``f(model, [inputs, ...]) -> Outcome``.

    The model is in the mode the user left it in and must be left as it was.
    """

    function: Callable[[nn.Module, Sequence[Any]], Outcome]
    batches: int


@dataclass(frozen=True)
class OnBatch:
    """The function gets the first batch: ``f(model, inputs, labels, loss_fn) -> Outcome``.

    Labels are None where there are none. The model is in the mode the user left it in and must be
    left as it was.
    """

    function: Callable[[nn.Module, Any, Any, LossFunction], Outcome]


@dataclass(frozen=True)
class OnGradient:
    """The function gets the first batch's gradient: ``f(gradient) -> 0-d tensor`` or a number."""

    function: Callable[[FirstGradient], Tensor | float]


@dataclass(frozen=True)
class OnLoss:
    """The function gets the first batch's mean loss with its graph: ``f(model, loss) -> Outcome``.

    The model is in train mode with empty gradients, which the function may fill, and its operations
    are such as have second derivatives where there is a choice.
    """

    function: Callable[[nn.Module, Tensor], Outcome]


@dataclass(frozen=True)
class OnStatistics:
    """The function gets the statistics of all batches: ``f(model, statistics) -> Outcome``.

    Attributes:
        function: That function.
        request: What is measured.
        batches: The fewest.
        reads_model: Whether it looks at the model. If not, it may get any: on many subnets of a
            supernet their networks are then not built for it, which takes as long as a twentieth of
            their passes.
    """

    function: Callable[[nn.Module, GradientStatistics], Outcome]
    request: Request
    batches: int = 2
    reads_model: bool = True


@dataclass(frozen=True)
class OnSamples:
    """The function gets statistics over the first batch's samples, and its mean loss.

    ``f(model, statistics, loss) -> Outcome``; what it wants, of which parameters, and how batch
    norm on batch statistics is to be understood are those of `sigeo.capture.capture`.
    """

    function: Callable[[nn.Module, SampleStatistics, float], Outcome]
    want: frozenset[str]
    batch_norm: BatchNormPolicy = "contribution"
    params: Selection = "all"


Measurement = OnModel | OnInputs | OnBatch | OnGradient | OnLoss | OnStatistics | OnSamples


@dataclass(frozen=True)
class Proxy:
    """A score for networks that nobody has trained.

    Attributes:
        name: As on the command line and in tables.
        measurement: What the function gets, and the function.
        source: Paper and section that define it.
        cost: "free" (no pass), "forward", "backward" (one pass), "second" (one, and one backward
            through it), "batches" (one for each batch).
        direction: 1 if the defining formula is better when higher, -1 if lower; `Score.value` is
            better when higher in both cases.
        labels: Whether it needs labels.
        initial_weights: Whether it is defined for untrained weights only.
        whole_network: Whether it counts parts that cannot reach the output. Such a proxy is
            measured on the published network, never on an equal one with less in it.
        options: What the proxy was made with, as JSON can hold it; part of its identity.
        images: (sizes of the batches) to the images that go forward and backward in a score, and
            those that go forward only; by default what ``cost`` says, of whole batches.
    """

    name: str
    measurement: Measurement
    source: str
    cost: Cost
    direction: Literal[1, -1] = 1
    labels: bool = False
    initial_weights: bool = False
    whole_network: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    images: Callable[[Sequence[int]], tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        """Check what is declared.

        Raises:
            InputError: No name, or a measurement, cost or direction that there is not.
        """
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"proxy: name must be a text, got {self.name!r}")
        kinds = get_args(Measurement)
        if not isinstance(self.measurement, kinds):
            known = ", ".join(kind.__name__ for kind in kinds)
            kind = type(self.measurement).__name__
            raise InputError(f"proxy {self.name}: measurement must be one of {known}, got {kind}")
        check_one_of(f"proxy {self.name}: cost", self.cost, get_args(Cost))
        if self.direction not in (1, -1):
            raise InputError(f"proxy {self.name}: direction must be 1 or -1, got {self.direction}")

    def processed(self, sizes: Sequence[int]) -> tuple[int, int]:
        """Images that one score takes, forward and backward, and forward only.

        Args:
            sizes: Of the batches.
        """
        if self.images is not None:
            return self.images(sizes)
        inputs = self.measurement.batches if isinstance(self.measurement, OnInputs) else 1
        every, first = sum(sizes), sum(sizes[:inputs])
        both = {"backward": first, "second": 2 * first, "batches": every}.get(self.cost, 0)
        return both, first if self.cost == "forward" else 0

    def score(self, outcome: Outcome) -> Score:
        """The score of an outcome: signed, and -inf where it is not a finite number.

        Raises:
            InputError: It is no `Outcome`, its value or a term is no number, or its notes are no
                texts.
        """
        if not isinstance(outcome, Outcome):
            kind = type(outcome).__name__
            raise InputError(f"proxy {self.name}: must return a sigeo.proxies.Outcome, got {kind}")
        value, terms, notes = self.number(outcome.value), outcome.terms, outcome.notes
        if not isinstance(terms, Mapping) or not all(isinstance(term, str) for term in terms):
            raise InputError(f"proxy {self.name}: terms must be numbers by name, got {terms!r}")
        terms = {term: self.number(part, f"term {term}") for term, part in terms.items()}
        listed = isinstance(notes, (tuple, list))
        if not listed or not all(isinstance(note, str) for note in notes):
            raise InputError(f"proxy {self.name}: notes must be a tuple of texts, got {notes!r}")
        if math.isfinite(value):
            return Score(self.direction * value, terms, True, tuple(notes))
        return Score(-math.inf, terms, False, (*notes, f"{self.name} is {value}"))

    def number(self, value: Any, what: str = "value") -> float:
        """What the function returned as a float.

        Args:
            value: A number, or a tensor or an array without dimensions.
            what: It is, for the message.

        Raises:
            InputError: It is something else.
        """
        number = value.item() if getattr(value, "ndim", None) == 0 else value
        if isinstance(number, numbers.Real):
            return float(number)
        kind, shape = type(value).__name__, getattr(value, "shape", None)
        got = kind if shape is None else f"{kind} {list(shape)}"
        raise InputError(f"proxy {self.name}: {what} must be one number, got {got}")
