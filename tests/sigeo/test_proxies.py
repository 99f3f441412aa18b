"""Proxies: golden numbers, their formulas spelled out, degenerate networks, the registry."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, proxies
from sigeo.proxies import OnModel, Outcome, Proxy
from sigeo.proxies.sigeo import first_coordinate_terms
from tests.conftest import shared_file
from tests.sigeo.models import Unreached, golden_net, image_batches, stored_rows


def golden(name, batch):
    file = np.load(shared_file(f"golden/{name}.npz"))
    model = golden_net()
    state = {k[6:]: torch.from_numpy(file[k]) for k in file.files if k.startswith("state.")}
    model.load_state_dict(state)
    images, labels = torch.from_numpy(file["x"]), torch.from_numpy(file["y"]).long()
    expected = json.loads(shared_file("golden/scores.json").read_text())[name]
    return model, list(zip(images.split(batch), labels.split(batch), strict=True)), expected


def test_golden_zico_of_two_batches():
    model, batches, expected = golden("net_m2_b16", 16)
    score = sigeo.score(model, batches, ["zico"])["zico"]
    assert score.value == pytest.approx(expected["zico"], rel=1e-4) and score.finite


@pytest.mark.parametrize("memory_format", ["auto", "preserve", "channels_last"])
def test_golden_zico_and_sigeo_of_four_batches(memory_format):
    model, batches, expected = golden("net_m4_b64", 64)
    scores = sigeo.score(model, batches, ["zico", "sigeo"], memory_format=memory_format)
    assert scores["zico"].value == pytest.approx(expected["zico"], rel=1e-4)
    assert scores["sigeo"].value == pytest.approx(expected["sigeo_cv"], rel=1e-4)
    terms = scores["sigeo"].terms
    assert scores["sigeo"].value == pytest.approx(terms["zico"] + terms["fr"])


def rows_of(name):
    file = np.load(shared_file(f"golden/{name}.npz"))
    grads = {k[5:]: list(torch.from_numpy(file[k])) for k in file.files if k.startswith("grad.")}
    theta = {k[6:]: torch.from_numpy(file[k]) for k in file.files if k.startswith("theta.")}
    expected = json.loads(shared_file("golden/scores.json").read_text())[name]
    return grads, theta, expected


@pytest.mark.parametrize("name", ["rows_two_batches", "rows_four_batches"])
def test_golden_first_coordinate_defect(name):
    grads, theta, expected = rows_of(name)
    zico, inner = first_coordinate_terms(grads, theta)
    assert zico == pytest.approx(expected["sigeo_recsys_buggy_zico_term"], rel=1e-4)
    assert math.log(abs(inner) + 1e-10) == pytest.approx(expected["sigeo_recsys_fr_term"], rel=1e-4)


def test_golden_first_coordinate_defect_where_the_published_code_stops():
    grads, theta, _ = rows_of("rows_eight_batches")
    assert math.isnan(first_coordinate_terms(grads, theta)[0])


def test_sigeo_cv_is_its_formula():
    torch.manual_seed(0)
    model, batches = golden_net().double(), image_batches(4, dtype=torch.float64)
    proxy = proxies.get("sigeo", lambdas=(1, 50, 1))
    score = sigeo.score(model, batches, [proxy], memory_format="preserve")["sigeo"]
    rows, losses, weights = stored_rows(model, batches, lr=1.0)
    zico = total = 0.0
    for name in ("0.weight", "3.weight", "7.weight"):
        g = torch.stack([row[name].flatten() for row in rows])
        std = g.std(0, correction=0)
        kept = std > 0
        zico += math.log(float((g.abs().mean(0)[kept] / std[kept]).sum()))
        total += abs(float((g.sum(0) * weights[name].flatten()).sum()))
    fr = 2 * math.log(total + 1e-5)
    assert score.terms["zico"] == pytest.approx(zico, rel=1e-12)
    assert score.terms["fr"] == pytest.approx(fr, rel=1e-12)
    assert score.terms["loss"] == pytest.approx(losses[-1], rel=1e-12)
    assert score.value == pytest.approx(zico + 50 * fr - losses[-1], rel=1e-12)
    assert proxy.options == {"preset": "sigeo_cv_official", "lambdas": [1.0, 50.0, 1.0]}


def test_inner_steps_can_be_shortened_or_left_out():
    model, batches = golden_net(), image_batches()
    zico = sigeo.score(model, batches, ["zico"])["zico"].value
    still, small, full = (
        sigeo.score(model, batches, [proxies.get("sigeo", inner_lr=lr)])["sigeo"].terms["zico"]
        for lr in (0, 1e-9, 1)
    )
    assert still == zico and small == pytest.approx(zico, rel=1e-6) and full != zico
    assert proxies.get("sigeo", inner_lr=0).measurement.request.steps is None
    with pytest.raises(InputError, match=r"inner_lr: must be from 0 to 1e\+38, got -1"):
        proxies.get("sigeo", inner_lr=-1)
    with pytest.raises(InputError, match="only sigeo_cv_official has one, got preset sigeo_paper"):
        proxies.get("sigeo", preset="sigeo_paper", inner_lr=1)


def test_sigeo_paper_is_its_formula():
    torch.manual_seed(0)
    model, batches = golden_net().double(), image_batches(2, 5, torch.float64)
    score = sigeo.score(model, batches, ["sigeo_paper"], memory_format="preserve")["sigeo_paper"]
    squares = []
    for images, labels in batches:
        for b in range(5):
            loss = F.cross_entropy(model(images)[b : b + 1], labels[b : b + 1])
            grads = torch.autograd.grad(loss, list(model.parameters()))
            pairs = zip(grads, model.parameters(), strict=True)
            squares.append(float(sum((g * p).sum() for g, p in pairs)) ** 2)
    assert score.terms["fr"] == pytest.approx(0.5 * math.log(np.mean(squares)), rel=1e-9)
    zico = sigeo.score(model, batches, ["zico"], memory_format="preserve")["zico"]
    assert score.terms["zico"] == zico.value


class Clicks(nn.Module):
    """An embedding, two layers that print alike, a norm, one logit."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 1)

    def forward(self, tokens):
        x = torch.tanh(self.second(torch.tanh(self.first(30 * self.table(tokens)))))
        return self.out(self.norm(x)).flatten()


