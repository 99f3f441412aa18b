"""SWAP: rows of a sign matrix counted one by one, and its regularising factor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import sigeo
from sigeo import InputError, proxies
from sigeo.proxies.distinct import count_rows, number_rows, sign_words
from tests.sigeo.models import image_batches
from tests.sigeo.test_naswot import deep


def swap(model, inputs, **options):
    return sigeo.score(model, [inputs], [proxies.get("swap", **options)])["swap"]


def by_hooks(model, images) -> int:
    """Distinct rows of the matrix [values, samples]."""
    values = []
    model.train()
    hooks = [
        m.register_forward_hook(lambda m, given, y: values.append(y.detach().flatten(1) > 0))
        for m in model.modules()
        if isinstance(m, nn.ReLU)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return len({row.tobytes() for row in torch.cat(values, 1).t().contiguous().numpy()})


@pytest.mark.parametrize("samples", [3, 8, 64, 65, 130])  # words of 64 samples
def test_it_counts_distinct_patterns(samples):
    torch.manual_seed(0)
    model, ((images, _),) = deep(), image_batches(1, samples)
    assert swap(model, images).value == by_hooks(model, images)


def test_the_order_of_the_samples_and_repeated_ones_do_not_matter():
    torch.manual_seed(0)
    model, ((images, _),) = deep(), image_batches(1, 6)
    score = swap(model, images).value
    assert swap(model, images[[4, 2, 5, 0, 1, 3]]).value == score
    assert swap(model, images.repeat(2, 1, 1, 1)).value == score


def test_one_sample_has_two_patterns():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 30), nn.ReLU())
    assert swap(model, torch.randn(1, 3, 2, 2)).value == 2


def test_the_regularised_form_is_its_formula():
    torch.manual_seed(0)
    model, ((images, _),) = deep(), image_batches(1)
    model[0].weight.requires_grad_(False)  # counts all the same
    count = sum(p.numel() for p in model.parameters())
    plain = swap(model, images)
    assert not plain.terms and not proxies.get("swap").options
    score = swap(model, images, mu=count + 30, sigma=1000)
    assert score.terms == {"patterns": plain.value, "factor": math.exp(-0.9)}
    assert score.value == plain.value * math.exp(-0.9)
    assert swap(model, images, mu=count, sigma=1e-9).value == plain.value
    far = swap(model, images, mu=count + 30, sigma=1e-9)
    assert far.value == 0 and far.finite and "sigma is too small" in far.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 1.0}, "mu, sigma: expected both or neither"),
        ({"sigma": 1.0}, "mu, sigma: expected both or neither"),
        ({"mu": 1.0, "sigma": 0.0}, "sigma: must be above 0, got 0.0"),
        ({"mu": math.nan, "sigma": 1.0}, "mu: must be finite, got nan"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        proxies.get("swap", **options)


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
def test_numbers_of_rows_are_equal_where_rows_are(columns):
    generator = np.random.default_rng(0)
    values = generator.standard_normal((6, columns))[generator.integers(0, 6, 40)]
    values[7, -1] *= -1
    words = sign_words(torch.from_numpy(values))
    numbers = number_rows(words)
    same = ((values > 0)[:, None] == (values > 0)[None]).all(-1)
    assert ((numbers[:, None] == numbers[None]).numpy() == same).all()
    assert count_rows(numbers) == len(np.unique(values > 0, axis=0))
    in_parts = number_rows(words[:, 1:], number_rows(words[:, :1]))
    assert ((in_parts[:, None] == in_parts[None]).numpy() == same).all()
    assert count_rows(number_rows(words[:0])) == 0
