"""Batches, labels and losses of any kind, and those that are refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError
from sigeo.capture import (
    Batches,
    Request,
    capture,
    diag_fisher,
    fisher_rao,
    fisher_trace,
    gradient_statistics,
    ntk,
)
from sigeo.capture.state import check_present
from tests.sigeo.models import TwoInputs, golden_net, image_batches


def test_inputs_by_position_and_by_name():
    torch.manual_seed(0)
    model = TwoInputs()
    a, b, y = torch.randn(8, 4), torch.randn(8, 3), torch.randint(0, 5, (8,))
    (one,) = gradient_statistics(model, [((a, b), y), ((b[:, [0, 1, 2, 0]], b), y)])
    (two,) = gradient_statistics(
        model, [({"a": a, "b": b}, y), ({"a": b[:, [0, 1, 2, 0]], "b": b}, y)]
    )
    assert all(torch.equal(x, z) for x, z in zip(one.summary, two.summary, strict=True))


def test_bad_batches_and_losses():
    model, batches = golden_net(), image_batches(2)
    with pytest.raises(InputError, match="batches: expected at least one, got none"):
        gradient_statistics(model, [])
    with pytest.raises(InputError, match="batches: expected an iterable of batches.*got a tensor"):
        gradient_statistics(model, batches[0][0])
    with pytest.raises(InputError, match=r"loss_fn: expected one number.*got shape \[16\]"):
        gradient_statistics(model, batches, lambda o, y: F.cross_entropy(o, y, reduction="none"))
    with pytest.raises(InputError, match="loss_fn: expected one number.*got float"):
        gradient_statistics(model, batches, lambda o, y: 1.0)
    with pytest.raises(InputError, match="expected pairs"):
        gradient_statistics(
            model, [x for x, _ in batches], lambda o: o.mean(), requests=[Request(samples=True)]
        )


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


@pytest.mark.parametrize("label", [0, 7])
def test_other_index_errors_of_a_loss_are_its_own(label):
    model, data = nn.Linear(4, 3), [(torch.randn(5, 4), torch.full((5,), label))]

    def broken(output, labels):
        return [output][1]

    with pytest.raises(IndexError, match="list index out of range"):
        sigeo.score(model, data * 2, ["zico"], loss_fn=broken)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError])
def test_other_errors_of_a_loss_are_its_own_whatever_the_number_of_labels(error):
    model, data = nn.Linear(4, 3), [(torch.randn(6, 4), torch.zeros(2, dtype=torch.long))]

    def broken(output, labels):
        raise error("expected 3 views of 2 labels each")

    with pytest.raises(error, match="^expected 3 views of 2 labels each$"):
        sigeo.score(model, data * 2, ["zico"], loss_fn=broken)
    message = "^labels: expected one for each of the 6 samples of the output, got 2$"
    with pytest.raises(InputError, match=message):
        sigeo.score(model, data * 2, ["zico"], loss_fn=lambda o, y: F.cross_entropy(o, y))


def measured(model, batches):
    """Something of every way that gradients are measured, by name."""
    by_signs = fisher_trace(model, batches, estimator="signs", batch_norm="frozen")
    return {
        "trace": fisher_trace(model, batches, batch_norm="frozen"),
        "signs": by_signs,
        "rao": fisher_rao(model, batches, batch_norm="frozen"),
        "diagonal": sum(
            float(d.sum()) for d in diag_fisher(model, batches, batch_norm="frozen").values()
        ),
        "kernel": float(ntk(model, batches[0][0], batch_norm="frozen").sum()),
        "loss": float(gradient_statistics(model, batches)[0].losses.sum()),
        **{n: s.value for n, s in sigeo.score(model, batches, ["zico", "snip", "naswot"]).items()},
    }


def test_inference_mode_is_left_where_gradients_are_measured():
    model, batches = golden_net(), image_batches(2)
    expected = measured(model, batches)
    with torch.inference_mode():
        made_inside = [(x.clone(), y.clone()) for x, y in batches]
        assert made_inside[0][0].is_inference() and made_inside[0][1].is_inference()
        assert measured(model, batches) == measured(model, made_inside) == expected
        assert torch.is_inference_mode_enabled()
    assert measured(model, made_inside) == expected


def test_a_model_made_in_inference_mode_is_refused_with_what_helps():
    with torch.inference_mode():
        model = golden_net()
    with pytest.raises(InputError, match=r"model: \S+weight was made in torch.inference_mode"):
        gradient_statistics(model, image_batches())
    with (
        pytest.raises(InputError, match=r"weight was made in torch.inference_mode"),
        capture(model),
    ):
        pass
    assert gradient_statistics(copy.deepcopy(model), image_batches())[0].reached
    model = golden_net()
    with torch.inference_mode():
        model.register_buffer("scale", torch.ones(1))
    with pytest.raises(InputError, match=r"model: scale was made in torch.inference_mode"):
        sigeo.score(model, image_batches(), ["zico"])


def test_a_capture_inside_inference_mode_is_refused():
    expected = "capture: torch.inference_mode is on"
    with torch.inference_mode(), pytest.raises(InputError, match=expected), capture(golden_net()):
        pass


def test_batches_take_a_device_by_name():
    (batch,) = image_batches(1)
    inputs, labels = Batches([batch], golden_net(), "cpu")[0]
    assert torch.equal(inputs, batch[0]) and torch.equal(labels, batch[1])
    for device in ("cud", 1.5):
        with pytest.raises(InputError, match=f"^device: expected a device or .*, got {device!r}$"):
            Batches([batch], golden_net(), device)
    with pytest.raises(InputError, match="^device: cuda:99 asked for, torch finds . CUDA devices$"):
        Batches([batch], golden_net(), "cuda:99")


def test_nothing_is_asked_of_cuda_for_another_device(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append("cuda"))
    check_present(torch.device("cpu"))
    assert not asked


class Normalising(nn.Module):
    """Writes to its inputs, as a user's preparation of images may."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        x -= 0.5
        x /= 0.3
        return self.layers(x)


def test_a_model_that_writes_to_its_inputs_gets_them_as_they_are_in_every_pass():
    x = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(0))
    batches = [(one, torch.arange(6) % 3) for one in x.clone()]
    names = ["naswot", "fisher", "grasp", "zico", "sigeo", "fisher_trace", "sigeo_paper"]
    together = sigeo.score(Normalising(), batches, names)
    for name in names:
        assert sigeo.score(Normalising(), batches, [name])[name] == together[name]
    kernels = [ntk(Normalising(), batches[0][0], outputs="trace") for _ in range(2)]
    expected = ntk(Normalising().layers, (x[0] - 0.5) / 0.3, outputs="trace")
    assert torch.equal(*kernels)
    torch.testing.assert_close(kernels[0], expected)
    assert torch.equal(torch.stack([inputs for inputs, _ in batches]), x)
