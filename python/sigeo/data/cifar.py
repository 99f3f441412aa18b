"""CIFAR-10 and CIFAR-100 from the official folders, python or binary version.

The python version is pickled. It is read with a reader that makes NumPy arrays, lists, dicts and
strings and refuses anything else, so a folder from anywhere is safe to open.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sigeo.data.images import ImageData, Split
from sigeo.errors import InputError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """One of the four official folders."""

    name: str
    classes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: str
    label_bytes: int

    @property
    def binary(self) -> bool:
        return self.train[0].endswith(".bin")


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_VERSIONS = (
    _Version("cifar10", 10, _BATCHES, ("test_batch",), "labels", 0),
    _Version("cifar10", 10, tuple(f"{b}.bin" for b in _BATCHES), ("test_batch.bin",), "", 1),
    _Version("cifar100", 100, ("train",), ("test",), "fine_labels", 0),
    _Version("cifar100", 100, ("train.bin",), ("test.bin",), "", 2),
)


def load_cifar(folder: Path) -> ImageData | None:
    """The data set in an official folder, or in one folder below it; None if there is none.

    Raises:
        InputError: A file is damaged, or holds what such a file should not hold.
    """
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        for version in _VERSIONS:
            if all((place / name).is_file() for name in (*version.train, *version.test)):
                train, test = (
                    _joined([_read(place / name, version) for name in names])
                    for names in (version.train, version.test)
                )
                return ImageData(version.name, train, test, version.classes)
    return None


def _joined(parts: list[tuple[NDArray[Any], NDArray[Any]]]) -> Split:
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return Split(torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels))


def _read(path: Path, version: _Version) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pixels [N, 3072] and labels [N] of one file."""
    return _read_binary(path, version) if version.binary else _read_pickle(path, version)


def _read_binary(path: Path, version: _Version) -> tuple[NDArray[Any], NDArray[Any]]:
    values = np.fromfile(path, dtype=np.uint8)
    row = version.label_bytes + _PIXELS
    if len(values) == 0 or len(values) % row:
        raise InputError(f"{path}: expected rows of {row} bytes, got {len(values)} bytes")
    rows = values.reshape(-1, row)
    return rows[:, version.label_bytes :].copy(), rows[:, version.label_bytes - 1].astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and plain containers, nothing else."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise InputError(f"the file asks for {module}.{name}, which CIFAR files do not hold")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_pickle(path: Path, version: _Version) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        entries = {key.decode() if isinstance(key, bytes) else key: v for key, v in content.items()}
        pixels = np.asarray(entries["data"])
        labels = np.asarray(entries[version.label])
    except InputError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    except Exception as error:  # a pickle is a program: hostile bytes raise whatever they like
        what = " ".join(f"{type(error).__name__} {error}".split())
        raise InputError(f"{path}: expected a CIFAR batch in the python version ({what})") from None
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise InputError(
            f"{path}: data must be uint8 [N, {_PIXELS}], got {pixels.dtype} {list(pixels.shape)}"
        )
    if labels.shape != pixels.shape[:1] or (len(labels) and labels.dtype.kind not in "iu"):
        name = version.label
        raise InputError(
            f"{path}: {name} must be {len(pixels)} integers, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    return pixels, labels.astype(np.int64)
