"""Score one network in full: an architecture of a space, or any module that can be imported."""

from __future__ import annotations

import argparse
import importlib
import json
from typing import TYPE_CHECKING, Any

from sigeo.cli import console, options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.data import ImageData
    from sigeo.proxies import Score

HELP = "score one network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--arch", help="an architecture string of the space")
    what.add_argument(
        "--model", metavar="MODULE:CALLABLE", help="a Python callable that makes an nn.Module"
    )
    parser.add_argument(
        "--model-args", metavar="JSON", default="{}", help="its keyword arguments, as a JSON object"
    )
    options.add_space(parser)
    options.add_proxies(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Score."""
    import torch

    from sigeo.scoring import export, score

    data, space = options.load_data_and_space(args)
    proxies = options.proxies(args, "scratch")
    if args.arch is not None:
        model: Any = space.build(space.parse(args.arch), seed=args.seed)
    else:
        torch.manual_seed(args.seed)
        model = _made(args.model, args.model_args)
    batches = _batches(data, args)
    _try(model, batches[0][0], data)
    scores = score(model.to(args.device), batches, proxies)
    if args.json:
        print(export.strict_dumps(_document(args, data, scores)))
    else:
        _show(scores)
    return 0


def _batches(data: ImageData, args: argparse.Namespace) -> list[Any]:
    wanted = args.batches * args.batch_size
    if wanted > len(data.train):
        raise InputError(
            f"data: {args.batches} batches of {args.batch_size} need {wanted} training images, "
            f"{data.name} has {len(data.train)}"
        )
    places = data.order(args.seed)[:wanted].view(args.batches, args.batch_size)
    return [data.batch(p) for p in places]


def _try(model: Any, images: Any, data: ImageData) -> None:
    """Run the model once, on two images.

    Raises:
        InputError: It does not take such images, or has too few outputs for the classes.
    """
    import torch

    from sigeo.capture import preserved

    shape = list(images.shape[1:])
    try:
        with preserved(model, parameters=False), torch.no_grad():
            output = model(images[:2])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).strip().splitlines()[0]
        where = f"does not run on images {shape} of {data.name}"
        raise InputError(f"--model: {where}: {first}") from None
    outputs = output.shape[-1] if isinstance(output, torch.Tensor) and output.dim() == 2 else None
    if outputs is None or outputs < data.classes:
        came = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(
            f"--model: expected [images, {data.classes} or more] outputs for {data.name}, "
            f"got {came}"
        )


def _made(target: str, arguments: str) -> Any:
    from torch import nn

    module_name, colon, attribute = target.partition(":")
    if not colon:
        raise InputError(f"--model: expected MODULE:CALLABLE, got {target!r}")
    try:
        keywords = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise InputError(f"--model-args: expected a JSON object ({error})") from None
    if not isinstance(keywords, dict):
        raise InputError(f"--model-args: expected a JSON object, got {arguments}")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--model: {error}") from None
    try:
        model = factory(**keywords)
    except TypeError as error:
        raise InputError(f"--model: {error}") from None
    if not isinstance(model, nn.Module):
        raise InputError(f"--model: {target} must make an nn.Module, got {type(model).__name__}")
    return model


def _document(
    args: argparse.Namespace, data: ImageData, scores: dict[str, Score]
) -> dict[str, Any]:
    from sigeo.scoring.export import SCHEMA, environment, finite_or_none

    return {
        "schema": SCHEMA,
        "network": args.arch if args.arch is not None else args.model,
        "data": data.name,
        "scores": {name: finite_or_none(score.value) for name, score in scores.items()},
        "terms": {
            name: {term: finite_or_none(value) for term, value in score.terms.items()}
            for name, score in scores.items()
            if score.terms
        },
        "finite": all(score.finite for score in scores.values()),
        "notes": [f"{name}: {note}" for name, score in scores.items() for note in score.notes],
        "env": environment(args.device),
    }


def _show(scores: dict[str, Score]) -> None:
    rows = []
    for name, score in scores.items():
        value = score.value if score.finite else None
        terms = ", ".join(f"{term} {number:.6g}" for term, number in score.terms.items())
        rows.append([name, console.number(value), terms, "; ".join(score.notes)])
    columns = [("proxy", False), ("score", True), ("terms", False), ("notes", False)]
    console.show_table("scores, higher is better", columns, rows)
