"""Warm a supernet up on a share of the data and keep it for ``rank --init supernet:PATH``.

With a recipe, carry a one-shot or few-shot system out and keep its plan and its supernets. What is
done is written every few seconds; the same command goes on from it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sigeo.cli import console, names, options, shared_weights, warmup_options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from sigeo.fewshot.family import Family
    from sigeo.fewshot.recipe import Recipe
    from sigeo.fewshot.study import Study

HELP = "warm a supernet up and keep it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    options.add_space(parser)
    warmup_options.add_arguments(parser, default=0.1)
    warmup_options.add_keep(parser)
    shared_weights.add_arguments(parser)
    group = parser.add_argument_group("systems")
    group.add_argument(
        "--recipe",
        type=names.recipe,
        metavar="NAME[:OPTION=VALUE,...]",
        help="a system of one or more supernets in the place of plain training, see sigeo compare "
        "--list; the warm-up's steps are its budget of processed images",
    )
    group.add_argument(
        "--held-out",
        type=options.at_least_two,
        help="training images that a recipe judges paths and parts on (default: 200)",
    )
    options.add_out(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Warm up.

    Raises:
        InputError: No warm-up is asked for.
    """
    options.space_sizes(args)
    if args.recipe is not None:
        return _carry_out(args)
    if args.held_out is not None:
        raise InputError("--held-out: has no effect without --recipe")
    _check(args)

    from sigeo import proxies
    from sigeo.scoring import export
    from sigeo.scoring.networks import Networks, Protocol

    shared_weights.check(args, "supernet", options.space_before_images(args))
    data, space = options.load_data_and_space(args)
    config = warmup_options.warm_up(args, len(data.train), "supernet")
    assert config is not None
    protocol = Protocol(
        proxies=(proxies.get("params"),),
        init="supernet",
        warmup=config,
        supernet=shared_weights.supernet_options(args, "supernet"),
        batches=1,
        batch_size=2,
        seed=args.seed,
        device=args.device,
    )
    with options.run_folder(args) as folder, console.progress("warming up") as report:
        networks = Networks(space, data, protocol, folder=folder, progress=report)
    document = {
        "schema": export.SCHEMA,
        "checkpoint": str(networks.checkpoint_path(folder)),
        "images": config.images,
        "epochs": config.epochs,
        "steps": config.steps,
        "budget": asdict(networks.budget),
        "settings": networks.weights_settings(),
        "env": export.environment(args.device),
    }
    if args.json:
        console.out(export.strict_dumps(document))
    else:
        budget = networks.budget
        scored = f", {budget.evaluated} forward only" if budget.evaluated else ""
        console.out(
            f"{config.steps} steps of {config.batch_size} on {config.images} images, "
            f"{budget.trained} processed{scored}: {document['checkpoint']}"
        )
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options without effect, before anything is loaded.

    Raises:
        InputError: There is one, or no warm-up.
    """
    if warmup_options.settings(args, "supernet") is None:
        raise InputError("--warmup: must be above 0, got 0")
    shared_weights.supernet_options(args, "supernet")


def _carry_out(args: argparse.Namespace) -> int:
    """Carry a recipe out.

    Raises:
        InputError: An option that recipes decide themselves, no budget, or one that is too small.
    """
    _check_recipe(args)

    from sigeo.fewshot import recipes
    from sigeo.fewshot.checks import check_choices
    from sigeo.fewshot.comparison import Entrant
    from sigeo.fewshot.family import PLAN, leaf_file
    from sigeo.scoring import export

    entrant = Entrant.parse(args.recipe)
    outlined = options.space_before_images(args)
    recipe = recipes.get(entrant.recipe, outlined, **entrant.options)
    if args.schedule is not None and recipe.gradual is not None:
        raise InputError("--schedule: a recipe decides that itself")
    check_choices(recipe, outlined)
    study = _study(args)
    recipe = recipes.get(entrant.recipe, study.space, **entrant.options)
    folder = options.run_path(args)  # made by the work, once nothing is refused
    family = _developed(args, entrant.label, recipe, study, folder)
    made = {
        "study": study.describe(),
        "recipe": entrant.recipe,
        "options": recipe.options,
        "seed": args.seed,
        "width": recipe.width,
    }
    if recipe.supernet:
        made["supernet"] = recipe.supernet
    if family.trainings:
        made["trainings"] = list(family.trainings)
    family.save(folder, made)
    document = {
        "schema": export.SCHEMA,
        "plan": str(folder / PLAN),
        "checkpoints": [str(leaf_file(folder, leaf)) for leaf in range(len(family.supernets))],
        "architectures": list(family.plan.sizes),
        "budget": asdict(family.cost),
        "settings": made,
        "env": export.environment(args.device),
    }
    if args.json:
        console.out(export.strict_dumps(document))
    else:
        cost = family.cost
        console.out(
            f"{entrant.label}: {len(family.supernets)} supernet(s), {cost.trained} images processed"
            f", {cost.evaluated} forward only: {folder / PLAN}"
        )
    return 0


def _check_recipe(args: argparse.Namespace) -> None:
    """Refuse options that have no effect with a recipe, before anything is loaded.

    Raises:
        InputError: There is one, or no warm-up.
    """
    for option in ("paths", *warmup_options.SHARED):
        if getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')}: a recipe decides that itself")
    _check(args)
    if shared_weights.supernet_options(args, "supernet"):
        raise InputError(
            "--norm, --no-affine and dropouts: have no effect with --recipe; some recipes have an "
            "option affine"
        )


def _study(args: argparse.Namespace) -> Study:
    """The ground that the options describe; the warm-up's steps are its budget."""
    from sigeo.fewshot.study import Study

    held_out = 200 if args.held_out is None else args.held_out
    data, space = options.load_data_and_space(args)
    keep, args.keep = args.keep, None  # of the trainings at the end, not of the budget
    config = warmup_options.warm_up(args, max(0, len(data.train) - held_out), "supernet")
    assert config is not None
    settings: dict[str, Any] = {
        "batch_size": config.batch_size,
        "lr": config.lr,
        "schedule": "cosine" if args.schedule is None else args.schedule,
    }
    if keep is not None and keep > 1:
        settings["keep"] = keep
    budget = config.steps * config.batch_size
    return Study(space, data, budget, held_out, settings, device=args.device)


def _developed(
    args: argparse.Namespace, label: str, recipe: Recipe, study: Study, folder: Path
) -> Family[Any]:
    """The supernets that a recipe makes; what is trained is kept in a folder of its own.

    Raises:
        InputError: A budget that is too small, or an option that does not fit the space.
    """
    from sigeo.fewshot.checks import check_space, fewer
    from sigeo.fewshot.develop import Development

    own = folder / options.file_name(label) / str(args.seed)
    with console.progress(label) as report:
        work = Development(recipe, study, args.seed, own, report)
        check_space(work)  # options first: no budget pays for one that does not fit
        least = work.least
        if study.budget < least:
            size = study.batch_size
            raise InputError(
                f"--recipe: {label} needs {least:,} processed images or more, got "
                f"{study.budget:,} of {study.budget // size} steps; "
                f"--warmup-steps {-(-least // size)} would do{fewer(recipe)}"
            )
        return work.run()