def clipped_adagrad_rows(model, batches, loss_fn):
    """Gradients of every batch as SiGeo's recommendation code steps, all losses, the last weights.

    Clipped to norm 5; Adagrad, whose step size rises from 1e-8 by 0.04 / 50 a step. Changes the
    model.
    """
    parameters = dict(model.named_parameters())
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    rows, losses, norms = [], [], []
    for step, (inputs, labels) in enumerate(batches):
        loss = loss_fn(model(inputs), labels)
        grads = torch.autograd.grad(loss, list(parameters.values()))
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
        grads = [g * min(1.0, 5 / (norms[-1] + 1e-6)) for g in grads]
        with torch.no_grad():
            for (name, p), g in zip(parameters.items(), grads, strict=True):
                squares[name] += g.square()
                p -= max(1e-8, 0.0008 * step) * g / (squares[name].sqrt() + 1e-2)
        rows.append({name: g.flatten() for name, g in zip(parameters, grads, strict=True)})
        losses.append(loss.item())
    assert min(norms) > 5
    return rows, losses, {name: p.detach().flatten() for name, p in parameters.items()}


def test_recsys_presets_are_their_formulas():
    torch.manual_seed(0)
    model = Clicks().double()
    batches = [(torch.randint(0, 7, (16,)), torch.randint(0, 2, (16,)).double()) for _ in range(4)]

    def loss_fn(logits, labels):
        return 40 * F.binary_cross_entropy_with_logits(logits, labels)  # so that all are clipped

    presets = ("sigeo_recsys_official", "sigeo_recsys_buggy")
    scores = sigeo.score(model, batches, presets, loss_fn=loss_fn)
    rows, losses, weights = clipped_adagrad_rows(model, batches, loss_fn)

    def key(name, merged):
        module = model.get_submodule(name.rpartition(".")[0])
        return f"{module}{weights[name].shape}" if merged else name

    for preset in presets:
        merged = preset == "sigeo_recsys_buggy"
        stacked, last = {}, {}
        for name in weights:
            stacked.setdefault(key(name, merged), []).extend(row[name] for row in rows)
            last[key(name, merged)] = weights[name]
        assert len(stacked) == (6 if merged else 9)  # a norm has two of one length
        zico = inner = 0.0
        for name, found in stacked.items():
            g = torch.stack(found)
            std = g.std(0)
            kept = torch.nonzero(std)[0] if merged else std > 0
            zico += math.log(float((g.abs().mean(0)[kept] / std[kept]).sum()))
            inner += float((g.sum(0) * last[name]).sum())
        terms = scores[preset].terms
        assert terms["zico"] == pytest.approx(zico, rel=1e-10)
        assert terms["fr"] == pytest.approx(math.log(abs(inner) + 1e-10), rel=1e-10)
        assert terms["loss"] == pytest.approx(losses[-1], rel=1e-12)
        assert scores[preset].value == pytest.approx(terms["zico"] + terms["fr"], rel=1e-12)


