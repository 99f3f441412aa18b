"""Score one network in full: an architecture of a space, or any module that can be imported."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sigeo.cli import console, options, proxy_options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.data import ImageData
    from sigeo.proxies import Proxy, Score
    from sigeo.spaces import Cost, SearchSpace

HELP = "score one network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--arch", help="an architecture string of the space")
    what.add_argument(
        "--model",
        type=_target,
        metavar="MODULE:CALLABLE",
        help="a Python callable that makes an nn.Module; the current folder is searched as well",
    )
    parser.add_argument(
        "--model-args",
        type=_keywords,
        metavar="JSON",
        help="keyword arguments of --model's callable, as a JSON object",
    )
    options.add_space(parser)
    proxy_options.add(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Score.

    Raises:
        InputError: An option without effect.
    """
    if args.arch is not None and args.model_args is not None:
        raise InputError("--model-args: has no effect with --arch")
    if args.model is not None and (args.channels or args.cells or args.size):
        raise InputError("--channels, --cells, --size: have no effect with --model")
    proxy_options.check(args)
    options.space_sizes(args)

    # What the user's code prints is no part of the document.
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        if args.model is not None:
            _check_module(args.model)

        import torch

        from sigeo.scoring import export, score
        from sigeo.scoring.score import check_needs
        from sigeo.supernet.randomness import drawing

        outlined = options.space_before_images(args)
        proxies = proxy_options.made(args, "scratch")
        check_needs(proxies, batches=args.batches)
        if args.arch is not None:
            _parsed(args.arch, outlined)
        else:
            model: Any = _made(args.model, args.model_args or {}, args.seed)
        data, space = options.load_data_and_space(args)
        batches = _batches(data, args)
        if args.arch is not None:
            arch = _parsed(args.arch, space)
            model = space.build(arch, seed=args.seed)
        _try(model, batches[0][0], data, args)
        with drawing(f"{args.seed}/scores", torch.device(args.device)):
            scores = score(model, batches, proxies)
    if args.arch is not None:
        scores |= _published_costs(space.cost(arch), proxies)
    if args.json:
        console.out(export.strict_dumps(_document(args, data, space, proxies, scores)))
    else:
        _show(scores)
    return 0


def _parsed(text: str, space: SearchSpace[Any]) -> Any:
    """The architecture of ``--arch``.

    Raises:
        InputError: The text is no architecture. For a number, the message has the string of the
            architecture of that index.
    """
    if text.isdecimal() and int(text) < space.size:
        raise InputError(
            f"--arch: expected an architecture string, got {text}; that of index {text} is "
            f"'{space.at(int(text))}'"
        )
    return space.parse(text)


def _published_costs(cost: Cost, proxies: Sequence[Proxy]) -> dict[str, Score]:
    """The scores of params and flops, where asked for, by the space's published rule."""
    from sigeo.proxies import Score
    from sigeo.scoring.costs import COUNTED, counted

    asked = (proxy.name for proxy in proxies)
    return {name: Score(counted(cost, name)) for name in asked if name in COUNTED}


def _batches(data: ImageData, args: argparse.Namespace) -> list[Any]:
    wanted = args.batches * args.batch_size
    if wanted > len(data.train):
        raise InputError(
            f"data: {args.batches} batches of {args.batch_size} need {wanted} training images, "
            f"{data.name} has {len(data.train)}"
        )
    places = data.order(args.seed)[:wanted].view(args.batches, args.batch_size)
    return [data.batch(p) for p in places]


def _try(model: Any, images: Any, data: ImageData, args: argparse.Namespace) -> None:
    """Take the model to its device and run it once, on two images.

    Raises:
        InputError: It does not take such images, or has too few outputs for the classes.
    """
    import torch

    from sigeo.capture import preserved

    option = "--model" if args.arch is None else "--arch"
    try:
        model.to(args.device)
        with preserved(model, parameters=False), torch.no_grad():
            output = model(images[:2].to(args.device))
    except Exception as error:  # the user's code, which may raise anything
        where = f"does not run on images {list(images.shape[1:])} of {data.name}"
        raise InputError(f"{option}: {where}: {console.said(error)}") from None
    outputs = output.shape[-1] if isinstance(output, torch.Tensor) and output.dim() == 2 else None
    if outputs is None or outputs < data.classes:
        came = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(
            f"{option}: expected [images, {data.classes} or more] outputs for {data.name}, "
            f"got {came}"
        )


def _target(text: str) -> str:
    module, _, function = text.partition(":")
    if not module or not function:
        raise argparse.ArgumentTypeError(f"expected MODULE:CALLABLE, got {text!r}")
    if os.sep in module or (module.endswith(".py") and os.path.exists(module)):
        raise argparse.ArgumentTypeError(
            "expected MODULE:CALLABLE, MODULE as an import names it: net:make for make in a file "
            f"net.py of the current folder, got {text!r}"
        )
    return text


def _check_module(target: str) -> None:
    """Refuse a module that is not there, before torch is imported for it.

    Raises:
        InputError: It is not.
    """
    module = target.partition(":")[0]
    _search_here()
    try:
        found = importlib.util.find_spec(module.partition(".")[0])
    except ValueError:  # no name at all, or a module made by hand
        found = None
    if found is None and module not in sys.modules:
        raise InputError(
            f"--model: {target}: found no module {module!r}, neither installed nor in the "
            "current folder"
        )


def _search_here() -> None:
    if os.getcwd() not in sys.path:  # as `python -m` has it, and the installed script has not
        sys.path.insert(0, os.getcwd())


def _made(target: str, keywords: dict[str, Any], seed: int) -> Any:
    """What the callable makes.

    Raises:
        InputError: There is no such callable, it fails, or it makes something else.
    """
    import torch
    from torch import nn

    module_name, _, attribute = target.partition(":")
    torch.manual_seed(seed)
    try:
        model = getattr(importlib.import_module(module_name), attribute)(**keywords)
    except (Exception, SystemExit) as error:  # the user's code, which may raise anything
        raise InputError(f"--model: {target}: {console.said(error)}") from None
    if not isinstance(model, nn.Module):
        raise InputError(f"--model: {target} must make an nn.Module, got {type(model).__name__}")
    return model


def _keywords(text: str) -> dict[str, Any]:
    try:
        keywords = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object ({error})") from None
    if not isinstance(keywords, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text}")
    return keywords


def _document(
    args: argparse.Namespace,
    data: ImageData,
    space: SearchSpace[Any],
    proxies: Sequence[Proxy],
    scores: dict[str, Score],
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
        "options": {proxy.name: dict(proxy.options) for proxy in proxies if proxy.options},
        "finite": all(score.finite for score in scores.values()),
        "notes": [f"{name}: {note}" for name, score in scores.items() for note in score.notes],
        "settings": {
            "space": space.describe() if args.arch is not None else None,
            "data": {
                "name": data.name,
                "fingerprint": data.fingerprint,
                "images": len(data.train),
            },
            "batches": args.batches,
            "batch_size": args.batch_size,
            "seed": args.seed,
        },
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
