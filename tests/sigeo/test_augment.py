"""Random changes of images: what they do, and that they follow from seed, step and view."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sigeo import InputError
from sigeo.data import Augmentation

IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_draws_follow_from_seed_step_and_view():
    augment = Augmentation(seed=1, scale=(0.3, 1.0), brightness=0.2, contrast=0.2)
    once = augment(IMAGES, 3)
    state = torch.get_rng_state()
    assert torch.equal(once, augment(IMAGES, 3))
    assert torch.equal(state, torch.get_rng_state())
    others = (augment(IMAGES, 4), augment(IMAGES, 3, 1), Augmentation(seed=2)(IMAGES, 3))
    assert not any(torch.equal(once, other) for other in others)


def test_flips_and_crops_are_some_window_of_the_padded_image_perhaps_mirrored():
    out = Augmentation(seed=0, padding=2)(IMAGES, 0)
    padded = F.pad(IMAGES, (2, 2, 2, 2))
    seen = set()
    for image, given in zip(out, padded, strict=True):
        windows = {
            (y, x, mirrored): window.flip(2) if mirrored else window
            for y in range(5)
            for x in range(5)
            for mirrored in (False, True)
            for window in (given[:, y : y + 8, x : x + 8],)
        }
        (place,) = [place for place, window in windows.items() if torch.equal(image, window)]
        seen.add(place)
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(5))
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_nothing_is_changed_where_nothing_is_asked_for():
    still = Augmentation(seed=0, flip=False, padding=0)(IMAGES, 0)
    assert torch.equal(still, IMAGES)
    whole = Augmentation(seed=0, flip=False, padding=0, scale=(1.0, 1.0))(IMAGES, 0)
    torch.testing.assert_close(whole, IMAGES, rtol=1e-5, atol=1e-5)


def test_parts_that_are_enlarged_stay_within_the_image():
    ramp = torch.arange(8.0).expand(50, 1, 8, 8)
    out = Augmentation(seed=0, flip=False, padding=0, scale=(0.25, 0.25))(ramp, 0)
    steps = (out[..., 1:] - out[..., :-1])[..., 1:-1]  # at the border the last pixel repeats
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5), rtol=1e-3, atol=1e-3)
    assert out.min() >= 0 and out.max() <= 7 and out[:, 0, 0, 0].unique().numel() > 10


def test_colours_move_by_image():
    out = Augmentation(seed=0, flip=False, padding=0, brightness=0.5)(IMAGES, 0)
    moved = (out - IMAGES).flatten(1)
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), rtol=1e-4, atol=1e-5)
    assert moved.abs().max() <= 0.5001 and moved.min() < 0 < moved.max()
    out = Augmentation(seed=0, flip=False, padding=0, contrast=0.5)(IMAGES, 0).flatten(1)
    torch.testing.assert_close(out.mean(1), IMAGES.flatten(1).mean(1), rtol=1e-3, atol=1e-5)
    ratio = out.std(1) / IMAGES.flatten(1).std(1)
    assert 0.5 <= ratio.min() < 1 < ratio.max() <= 1.5


def test_memory_format_and_type_stay():
    images = IMAGES.to(torch.float64, memory_format=torch.channels_last)
    out = Augmentation(seed=0, scale=(0.5, 1.0))(images, 0)
    assert out.dtype == torch.float64 and out.is_contiguous(memory_format=torch.channels_last)


def test_bad_settings():
    with pytest.raises(InputError, match="padding must be at least 0, got -1"):
        Augmentation(seed=0, padding=-1)
    with pytest.raises(InputError, match=r"padding must be a whole number, got 1\.5"):
        Augmentation(seed=0, padding=1.5)
    with pytest.raises(InputError, match="scale must be 0 < least <= largest <= 1"):
        Augmentation(seed=0, scale=(0.5, 0.2))
    described = Augmentation(seed=0, scale=(0.2, 1.0)).describe()
    assert described["scale"] == [0.2, 1.0] and described["name"] == "augmentation"
