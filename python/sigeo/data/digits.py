"""The handwritten digits of scikit-learn: 1,797 images of 8 x 8, inside the package."""

from __future__ import annotations

import torch

from sigeo.data.images import ImageData, Split

_TEST_EVERY = 5


def load_digits() -> ImageData:
    """Every fifth image is for testing, the others, 1,437, for training."""
    from sklearn.datasets import load_digits as load  # slow to import, and only needed here

    bunch = load()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    test = torch.arange(len(labels), device="cpu") % _TEST_EVERY == 0
    return ImageData(
        name="digits",
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        classes=10,
        levels=16,
    )
