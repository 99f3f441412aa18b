"""One self-contained HTML page, and the tables, of systems compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sigeo.fewshot.comparison import ACCURACY, Standing
from sigeo.report import plots
from sigeo.report.templates import template
from sigeo.tables import FEWEST, Estimate


@dataclass(frozen=True)
class Section:
    """A heading, a table, a plot.

    Attributes:
        title: The heading.
        headings: Of the columns; the first one is of text.
        rows: Cells as text.
        note: A sentence above it.
        plot: An SVG element.
    """

    title: str
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)
    note: str = ""
    plot: str = ""


def main_table(standings: Sequence[Standing]) -> Section:
    """Systems by the accuracy of their subnets."""
    main = [standing for standing in standings if standing.by == ACCURACY]
    one = main[0].quality[0]
    headings = [
        "system", "Kendall", "95 % interval", "less the first", "95 % interval", "between seeds",
        f"sparse ({one.threshold:g})", f"Kendall, best {one.top}", "percentile", "regret",
        f"{one.draws} random better",
    ]  # fmt: skip
    rows = [
        [
            standing.label,
            *_estimate(standing.kendall),
            *(_estimate(standing.gain) if standing.gain is not None else ("", "")),
            _number(standing.spread),
            _number(standing.mean(lambda q: q.sparse_kendall)),
            _number(standing.mean(lambda q: q.top_kendall)),
            f"{standing.mean(lambda q: q.pick.percentile):.1f}",
            f"{standing.mean(lambda q: q.pick.regret):.2f}",
            f"{standing.mean(lambda q: q.random_surpasses):.0%}",
        ]
        for standing in main
    ]
    note = " ".join(_undefined(main))
    return Section("Ranked by accuracy on the images held out", headings, rows, note)


def _undefined(main: Sequence[Standing]) -> Iterator[str]:
    """Why columns of the main table are undefined, if any are.

    Yields:
        A sentence a column.
    """
    if math.isnan(main[0].spread):
        yield "Between seeds: takes two seeds or more."
    top = main[0].quality[0].top
    if top < FEWEST:
        yield (
            f"Kendall, best {top}: takes {FEWEST} architectures or more, the order of fewer may be "
            "chance."
        )
    elif any(math.isnan(standing.mean(lambda q: q.top_kendall)) for standing in main):
        yield (
            f"Kendall, best {top}: undefined where the {top} best all measure the same, or are all "
            "ranked the same with one of the seeds."
        )


def ranked_table(standings: Sequence[Standing]) -> Section:
    """Kendall's tau of each system by what ranks its subnets."""
    kinds = list(dict.fromkeys(standing.by for standing in standings))
    by_label: dict[str, dict[str, Standing]] = {}
    for standing in standings:
        by_label.setdefault(standing.label, {})[standing.by] = standing
    rows = [
        [label, *(" ".join(_estimate(found[kind].kendall)) for kind in kinds)]
        for label, found in by_label.items()
    ]
    note = "On the same trained weights: what their subnets are ranked by."
    return Section("Ranked by other measures", ["system", *kinds], rows, note)


def cost_table(standings: Sequence[Standing]) -> Section:
    """What the systems took."""
    rows = [
        [
            standing.label,
            f"{standing.processed:,.0f}",
            f"{standing.seconds:.0f}",
            f"{standing.weights / 2**20:.2f}",
            "; ".join(", ".join(map(str, sizes)) for sizes in dict.fromkeys(standing.sizes)),
        ]
        for standing in standings
        if standing.by == ACCURACY
    ]
    headings = [
        "system", "images processed", "wall time, s", "weights, MiB", "architectures a supernet",
    ]  # fmt: skip
    note = "Images and wall time are of training and dividing, not of ranking the architectures."
    return Section("Cost, and how the space was divided", headings, rows, note)


def render_comparison(
    title: str,
    subtitle: str,
    facts: Sequence[tuple[str, str]],
    standings: Sequence[Standing],
    ceiling: float,
) -> str:
    """The page as text.

    Args:
        title: The heading.
        subtitle: Below it.
        facts: Names and values.
        standings: What was found.
        ceiling: Tau between repeated measurements; NaN where there are none.
    """
    main = main_table(standings)
    points = [
        (s.label, s.kendall.value, s.kendall.low, s.kendall.high)
        for s in standings
        if s.by == ACCURACY
    ]
    label = "Kendall's tau, mean over seeds, 95 % interval over architectures"
    plot = plots.intervals(points, label, ceiling)
    sections = [
        Section(main.title, main.headings, main.rows, main.note, plot),
        ranked_table(standings),
        cost_table(standings),
    ]
    page = template("comparison.html.jinja")
    return page.render(title=title, subtitle=subtitle, facts=facts, sections=sections)


def _estimate(estimate: Estimate) -> tuple[str, str]:
    if math.isnan(estimate.value):
        return "undefined", ""
    return f"{estimate.value:.3f}", f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"
