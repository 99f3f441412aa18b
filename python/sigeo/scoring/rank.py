"""`rank`: many architectures of a space by several proxies, none scored twice."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sigeo.kinds import named_arguments
from sigeo.proxies import Proxy
from sigeo.scoring.many import Routes
from sigeo.scoring.networks import Networks
from sigeo.store import Record, RunStore
from sigeo.supernet.settings import Progress


@dataclass(frozen=True)
class Row:
    """One architecture of a ranking.

    Attributes:
        arch: Its string.
        index: Its number in the space.
        scores: Value of each proxy, None if not finite.
        terms: Parts of the value of each proxy that has parts.
        options: What each proxy was made with, if anything.
        finite: Whether all values are.
        notes: For the reader, each begun with the proxy's name where it is one proxy's.
        seconds: What scoring it took; 0 if an equal network was scored.
        standing: Of its part of the space: a row with a larger number ranks above all with a
            smaller; None where no parts are preferred.
    """

    arch: str
    index: int
    scores: dict[str, float | None]
    terms: dict[str, dict[str, float | None]]
    options: dict[str, dict[str, Any]]
    finite: bool
    notes: tuple[str, ...]
    seconds: float
    standing: int | None


@named_arguments("rank")
def rank(
    networks: Networks,
    archs: Iterable[Any],
    store: RunStore,
    *,
    progress: Progress | None = None,
    chosen: Callable[[int, Routes | None], None] | None = None,
) -> list[Row]:
    """Score architectures and sort them by the first proxy, best first, what is not finite last.

    Where a system of several supernets prefers parts of the space, those come first.

    What the store holds is not scored again; each new score is kept at once.

    Args:
        networks: The networks and how to score them.
        archs: The architectures.
        store: Of this protocol's scores.
        progress: Called with (architectures done, architectures in all).
        chosen: Called once with the number of networks in one pass, and what was measured to choose
            it, if anything was.
    """
    proxies = networks.protocol.proxies
    whole = [proxy for proxy in proxies if proxy.whole_network]
    shared = [proxy for proxy in proxies if not proxy.whole_network]
    archs = list(archs)
    keys = [networks.key(arch) for arch in archs]
    stacked = networks.stacked(shared)
    missing = [key for key in dict.fromkeys(keys) if _missing(key, stacked, store)]
    place_of = {key: place for place, key in enumerate(missing)}
    at_once, routes = networks.choose_at_once(missing)
    if chosen is not None:
        chosen(at_once, routes)
    first_of: dict[str, str] = {}
    rows = []
    for done, (arch, key) in enumerate(zip(archs, keys, strict=True), start=1):
        if at_once > 1 and _missing(key, stacked, store):
            _score_ahead(networks, missing[place_of[key] :], stacked, store, at_once)
        records = _scored(networks, arch, whole, store)
        functional = _scored(networks, key, shared, store)
        original = first_of.setdefault(str(key), str(arch))
        rows.append(_row(networks, arch, proxies, records | functional, functional, original))
        if progress is not None:
            progress(done, len(archs))
    return sort_rows(rows, proxies[0].name)


def unscored(networks: Networks, archs: Iterable[Any], store: RunStore) -> int:
    """How many of some architectures lack a score in the store."""
    proxies = networks.protocol.proxies
    whole = [proxy for proxy in proxies if proxy.whole_network]
    shared = [proxy for proxy in proxies if not proxy.whole_network]
    return sum(
        bool(_missing(arch, whole, store) or _missing(networks.key(arch), shared, store))
        for arch in archs
    )


def sort_rows(rows: Iterable[Row], proxy: str) -> list[Row]:
    """Preferred parts first; in each best first, what is not finite last, then by architecture."""

    def place(row: Row) -> tuple[int, float, str]:
        value = row.scores[proxy]
        return (-(row.standing or 0), math.inf if value is None else -value, row.arch)

    return sorted(rows, key=place)


def identity(proxy: Proxy) -> str:
    """A proxy's name and options as the store knows it."""
    return f"{proxy.name} {json.dumps(dict(proxy.options), sort_keys=True)}"


def _missing(arch: Any, proxies: Sequence[Proxy], store: RunStore) -> list[Proxy]:
    kept = store.get(str(arch)) if proxies else {}
    return [proxy for proxy in proxies if identity(proxy) not in kept]


def _score_ahead(
    networks: Networks, archs: Sequence[Any], proxies: Sequence[Proxy], store: RunStore, count: int
) -> None:
    """Score the first networks that lack the same scores as the first one, in one pass.

    They run on the same shared weights.
    """
    wanted, part = _missing(archs[0], proxies, store), networks.part(archs[0])
    alike = (
        arch
        for arch in archs
        if networks.part(arch) is part and _missing(arch, proxies, store) == wanted
    )
    group = list(itertools.islice(alike, count))
    for arch, new in zip(group, networks.score_many(group, wanted), strict=True):
        store.put(str(arch), {identity(proxy): new[proxy.name] for proxy in wanted})


def _scored(
    networks: Networks, arch: Any, proxies: Sequence[Proxy], store: RunStore
) -> dict[str, Record]:
    """The scores of one network by proxy name, from the store or new."""
    if not proxies:
        return {}
    missing = _missing(arch, proxies, store)
    kept = store.get(str(arch))
    if missing:
        new = networks.score(arch, missing)
        entries = {identity(proxy): new[proxy.name] for proxy in missing}
        store.put(str(arch), entries)
        kept |= store.get(str(arch))
    return {proxy.name: kept[identity(proxy)] for proxy in proxies}


def _row(
    networks: Networks,
    arch: Any,
    proxies: Sequence[Proxy],
    records: dict[str, Record],
    functional: dict[str, Record],
    original: str,
) -> Row:
    notes = [f"{name}: {note}" for name, record in records.items() for note in record.notes]
    duplicate = bool(functional) and original != str(arch)
    if duplicate:
        notes.append(f"the same network as {original}, scored once")
    seconds = 0.0 if duplicate else max((r.seconds for r in functional.values()), default=0.0)
    return Row(
        arch=str(arch),
        index=networks.space.index(arch),
        scores={proxy.name: records[proxy.name].value for proxy in proxies},
        terms={n: dict(r.terms) for n, r in records.items() if r.terms},
        options={proxy.name: dict(proxy.options) for proxy in proxies if proxy.options},
        finite=all(record.value is not None for record in records.values()),
        notes=tuple(notes),
        seconds=seconds,
        standing=networks.standing(arch),
    )
