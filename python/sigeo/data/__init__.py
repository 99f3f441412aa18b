"""Data that a user has, and a small set inside the package. Nothing is ever downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from sigeo.data.augment import Augmentation
from sigeo.data.cifar import load_cifar
from sigeo.data.digits import load_digits
from sigeo.data.images import ImageData, Split
from sigeo.data.npz import load_npz
from sigeo.errors import InputError
from sigeo.kinds import named_arguments

__all__ = ["Augmentation", "ImageData", "Split", "load"]


@named_arguments("data")
def load(source: str | Path) -> ImageData:
    """Load a data set.

    Args:
        source: "digits"; an official CIFAR-10 or CIFAR-100 folder, python or binary version; or an
            ``.npz`` file, see `sigeo.data.npz`.

    Raises:
        InputError: None of these, or damaged.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"data: expected 'digits' or a path, got {type(source).__name__}; images in memory are "
            "an ImageData"
        )
    if source == "digits":
        return load_digits()
    path = Path(source)
    if path.is_dir():
        data = load_cifar(path)
        if data is None:
            raise InputError(f"data: {path} holds no CIFAR-10 or CIFAR-100 files")
        return data
    if path.is_file() and path.suffix == ".npz":
        return load_npz(path)
    if path.exists():
        raise InputError(f"data: expected a folder or an .npz file, got {path}")
    raise InputError(f"data: expected 'digits', a folder or an .npz file, found no {source}")
