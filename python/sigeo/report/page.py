"""One self-contained HTML page of a ranking."""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigeo.report import plots
from sigeo.report.templates import template
from sigeo.tables import Correlation, Estimate

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Measured values beside the scores.

    Attributes:
        metric: What was measured.
        table: Name of the table.
        values: [rows], NaN where the table has none.
        correlations: By proxy.
    """

    metric: str
    table: str
    values: Values
    correlations: Mapping[str, Correlation]


@dataclass(frozen=True)
class _Cell:
    shown: str
    sort: float | str | None = None
    css: str = ""
    title: str = ""


def render(
    head: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any]],
    measured: Measured | None = None,
) -> str:
    """The page as text.

    Args:
        head: What `sigeo.tables.ranking.read_scores` gives as head.
        columns: The columns of the ranking by name.
        measured: Measured values of the same architectures, if there are any.
    """
    proxies: list[str] = list(head["proxies"])
    scores = {name: _floats(columns[name]) for name in proxies}
    seconds = _floats(columns["seconds"])
    page = template("page.html.jinja")
    settings = head["settings"]
    parted = len(set(columns.get("standing", ()))) > 1
    order = f"{'the parts that the system prefers, then by ' if parted else ''}{proxies[0]}"
    return page.render(
        title=f"{head['space']} on {head['data']}",
        subtitle=f"{len(seconds)} architectures ranked by {order}",
        facts=_facts(head, settings, seconds),
        columns=_headings(proxies, measured, parted),
        rows=_rows(proxies, columns, measured, parted),
        ranking_note="; ".join([f"Best first by {order}", *not_finite_notes(scores, parted)]) + ".",
        metric=None if measured is None else measured.metric,
        correlations=[] if measured is None else _correlations(measured),
        correlation_note="" if measured is None else _correlation_note(measured, parted),
        accuracy_plot="" if measured is None else _accuracy_plot(scores, measured),
        terms_plot=_terms_plot(proxies, columns),
        cost_note=_cost_note(seconds),
        cost_plot=plots.histogram(seconds[seconds > 0], "seconds an architecture"),
        notes=_notes(columns["notes"]),
    )


def not_finite_notes(
    scores: Mapping[str, Sequence[float | None] | Values], parted: bool = False
) -> list[str]:
    """What to say about scores that are not finite; nothing if all are.

    Args:
        scores: The columns of a ranking by proxy; the first one ranks.
        parted: Whether it ranks inside parts of the space that are preferred to others.
    """
    missing = [~np.isfinite(_floats(values)) for values in scores.values()]
    first = next(iter(scores))
    last = int(missing[0].sum())
    elsewhere = int(np.any(missing[1:], axis=0).sum())
    notes = []
    if last:
        place = "last in their part" if parted else "last"
        notes.append(f"architectures without a finite {first} score, which rank {place}: {last}")
    if elsewhere:
        notes.append(f"architectures with another score that is not finite: {elsewhere}")
    return notes


def _floats(values: Sequence[Any] | Values) -> Values:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _facts(
    head: Mapping[str, Any], settings: Mapping[str, Any], seconds: Values
) -> list[tuple[str, str]]:
    env = head["env"]
    sizes = ", ".join(f"{k} {v}" for k, v in settings["space"].items() if k != "name")
    facts = [("networks", sizes), *_weights(settings)]
    batches, size = settings["batches"], settings["batch_size"]
    checkpoints = head.get("checkpoints", 1)  # older rankings do not say
    if checkpoints > 1:
        facts.append(("scores", f"means over {checkpoints} checkpoints of the weights"))
    facts += [
        ("scored on", f"{batches} batches of {size} training images, seed {settings['seed']}"),
        (
            "environment",
            f"sigeo {env['sigeo']}, torch {env['torch']}, {env['device']}, "
            f"{env['threads']} threads, kernels: {', '.join(env['implementation'])}",
        ),
    ]
    return facts


def _weights(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which weights were scored, and how they were trained."""
    loaded = settings.get("checkpoint") or {}
    name = str(settings["init"])
    if "family" in loaded:
        name += f" of {loaded['family'].get('recipe', 'a system')}, plan {loaded['plan'][:8]}"
    elif loaded:
        name += f", loaded, hash {loaded['weights'][:8]}"
    facts = [("weights", name)]
    warmup = settings["warmup"] or loaded.get("warmup")
    if warmup:
        data = loaded.get("data", settings["data"])
        share = 100 * warmup["images"] / data["images"]
        text = (
            f"{warmup['steps']} steps: {warmup['images']} images ({share:.3g} % of the training "
            f"set), {warmup['epochs']} pass(es), batches of {warmup['batch_size']}, "
            f"lr {warmup['lr']}"
        )
        facts.append(("warm-up", text))
    return facts


