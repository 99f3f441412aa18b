"""Reports of rankings: one HTML page that needs nothing beside itself."""

from sigeo.report.page import Measured, not_finite_notes, render

__all__ = ["Measured", "not_finite_notes", "render"]
