"""jacov and epe_nas from rows spelled out in NumPy, and where there is nothing to correlate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import sigeo
from sigeo import InputError
from sigeo.proxies.correlations import correlations
from tests.sigeo.models import TwoInputs, assert_unchanged, golden_net, image_batches, state_of


def rows_of(model, images):
    """The gradient of the batch's summed outputs by each number of each input, [B, numbers]."""
    x = images.clone().requires_grad_()
    model.train()(x).sum().backward()
    return x.grad.flatten(1).numpy()


def jacov_of(rows):
    values = np.linalg.eigvalsh(np.corrcoef(rows))
    return -sum(math.log(v + 1e-5) + 1 / (v + 1e-5) for v in values)


def epe_of(rows, labels, *, many):
    sums, sizes = [], []
    for c in sorted(set(labels)):
        places = [b for b, label in enumerate(labels) if label == c]
        if len(places) < 2:
            continue
        total = 0.0
        for i in places:
            for j in places:
                r = np.corrcoef(rows[i], rows[j])[0, 1]
                total += math.log(abs(r) + 1e-5)
        sums.append(total)
        sizes.append(len(places))
    if not many:
        return sum(abs(s) for s in sums)
    means = [s / n for s, n in zip(sums, sizes, strict=True)]
    return sum(abs(a - b) for a in means for b in means) / len(means)


def wide_net(classes):
    torch.manual_seed(0)
    return nn.Sequential(*list(golden_net())[:-1], nn.Linear(12, classes)).double()


@pytest.mark.parametrize("memory_format", ["preserve", "auto"])
def test_jacov_is_its_formula(memory_format):
    torch.manual_seed(0)
    model, batches = golden_net().double(), image_batches(1, 12, torch.float64)
    score = sigeo.score(model, batches, ["jacov"], memory_format=memory_format)["jacov"]
    expected = jacov_of(rows_of(model, batches[0][0]))
    assert score.finite and score.value == pytest.approx(expected, rel=1e-8)
    assert 0 < score.terms["smallest"] < 1 < score.terms["largest"]


@pytest.mark.parametrize("classes", [5, 100, 101])
def test_epe_nas_is_its_formula(classes):
    model = wide_net(classes)
    (images, _), *_ = image_batches(1, 12, torch.float64)
    labels = torch.tensor([0, 3, 0, 3, 4, 3, 2, 2, 0, 3, 1, 0])  # 4 and 1 have one sample each
    score = sigeo.score(model, [(images, labels)], ["epe_nas"], memory_format="preserve")["epe_nas"]
    expected = epe_of(rows_of(model, images), labels.tolist(), many=classes > 100)
    assert score.finite and score.value == pytest.approx(expected, rel=1e-8)
    assert score.terms == {"classes": 3}


def test_samples_that_losses_ignore_are_of_no_class():
    model, ((images, _), *_) = wide_net(5), image_batches(1, 12, torch.float64)
    alone = torch.tensor([0, 3, 0, 3, 4, 3, 2, 1, 0, 3, 0, 0])
    ignored = alone.clone()
    ignored[[4, 6, 7]] = -100
    one, other = (
        sigeo.score(model, [(images, labels)], ["epe_nas"])["epe_nas"]
        for labels in (alone, ignored)
    )
    assert one == other and one.terms == {"classes": 2}


def test_probabilities_count_as_their_largest():
    model, (batch, *_) = golden_net(), image_batches(1)
    hot = nn.functional.one_hot(batch[1], 5).float()
    one, other = (
        sigeo.score(model, [(batch[0], labels)], ["epe_nas"]) for labels in (batch[1], hot)
    )
    assert one == other


def test_all_real_inputs_count():
    torch.manual_seed(0)
    model = TwoInputs().double()
    a, b = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    score = sigeo.score(model, [((a, b), torch.arange(6) % 5)], ["jacov"])["jacov"]
    named = sigeo.score(model, [({"b": b, "a": a}, torch.arange(6) % 5)], ["jacov"])["jacov"]
    a.requires_grad_(), b.requires_grad_()
    model(a, b).sum().backward()
    expected = jacov_of(torch.cat([a.grad, b.grad], 1).numpy())
    assert score.value == pytest.approx(expected, rel=1e-8)
    assert named.value == pytest.approx(expected, rel=1e-8)


def test_the_model_comes_back_as_it_was_also_after_an_exception():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.fails = golden_net(), True

        def forward(self, x):
            y = nn.functional.dropout(self.net(x), training=self.training)
            if self.fails:
                raise RuntimeError("broken")
            return y

    model, batches = Broken().eval(), image_batches(1)
    model.net[0].weight.grad = torch.ones_like(model.net[0].weight)
    before, random = state_of(model), torch.get_rng_state()
    for name in ("jacov", "epe_nas"):
        model.fails = True
        with pytest.raises(RuntimeError, match="broken"):
            sigeo.score(model, batches, [name])
        model.fails = False
        assert sigeo.score(model, batches, [name]) == sigeo.score(model, batches, [name])
    assert_unchanged(model, before)
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module.training for module in model.modules())
    assert torch.equal(model.net[0].weight.grad, torch.ones_like(model.net[0].weight))
    assert model.net[0].bias.grad is None and not batches[0][0].requires_grad


