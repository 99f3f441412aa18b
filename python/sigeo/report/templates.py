"""The templates of the pages."""

from __future__ import annotations

import jinja2


def template(name: str) -> jinja2.Template:
    """A template of this package by its file name; a value that it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sigeo.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)
