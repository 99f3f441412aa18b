"""The neural tangent kernel against the Jacobian that autograd gives, output by output."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import capture, ntk, select
from sigeo_ext import gram
from tests.sigeo import zoo

SAMPLES = 5


def jacobian(model: nn.Module, inputs, params: str = "all") -> torch.Tensor:
    """[samples, outputs, parameters]."""
    parameters = list(select(model, params).values())
    samples = []
    for b in range(len(inputs[0])):
        outputs = model(*(x[b : b + 1] for x in inputs)).flatten()
        rows = []
        for output in outputs:
            grads = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
            dense = [
                torch.zeros_like(p) if g is None else g.to_dense()
                for g, p in zip(grads, parameters, strict=True)
            ]
            rows.append(torch.cat([g.flatten() for g in dense]))
        samples.append(torch.stack(rows))
    return torch.stack(samples)


MODELS = [
    "convolutions", "inverted residual", "layer scale", "transformer", "tied embedding", "lstm",
    "siamese", "click-through", "slices", "shared module", "transposed", "signals and volumes",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_three_kernels_equal_those_of_the_jacobian(name):
    torch.manual_seed(0)
    model, inputs, _ = zoo.made(name, SAMPLES)
    j = jacobian(model, inputs)
    expected = {
        "sum": torch.einsum("ip,jp->ij", j.sum(1), j.sum(1)),
        "trace": torch.einsum("icp,jcp->ij", j, j),
        "full": j.flatten(0, 1) @ j.flatten(0, 1).t(),
    }
    for outputs, kernel in expected.items():
        got = ntk(model, inputs, outputs=outputs)
        assert float((got - kernel).norm() / kernel.norm()) < 1e-10, outputs
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["convolutions", "transformer", "tied embedding"])
def test_weights_of_layers_alone(name):
    torch.manual_seed(0)
    model, inputs, _ = zoo.made(name, SAMPLES)
    j = jacobian(model, inputs, "layers").sum(1)
    got = ntk(model, inputs, params="layers")
    assert float((got - j @ j.t()).norm() / (j @ j.t()).norm()) < 1e-10


def test_units_that_do_not_fit_together_go_block_by_block():
    torch.manual_seed(0)
    model, inputs, _ = zoo.made("tied embedding", 7)
    j = jacobian(model, inputs).sum(1)
    got = ntk(model, inputs, max_bytes=1)
    assert float((got - j @ j.t()).norm() / (j @ j.t()).norm()) < 1e-10


def test_contributions_add_up_to_the_gradient_of_the_batch():
    torch.manual_seed(0)
    model, inputs, _ = zoo.made("batch norm", 6)
    model.train()
    for outputs in ("sum", "trace", "full"):
        text = r"batch norm uses .* or the outputs' gradients .* \(batch_norm=\"coupled\"\), got"
        with pytest.raises(InputError, match=text):
            ntk(model, inputs, outputs=outputs)
        assert ntk(model, inputs, outputs=outputs, batch_norm="coupled").isfinite().all()
    with pytest.raises(InputError, match=r"or the decomposition .*, got"), capture(model):
        model(*inputs)
    twin = copy.deepcopy(model)
    twin(*inputs).sum().backward()
    total = sum(float(p.grad.square().sum()) for p in twin.parameters())
    assert float(ntk(model, inputs, batch_norm="contribution").sum()) == pytest.approx(total)
    with pytest.raises(InputError, match='"full" repeats samples'):
        ntk(model, inputs, batch_norm="contribution", outputs="full")


@pytest.mark.parametrize("max_bytes", [1, 3000, 1 << 28])
def test_coupled_rows_are_gradients_through_the_whole_batch(max_bytes):
    torch.manual_seed(0)
    model, inputs, _ = zoo.made("batch norm", 6)
    model.train()
    state = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    y = twin(*inputs).flatten(1)
    rows = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(v, list(twin.parameters()), retain_graph=True)
            ]
        )
        for v in y.flatten()
    ]
    j = torch.stack(rows).unflatten(0, y.shape)
    expected = {
        "sum": j.sum(1) @ j.sum(1).t(),
        "trace": torch.einsum("icp,jcp->ij", j, j),
        "full": j.flatten(0, 1) @ j.flatten(0, 1).t(),
    }
    for outputs, kernel in expected.items():
        got = ntk(model, inputs, outputs=outputs, batch_norm="coupled", max_bytes=max_bytes)
        assert float((got - kernel).norm() / kernel.norm()) < 1e-10, outputs
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    apart = ntk(model, inputs, batch_norm="contribution")
    assert float((apart - expected["sum"]).norm() / apart.norm()) > 0.01


def test_coupled_rows_without_batch_norm_are_the_kernel():
    for name in ("transformer", "tied embedding"):
        torch.manual_seed(0)
        model, inputs, _ = zoo.made(name, SAMPLES)
        kernel = ntk(model, inputs, params="layers")
        got = ntk(model, inputs, params="layers", batch_norm="coupled")
        assert float((got - kernel).norm() / kernel.norm()) < 1e-10


@pytest.mark.parametrize("outputs", ["sum", "trace", "full"])
def test_coupled_rows_of_a_model_with_a_frozen_weight(outputs):
    torch.manual_seed(0)
    model, inputs, _ = zoo.made("transformer", SAMPLES)
    next(iter(model.parameters())).requires_grad_(False)
    kernel = ntk(model, inputs, outputs=outputs)
    got = ntk(model, inputs, outputs=outputs, params="layers", batch_norm="coupled")
    layers = ntk(model, inputs, outputs=outputs, params="layers")
    assert float((got - layers).norm() / layers.norm()) < 1e-10
    got = ntk(model, inputs, outputs=outputs, batch_norm="coupled")
    assert float((got - kernel).norm() / kernel.norm()) < 1e-10


class Scaled(nn.Module):
    """Takes factors that are no samples, in a tensor and as a number."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, x, factor, other):
        return factor * other * self.body(x)


