"""Options that several verbs share, and what they stand for."""

from __future__ import annotations

import argparse
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sigeo.cli import console, names
from sigeo.errors import InputError
from sigeo.space_sizes import SIZES

if TYPE_CHECKING:
    from sigeo.data import ImageData
    from sigeo.spaces import InputShape, SearchSpace


_INT64_MAX = 2**63 - 1  # what torch and NumPy take


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A converter to whole numbers from ``low`` (to ``high``).

    It raises argparse.ArgumentTypeError for anything else.
    """
    most = _INT64_MAX if high is None else high

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= most:
            to = f" to {most}" if value > most or high is not None else ""
            raise argparse.ArgumentTypeError(f"must be a whole number from {low}{to}, got {text!r}")
        return value

    return convert


positive = whole(1)
seed = whole(0, _INT64_MAX)
resamples = whole(1, 1_000_000)
at_least_two = whole(2)  # batch norm needs two images


def _finite(low: float, high: float, expected: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
        return value

    return convert


fraction = _finite(0, 1, "a number from 0 to 1")
share = _finite(sys.float_info.min, 1, "a number above 0, at most 1")
rate = _finite(0, math.nextafter(1, 0), "a number from 0 to below 1")
positive_number = _finite(sys.float_info.min, sys.float_info.max, "a number above 0")
step_size = _finite(0, 1e38, "a number from 0 to 1e38")  # with more float32 overflows
positive_step_size = _finite(sys.float_info.min, 1e38, "a number above 0, at most 1e38")
threads = whole(1, 1024)


def _space_size(text: str) -> tuple[str, Any]:
    name, equals, values = text.partition("=")
    if not equals or not name or not values:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE or NAME=V,V,..., got {text!r}")
    parts = tuple(_number_or_word(part.strip()) for part in values.split(","))
    return name.strip(), parts[0] if len(parts) == 1 else parts


def _number_or_word(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def there(expected: str, *, folders: bool = True) -> Callable[[str], str]:
    """A converter that takes the paths of files and folders that exist.

    It raises argparse.ArgumentTypeError for anything else.

    Args:
        expected: What the message says that the path should be of.
        folders: Whether it may be a folder's.
    """

    def convert(text: str) -> str:
        if not text:
            raise argparse.ArgumentTypeError(f"expected {expected}, got ''")
        try:
            mode = os.stat(text).st_mode
        except OSError as error:
            raise argparse.ArgumentTypeError(
                f"expected {expected}, {text}: {error.strerror}"
            ) from None
        if not folders and stat.S_ISDIR(mode):
            raise argparse.ArgumentTypeError(f"expected {expected}, {text} is a folder")
        return text

    return convert


def out_folder(text: str) -> str:
    """A converter that takes the paths of folders that are there or can be made.

    Raises:
        ArgumentTypeError: A file is in the way, or it cannot be written.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got ''")
    path = Path(text)
    place = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, {place} is not one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"expected a folder to write in, {place} is not")
    return text


existing_file = there("a file", folders=False)  # or a pipe, such as /dev/stdin


