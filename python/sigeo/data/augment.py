"""Random changes of images that follow from a seed and the number of a step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sigeo.errors import InputError
from sigeo.kinds import check_fields
from sigeo.seeds import seed_of


@dataclass(frozen=True)
class Augmentation:
    """Flips, crops and colour changes, drawn for each image.

    Attributes:
        seed: All draws follow from it, the step and the view.
        flip: Whether half of the images are mirrored left to right.
        padding: Pixels of zeros around the image, out of which one of its size is cut; 0 for none.
        scale: Least and largest share of the area that is cut out, with sides of the image's
            proportion, and enlarged to its size; None for no such cut.
        brightness: Largest number, up or down, that is added to all pixels of an image.
        contrast: Largest share, up or down, by which an image's pixels move from their mean.
    """

    seed: int
    flip: bool = True
    padding: int = 4
    scale: tuple[float, float] | None = None
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is out of its range.
        """
        check_fields(self, "augment")
        for name in ("padding", "brightness", "contrast"):
            if getattr(self, name) < 0:
                raise InputError(f"augment: {name} must be at least 0, got {getattr(self, name)}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"augment: scale must be 0 < least <= largest <= 1, got {self.scale}")

    def __call__(self, images: Tensor, step: int, view: int = 0) -> Tensor:
        """Changed images.

        Args:
            images: [B, C, H, W], normalised, so that zero is the mean colour.
            step: Another one is another draw.
            view: Another one is another draw of the same step.

        Returns:
            The same shape, type, device and memory format.
        """
        generator = torch.Generator().manual_seed(seed_of(f"{self.seed}/{step}/{view}"))
        changed = images
        if self.scale is not None:
            changed = _cut(changed, self.scale, generator)
        if self.flip or self.padding:
            changed = self._move(changed, generator)
        if self.brightness or self.contrast:
            changed = self._colour(changed, generator)
        return torch.empty_like(images).copy_(changed)

    def _move(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Cut out of the padded image, and mirror."""
        count, _, height, width = images.shape
        offsets = torch.randint(
            0, 2 * self.padding + 1, (count, 2, 1), generator=generator, device="cpu"
        )
        columns = torch.arange(width, device="cpu").expand(count, -1)
        if self.flip:
            mirrored = _uniform(generator, count, 1) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows = (offsets[:, 0] + torch.arange(height, device="cpu")).to(images.device)
        columns = (offsets[:, 1] + columns).to(images.device)
        padded = F.pad(images, (self.padding,) * 4)
        which = torch.arange(count, device=images.device).view(-1, 1, 1)
        cut: Tensor = padded[which, :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
        return cut.movedim(-1, 1)

    def _colour(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draws = 2 * _uniform(generator, 2, len(images), 1, 1, 1) - 1
        brightness, contrast = draws.to(images.device, images.dtype).unbind(0)
        mean = images.mean((1, 2, 3), keepdim=True)
        stretched: Tensor = mean + (images - mean) * (1 + self.contrast * contrast)
        return stretched + self.brightness * brightness

    def describe(self) -> dict[str, Any]:
        """All settings, as JSON can hold them."""
        settings = asdict(self)
        scale = None if self.scale is None else list(self.scale)
        return {"name": "augmentation", **settings, "scale": scale}


def _cut(images: Tensor, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Cut a part out anywhere and enlarge it, bilinear."""
    low, high = scale
    share = low + (high - low) * _uniform(generator, len(images))
    side = share.sqrt()[:, None]
    theta = side.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side[:, 0]
    theta[:, :, 2] = (1 - side) * (2 * _uniform(generator, len(images), 2) - 1)
    theta = theta.to(images.device, images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers from 0 to 1, the same whatever torch's default type is."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