def test_gradient_proxies_are_their_formulas():
    torch.manual_seed(0)
    model, batches = golden_net().double(), image_batches(1, dtype=torch.float64)
    scores = sigeo.score(
        model, batches, ["grad_norm", "snip", "plain", "l2_norm"], memory_format="preserve"
    )
    rows, _, weights = stored_rows(model, batches)
    layers = ["0.weight", "3.weight", "7.weight"]
    expected = {
        "grad_norm": sum(rows[0][n].norm() for n in layers),
        "snip": sum((rows[0][n] * weights[n]).abs().sum() for n in layers),
        "plain": sum((rows[0][n] * weights[n]).sum() for n in layers),
        "l2_norm": sum(weights[n].norm() for n in layers),
    }
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(float(value), rel=1e-12)


def test_gradient_proxies_see_the_weights_before_any_step():
    torch.manual_seed(0)
    model, batches = golden_net(), image_batches()
    names = ["grad_norm", "snip", "plain"]
    alone = sigeo.score(model, batches, names)
    beside = sigeo.score(model, batches, ["sigeo", *names])
    assert all(alone[name] == beside[name] for name in names)


def test_flops_and_params():
    model = golden_net()
    scores = sigeo.score(model, image_batches(1), ["params", "flops"])
    assert scores["params"].value == sum(p.numel() for p in model.parameters())
    assert scores["flops"].value == 8 * 27 * 64 + 12 * 18 * 16 + 12 * 5
    assert model.training


