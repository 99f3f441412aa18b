"""`capture` and batch norm, by each policy."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo import zoo
from tests.sigeo.sample_loop import EVERYTHING, SAMPLES, assert_statistics, error, loop


@pytest.mark.parametrize("name", ["batch-norm, training", "batch norm without statistics"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_on_the_batch_is_refused(name, mode):
    model, inputs, _labels = zoo.made("convolutions", SAMPLES)
    track = name == "batch-norm, training"
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=track), model).double()
    getattr(model, mode)()
    if track and mode == "eval":
        return
    with (
        pytest.raises(InputError, match="batch norm uses the statistics of the batch"),
        capture(model),
    ):
        model(*inputs)


def test_batch_norm_of_units_equals_micro_batches():
    torch.manual_seed(0)
    model, inputs, _ = zoo.made("batch norm", SAMPLES)
    model.train()
    labels = torch.arange(SAMPLES) % 5
    rows = []
    for part in range(0, SAMPLES, 3):
        model.zero_grad()
        twin = copy.deepcopy(model)
        F.cross_entropy(twin(inputs[0][part : part + 3]), labels[part : part + 3]).backward()
        rows.append({n: p.grad.clone() for n, p in twin.named_parameters()})
    with capture(model, EVERYTHING, unit=3, batch_norm="per_unit") as stats:
        F.cross_entropy(model(inputs[0]), labels).backward()
    stacked = {n: torch.stack([r[n] for r in rows]) for n in rows[0]}
    assert_statistics(stats, stacked, model)


def test_contributions_add_up_to_the_gradient_of_the_batch():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("batch norm", SAMPLES)
    model.train()
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(*inputs), labels).backward()
    with capture(model, EVERYTHING, batch_norm="contribution") as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert error(p.grad, q.grad) < 1e-10
        assert error(stats[name].sum / SAMPLES, q.grad) < 1e-10
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_frozen_batch_norm_in_training():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("batch norm", SAMPLES)
    rows = loop(model.eval(), inputs, labels)
    buffers = [b.clone() for b in model.buffers()]
    with capture(model.train(), EVERYTHING, batch_norm="frozen") as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    assert_statistics(stats, rows, model)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


class BehindTheNorm(nn.Module):
    """A parameter that no kernel knows, in a module that has batch norm as well."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(4, 5))

    def forward(self, x):
        orthogonal = torch.linalg.qr(self.weight)[1]
        return torch.tanh(self.norm(self.conv(x))).mean((2, 3)) @ orthogonal


@pytest.mark.parametrize(("policy", "unit"), [("frozen", 1), ("per_unit", 3)])
def test_a_module_that_runs_again_keeps_to_the_policy_for_batch_norm(policy, unit):
    torch.manual_seed(0)
    model = BehindTheNorm().double()
    model.norm.running_mean.normal_()
    _, inputs, labels = zoo.made("convolutions", SAMPLES)
    if policy == "frozen":
        expected = loop(copy.deepcopy(model).eval(), inputs, labels)
    else:
        twin, rows = copy.deepcopy(model), []
        for part in range(0, SAMPLES, unit):
            twin.zero_grad()
            pick = slice(part, part + unit)
            F.cross_entropy(twin(inputs[0][pick]), labels[pick]).backward()
            rows.append({n: p.grad.clone() for n, p in twin.named_parameters()})
        expected = {n: torch.stack([r[n] for r in rows]) for n in rows[0]}
    buffers = [b.clone() for b in model.buffers()]
    with capture(model, EVERYTHING, unit=unit, batch_norm=policy) as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    assert_statistics(stats, expected, model)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert model.norm.training


def test_a_module_that_runs_again_cannot_split_a_batchs_norm():
    torch.manual_seed(0)
    model, (_, inputs, _) = BehindTheNorm().double(), zoo.made("convolutions", SAMPLES)
    with (
        pytest.raises(InputError, match="weight has no .*: its module runs again for each unit"),
        capture(model, batch_norm="contribution"),
    ):
        model(*inputs)
