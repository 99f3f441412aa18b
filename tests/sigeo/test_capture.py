"""Gradient statistics of any module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigeo import InputError
from sigeo.capture import SGD, Batches, ClippedAdagrad, Request, gradient_statistics, select
from sigeo_ext.testing import assert_close
from tests.sigeo.models import (
    Recurrent,
    Unreached,
    assert_unchanged,
    golden_net,
    image_batches,
    state_of,
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


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "safe"), [(5, 1, 2, False), (8, 1, 2, True), (5, 3, 2, True)]
)
def test_convolutions_that_crash_in_channels_last_are_left_in_order(
    channels, kernel, stride, safe, monkeypatch
):
    """On processors without AVX-512 torch's weight gradient of some writes out of bounds."""
    model = nn.Sequential(
        nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 10, kernel, stride=stride),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    given = [(torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,))) for _ in range(2)]
    for capability, expected in (("AVX512", True), ("AVX2", safe)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        images, _ = Batches(given, model, torch.device("cpu"))[0]
        assert images.is_contiguous(memory_format=torch.channels_last) == expected
    monkeypatch.undo()
    for _ in range(10):  # heap corruption would kill the process here
        gradient_statistics(model, given)


@pytest.mark.parametrize("frozen", [False, True])
def test_group_norm_of_what_needs_no_gradient_is_left_in_order(frozen):
    """Its weight gradient in channels_last would kill the process here."""
    first = nn.Conv2d(4, 4, 1).requires_grad_(False) if frozen else nn.Identity()
    model = nn.Sequential(
        first, nn.GroupNorm(2, 4), nn.Conv2d(4, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    given = [(torch.randn(8, 4, 6, 6), torch.randint(0, 10, (8,))) for _ in range(2)]
    (statistics,) = gradient_statistics(model, given, requests=[Request(selection="all")])
    assert statistics.summary.mean_sq[statistics.names.index("1.weight")] > 0


def test_memory_formats_agree():
    torch.manual_seed(0)
    model, batches = golden_net(), image_batches()
    plain, last = (
        gradient_statistics(model, batches, memory_format=m)[0].summary.ratio
        for m in ("preserve", "channels_last")
    )
    assert_close(plain, last, tolerance=1e-3)


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
    found = gradient_statistics(model, image_batches())[0]
    assert not found.reached and "the loss reaches none of the parameters" in repr(found)


def test_statistics_are_shown_in_a_line():
    first = []
    model, batches = golden_net(), image_batches()
    requests = [Request(), Request(samples=True, rows=True)]
    plain, full = gradient_statistics(model, batches, requests=requests, observer=first.append)
    count, losses = len(select(model, "layers")), plain.losses.tolist()
    start = (
        f"<GradientStatistics: {count} parameters; {len(batches)} batches; "
        f"loss {losses[0]:.4g} at first, {losses[-1]:.4g} at last"
    )
    samples = sum(len(labels) for _, labels in batches)
    assert repr(plain) == start + ">"
    assert repr(full) == f"{start}; sample_inner of {samples} samples; rows>"
    reaches = f"{count} parameters, of which the loss reaches {count}"
    assert repr(first[0]) == f"<FirstGradient: {reaches}; loss {losses[0]:.4g}>"
