"""Statistics over the samples of all processes, from those that each has of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sigeo.capture.samples import SampleStatistics
from sigeo.capture.samples.embedding import row_sparse
from sigeo.errors import InputError
from sigeo.kinds import named_arguments
from sigeo_ext.sample_moments import SampleMoments

_ADDED = ("sum", "abs_sum", "sq_sum", "sign_sum")
_GATHERED = ("sample_sq_norm", "fisher_rao")


@named_arguments("all_reduce")
def all_reduce(stats: SampleStatistics, group: Any = None) -> SampleStatistics:
    """Combine the statistics of all processes' samples; each process gets the same result.

    ::

        with capture(model, {"abs_sum", "sample_sq_norm"}) as own:  # DistributedDataParallel
            loss_fn(model(x), y).backward()
        stats = all_reduce(own)

    Sums over units are added; ``m2`` follows from each process's own and the distance of its mean
    from the mean of all (Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance",
    The American Statistician 1983); what each unit has of its own comes one process after another,
    in the order of their ranks. Processes may have different numbers of units. Statistics of
    embedding tables stay sparse, with every row that a process touched. A parameter that one
    process could not serve is served by none.

    Args:
        stats: Of a `capture` whose backward pass has ended; every process of the group calls this,
            with the same parameters measured in the same way.
        group: Of processes, as in `torch.distributed`; all of them if not given.

    Raises:
        InputError: No process group, ``gram``, which has pairs of samples of different processes,
            ``m2`` without ``sum``, or processes that measured different things.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InputError("all_reduce: expected a process group, got none; init_process_group first")
    own: dict[str, SampleMoments] = {}
    problem = None
    try:  # what one process refuses must not leave the others waiting
        _check_combinable(stats.want)
        own = {name: stats[name] for name in stats.keys()}  # noqa: SIM118
    except InputError as error:
        problem = str(error)
    layouts = {name: _layout(moments) for name, moments in own.items()}
    share = _Share(stats.want, stats.units, layouts, dict(stats.unsupported), problem)
    return _Combined(stats, own, _exchanged(share, group), group)


def _check_combinable(want: frozenset[str]) -> None:
    """Check that what was asked for can be combined.

    Raises:
        InputError: It cannot.
    """
    if "gram" in want:
        raise InputError("gram has products of samples on different processes, which none can form")
    if "m2" in want and "sum" not in want:
        raise InputError("m2 is combined by means, so want must have sum beside it")


@dataclass(frozen=True)
class _Share:
    """What the processes tell each other before they exchange tensors.

    Attributes:
        want: What was asked for.
        units: How many there are.
        layouts: Of the statistics of each parameter: how many rows they are of, None for all, and
            their dtype, None if there are none.
        unsupported: As of the statistics.
        problem: Why there is nothing to combine, if so.
    """

    want: frozenset[str]
    units: int
    layouts: dict[str, tuple[int | None, torch.dtype | None]]
    unsupported: dict[str, str]
    problem: str | None


def _layout(moments: SampleMoments) -> tuple[int | None, torch.dtype | None]:
    first = next((t for t in moments[:-1] if t is not None), None)
    if first is None:
        return None, None
    # A parameter that is not reached has zeros of its own dtype, which may be a short one.
    wide = torch.promote_types(first.dtype, torch.float32)
    return (first.indices().shape[1] if first.is_sparse else None), wide


def _exchanged(own: _Share, group: Any) -> list[_Share]:
    """The shares of all processes, in the order of their ranks.

    Raises:
        InputError: They do not fit together.
    """
    shares: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(shares, own, group=group)
    for rank, share in enumerate(shares):
        if share.problem is not None:
            raise InputError(f"all_reduce: rank {rank}: {share.problem}")
    for rank, share in enumerate(shares):
        if share.want != shares[0].want:
            first, other = sorted(shares[0].want), sorted(share.want)
            raise InputError(f"all_reduce: rank 0 measured {first}, rank {rank} {other}")
        differs = {*share.layouts, *share.unsupported} ^ {
            *shares[0].layouts,
            *shares[0].unsupported,
        }
        if differs:
            raise InputError(
                f"all_reduce: expected the same parameters everywhere, but ranks 0 and {rank} "
                f"differ in {min(differs)}"
            )
    return shares