def test_a_model_may_change_its_input_in_place():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 5))
    same = nn.Sequential(nn.ReLU(), *model[1:])
    batches = image_batches(1)
    assert sigeo.score(model, batches, ["jacov"]) == sigeo.score(same, batches, ["jacov"])


class Cut(nn.Module):
    """The output is not computed from the first ``cut`` samples, or is so from their sum alone."""

    def __init__(self, cut, flat):
        super().__init__()
        self.net, self.cut, self.flat = golden_net(), cut, flat

    def forward(self, x):
        weight = torch.ones(len(x), 1)
        weight[: self.cut] = 0
        extra = 0.1 * x[: self.cut].sum() if self.flat else 0
        return self.net(x) * weight + extra


@pytest.mark.parametrize("flat", [False, True])
def test_a_constant_row_correlates_with_nothing(flat):
    model, batches = Cut(3, flat), image_batches(1, 12)
    model.net[1] = nn.Identity()  # batch norm would couple the samples
    for name in ("jacov", "epe_nas"):
        score = sigeo.score(model, batches, [name])[name]
        assert score.value == -math.inf and not score.finite
        assert score.notes[0].startswith("3 of 12 samples have a constant gradient")


def test_a_constant_row_of_a_class_of_one_does_not_matter():
    model, ((images, _), *_) = Cut(1, False), image_batches(1, 12)
    model.net[1] = nn.Identity()
    labels = torch.tensor([4, *[0] * 6, *[1] * 5])
    assert sigeo.score(model, [(images, labels)], ["epe_nas"])["epe_nas"].finite
    assert not sigeo.score(model, [(images, labels)], ["jacov"])["jacov"].finite


def test_outputs_that_do_not_depend_on_the_input_are_not_finite():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(5), requires_grad=False)

        def forward(self, x):
            return self.logits.expand(len(x), 5)

    for name in ("jacov", "epe_nas"):
        score = sigeo.score(Same(), image_batches(1), [name])[name]
        assert not score.finite and "samples have a constant gradient" in score.notes[0]


def test_a_gradient_that_is_not_finite_is_said_to_be():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    nn.init.constant_(model[1].weight, math.inf)
    for name in ("jacov", "epe_nas"):
        score = sigeo.score(model, image_batches(1), [name])[name]
        assert not score.finite and "is not finite" in score.notes[0]


def test_more_samples_than_numbers_are_noted():
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    few, many = (
        sigeo.score(model, [torch.randn(count, 8)], ["jacov"])["jacov"] for count in (7, 8)
    )
    assert few.finite and not few.notes
    assert many.finite and many.notes == (
        "8 samples of 8 numbers have singular correlations: take fewer samples",
    )


def test_correlations_keep_rows_that_vary_little_around_a_large_mean():
    torch.manual_seed(0)
    rows = torch.randn(5, 40, dtype=torch.float64) + 1e6
    rows[2] = 1e6
    matrix, constant = correlations(rows)
    assert constant.tolist() == [False, False, True, False, False]
    kept = [0, 1, 3, 4]
    expected = np.corrcoef(rows[kept].numpy())
    np.testing.assert_allclose(matrix[kept][:, kept].numpy(), expected, atol=1e-8)
    assert not matrix[2].any() and not matrix[:, 2].any()


def test_what_is_refused():
    model, ((images, labels), *_) = golden_net(), image_batches(1)
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5))
    whole = torch.randint(0, 9, (4, 3))
    for name in ("jacov", "epe_nas"):
        with pytest.raises(InputError, match=f"{name}: needs inputs of real numbers, got none"):
            sigeo.score(tokens, [(whole, torch.arange(4))], [name])
    with pytest.raises(InputError, match=r"one row a sample, got shapes \[4, 4\], \[3, 3\]"):
        sigeo.score(TwoInputs(), [((torch.randn(4, 4), torch.randn(3, 3)), labels)], ["jacov"])
    with pytest.raises(InputError, match="jacov: needs a batch of at least 2 samples, got 1"):
        sigeo.score(model, [images[:1]], ["jacov"])
    with pytest.raises(InputError, match="epe_nas: needs two samples of one class .* got none"):
        sigeo.score(model, [(images[:5], torch.arange(5))], ["epe_nas"])
    with pytest.raises(InputError, match="epe_nas needs labels"):
        sigeo.score(model, [images], ["epe_nas"])
    for wrong, came in (
        (labels.float(), r"torch.float32 \[16\]"),
        (labels[:4], r"torch.int64 \[4\]"),
        ({"a": labels}, "dict"),
    ):
        with pytest.raises(InputError, match=f"the class of each of 16 samples, got {came}"):
            sigeo.score(model, [(images, wrong)], ["epe_nas"])


def test_outputs_that_are_not_finite_and_labels_that_are_no_classes():
    (images, labels), model = image_batches(1)[0], golden_net()
    broken = torch.full_like(images, math.nan)
    for name in ("jacov", "epe_nas"):
        score = sigeo.score(model, [(broken, labels)], [name])[name]
        assert not score.finite
        assert any("not finite" in note for note in score.notes)
    with pytest.raises(InputError, match="labels: expected classes from 0 to 4, got 103"):
        sigeo.score(model, [(images, torch.full_like(labels, 103))], ["epe_nas"])