def _headings(
    proxies: Sequence[str], measured: Measured | None, parted: bool
) -> list[dict[str, Any]]:
    names = ["rank", "index", *(["standing"] if parted else []), *proxies]
    names += [*([measured.metric] if measured else []), "seconds"]
    return [{"name": name, "text": False} for name in names] + [
        {"name": "architecture", "text": True}
    ]


def _number(value: float | None, digits: int = 6) -> _Cell:
    if value is None or not math.isfinite(value):
        return _Cell("not finite", -1e308)
    if float(value).is_integer() and abs(value) < 1e15:
        return _Cell(f"{int(value):,}", float(value))
    return _Cell(f"{value:.{digits}g}", float(value))


def _rows(
    proxies: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    measured: Measured | None,
    parted: bool,
) -> list[list[_Cell]]:
    rows = []
    for i, arch in enumerate(columns["arch_str"]):
        cells = [_number(columns["rank"][i]), _number(int(columns["index"][i]))]
        if parted:
            cells.append(_number(columns["standing"][i]))
        cells += [_number(columns[proxy][i]) for proxy in proxies]
        if measured is not None:
            value = measured.values[i]
            cells.append(_Cell("", -1e308) if math.isnan(value) else _number(value, 5))
        cells.append(_number(columns["seconds"][i], 3))
        notes = "; ".join(columns["notes"][i])
        cells.append(_Cell(arch, arch, "text arch", notes))
        rows.append(cells)
    return rows


def _interval(estimate: Estimate) -> tuple[str, str]:
    if math.isnan(estimate.value):
        return "undefined", ""
    return f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}"


def _correlations(measured: Measured) -> list[dict[str, Any]]:
    rows = []
    for proxy, c in measured.correlations.items():
        (rho, rho_interval), (tau, tau_interval) = _interval(c.spearman), _interval(c.kendall)
        rows.append(
            {
                "proxy": proxy,
                "spearman": rho,
                "spearman_interval": rho_interval,
                "kendall": tau,
                "kendall_interval": tau_interval,
                "not_finite": c.not_finite,
            }
        )
    return rows


def _correlation_note(measured: Measured, parted: bool) -> str:
    count = int(np.isfinite(measured.values).sum())
    how = " Of the others the parts that the system prefers count first." if parted else ""
    return (
        f"{count} of {len(measured.values)} architectures are in {measured.table}. Intervals: "
        "percentile bootstrap over architectures. params and flops are the baselines to beat." + how
    )


def _accuracy_plot(scores: Mapping[str, Values], measured: Measured) -> str:
    pairs = []
    for proxy, values in scores.items():
        rho = measured.correlations[proxy].spearman.value
        title = proxy if math.isnan(rho) else f"{proxy} (Spearman {rho:.3f})"
        pairs.append((title, values, proxy, measured.values, measured.metric))
    return plots.scatter(pairs)


def _terms_plot(proxies: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> str:
    pairs = []
    for proxy in proxies:
        terms = [name for name in columns if name.startswith(f"{proxy}.")]
        for a, b in itertools.combinations(terms, 2):
            pairs.append(("", _floats(columns[a]), a, _floats(columns[b]), b))
    return plots.scatter(pairs) if pairs else ""


def _cost_note(seconds: Values) -> str:
    paid = seconds[seconds > 0]
    if not len(paid):
        return "No network had to be run."
    shared = len(seconds) - len(paid)
    return (
        f"{paid.sum():.1f} seconds for {len(paid)} networks, {np.median(paid):.3g} s in the "
        f"median; {shared} architectures are the same network as one of these and cost nothing."
    )


def _notes(notes: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Notes with their counts; those that differ only in numbers or architectures are one."""
    kinds = [
        re.sub(r"\|\S+", "another", re.sub(r"\b\d+ of \d+\b", "some", note))
        for row in notes
        for note in row
    ]
    return collections.Counter(kinds).most_common()
