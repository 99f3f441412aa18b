"""Reports: HTML pages that need nothing beside themselves."""

from sigeo.report.comparison import render_comparison
from sigeo.report.page import Measured, not_finite_notes, render

__all__ = ["Measured", "not_finite_notes", "render", "render_comparison"]
