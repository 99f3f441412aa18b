"""Reports: HTML pages that need nothing beside themselves. That of `compare` is in `comparison`."""

from sigeo.report.page import Measured, not_finite_notes, render

__all__ = ["Measured", "not_finite_notes", "render"]
