"""Reports of rankings: one HTML page that needs nothing beside itself."""

from sigeo.report.page import Measured, render

__all__ = ["Measured", "render"]
