"""The plots of a report, each an SVG element as text."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sigeo.drawing import styled

Values = NDArray[np.float64]

_STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller, searchable
    "svg.hashsalt": "sigeo",  # the same plot gives the same bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
}
_COLOUR = "#1f6f8b"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with styled(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", text, flags=re.DOTALL)


def _points(axes: Axes, x: Values, y: Values) -> None:
    both = np.isfinite(x) & np.isfinite(y)
    axes.scatter(x[both], y[both], s=12, alpha=0.6, color=_COLOUR, linewidths=0)


def scatter(pairs: Sequence[tuple[str, Values, str, Values, str]], columns: int = 3) -> str:
    """Scatter plots in a grid: (title, x, x label, y, y label) each."""
    rows = -(-len(pairs) // columns)
    with styled(_STYLE):
        figure = Figure(figsize=(3.4 * columns, 2.9 * rows), layout="constrained")
        for place, (title, x, x_label, y, y_label) in enumerate(pairs, start=1):
            axes = figure.add_subplot(rows, columns, place)
            _points(axes, x, y)
            axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return _svg(figure)


def histogram(values: Values, label: str) -> str:
    """How often which value occurs."""
    with styled(_STYLE):
        figure = Figure(figsize=(5, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(values[np.isfinite(values)], bins=24, color=_COLOUR)
        axes.set(xlabel=label, ylabel="architectures")
    return _svg(figure)


def intervals(rows: Sequence[tuple[str, float, float, float]], label: str, limit: float) -> str:
    """Values with intervals, one below another: (name, value, low, high) each.

    Args:
        rows: From the top down.
        label: Of the axis.
        limit: Where a line marks what cannot be passed; NaN for none.
    """
    places = np.arange(len(rows))[::-1]
    with styled(_STYLE):
        figure = Figure(figsize=(7, 0.8 + 0.28 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for place, (_, value, low, high) in zip(places, rows, strict=True):
            axes.plot([low, high], [place, place], color=_COLOUR, alpha=0.5, linewidth=2)
            axes.plot([value], [place], "o", color=_COLOUR, markersize=5)
        if np.isfinite(limit):
            axes.axvline(limit, color="#8a8a8a", linestyle=":", linewidth=1)
        axes.set_yticks(places, [name for name, *_ in rows])
        axes.set(xlabel=label)
        axes.grid(axis="x", alpha=0.3)
    return _svg(figure)
