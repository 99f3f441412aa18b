"""Labelled images in memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sigeo.errors import InputError, check_kind
from sigeo.kinds import check_fields, checked_seed


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels.

    Attributes:
        images: uint8 [N, channels, size, size].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __repr__(self) -> str:
        """Number and shape, not the values."""
        return f"Split({len(self)} images, {_times(self.images.shape[1:])})"


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification; square images.

    Attributes:
        name: For tables and messages.
        train: Training images.
        test: Test images; may be empty.
        classes: Number of classes.
        levels: Largest pixel value, 255 for most.
    """

    name: str
    train: Split
    test: Split
    classes: int
    levels: int = 255

    def __post_init__(self) -> None:
        """Check shapes and labels.

        Raises:
            InputError: Images that are not square uint8, or labels that are not int64 or out of
                range.
        """
        check_fields(self, str(self.name))
        for which, split in (("train", self.train), ("test", self.test)):
            where = f"{self.name}: {which}"
            images, labels = split.images, split.labels
            check_kind(images, Tensor, f"{where} images")
            check_kind(labels, Tensor, f"{where} labels")
            if images.dtype != torch.uint8 or images.dim() != 4:
                kind = str(images.dtype).removeprefix("torch.")
                raise InputError(
                    f"{where} images must be uint8 [N, channels, H, W], "
                    f"got {kind} {list(images.shape)}"
                )
            if images.shape[2] != images.shape[3]:
                raise InputError(f"{where} images must be square, got {list(images.shape[2:])}")
            if images.shape[1:] != self.train.images.shape[1:]:
                shape, came = list(self.train.images.shape[1:]), list(images.shape[1:])
                raise InputError(
                    f"{where} images must be {shape} like the training ones, got {came}"
                )
            if labels.shape != (len(images),):
                raise InputError(
                    f"{where} labels must be one for each of {len(images)} images, "
                    f"got {list(labels.shape)}"
                )
            if labels.dtype != torch.int64:
                kind = str(labels.dtype).removeprefix("torch.")
                raise InputError(f"{where} labels must be int64, got {kind}")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                low, high = int(labels.min()), int(labels.max())
                raise InputError(
                    f"{where} labels must be from 0 to {self.classes - 1}, got {low} to {high}"
                )
        if len(self.train) == 0:
            raise InputError(f"{self.name}: expected training images, got none")

    def __repr__(self) -> str:
        """Name, numbers and shape, not the values."""
        return (
            f"{self.name}: {len(self.train)} train, {len(self.test)} test, "
            f"{_times(self.train.images.shape[1:])}, {self.classes} classes"
        )

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        """Height and width."""
        return self.train.images.shape[2]

    def resized(self, size: int) -> ImageData:
        """The same images made smaller, each pixel the mean of the area that it covers.

        Args:
            size: New height and width, at most the old.

        Raises:
            InputError: A larger size, or none.
        """
        if not 1 <= size <= self.size:
            raise InputError(f"image size: must be from 1 to {self.size}, got {size}")
        splits = [
            Split(_shrunk(split.images, size), split.labels) for split in (self.train, self.test)
        ]
        return replace(self, train=splits[0], test=splits[1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the training images and labels."""
        return self._hash(self.train)

    @functools.cached_property
    def test_fingerprint(self) -> str:
        """A hash of the test images and labels."""
        return self._hash(self.test)

    def _hash(self, split: Split) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((tuple(split.images.shape), self.classes, self.levels)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()

    @functools.cached_property
    def _mean_std(self) -> tuple[Tensor, Tensor]:
        """Of each channel of the training images, float32 [channels, 1, 1]."""
        pixels = torch.stack(
            [
                torch.bincount(channel.flatten().long(), minlength=256)
                for channel in self.train.images.transpose(0, 1)
            ]
        ).double()
        share = pixels / pixels.sum(1, keepdim=True)
        values = torch.arange(256, dtype=torch.float64, device="cpu")
        mean = (share * values).sum(1)
        std = ((share * values**2).sum(1) - mean**2).clamp_min(1e-12).sqrt()
        return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)

    def batch(
        self, index: Sequence[int] | Tensor, *, split: str = "train"
    ) -> tuple[Tensor, Tensor]:
        """Normalised images, float32 [B, channels, size, size], and labels, int64 [B].

        Each channel has mean 0 and standard deviation 1 over the training images.
        """
        chosen: Split = getattr(self, split)
        places = torch.as_tensor(index, dtype=torch.long, device=chosen.images.device)
        mean, std = self._mean_std
        return (chosen.images[places].float() - mean) / std, chosen.labels[places]

    def order(self, seed: int) -> Tensor:
        """A random order of the training images, the same for the same seed.

        Raises:
            InputError: It is no seed, see `checked_seed`.
        """
        generator = torch.Generator().manual_seed(checked_seed(seed))
        return torch.randperm(len(self.train), generator=generator, device="cpu")


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _shrunk(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size or len(images) == 0:
        return images[..., :size, :size]
    parts = [  # in parts, as float32 takes four times the memory
        nn.functional.interpolate(part.float(), (size, size), mode="area").round().to(torch.uint8)
        for part in images.split(4096)
    ]
    return torch.cat(parts)