class _Combined(SampleStatistics):
    """Those of all processes."""

    def __init__(
        self,
        stats: SampleStatistics,
        own: Mapping[str, SampleMoments],
        shares: Sequence[_Share],
        group: Any,
    ):
        super().__init__(stats.want)
        self._counts = [share.units for share in shares]
        self._unsupported = {n: why for share in shares for n, why in share.unsupported.items()}
        served = [name for name in shares[0].layouts if name not in self._unsupported]
        self._moments: dict[str, SampleMoments] = {}
        for name in served:
            layouts = [share.layouts[name] for share in shares]
            self._moments[name] = self._combined(own[name], layouts, stats.units, group)
        device = next((t.device for n in served for t in own[n] if t is not None), None)
        self._of_units = {
            name: _gathered(getattr(stats, name).to(device), self._counts, group)
            for name in _GATHERED
            if name in self.want
        }

    @property
    def unsupported(self) -> Mapping[str, str]:
        return dict(self._unsupported)

    @property
    def units(self) -> int:
        return sum(self._counts)

    def keys(self) -> list[str]:
        return list(self._moments)

    def __getitem__(self, name: str) -> SampleMoments:
        if name in self._unsupported:
            raise KeyError(f"{name}: {self._unsupported[name]}")
        if name not in self._moments:
            raise KeyError(f"{name}: not among the parameters that are measured")
        return self._moments[name]

    def _over_parameters(self, name: str) -> Tensor:
        return self._of_units[name]

    def _combined(
        self,
        own: SampleMoments,
        layouts: Sequence[tuple[int | None, torch.dtype | None]],
        units: int,
        group: Any,
    ) -> SampleMoments:
        """The statistics of one parameter."""
        named = {n: t for n, t in own._asdict().items() if n in self.want and t is not None}
        combined: dict[str, Tensor] = {}
        if named:
            sparse = [rows for rows, _ in layouts if rows is not None]
            rows, shape = None, next(iter(named.values())).shape
            if len(sparse) == len(layouts):
                rows, named = _on_common_rows(named, sparse, group)
            wide = _widest(layouts)
            dense = {n: (t.to_dense() if t.is_sparse else t).to(wide) for n, t in named.items()}
            combined = self._summed(dense, units, group)
            if rows is not None:
                combined = {n: row_sparse(rows, t, shape) for n, t in combined.items()}
        sq_norm = own.sq_norm
        if "sample_sq_norm" in self.want:
            if sq_norm is None:  # not reached here
                like = next((t for t in own if t is not None), torch.empty(0))
                sq_norm = torch.zeros(units, dtype=torch.float64, device=like.device)
            combined["sq_norm"] = _gathered(sq_norm, self._counts, group)
        return SampleMoments(**combined)

    def _summed(self, own: Mapping[str, Tensor], units: int, group: Any) -> dict[str, Tensor]:
        """Dense statistics over all units."""
        names = [name for name in _ADDED if name in own]
        result: dict[str, Tensor] = {}
        if names:
            sums = torch.stack([own[name] for name in names])
            dist.all_reduce(sums, group=group)
            result = dict(zip(names, sums.unbind(), strict=True))
        if "m2" in own:
            distance = own["sum"] / max(1, units) - result["sum"] / max(1, self.units)
            result["m2"] = own["m2"] + units * distance.square()
            dist.all_reduce(result["m2"], group=group)
        return result


def _widest(layouts: Sequence[tuple[int | None, torch.dtype | None]]) -> torch.dtype:
    widest = torch.float32
    for _, dtype in layouts:
        widest = widest if dtype is None else torch.promote_types(widest, dtype)
    return widest


def _on_common_rows(
    own: Mapping[str, Tensor], counts: Sequence[int], group: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """The rows that any process has, rising, and this one's statistics of them."""
    touched = next(iter(own.values())).indices()[0]
    rows = _gathered(touched, counts, group).unique()
    place = torch.searchsorted(rows, touched)
    dense = {}
    for name, tensor in own.items():
        values = tensor.values()
        dense[name] = values.new_zeros(len(rows), *values.shape[1:]).index_copy_(0, place, values)
    return rows, dense


def _gathered(own: Tensor, counts: Sequence[int], group: Any) -> Tensor:
    """Tensors [count, ...] of all processes, one behind another."""
    longest = own.new_zeros(max(counts), *own.shape[1:])
    longest[: len(own)] = own
    parts = [torch.empty_like(longest) for _ in counts]
    dist.all_gather(parts, longest, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
