"""The options of systems that are carried out: recipes, the ground they train on, the judges."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sigeo import option_text
from sigeo.cli import console, names, options, table_options, warmup_options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.fewshot.comparison import Entrant
    from sigeo.fewshot.study import Study
    from sigeo.spaces import SearchSpace

ARCHS = 200
"""Architectures that are ranked by default, of a table that has more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    options.add_space(parser)
    group = parser.add_argument_group("systems")
    group.add_argument(
        "--recipes",
        nargs="+",
        type=names.recipe,
        metavar="NAME[:OPTION=VALUE,...]",
        help="those that take part, the first of which the others are compared with "
        "(default: all that the budget pays for as published)",
    )
    group.add_argument("--list", action="store_true", help="list recipes and their options")
    group.add_argument(
        "--seeds",
        type=options.positive,
        default=3,
        help="repetitions, from --seed on (default: %(default)s)",
    )
    add_study(parser)
    judged = parser.add_argument_group("judged by")
    judged.add_argument(
        "--table",
        type=options.existing_file,
        metavar="FILE",
        help="benchmark table; sigeo train makes one",
    )
    judged.add_argument(
        "--metric", default=table_options.METRIC, help="a column (default: %(default)s)"
    )
    judged.add_argument(
        "--archs",
        type=options.whole(3),
        help="architectures of the table that are ranked, drawn "
        f"(default: {ARCHS}, or all that it has)",
    )
    judged.add_argument(
        "--proxy",
        type=names.proxies,
        default="",
        metavar="A,B",
        help="proxies that rank the subnets as well, on the trained weights, as of rank "
        "(default: none)",
    )
    judged.add_argument(
        "--threshold",
        type=options.positive_number,
        default=0.1,
        help="of sparse Kendall, in the metric's unit (default: %(default)s)",
    )
    table_options.add_top(judged)
    judged.add_argument(
        "--bootstrap", type=options.resamples, default=1000, help="resamples (default: %(default)s)"
    )
    options.add_out(parser)
    options.add_json(parser)


def add_study(parser: argparse.ArgumentParser) -> None:
    """How much and how a system trains, and what it is evaluated on."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--budget",
        type=options.positive,
        default=64_000,
        help="images that a system processes in all; one that goes forward only is a third "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--held-out",
        type=options.at_least_two,
        default=200,
        help="training images kept back to evaluate on (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=options.at_least_two,
        default=64,
        help="images a step (default: %(default)s)",
    )
    group.add_argument(
        "--lr",
        type=options.positive_step_size,
        default=0.025,
        help="first step size, which falls along a cosine (default: %(default)s)",
    )
    warmup_options.add_keep(group)
    group.add_argument(
        "--augment",
        action="store_true",
        help="mirror training images at random and cut them from a border of an eighth",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse what the options alone tell, before anything is loaded.

    Raises:
        InputError: No table, a recipe twice, or a budget of no step.
    """
    if args.table is None:
        raise InputError("--table: expected a benchmark table, got none; sigeo train makes one")
    found: list[tuple[str, dict[str, Any]]] = []
    for text in args.recipes or ():
        name, parts = option_text.parts(text)
        asked = name, option_text.values(f"recipe {name}", parts, names.RECIPES.get(name, ()))
        if asked in found:
            raise InputError(f"--recipes: {text} is given more than once")
        found.append(asked)
    if args.budget < args.batch_size:
        raise InputError(
            f"--budget: must pay for at least one batch of {args.batch_size}, got {args.budget}"
        )


def study(args: argparse.Namespace, data: Any, space: SearchSpace[Any]) -> Study:
    """The ground that the options describe."""
    from sigeo.data import Augmentation
    from sigeo.fewshot.study import Study

    augment = Augmentation(args.seed, padding=max(1, data.size // 8)) if args.augment else None
    settings = {"batch_size": args.batch_size, "lr": args.lr, "schedule": "cosine"}
    if args.keep is not None:
        settings["keep"] = args.keep
    return Study(space, data, args.budget, args.held_out, settings, augment, args.device)


def check_recipes(args: argparse.Namespace, space: SearchSpace[Any]) -> None:
    """Refuse systems asked for that the space does not serve, whatever the images.

    Raises:
        InputError: No such recipe, or options that do not fit the space.
    """
    from sigeo.fewshot import recipes
    from sigeo.fewshot.checks import check_choices
    from sigeo.fewshot.comparison import Entrant

    for text in args.recipes or ():
        entrant = Entrant.parse(text)
        check_choices(recipes.get(entrant.recipe, space, **entrant.options), space)


def entrants(args: argparse.Namespace, study: Study) -> list[Entrant]:
    """The systems that take part: those asked for, or all that the budget pays for as published.

    Raises:
        InputError: One that the budget does not pay for, or that the images do not serve.
    """
    from sigeo.fewshot import recipes
    from sigeo.fewshot.comparison import Entrant
    from sigeo.fewshot.develop import check

    given = args.recipes if args.recipes is not None else recipes.names()
    found: list[Entrant] = []
    for text in given:
        entrant = Entrant.parse(text)
        try:
            check(recipes.get(entrant.recipe, study.space, **entrant.options), study)
        except InputError as error:
            if args.recipes is not None:
                raise
            console.say(f"left out: {error}")
            continue
        found.append(entrant)
    if not found:
        raise InputError(f"--budget: {args.budget} images pay for no recipe as published")
    return found
