"""Sphinx settings."""

project = "sigeo-ext"
author = "the sigeo-ext developers"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "sigeo-ext"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
default_role = "code"
exclude_patterns = ["_build"]
nitpicky = False
