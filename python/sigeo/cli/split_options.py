"""Options of ``sigeo split``, and the rules that they stand for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sigeo.cli import names, options, shared_weights, table_options, warmup_options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.fewshot import Known, Splitting
    from sigeo.fewshot.metrics import Metric
    from sigeo.scoring.networks import Init
    from sigeo.spaces import SearchSpace

# Sides of 2 and more, as published with these metrics; others are published with any.
_AT_LEAST_TWO = ("gradient_matching", "lid")
_WITHOUT_REPEATS = ("random", "table")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers separated by commas, got {text!r}"
        ) from None


def _factors(text: str) -> tuple[int, ...]:
    factors = _numbers(text)
    if min(factors) < 2:
        raise argparse.ArgumentTypeError(f"must be whole numbers from 2, got {text!r}")
    return factors


def _groups(text: str) -> list[tuple[int, ...]]:
    return [_numbers(group) for group in text.split("/")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    options.add_space(parser)
    group = parser.add_argument_group("splitting")
    group.add_argument(
        "--metric",
        type=names.metric,
        metavar="NAME",
        help="compares options: gradient_matching, gradient_matching_logits, lid, table, random, "
        "or a proxy's name (default: gradient_matching)",
    )
    group.add_argument("--leaves", type=options.positive, help="supernets (default: 4)")
    group.add_argument(
        "--factors",
        type=_factors,
        metavar="A,B",
        help="parts of a cut, in ascending order level by level (default: 2)",
    )
    group.add_argument(
        "--partition",
        type=names.one_of(names.PARTITIONS),
        metavar="NAME",
        help=f"how options are grouped: {', '.join(names.PARTITIONS)} (default: exact)",
    )
    group.add_argument(
        "--smallest",
        type=options.positive,
        help="least options of a group, of exact and random partitions (default: 2 with "
        "gradient_matching and lid, else 1)",
    )
    group.add_argument(
        "--choice",
        type=names.one_of(names.CHOICES),
        metavar="NAME",
        help="which choice is split: in_turn, random, or the one with the best between_mean, "
        "between_sum, within_sum, separation or most_alike (default: separation with lid, else "
        "between_mean)",
    )
    group.add_argument(
        "--order",
        type=_numbers,
        metavar="A,B",
        help="places of the choices that are split in turn (default: 0,1,2,...)",
    )
    group.add_argument(
        "--repeats", type=options.positive, help="batches and drawn paths (default: 8)"
    )
    group.add_argument(
        "--batches", type=options.positive, default=4, help="batches measured on (default: 4)"
    )
    group.add_argument(
        "--batch-size", type=options.at_least_two, default=64, help="images of one (default: 64)"
    )
    group.add_argument(
        "--kind",
        type=names.kind,
        metavar="NAME",
        help="divide by a function of architectures instead, such as nonlinear_depth",
    )
    group.add_argument(
        "--groups",
        type=_groups,
        metavar="A,B/C",
        help="values of --kind that go together (default: each its own)",
    )
    warmup_options.add_arguments(parser, default=0.0)
    parser.set_defaults(keep=None)  # a split is made with one set of weights
    shared_weights.add_arguments(parser)
    parser.add_argument(
        "--table",
        type=options.existing_file,
        metavar="FILE",
        help="benchmark table to look at the plan with",
    )
    parser.add_argument("--metric-column", help=f"its column (default: {table_options.METRIC})")
    parser.add_argument(
        "--top",
        type=options.positive_number,
        metavar="SHARE",
        help="of the table's best to find, or their number (default: 0.01)",
    )
    options.add_out(parser)
    options.add_json(parser)


def check(args: argparse.Namespace) -> None:
    """Refuse options without effect.

    Raises:
        InputError: There is one.
    """
    if args.table is None:
        for option in ("--metric-column", "--top"):
            if getattr(args, option[2:].replace("-", "_")) is not None:
                raise InputError(f"{option}: has no effect without --table")
    if args.kind is None and args.groups is not None:
        raise InputError("--groups: has no effect without --kind")
    if args.kind is not None:
        wanted = ("metric", "leaves", "factors", "partition", "smallest", "choice", "order")
        for name in (*wanted, "repeats"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name}: has no effect with --kind")
        if warmup_options.warms_up(args):
            raise InputError("--warmup: has no effect with --kind")
    if args.metric == "table" and args.table is None:
        raise InputError("--metric table: needs --table, got none")
    if args.repeats is not None and args.metric in _WITHOUT_REPEATS:
        raise InputError(f"--repeats: has no effect with --metric {args.metric}")
    if args.order is not None and args.choice != "in_turn":
        raise InputError("--order: has no effect without --choice in_turn")
    if args.smallest is not None and args.partition not in (None, "exact", "random"):
        raise InputError(f"--smallest: has no effect with --partition {args.partition}")
    init: Init = "supernet" if warmup_options.warms_up(args) else "scratch"
    warmup_options.settings(args, init)
    shared_weights.supernet_options(args, init)


def check_sizes(args: argparse.Namespace, space: SearchSpace[Any]) -> None:
    """Whether a choice of the space can be cut into groups of the least size asked for.

    Raises:
        InputError: None can.
    """
    most = max(len(choice.options) for choice in space.choices) // 2
    if args.smallest is not None and args.smallest > most:
        raise InputError(
            f"--smallest: must be at most {most}, half the options of a choice of {space.name}, "
            f"got {args.smallest}"
        )


def splitting(args: argparse.Namespace, space: SearchSpace[Any], known: Known | None) -> Splitting:
    """The rules asked for; ``known`` is the table, if there is one.

    Raises:
        InputError: More supernets than the choices of the space can be cut into, or rules that do
            not go together.
    """
    from sigeo.fewshot import Branching, Splitting, choice, partition

    name = args.metric or "gradient_matching"
    rule = args.choice or ("separation" if name == "lid" else "between_mean")
    cut = args.partition or "exact"
    smallest = args.smallest or (2 if name in _AT_LEAST_TWO else 1)
    sized = {"smallest": smallest} if cut in ("exact", "random") else {}
    ordered = {"order": args.order} if args.order is not None else {}
    leaves = 4 if args.leaves is None else args.leaves
    factors = args.factors or (2,)
    _check_leaves(leaves, factors, space)
    return Splitting(
        _metric(name, 8 if args.repeats is None else args.repeats, known),
        Branching.of_leaves(leaves, factors),
        partition.get(cut, **sized),
        choice.get(rule, **ordered),
    )


def _check_leaves(leaves: int, factors: tuple[int, ...], space: SearchSpace[Any]) -> None:
    """Whether the choices have the options that so many leaves need, whatever groups them.

    Raises:
        InputError: They have not; with the most leaves that they have them for.
    """
    from sigeo.fewshot import Branching, Splitting, choice, partition
    from sigeo.spaces import Product

    partitioner, chosen = partition.get("in_order"), choice.get("random")  # which refuse nothing

    def lack(leaves: int) -> str:
        try:
            how = Splitting(None, Branching.of_leaves(leaves, factors), partitioner, chosen)
            how.check(Product.whole(space), None, None)
        except InputError as error:
            return str(error)
        return ""

    if not lack(leaves):
        return
    most, over = 1, leaves
    while over - most > 1:
        middle = (most + over) // 2
        most, over = (most, middle) if lack(middle) else (middle, over)
    raise InputError(f"--leaves: must be at most {most}, got {leaves} ({lack(over)})")


def _metric(name: str, repeats: int, known: Known | None) -> Metric:
    from sigeo.fewshot import metrics

    if name == "table":
        return metrics.get(name, known=known)
    if name in _WITHOUT_REPEATS:
        return metrics.get(name)
    return metrics.get(name, repeats=repeats)
