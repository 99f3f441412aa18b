"""Published systems as declarations, by name.

Each recipe is a function of a space whose defaults are its source's; `get` makes one, with other
values for its options. `sigeo.fewshot.develop` carries it out.
"""

from sigeo.fewshot.recipes import one_shot  # noqa: I001  # the order in which they are listed
from sigeo.fewshot.recipes import divided
from sigeo.fewshot.recipes import gradual
from sigeo.fewshot.recipes.registry import Entry, entry, get, names, recipe

__all__ = ["Entry", "divided", "entry", "get", "gradual", "names", "one_shot", "recipe"]
