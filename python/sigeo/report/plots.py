"""The plots of a report, each an SVG element as text."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

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
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", text, flags=re.DOTALL)


def _points(axes: Axes, x: Values, y: Values) -> None:
    both = np.isfinite(x) & np.isfinite(y)
    axes.scatter(x[both], y[both], s=12, alpha=0.6, color=_COLOUR, linewidths=0)


def scatter(pairs: Sequence[tuple[str, Values, str, Values, str]], columns: int = 3) -> str:
    """Scatter plots in a grid: (title, x, x label, y, y label) each."""
    rows = -(-len(pairs) // columns)
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(3.4 * columns, 2.9 * rows), layout="constrained")
        for place, (title, x, x_label, y, y_label) in enumerate(pairs, start=1):
            axes = figure.add_subplot(rows, columns, place)
            _points(axes, x, y)
            axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return _svg(figure)


def histogram(values: Values, label: str) -> str:
    """How often which value occurs."""
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(5, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(values[np.isfinite(values)], bins=24, color=_COLOUR)
        axes.set(xlabel=label, ylabel="architectures")
    return _svg(figure)
