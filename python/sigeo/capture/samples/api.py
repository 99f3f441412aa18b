"""Statistics over the gradients of single samples, of any model, from one backward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from sigeo.capture.layers import Selection
from sigeo.capture.losses import Reduction
from sigeo.capture.samples.embedding import row_sparse
from sigeo.capture.samples.session import BatchNormPolicy, Session
from sigeo.capture.samples.uses import Plan
from sigeo.errors import InputError, check_kind, described
from sigeo.kinds import is_of, named_arguments
from sigeo_ext.sample_moments import SampleMoments

WANTS = ("sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sample_sq_norm", "fisher_rao", "gram")


class SampleStatistics(ABC):
    """What a backward pass gave; complete once it has ended.

    A mapping of parameter names to `SampleMoments`. Made by `capture` and `all_reduce`.
    """

    def __init__(self, want: frozenset[str]):
        """What was asked for."""
        self.want = want

    @property
    @abstractmethod
    def unsupported(self) -> Mapping[str, str]:
        """Parameters that could not be served, with the reason."""

    @property
    @abstractmethod
    def units(self) -> int:
        """How many units there were."""

    @abstractmethod
    def keys(self) -> list[str]:
        """Names of the parameters that were served."""

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.keys())

    @abstractmethod
    def __getitem__(self, name: str) -> SampleMoments:
        """Statistics of one parameter; zeros where the loss does not reach it.

        Raises:
            KeyError: There is no such parameter, or it could not be served.
        """

    @property
    def sample_sq_norm(self) -> Tensor:
        """Squared norm of each unit's gradient over all parameters, float64 [units].

        Raises:
            InputError: It was not asked for.
        """
        return self._asked_for("sample_sq_norm")

    @property
    def fisher_rao(self) -> Tensor:
        """<theta, g_u> of each unit over all parameters, float64 [units].

        Raises:
            InputError: It was not asked for.
        """
        return self._asked_for("fisher_rao")

    @property
    def gram(self) -> Tensor:
        """<g_u, g_v> of all pairs of units over all parameters, float64 [units, units].

        Raises:
            InputError: It was not asked for.
        """
        return self._asked_for("gram")

    def __repr__(self) -> str:
        """What was measured, in a line."""
        wanted = [name for name in WANTS if name in self.want]
        parts = [f"{len(self.keys())} parameters", f"{self.units} units", ", ".join(wanted)]
        again = self._ran_again()
        if again:
            parts.append(f"modules ran again for each unit: {_some(again)}")
        if self.unsupported:
            parts.append(f"unsupported: {_some(self.unsupported)}")
        return f"<SampleStatistics: {'; '.join(part for part in parts if part)}>"

    def _ran_again(self) -> list[str]:
        """The parameters whose modules ran once more for every unit, which takes its time."""
        return []

    def _asked_for(self, name: str) -> Tensor:
        if name not in self.want:
            raise InputError(f"want: {name} was not asked for")
        return self._over_parameters(name)

    @abstractmethod
    def _over_parameters(self, name: str) -> Tensor:
        """One of the statistics that are about all parameters together."""


def _some(names: Iterable[str], shown: int = 1) -> str:
    """The first of some names, and how many there are beside them."""
    names = list(names)
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


class _Captured(SampleStatistics):
    """Those of a session."""

    def __init__(self, session: Session, want: frozenset[str]):
        super().__init__(want)
        self._session = session

    @property
    def unsupported(self) -> Mapping[str, str]:
        return dict(self._session.unsupported)

    @property
    def units(self) -> int:
        return self._session.plan.units

    def keys(self) -> list[str]:
        unsupported = self._session.unsupported
        records = self._session.records.values()
        return [r.name for r in records if r.measured and r.name not in unsupported]

    def __getitem__(self, name: str) -> SampleMoments:
        self._complete()
        if name in self._session.unsupported:
            raise KeyError(f"{name}: {self._session.unsupported[name]}")
        record = self._session.records.get(name)
        if record is None:
            known = _some(self.keys(), 5) or "none"
            raise KeyError(f"{name}: not a parameter of the model; measured are {known}")
        if not record.measured:
            raise KeyError(f"{name}: not among the parameters that are measured")
        rows, moments = record.rows, record.moments
        if record.shared is not None:
            tables, index = record.shared
            rows, moments = tables.part(index)
        assert moments is not None
        if all(value is None for value in moments):
            zero = torch.zeros_like(record.parameter)
            norms = zero.new_zeros(self.units, dtype=torch.float64)
            want = self._session.plan.want
            moments = SampleMoments(**{w: norms if w == "sq_norm" else zero for w in want})
        if rows is not None:
            sparse = {
                key: row_sparse(rows, value, record.parameter.shape)
                for key, value in moments._asdict().items()
                if value is not None and key != "sq_norm"
            }
            moments = moments._replace(**sparse)
        return moments

    def __repr__(self) -> str:
        try:
            self._complete()
        except InputError as error:
            return f"<SampleStatistics, not to be read: {error}>"
        return super().__repr__()

    def _ran_again(self) -> list[str]:
        return [name for name in self.keys() if name in self._session.handed_over]

    def _over_parameters(self, name: str) -> Tensor:
        self._complete()
        if name == "fisher_rao":
            return self._total(self._session.inner)
        if name == "gram":
            return self._total(self._session.grams, self.units, self.units)
        records = self._session.records.values()
        shared = {id(r.shared[0]): r.shared[0] for r in records if r.shared is not None}
        norms = [tables.found.moments.sq_norm for tables in shared.values()]
        found = [r.moments.sq_norm for r in records if r.moments is not None]
        return self._total([*found, *(n.sum(0) for n in norms if n is not None)])

    def _total(self, parts: Iterable[Tensor | None], *shape: int) -> Tensor:
        present = [part for part in parts if part is not None]
        if not present:
            return torch.zeros(shape or (self.units,), dtype=torch.float64)
        return torch.stack(present).sum(0)

    def _complete(self) -> None:
        if self._session.finished and not self._session.begun:
            raise InputError(
                "capture: no backward pass in the body reached a parameter of the model, so "
                "nothing was measured; expected (a loss of model(inputs)).backward()"
            )
        if not self._session.plan.samples:
            raise InputError(
                "capture: the model itself was not called in the body, so its samples are not "
                "known; expected model(inputs), not model.forward or parts of it"
            )
        if not self._session.finished:
            raise InputError("capture: statistics are there after loss.backward(), not before")
        if self._session.failure is not None:
            raise InputError(f"capture: nothing was measured: {self._session.failure}")


@named_arguments("capture")
def capture(
    model: nn.Module,
    want: Iterable[str] = ("abs_sum", "sq_sum", "sample_sq_norm"),
    *,
    unit: int | Literal["sample"] = "sample",
    reduction: Reduction = "mean",
    params: Selection = "all",
    batch_dim: int = 0,
    batch_norm: BatchNormPolicy = "refuse",
    grads: bool = True,
    max_bytes: int = 1 << 28,
    strict: bool = True,
) -> AbstractContextManager[SampleStatistics]:
    """Measure the gradients of single samples in the body's one backward pass.

    ::

        from sigeo.capture import capture

        with capture(model, {"abs_sum", "sample_sq_norm"}) as stats:
            loss_fn(model(x), y).backward()
        stats["conv.weight"].abs_sum, stats.sample_sq_norm

    The body runs the model as it is, forward and backward; ``.grad`` is filled as always.

    Args:
        model: Any module; called in the body, on inputs whose samples lie in ``batch_dim``.
        want: Of sum, abs_sum, sq_sum, m2, sign_sum (over units, of each parameter),
            sample_sq_norm and fisher_rao (of each unit) and gram (of each pair of units), over all
            parameters.
        unit: "sample", or how many consecutive samples form one unit; a unit's gradient is that of
            its mean loss.
        reduction: What the loss did with the samples' losses: "mean" or "sum". Statistics are the
            same for both. A weighted mean is neither.
        params: Which parameters are measured: "all", or "layers", the weights of convolutions and
            linear layers. The others get their ``.grad`` as always.
        batch_dim: Of the model's inputs.
        batch_norm: What to do where batch norm uses the batch's statistics, which couples the
            samples. "refuse"; "frozen": running statistics instead; "per_unit": each unit's own;
            "contribution": split the batch's gradient into what each sample's output gradient adds
            to it.
        grads: Whether ``.grad`` is filled; if not, and no statistic of the parameters is wanted, no
            weight gradient is formed at all, and a `DistributedDataParallel` wrapper neither
            reduces nor broadcasts anything.
        max_bytes: Bound on memory where units' gradients must be formed: parameters that are used
            more than once, or in a way that no kernel knows.
        strict: Whether a parameter that cannot be served raises; if not, `unsupported` names it.

    Returns:
        A context whose value are the statistics, to be read after the backward pass.

    Raises:
        InputError: ``torch.inference_mode`` is on or the model was made in it, an argument out of
            its range, a lazy layer that has not been run, params="layers" of a model that has none,
            inputs without one number of samples or that are sparse or nested, a parameter that
            cannot be served, batch norm that the policy refuses, a module that `torch.jit`
            compiled, other tensors in the place of parameters, a second backward pass, a capture in
            the body of another that has some of its parameters; and when statistics are read, that
            no backward pass reached the model, or that it was refused.
    """
    check_kind(model, nn.Module, "capture: model")
    if torch.is_inference_mode_enabled():
        raise InputError(
            "capture: torch.inference_mode is on, where nothing has gradients; expected it off, as "
            "it is in torch.inference_mode(False)"
        )
    if isinstance(want, str):
        raise InputError(f"want: expected a set or list of names, got the text {want!r}")
    wanted = frozenset(want)
    unknown = sorted(wanted - set(WANTS))
    if unknown:
        raise InputError(f"want: must be of {', '.join(WANTS)}, got {unknown[0]!r}")
    size = 1 if unit == "sample" else unit
    if not is_of(batch_dim, int) or batch_dim < 0:
        raise InputError(f"batch_dim: must be a number from 0, got {described(batch_dim)}")
    if not is_of(size, int) or size < 1:
        raise InputError(f'unit: must be "sample" or a number from 1, got {described(unit)}')
    if reduction not in ("mean", "sum"):
        raise InputError(f'reduction: must be "mean" or "sum", got {described(reduction)}')
    if params not in ("all", "layers"):
        raise InputError(f'params: must be "all" or "layers", got {described(params)}')
    if batch_norm not in ("refuse", "frozen", "per_unit", "contribution"):
        raise InputError(
            "batch_norm: must be refuse, frozen, per_unit or contribution, "
            f"got {described(batch_norm)}"
        )
    of_units = {"fisher_rao", "gram"}
    names = tuple("sq_norm" if w == "sample_sq_norm" else w for w in wanted - of_units)
    session = Session(
        model,
        Plan(
            names, "fisher_rao" in wanted, "gram" in wanted, int(size), grads, reduction == "mean"
        ),
        params=params,
        batch_dim=batch_dim,
        batch_norm=batch_norm,
        max_bytes=max_bytes,
        strict=strict,
    )
    return _captured(session, wanted)


@contextmanager
def _captured(session: Session, want: frozenset[str]) -> Iterator[SampleStatistics]:
    with session.running():
        yield _Captured(session, want)
    session.finish()
