"""Images in an ``.npz`` file: as pixels, or as JPEG streams.

Pixels: ``train_images`` uint8 [N, H, W] or [N, H, W, channels]. Streams: ``train_jpeg``, uint8, all
end to end, and ``train_offsets``, int64 [N + 1]. Labels: ``train_labels`` or ``train_fine`` [N].
The same with ``test_``, which may be missing. ``class_names`` or ``fine_names`` give the number of
classes; without them it is the largest label plus one.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sigeo.data.images import ImageData, Split
from sigeo.errors import InputError

# Larger labels are names of some kind, and a layer with an output for each would not fit.
_MOST_CLASSES = 1 << 20


def load_npz(path: Path) -> ImageData:
    """The data set of a file.

    Raises:
        InputError: The file is damaged, holds pickled objects, or an array is missing or of the
            wrong shape.
    """
    arrays = _arrays(path)
    train_images = _images(path, arrays, "train")
    train_labels = _labels(path, arrays, "train")
    if any(name.startswith("test_") for name in arrays):
        test_images, test_labels = _images(path, arrays, "test"), _labels(path, arrays, "test")
    else:
        test_images, test_labels = train_images[:0], train_labels[:0]
    return ImageData(
        name=path.stem,
        train=Split(torch.from_numpy(train_images), torch.from_numpy(train_labels)),
        test=Split(torch.from_numpy(test_images), torch.from_numpy(test_labels)),
        classes=_classes(path, arrays, train_labels),
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: expected an .npz file, got a single array")
        with file:
            arrays = {name: file[name] for name in file.files if not name.endswith("_index")}
    except InputError:
        raise
    except Exception as error:  # bytes from anywhere make zipfile, zlib and NumPy raise anything
        what = " ".join(f"{type(error).__name__} {error}".split())
        raise InputError(f"{path}: expected an .npz file of plain arrays ({what})") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member of the archive that is no .npy file
            raise InputError(f"{path}: expected an .npz file of plain arrays, found {name}")
    return arrays


def _classes(path: Path, arrays: dict[str, NDArray[Any]], labels: NDArray[np.int64]) -> int:
    """The number of classes.

    Raises:
        InputError: The names are no list, there is no label to count by, or one that is too large.
    """
    for name in ("class_names", "fine_names"):
        if name in arrays:
            if arrays[name].ndim != 1:
                raise InputError(
                    f"{path}: {name} must be [classes], got {list(arrays[name].shape)}"
                )
            return len(arrays[name])
    if not len(labels):
        raise InputError(f"{path}: expected training images, got none")
    classes = int(labels.max()) + 1
    if classes > _MOST_CLASSES:
        raise InputError(
            f"{path}: training labels must be below {_MOST_CLASSES}, got {classes - 1}"
        )
    return classes


def _images(path: Path, arrays: dict[str, NDArray[Any]], which: str) -> NDArray[np.uint8]:
    """[N, channels, H, W].

    Raises:
        InputError: The array is missing or of the wrong shape.
    """
    if f"{which}_jpeg" in arrays and f"{which}_offsets" in arrays:
        return _decode(path, arrays[f"{which}_jpeg"], arrays[f"{which}_offsets"], which)
    name = f"{which}_images"
    if name not in arrays:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"{path}: expected an array {name}, found {found}")
    images = arrays[name]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(
            f"{path}: {name} must be uint8 [N, H, W] or [N, H, W, channels], "
            f"got {images.dtype} {list(images.shape)}"
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[3] not in (1, 3):
        raise InputError(
            f"{path}: {name} must have 1 or 3 channels last, got shape {list(images.shape)}"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _labels(path: Path, arrays: dict[str, NDArray[Any]], which: str) -> NDArray[np.int64]:
    for name in (f"{which}_labels", f"{which}_fine"):
        if name in arrays:
            labels = arrays[name]
            if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
                raise InputError(
                    f"{path}: {name} must be integers [N], got {labels.dtype} {list(labels.shape)}"
                )
            return labels.astype(np.int64)
    raise InputError(f"{path}: expected an array {which}_labels or {which}_fine, found neither")


def _decode(
    path: Path, streams: NDArray[Any], offsets: NDArray[Any], which: str
) -> NDArray[np.uint8]:
    from PIL import Image

    if streams.dtype != np.uint8 or streams.ndim != 1:
        raise InputError(f"{path}: {which}_jpeg must be uint8 [bytes], got {list(streams.shape)}")
    if not np.issubdtype(offsets.dtype, np.integer) or offsets.ndim != 1:
        raise InputError(
            f"{path}: {which}_offsets must be integers [images + 1], "
            f"got {offsets.dtype} {list(offsets.shape)}"
        )
    offsets = offsets.astype(np.int64)  # differences of unsigned ones would wrap around
    rising = len(offsets) > 0 and bool((np.diff(offsets) > 0).all())
    if not rising or offsets[0] != 0 or offsets[-1] != len(streams):
        raise InputError(
            f"{path}: {which}_offsets must rise from 0 to the {len(streams)} bytes of {which}_jpeg"
        )
    data = streams.tobytes()
    images: NDArray[np.uint8] | None = None
    for index in range(len(offsets) - 1):
        stream = io.BytesIO(data[offsets[index] : offsets[index + 1]])
        try:
            pixels = np.asarray(Image.open(stream).convert("RGB"))
        except Exception as error:  # a broken stream makes the decoders raise anything
            what = " ".join(f"{type(error).__name__} {error}".split())
            raise InputError(f"{path}: image {index} of {which}_jpeg: {what}") from None
        if images is None:
            images = np.empty((len(offsets) - 1, 3, *pixels.shape[:2]), np.uint8)
        if pixels.shape[:2] != images.shape[2:]:
            raise InputError(
                f"{path}: image {index} of {which}_jpeg must be {list(images.shape[2:])} pixels "
                f"like the first, got {list(pixels.shape[:2])}"
            )
        images[index] = pixels.transpose(2, 0, 1)
    return np.empty((0, 3, 1, 1), np.uint8) if images is None else images