def text_of(path: Path) -> str:
    """What a file of text holds, without a mark of its encoding in front.

    Raises:
        InputError: It is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected text in UTF-8, {error.reason} at {error.start}"
        ) from None


def _data(text: str) -> str:
    if text != "digits":
        there("'digits', a folder or an .npz file")(text)
    return text


def _device(text: str) -> str:
    if re.fullmatch(r"(cpu|cuda)(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}")
    return text


def add_space(parser: argparse.ArgumentParser) -> None:
    """The space, its sizes and the data."""
    group = parser.add_argument_group("networks and data")
    group.add_argument(
        "--space",
        type=names.one_of(SIZES),
        default="nasbench201",
        metavar="NAME",
        help=f"search space: {', '.join(SIZES)} (default: %(default)s)",
    )
    group.add_argument(
        "--size",
        type=_space_size,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a size of the space, one number or several with commas; the docs list them",
    )
    group.add_argument(
        "--channels",
        type=positive,
        help="the same as --size channels=N; of nasbench201: width of "
        "the first stage (published: 16)",
    )
    group.add_argument(
        "--cells", type=positive, help="of nasbench201: cells of each stage (published: 5)"
    )
    group.add_argument(
        "--data",
        type=_data,
        default="digits",
        help="'digits', an official CIFAR folder, or an .npz file (default: %(default)s)",
    )
    group.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="make the images smaller first, N x N (default: as they are)",
    )
    group.add_argument(
        "--seed",
        type=seed,
        default=0,
        help="of weights, images and architectures, 0 to 2**63-1 (default: %(default)s)",
    )
    group.add_argument(
        "--device", type=_device, default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)"
    )
    group.add_argument("--threads", type=threads, help="CPU threads (default: torch's)")


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option of the folder that a verb leaves its files in, see `run_path`."""
    parser.add_argument("--out", type=out_folder, metavar="DIR", help="default: runs/SPACE-DATA")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option of a document for programs in the place of tables for people."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def networks_at_once(text: str) -> int | Literal["auto"]:
    """The value of ``--many``.

    Raises:
        ArgumentTypeError: It is something else than the option takes.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return 1
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        expected = "auto, off or a whole number from 1"
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}") from None


def space_before_images(
    args: argparse.Namespace, shape: InputShape | None = None
) -> SearchSpace[Any]:
    """The space as the options alone describe it, to refuse on it what no images would mend.

    Its own images are of a shape that is given, or such as go with all sizes. The device is checked
    as well.

    Raises:
        InputError: There is no such device, or sizes do not go together.
    """
    from sigeo import spaces
    from sigeo.scoring.devices import parse_device

    parse_device(args.device)
    sizes = space_sizes(args)
    pixels = sizes.get("patch", 1) << 20  # a multiple of the patch, and more than stages use up
    large = spaces.InputShape(channels=3, size=pixels, classes=10)
    return spaces.get(args.space, large if shape is None else shape, **sizes)


def load_data_and_space(args: argparse.Namespace) -> tuple[ImageData, SearchSpace[Any]]:
    """The data, and the space sized for it."""
    import torch

    from sigeo import data, spaces

    sizes = space_sizes(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with console.said_if_slow(f"reading the images of {args.data}"):
        images = data.load(args.data)
        if args.image_size is not None:
            images = images.resized(args.image_size)
    shape = spaces.InputShape(images.channels, images.size, images.classes)
    return images, spaces.get(args.space, shape, **sizes)


def space_sizes(args: argparse.Namespace) -> dict[str, Any]:
    """The sizes of the space that are given; before anything is loaded.

    Raises:
        InputError: One is given twice or is not what it may be, or the space has none of that name.
    """
    known = SIZES[args.space]
    own = ((name, f"--{name}", getattr(args, name)) for name in ("channels", "cells"))
    given = [(name, option, value) for name, option, value in own if value is not None]
    given += [(name, f"--size {name}", value) for name, value in args.size]
    sizes: dict[str, Any] = {}
    for name, option, value in given:
        if name in sizes:
            raise InputError(f"--size: {name} is given twice")
        if name not in known:
            raise InputError(f"{option}: {args.space} has no such size, it has {', '.join(known)}")
        try:
            known[name](value)
        except InputError as error:
            raise InputError(f"{option}: {error}") from None
        sizes[name] = value
    return sizes


def run_path(args: argparse.Namespace) -> Path:
    """The folder of a run."""
    name = file_name(f"{args.space}-{Path(args.data).stem}")
    return Path(args.out) if args.out is not None else Path("runs") / name


@contextmanager
def run_folder(args: argparse.Namespace) -> Iterator[Path]:
    """The folder of a run, made if it is not there.

    If the body fails before it has written there, what was made is taken away again.

    Yields:
        Its path.
    """
    folder = run_path(args)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # one that is not empty stays
            for place in made:
                place.rmdir()
        raise


def file_name(text: str) -> str:
    """A text as the name of a file or folder."""
    return re.sub(r"[^\w.-]+", "-", text)
