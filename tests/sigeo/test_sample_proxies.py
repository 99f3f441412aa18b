"""Proxies of single samples: their formulas from a loop, batch norm, and the model left alone."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F

import sigeo
from sigeo import InputError, proxies
from tests.sigeo.models import golden_net, image_batches

SAMPLE_PROXIES = (
    "zico_sample",
    "sigeo_sample",
    "gradsign",
    "fisher_trace",
    "diag_fisher",
    "gradient_noise_scale",
)


def sample_gradients(model, images, labels):
    """Each sample's gradient, by name, with batch norm on running statistics."""
    model.eval()
    rows = []
    for b in range(len(labels)):
        loss = F.cross_entropy(model(images[b : b + 1]), labels[b : b + 1])
        rows.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    model.train()
    return {
        name: torch.stack([torch.zeros_like(p) if g is None else g for g in gradients])
        for (name, p), gradients in zip(
            model.named_parameters(), zip(*rows, strict=True), strict=True
        )
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_in_few_digits_are_means(dtype):
    weights, labels = torch.ones(5, dtype=dtype), torch.tensor([1, 1, 1, 0, 2, 2, 3, 4, 0])
    for seed in range(8):
        torch.manual_seed(seed)
        model, batches = golden_net().to(dtype), [(image_batches(1, 9, dtype)[0][0], labels)]
        for loss_fn in (F.cross_entropy, torch.nn.CrossEntropyLoss(weight=weights)):
            score = sigeo.score(model, batches, ["fisher_trace"], loss_fn=loss_fn)["fisher_trace"]
            assert score.finite
    weights[1] = 0.01
    for options in ({"weight": weights}, {"ignore_index": 1}):
        weighing = torch.nn.CrossEntropyLoss(**options)
        with pytest.raises(InputError, match="one that weighs samples"):
            sigeo.score(model, batches, ["fisher_trace"], loss_fn=weighing)


def test_a_half_of_ignored_labels_is_noticed():
    torch.manual_seed(0)
    (images, _), labels = image_batches(1, 8)[0], torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])
    ignoring = torch.nn.CrossEntropyLoss(ignore_index=0)
    with pytest.raises(InputError, match="one that weighs samples"):
        sigeo.score(golden_net(), [(images, labels)], ["fisher_trace"], loss_fn=ignoring)


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([0, 1] * 8), torch.arange(16) % 3, torch.tensor([0, 1, 1, 0] * 4)],
    ids=["every other", "every third", "by their digits"],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_weights_that_two_halves_share_evenly_are_noticed(labels, fresh):
    """A fresh network has one loss for all samples, whatever weighs them."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    if fresh:
        torch.nn.init.zeros_(model[1].weight)
    batch = (torch.randn(16, 3, 2, 2), labels)
    for options in ({"weight": torch.tensor([20.0, 1, 1])}, {"ignore_index": 0}):
        weighing = torch.nn.CrossEntropyLoss(**options)
        with pytest.raises(InputError, match="one that weighs samples"):
            sigeo.score(model, [batch], ["fisher_trace"], loss_fn=weighing)
    smooth = torch.nn.CrossEntropyLoss(weight=torch.ones(3), label_smoothing=0.1)
    assert sigeo.score(model, [batch], ["fisher_trace"], loss_fn=smooth)["fisher_trace"].finite


def test_losses_that_take_no_part_of_a_batch_pass_and_others_are_not_moved():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 16), torch.nn.Sigmoid())
    images, kept = torch.randn(16, 3, 2, 2), torch.rand(16)
    batch = (images, torch.rand(16, 16))

    def whole_alone(output, labels):
        return (kept * (output - labels).square().mean(1)).mean()

    for loss_fn in (F.binary_cross_entropy, whole_alone):
        assert sigeo.score(model, [batch], ["fisher_trace"], loss_fn=loss_fn)["fisher_trace"].finite


def test_sample_proxies_are_their_formulas():
    torch.manual_seed(0)
    model, ((images, labels),) = golden_net().double(), image_batches(1, 9, torch.float64)
    frozen = [proxies.get(name, batch_norm="frozen") for name in SAMPLE_PROXIES]
    scores = sigeo.score(model, [(images, labels)], frozen, memory_format="preserve")
    rows = sample_gradients(model, images, labels)
    model.eval()
    loss = float(F.cross_entropy(model(images), labels).detach())
    model.train()
    zico = signs = 0.0
    layers = ("0.weight", "3.weight", "7.weight")
    for name in layers:
        g = rows[name].flatten(1)
        std = g.std(0, correction=0)
        kept = std > 0
        zico += math.log(float((g.abs().mean(0)[kept] / std[kept]).sum()))
        signs += float(g.sign().sum(0).abs().sum())
    assert scores["zico_sample"].value == pytest.approx(zico, rel=1e-10)
    coordinates = sum(rows[name][0].numel() for name in layers)
    assert scores["gradsign"].value == pytest.approx(signs / coordinates, rel=1e-12)
    flat = torch.cat([g.flatten(1) for g in rows.values()], 1)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert scores["fisher_trace"].value == pytest.approx(float(flat.square().sum(1).mean()))
    saliency = 0.5 * float((weights.square() * flat.square().mean(0)).sum())
    assert scores["diag_fisher"].value == pytest.approx(saliency, rel=1e-10)
    fr = 0.5 * math.log(float((flat @ weights).square().mean()))
    assert scores["sigeo_sample"].terms["fr"] == pytest.approx(fr, rel=1e-10)
    assert scores["sigeo_sample"].terms["loss"] == pytest.approx(loss, rel=1e-10)
    assert scores["sigeo_sample"].value == pytest.approx(zico + fr, rel=1e-10)
    variance = float(flat.var(0).sum())
    signal = float(flat.mean(0).square().sum()) - variance / 9
    noise = scores["gradient_noise_scale"]
    assert noise.terms["variance"] == pytest.approx(variance, rel=1e-10)
    assert noise.terms["signal"] == pytest.approx(signal, rel=1e-8)
    assert noise.value == (pytest.approx(-variance / signal) if signal > 0 else -math.inf)


def test_sample_proxies_leave_the_model_alone_and_share_a_pass():
    torch.manual_seed(0)
    model, batches = golden_net(), image_batches(2)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(None))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[0].weight.grad = kept = torch.ones_like(model[0].weight)
    alone = {n: sigeo.score(model, batches, [n])[n].value for n in SAMPLE_PROXIES}
    calls.clear()
    together = sigeo.score(model, batches, SAMPLE_PROXIES)
    assert len(calls) == 1
    assert {n: s.value for n, s in together.items()} == pytest.approx(alone, rel=1e-6)
    assert model.training and model[0].weight.grad is kept and bool((kept == 1).all())
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_proxies_of_layers_measure_no_other_parameter(monkeypatch):
    measured = []

    def spy(*args, params, **options):
        measured.append(params)
        return sigeo.capture.capture(*args, params=params, **options)

    monkeypatch.setattr(sys.modules["sigeo.scoring.score"], "capture", spy)
    torch.manual_seed(0)
    model, batch = golden_net(), image_batches(1, 8)
    layers = sigeo.score(model, batch, ["zico_sample", "gradsign"])
    both = sigeo.score(model, batch, ["zico_sample", "gradsign", "fisher_trace"])
    assert measured == ["layers", "all"]
    for name, found in layers.items():
        assert found.value == pytest.approx(both[name].value, rel=1e-6)


def test_sample_proxies_and_batch_norm():
    model, batches = golden_net(), image_batches(1)
    given = {p: proxies.get("fisher_trace", batch_norm=p) for p in ("frozen", "contribution")}
    found = {
        p: sigeo.score(model, batches, [proxy])["fisher_trace"].value for p, proxy in given.items()
    }
    assert found["frozen"] != found["contribution"]
    with pytest.raises(InputError, match="batch norm"):
        sigeo.score(model, batches, [proxies.get("fisher_trace", batch_norm="refuse")])
    with pytest.raises(InputError, match="batch_norm must be one of refuse, frozen"):
        sigeo.score(model, batches, [proxies.get("fisher_trace", batch_norm="odd")])


def test_sample_proxies_of_a_single_sample_and_of_nothing_to_learn():
    model, batches = golden_net(), image_batches(1, 1)
    one = sigeo.score(model, batches, ["gradient_noise_scale"])["gradient_noise_scale"]
    assert one.value == -math.inf and "one sample has no variance" in one.notes
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for score in sigeo.score(model, batches, SAMPLE_PROXIES).values():
        assert score.value == -math.inf and not score.finite


def test_diag_fisher_of_embedding_tables():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.Flatten(), torch.nn.Linear(6, 4))
    inputs, labels = torch.randint(0, 9, (5, 2)), torch.randint(0, 4, (5,))
    expected = 0.0
    for b in range(5):
        loss = F.cross_entropy(model(inputs[b : b + 1]), labels[b : b + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        pairs = zip(model.parameters(), grads, strict=True)
        expected += sum(float((p * g).detach().square().sum()) for p, g in pairs) / 10
    score = sigeo.score(model, [(inputs, labels)], ["diag_fisher"])["diag_fisher"]
    assert score.value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda o, y: F.cross_entropy(o, y, reduction="sum"), "gives the sum of the samples'"),
        (lambda o, y: F.cross_entropy(o, y, torch.tensor([1.0, 50, 1])), "that weighs samples"),
        (lambda o, y: F.cross_entropy(o - o.mean(0), y), "mixes them"),
    ],
)
def test_losses_that_are_no_mean_of_the_samples_are_refused(loss_fn, message):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    batch = (torch.randn(9, 3, 2, 2), torch.arange(9) ** 2 % 3)
    with pytest.raises(InputError, match=message):
        sigeo.score(model, [batch], ["fisher_trace"], loss_fn=loss_fn)


def test_a_text_is_no_list_of_proxies():
    with pytest.raises(InputError, match="proxies: expected a list of names, got the text 'zico'"):
        sigeo.score(torch.nn.Linear(2, 2), [torch.randn(3, 2)], "zico")