class Scaled(nn.Module):
    """Takes a factor that has no samples."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def forward(self, x, factor):
        return factor * self.body(x)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", ["flops", "synflow", "logsynflow", "ntk_min_eig"])
def test_inputs_without_samples_are_for_all_of_them(name, named):
    torch.manual_seed(0)
    model, x, factor = Scaled(), torch.randn(3, 4, 6), torch.tensor(1.0)

    def scored(factor):
        batches = [({"x": y, "factor": factor} if named else (y, factor), None) for y in x]
        return sigeo.score(model, batches, [name])[name]

    assert scored(factor).finite and scored(factor) == scored(1.0)


def test_unreached_layers_count_nothing_and_are_noted():
    score = sigeo.score(Unreached(), image_batches(), ["sigeo", "zico", "snip"])
    for name in ("sigeo", "zico"):
        assert score[name].finite
        assert score[name].notes == (
            "1 of 3 layers have no gradient that varies and count nothing",
        )


class Poisoned(nn.Module):
    def __init__(self, bad):
        super().__init__()
        self.net, self.bad = golden_net(), bad

    def forward(self, x):
        return self.net(x) * self.bad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_produces_nan_scores_minus_infinity(bad):
    names = ["sigeo", "zico", "sigeo_paper", "sigeo_recsys_official"]
    names += ["grad_norm", "snip", "plain", "grasp"]
    scores = sigeo.score(Poisoned(bad), image_batches(), names)
    for name in names:
        assert scores[name].value == -math.inf and not scores[name].finite
        assert any(name in note for note in scores[name].notes), scores[name].notes
    assert any("loss of the last batch is nan" in note for note in scores["sigeo"].notes)


def test_a_step_that_diverges_scores_minus_infinity():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 5))
    batches = [(1e20 * torch.randn(8, 3), torch.arange(8) % 5) for _ in range(4)]
    score = sigeo.score(model, batches, ["sigeo"])["sigeo"]
    assert score.value == -math.inf and not score.finite


def test_an_unused_term_does_not_spoil_the_score():
    """All gradients equal: no ratio, but lambda1 = 0 asks for none."""
    model = nn.Linear(3, 5)
    batch = (torch.randn(8, 3), torch.arange(8) % 5)
    score = sigeo.score(
        model, [batch] * 4, [proxies.get("sigeo_recsys_official", lambdas=(0, 1, 0))]
    )
    assert score["sigeo_recsys_official"].finite


def test_needs_that_are_not_met():
    model, batches = golden_net(), image_batches()
    with pytest.raises(InputError, match="zico needs at least 2 batches, got 1"):
        sigeo.score(model, batches[:1], ["zico"])
    with pytest.raises(InputError, match="snip needs labels"):
        sigeo.score(model, [x for x, _ in batches], ["snip"])
    assert sigeo.score(model, [batches[0][0]], ["synflow"])["synflow"].finite
    with pytest.raises(InputError, match="proxies: expected at least one, got none"):
        sigeo.score(model, batches, [])
    with pytest.raises(InputError, match="expected each once, got zico twice"):
        sigeo.score(model, batches, ["zico", "zico"])
    with pytest.raises(InputError, match="proxy must be one of .*diag_fisher, .* got 'ziko'"):
        sigeo.score(model, batches, ["ziko"])
    with pytest.raises(InputError, match="proxy zico: .* argument 'lambdas', options are none"):
        proxies.get("zico", lambdas=(1, 1, 0))
    with pytest.raises(InputError, match="preset must be one of sigeo_cv_official"):
        proxies.get("sigeo", preset="best")
    for bad in ((1, 2), (1, 2, math.nan)):
        with pytest.raises(InputError, match="lambdas: expected three finite numbers"):
            proxies.get("sigeo", lambdas=bad)


def test_a_proxy_of_ones_own():
    lower = Proxy(
        "depth",
        OnModel(lambda m, _: Outcome(float(len(list(m.children()))))),
        source="here",
        cost="free",
        direction=-1,
    )
    assert sigeo.score(golden_net(), image_batches(1), [lower])["depth"].value == -8
    with pytest.raises(ValueError, match="proxy name 'zico' is taken"):
        proxies.register("zico")(lambda: lower)


@pytest.mark.parametrize("name", proxies.names())
def test_every_proxy_says_where_it_comes_from(name):
    proxy = proxies.get(name)
    assert proxy.name == name and proxy.source and proxy.direction in (1, -1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_do_not_depend_on_the_grad_mode(mode):
    names, model, batches = proxies.names(), golden_net(), image_batches(count=3)
    expected = sigeo.score(model, batches, names)
    with mode():
        assert not torch.is_grad_enabled()
        found = sigeo.score(model, batches, names)
    assert {name: score.value for name, score in found.items()} == {
        name: score.value for name, score in expected.items()
    }
    blocks = [name for name in names if name.startswith("az_")]  # of which this network has none
    assert not any(found[name].finite for name in blocks)
    assert sum(score.finite for score in found.values()) > len(names) - len(blocks) - 3


def test_a_frozen_network_is_not_finite_and_says_why():
    model = golden_net().requires_grad_(False)
    scores = sigeo.score(model, image_batches(), ["zico", "grad_norm"])
    for score in scores.values():
        assert score.value == -math.inf and not score.finite
        assert "the loss depends on no parameter that asks for a gradient" in score.notes


def test_a_star_import_leaves_the_package_its_name():
    names = {}
    exec("import sigeo\nfrom sigeo.proxies import *", names)
    assert names["sigeo"] is sigeo and names["Proxy"] is Proxy


class Full(torch.autograd.Function):
    """As where others fill the memory, a GPU's or a CPU's, while the network runs."""

    @staticmethod
    def forward(ctx, x, where, device):
        ctx.device = device
        return Full.backward(ctx, x) if where == "forward" else x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.device == "cuda":
            raise torch.OutOfMemoryError("no memory")
        return torch.empty(1 << 60)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", ["synflow", "logsynflow", "grasp", "linear_regions", "meco"])
def test_what_finds_no_memory_is_not_scored(name, device):
    """A score that is not finite would be kept for good."""
    where = "backward" if name == "grasp" else "forward"

    class Net(nn.Sequential):
        def forward(self, x):
            return Full.apply(super().forward(x), where, device)

    net = Net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(RuntimeError, match="memory"):
        sigeo.score(net, image_batches(), [name])