def test_every_sample_of_the_full_kernel_has_what_is_no_sample():
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(4, 6, dtype=torch.float64)
    expected = 36 * ntk(model, (x, 1, 1.0), outputs="full")
    got = ntk(model, (x, torch.tensor(2.0, dtype=torch.float64), 3.0), outputs="full")
    torch.testing.assert_close(got, expected)


def test_parameters_that_are_not_measured_keep_their_gradients():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("transformer", SAMPLES)
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(*inputs), labels).backward()
    with capture(model, {"gram", "abs_sum"}, params="layers") as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    assert set(stats.keys()) == set(select(model, "layers"))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    with pytest.raises(KeyError, match="not among the parameters that are measured"):
        stats[next(n for n, _ in model.named_parameters() if n not in set(stats.keys()))]


def test_float32_and_channels_last():
    torch.manual_seed(0)
    model, inputs, _ = zoo.made("smooth convolutions", SAMPLES)
    expected = ntk(model, inputs)
    got = ntk(model.float(), inputs[0].float())
    assert got.dtype == torch.float64
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_a_skip_does_not_lower_the_smallest_eigenvalue():
    """Mean over seeds, deep narrow ReLU networks (arXiv 2209.07238, section 4)."""

    class Deep(nn.Module):
        def __init__(self, skip: bool):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
            self.head, self.skip = nn.Linear(32, 1), skip

        def forward(self, x):
            for layer in self.layers:
                x = F.relu(layer(x)) + (x if self.skip else 0)
            return self.head(x)

    smallest = {False: 0.0, True: 0.0}
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(10, 32, dtype=torch.float64)
        for skip in smallest:
            torch.manual_seed(seed)
            model = Deep(skip).double()
            smallest[skip] += gram.spectrum(ntk(model, x), torch.float64).smallest
    assert smallest[True] > smallest[False] > 0


def test_bad_arguments():
    model, inputs, _ = zoo.made("convolutions", SAMPLES)
    with pytest.raises(InputError, match='outputs: must be "sum", "trace" or "full", got \'all\''):
        ntk(model, inputs, outputs="all")
    with pytest.raises(InputError, match='params: must be "all" or "layers", got'):
        ntk(model, inputs, params="weights")
    with pytest.raises(InputError, match=r"expected an output \[samples, ...\], got tuple"):
        ntk(nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3))
