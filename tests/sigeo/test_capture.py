"""Gradient statistics of any module, and the model that comes back as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError
from sigeo.capture import (
    SGD,
    ClippedAdagrad,
    Request,
    gradient_statistics,
    preserved,
    sample_inner_products,
    select,
)
from sigeo_ext.testing import assert_close
from tests.sigeo.models import (
    Recurrent,
    TwoInputs,
    Unreached,
    golden_net,
    image_batches,
    stored_rows,
)


def by_definition(rows, names, weights, ddof=0):
    """The summary of stored rows, in float64: ratio, kept, inner, abs_sum, mean_sq, m2_sum."""
    table = []
    for name in names:
        g = torch.stack([row[name].double().flatten() for row in rows])
        m2 = ((g - g.mean(0)) ** 2).sum(0)
        sigma = (m2 / (len(rows) - ddof)).sqrt()
        kept = sigma > 0
        table.append(
            [
                (g.abs().mean(0)[kept] / sigma[kept]).sum(),
                kept.sum(),
                (g.sum(0) * weights[name].double().flatten()).sum(),
                g.abs().sum(),
                (g.mean(0) ** 2).sum(),
                m2.sum(),
            ]
        )
    return torch.tensor(table, dtype=torch.float64)


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("lr", [0.0, 1.0])
@pytest.mark.parametrize("count", [2, 4, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_streamed_equals_stored_rows(count, lr, dtype):
    torch.manual_seed(0)
    model = golden_net().to(dtype)
    batches = image_batches(count, dtype=dtype)
    before = state_of(model)
    request = Request(steps=SGD(lr) if lr else None)
    (got,) = gradient_statistics(model, batches, requests=[request], memory_format="preserve")
    assert_unchanged(model, before)
    rows, losses, weights = stored_rows(model, batches, lr=lr)
    assert got.names == ("0.weight", "3.weight", "7.weight") and got.count == count
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    expected = by_definition(rows, got.names, weights)
    for column, judge in zip(got.summary, expected.T, strict=True):
        assert_close(column, judge, tolerance=tolerance)
    assert_close(got.losses, torch.tensor(losses, dtype=dtype))


def test_all_requests_share_passes_and_equal_single_ones():
    torch.manual_seed(0)
    model, batches = golden_net(), image_batches()
    passes = []
    handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
    requests = [
        Request(),
        Request(ddof=1),
        Request(selection="all"),
        Request(steps=SGD(1.0)),
        Request(selection="all", steps=ClippedAdagrad(), ddof=1),
        Request(samples=True),
    ]
    together = gradient_statistics(model, batches, requests=requests)
    handle.remove()
    assert len(passes) == 4 + 3 + 3 + 4  # one course each, the first pass shared; tangents of 4
    for request, got in zip(requests, together, strict=True):
        (alone,) = gradient_statistics(model, batches, requests=[request])
        assert all(torch.equal(a, b) for a, b in zip(got.summary, alone.summary, strict=True))
        assert torch.equal(got.losses, alone.losses)


def test_dropout_draws_do_not_depend_on_other_requests():
    torch.manual_seed(0)
    model = Recurrent()
    batches = [(torch.randint(0, 20, (8, 5)), torch.randint(0, 5, (8,))) for _ in range(4)]
    requests = [Request(selection="all"), Request(steps=SGD(1.0)), Request()]
    random_state = torch.get_rng_state()
    together = gradient_statistics(model, batches, requests=requests)
    assert torch.equal(torch.get_rng_state(), random_state)
    for request, got in zip(requests, together, strict=True):
        (alone,) = gradient_statistics(model, batches, requests=[request])
        assert all(torch.equal(a, b) for a, b in zip(got.summary, alone.summary, strict=True))
    assert len(set(together[0].losses.tolist())) == 4
    assert "embed.weight" in together[0].names and together[0].summary.abs_sum[0] > 0


def test_a_parameter_without_gradient_is_a_zero_gradient():
    model, batches = Unreached(), image_batches()
    (got,) = gradient_statistics(model, batches)
    dead = got.names.index("dead.weight")
    assert all(column[dead] == 0 for column in got.summary)
    model.used.weight.requires_grad_(False)
    (frozen,) = gradient_statistics(model, batches)
    assert frozen.summary.ratio[frozen.names.index("used.weight")] == 0


def test_a_loss_that_needs_no_gradient_gives_zeros():
    model = nn.Linear(3, 5).requires_grad_(False)
    (got,) = gradient_statistics(model, [(torch.randn(4, 3), torch.arange(4))] * 2)
    assert all(column.sum() == 0 for column in got.summary)


@pytest.mark.parametrize("share", [0.5, 0.7, 2.0])
def test_max_bytes_splits_the_work_and_changes_nothing(share):
    torch.manual_seed(0)
    model, batches = golden_net(), image_batches(5)
    requests = [
        Request(),
        Request(selection="all", steps=SGD(1.0)),
        Request(rows=True, steps=SGD(1.0)),
    ]
    whole = gradient_statistics(model, batches, requests=requests)
    bytes_ = int(share * 12 * sum(p.numel() for p in model.parameters()))
    parts = gradient_statistics(model, batches, requests=requests, max_bytes=bytes_)
    for a, b in zip(whole, parts, strict=True):
        assert a.names == b.names
        assert all(torch.equal(x, y) for x, y in zip(a.summary, b.summary, strict=True))
    with pytest.raises(InputError, match=r"max_bytes: parameter 0\.weight alone needs 2592 bytes"):
        gradient_statistics(model, batches, max_bytes=2000)


def test_inputs_by_position_and_by_name():
    torch.manual_seed(0)
    model = TwoInputs()
    a, b, y = torch.randn(8, 4), torch.randn(8, 3), torch.randint(0, 5, (8,))
    (one,) = gradient_statistics(model, [((a, b), y), ((b[:, [0, 1, 2, 0]], b), y)])
    (two,) = gradient_statistics(
        model, [({"a": a, "b": b}, y), ({"a": b[:, [0, 1, 2, 0]], "b": b}, y)]
    )
    assert all(torch.equal(x, z) for x, z in zip(one.summary, two.summary, strict=True))


def test_a_model_in_bfloat16_has_float32_statistics():
    torch.manual_seed(0)
    model = golden_net().bfloat16()
    batches = image_batches(6, dtype=torch.bfloat16)
    rows, _, weights = stored_rows(golden_copy(model), batches)
    (got,) = gradient_statistics(model, batches, memory_format="preserve")
    expected = by_definition(rows, got.names, weights)
    assert_close(got.summary.abs_sum, expected[:, 3], tolerance=1e-5)
    assert_close(got.summary.m2_sum, expected[:, 5], tolerance=1e-5)


def golden_copy(model):
    other = golden_net().to(next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    return other


def test_memory_formats_agree():
    torch.manual_seed(0)
    model, batches = golden_net(), image_batches()
    plain, last = (
        gradient_statistics(model, batches, memory_format=m)[0].summary.ratio
        for m in ("preserve", "channels_last")
    )
    assert_close(plain, last, tolerance=1e-3)


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = golden_net()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of luck")
        return self.net(x)


def test_the_model_comes_back_after_an_exception():
    torch.manual_seed(0)
    model = Fails()
    model.eval()
    model.net[1].train()
    gradient = torch.ones_like(model.net[0].weight)
    model.net[0].weight.grad = gradient
    before = state_of(model)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    with pytest.raises(RuntimeError, match="out of luck"):
        gradient_statistics(model, image_batches(), requests=[Request(steps=SGD(1.0))])
    assert_unchanged(model, before)
    assert model.net[0].weight.grad is gradient and model.net[3].weight.grad is None
    assert model.net[1].training and not model.net[0].training and not model.training
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_a_buffer_that_is_replaced_comes_back():
    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 5)
            self.register_buffer("seen", torch.zeros(3))
            self.register_buffer("nothing", None)

        def forward(self, x):
            self.seen = self.seen + x.sum(0)
            return self.linear(x)

    model = Replaces()
    original = model.seen
    gradient_statistics(model, [(torch.randn(4, 3), torch.arange(4))] * 3)
    assert model.seen is original and torch.equal(original, torch.zeros(3))


def test_preserved_without_parameters_keeps_what_the_body_did_to_them():
    model = nn.Linear(2, 2)
    with preserved(model, parameters=False), torch.no_grad():
        model.weight.zero_()
    assert model.weight.abs().sum() == 0


def test_selection_of_layers():
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ConvTranspose2d(2, 3, 3), nn.Linear(4, 4)
    )
    assert list(select(model, "layers")) == ["0.weight", "2.weight", "3.weight"]
    assert len(select(model, "all")) == 8
    shared = nn.Linear(4, 4)
    assert list(select(nn.Sequential(shared, shared), "layers")) == ["0.weight"]
    with pytest.raises(InputError, match="at least one convolution or linear weight, found none"):
        select(nn.LayerNorm(3), "layers")
    with pytest.raises(InputError, match="at least one trainable parameter, found none"):
        select(nn.ReLU(), "all")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_computed_weights_are_represented_by_what_they_are_computed_from():
    modern = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert sorted(select(modern, "layers")) == [
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ]
    old = nn.utils.weight_norm(nn.Linear(4, 3))
    assert sorted(select(old, "layers")) == ["weight_g", "weight_v"]


def test_adagrad_steps_as_published():
    model = nn.Linear(3, 2, bias=False)
    weight = model.weight.detach().clone()
    step = ClippedAdagrad().start(model.parameters())
    sums = torch.zeros_like(weight)
    for taken in range(4):
        gradient = torch.randn(2, 3) * 30
        model.weight.grad = gradient.clone()
        step()
        clipped = gradient * min(1.0, 5.0 / (gradient.norm().item() + 1e-6))
        assert_close(model.weight.grad, clipped)
        sums += clipped**2
        lr = max(1e-8, 0.04 * taken / 50)
        weight = weight - lr * clipped / (sums.sqrt() + 1e-2)
        assert_close(model.weight, weight)


@pytest.mark.parametrize("train", [False, True])
def test_sample_inner_products_equal_one_gradient_at_a_time(train):
    torch.manual_seed(0)
    model = golden_net().double().train(train)
    images, labels = image_batches(1, 6, torch.float64)[0]
    got = sample_inner_products(model, F.cross_entropy, images, labels)
    for b in range(6):
        loss = F.cross_entropy(model(images)[b : b + 1], labels[b : b + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        pairs = zip(grads, model.parameters(), strict=True)
        expected = sum((g * p).sum() for g, p in pairs)
        assert got[b].item() == pytest.approx(expected.item(), rel=1e-9)


def test_bad_batches_and_losses():
    model, batches = golden_net(), image_batches(2)
    with pytest.raises(InputError, match="batches: expected at least one, got none"):
        gradient_statistics(model, [])
    with pytest.raises(InputError, match=r"loss_fn: expected one number.*got shape \[16\]"):
        gradient_statistics(model, batches, lambda o, y: F.cross_entropy(o, y, reduction="none"))
    with pytest.raises(InputError, match="loss_fn: expected one number.*got float"):
        gradient_statistics(model, batches, lambda o, y: 1.0)
    with pytest.raises(InputError, match="expected pairs"):
        gradient_statistics(
            model, [x for x, _ in batches], lambda o: o.mean(), requests=[Request(samples=True)]
        )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_measured_whatever_mode_is_on(mode):
    model, batches = golden_net(), image_batches()
    expected = gradient_statistics(model, batches)[0]
    with mode():
        assert not torch.is_grad_enabled()
        got = gradient_statistics(model, batches)[0]
    assert got.reached and torch.equal(got.summary.ratio, expected.summary.ratio)


def test_a_loss_that_no_parameter_reaches_is_said():
    model = golden_net().requires_grad_(False)
    assert not gradient_statistics(model, image_batches())[0].reached


def test_buffers_that_cannot_be_written_do_not_stop_the_restoring():
    model = golden_net()
    model.register_buffer("wide", torch.ones(1, 5).expand(4, 5))
    before = state_of(model)
    gradient_statistics(model, image_batches())
    assert_unchanged(model, before)


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_labels_of_any_kind(kind):
    batches = image_batches()
    expected = gradient_statistics(golden_net_of(0), batches)[0]
    told = [(x, kind(y.tolist())) for x, y in batches]
    got = gradient_statistics(golden_net_of(0), told)[0]
    assert torch.equal(got.losses, expected.losses)


def golden_net_of(seed):
    torch.manual_seed(seed)
    return golden_net()


def test_a_lazy_model_is_refused_with_its_name():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(InputError, match=r"model: 0\.weight has no shape yet"):
        gradient_statistics(model, image_batches())


def test_reading_a_shuffling_loader_draws_nothing():
    images, labels = image_batches(1)[0]
    dataset = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    model, before = golden_net(), torch.get_rng_state()
    gradient_statistics(model, loader)
    assert torch.equal(before, torch.get_rng_state())


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x):
        y = self.body(x)
        return {"logits": y, "aux": (y.square(),)}


def test_sample_products_of_a_model_with_several_outputs():
    model = TwoOutputs()
    x, y = torch.randn(8, 6), torch.arange(8) % 5

    def loss_fn(output, labels):
        return F.cross_entropy(output["logits"], labels) + output["aux"][0].mean()

    got = sample_inner_products(model, loss_fn, x, y)
    for b in range(8):
        loss = loss_fn(model(x[b : b + 1]), y[b : b + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        expected = sum((g * p).sum() for g, p in zip(grads, model.parameters(), strict=True))
        assert got[b].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("proxies", [["zico"], ["fisher_trace"]])
def test_labels_out_of_range_are_named(proxies):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    data = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 1, label])) for label in (0, 3)]
    with pytest.raises(InputError, match="labels: expected classes from 0 to 2, got 3"):
        sigeo.score(model, data[::-1], proxies)
    data[0][1][0] = -100  # ignored by the loss
    if proxies == ["zico"]:
        sigeo.score(model, [data[0]] * 2, proxies)
    else:  # samples that do not count alike have no gradients of one mean loss
        with pytest.raises(InputError, match="ignored labels"):
            sigeo.score(model, [data[0]] * 2, proxies)


def test_other_index_errors_of_a_loss_are_its_own():
    model, data = nn.Linear(4, 3), [(torch.randn(5, 4), torch.zeros(5, dtype=torch.long))]

    def broken(output, labels):
        return [output][1]

    with pytest.raises(IndexError, match="list index out of range"):
        sigeo.score(model, data * 2, ["zico"], loss_fn=broken)
