"""`check_per_sample`: what it passes, and what it says of what it does not."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from sigeo.capture.samples import calls
from sigeo_ext.testing import PER_SAMPLE_TOLERANCE, PerSampleCheck, check_per_sample
from tests.sigeo import zoo

DOUBLE, SINGLE = torch.float64, torch.float32
SMOOTH = [
    "smooth convolutions", "batch norm", "layer scale", "transformer", "tied embedding", "lstm",
    "click-through", "slices", "parametrized", "norms", "signals and volumes",
]  # fmt: skip


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_model_passes(name):
    torch.manual_seed(0)
    model, inputs, _ = zoo.made(name, 4)
    dtypes = (DOUBLE, SINGLE) if name in SMOOTH else (DOUBLE,)
    found = check_per_sample(model, inputs, dtypes=dtypes)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    for dtype in dtypes:
        assert list(found.errors[dtype]) == [*names, "all parameters"]
        assert set(found.errors[dtype][names[0]]) == {
            "sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sq_norm",
        }  # fmt: skip
        assert set(found.errors[dtype]["all parameters"]) == {
            "sample_sq_norm", "fisher_rao", "gram",
        }  # fmt: skip
    assert found.worst.error <= PER_SAMPLE_TOLERANCE[found.worst.dtype]
    expected = {"unused operation": "unused", "branch": "b", "gru": "cell"}.get(name)
    assert {n.split(".")[0] for n in found.unreached} == ({expected} if expected else set())


@pytest.mark.parametrize(
    ("layer", "x", "batch_dim"),
    [
        (nn.LSTM(3, 4, num_layers=2), torch.randn(4, 4, 3), 1),
        (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), torch.randn(5, 5, 8), 1),
        (nn.Sequential(nn.Linear(3, 4), nn.Flatten(0, 1)), torch.randn(4, 2, 3), 0),
        (nn.Sequential(nn.Linear(3, 4), nn.Flatten(0, 1)), torch.randn(2, 4, 3), 1),
        (nn.Bilinear(3, 4, 2), (torch.randn(5, 3), torch.randn(5, 4)), 0),
        (nn.Bilinear(3, 4, 2), (torch.randn(5, 5, 3), torch.randn(5, 5, 4)), 0),
        (nn.Sequential(nn.PReLU(3), nn.Linear(4, 2)), torch.randn(5, 3, 4), 0),
        (nn.Sequential(nn.Unfold(2), nn.Linear(4, 2)), torch.randn(5, 3, 3, 3), 0),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), (torch.randn(5, 5, 8),) * 3, 1),
        (spectral_norm(nn.Linear(4, 3)), torch.randn(5, 4), 0),
        (nn.EmbeddingBag(9, 3, sparse=True), torch.randint(0, 9, (5, 4)), 0),
    ],
)
def test_samples_anywhere_in_inputs_and_outputs(layer, x, batch_dim):
    found = check_per_sample(layer, x, batch_dim=batch_dim)
    assert not found.unreached and found.worst.error < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes(dtype):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 5))
    found = check_per_sample(layer, torch.randn(6, 3, 4, 4), dtypes=(dtype,))
    assert found.worst.dtype == dtype and found.worst.error > 1e-5


def test_the_layer_and_the_random_state_are_as_they_were():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).train()
    layer[0].weight.grad = torch.ones(6, 4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state, python = torch.get_rng_state(), random.getstate()
    check_per_sample(layer, torch.randn(5, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert layer.training and layer[0].weight.dtype == SINGLE
    assert torch.equal(layer[0].weight.grad, torch.ones(6, 4)) and layer[1].weight.grad is None
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


class Layer(nn.Module):
    """A layer whose forward pass is a function of it and its input."""

    def __init__(self, run, **parts):
        super().__init__()
        self.linear, self.run = nn.Linear(4, 4), run
        for name, part in parts.items():
            self.register_module(name, part)

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    ("statistic", "wrong"),
    [("m2", lambda t: 1.01 * t), ("sign_sum", lambda t: t + 1), ("sum", lambda t: t + 1e-4)],
)
def test_a_wrong_statistic_is_named_and_the_layer_is_not_blamed(monkeypatch, statistic, wrong):
    right = calls.Linear.measure

    def measure(self, use, argument, *rest):
        found = right(self, use, argument, *rest)
        if argument == "bias":
            return found
        return found._replace(**{statistic: wrong(getattr(found, statistic))})

    monkeypatch.setattr(calls.Linear, "measure", measure)
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    message = (
        rf"check_per_sample: Sequential, [02]\.weight: {statistic} has error ratio [\d.e-]+ in "
        "torch.float64, at most 1e-10 allowed; the layer repeats itself and keeps its samples apart"
    )
    with pytest.raises(AssertionError, match=message):
        check_per_sample(layer, x)
    check_per_sample(layer, x, tolerance={DOUBLE: 10.0, SINGLE: 10.0})


def test_a_parameter_that_the_capture_does_not_see_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(calls.Linear, "measure", lambda *_: calls.SampleMoments())
    layer, x = nn.Linear(4, 5), torch.randn(6, 4)
    with pytest.raises(AssertionError, match="the capture saw no use of the parameter"):
        check_per_sample(layer, x, dtypes=(DOUBLE,))


class Hidden(torch.autograd.Function):
    """Subtracts the mean of the samples, and says that it does not move them."""

    @staticmethod
    def forward(ctx, x):
        return x - x.mean(0)

    @staticmethod
    def backward(ctx, d):
        return d - d.mean(0)


@pytest.mark.parametrize("run", [
    lambda m, x: m.linear(Hidden.apply(m.linear(x))),
    lambda m, x: m.linear(m.linear(x).flip(0)),
    lambda m, x: x.mean() * m.linear(x),
])  # fmt: skip
def test_mixed_samples_are_shown(run):
    torch.manual_seed(0)
    message = r"it mixes samples: the output of sample \d alone differs from .* by [\d.]+"
    with pytest.raises(AssertionError, match=message):
        check_per_sample(Layer(run), torch.randn(5, 4))


def test_an_output_without_samples_is_shown():
    layer = Layer(lambda m, x: m.linear(x).mean(0))
    with pytest.raises(AssertionError, match=r"shape \[4\] is \[4\] for one sample alone, so no"):
        check_per_sample(layer, torch.randn(5, 4))


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
def test_batch_norm_on_the_batch_is_found_by_name(track, dims):
    norm = (nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d)(3, track_running_stats=track)
    first = nn.Linear(4, 3) if dims == 1 else nn.Conv2d(2, 3, 1)
    layer = nn.Sequential(first, norm, nn.Tanh())
    x = torch.randn(5, 4) if dims == 1 else torch.randn(5, 2, 3, 3)
    with pytest.raises(AssertionError, match=r"uses the statistics of the batch \(1\)"):
        check_per_sample(layer, x)
    if track:
        check_per_sample(layer.eval(), x, dtypes=(DOUBLE,))


def test_randomness_is_found():
    layer = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    with pytest.raises(AssertionError, match="it is random: two runs of the batch differ by"):
        check_per_sample(layer, torch.randn(5, 4))
    check_per_sample(layer.eval(), torch.randn(5, 4))


def test_a_state_that_calls_change_is_found():
    layer = Layer(lambda m, x: m.linear(x) + m.linear(x).sum() * m.counter(x))
    counter = Layer(lambda m, x: m.calls.add_(1))
    counter.register_buffer("calls", torch.zeros(()))
    layer.counter = counter
    with pytest.raises(AssertionError, match=r"changes from call to call, .* with its buffer coun"):
        check_per_sample(layer, torch.randn(5, 4))
    python = Layer(lambda m, x: m.linear(x) * x.mean() * random.random())
    with pytest.raises(AssertionError, match="with no buffer or random state of torch"):
        check_per_sample(python, torch.randn(5, 4))


def test_another_batch_dim_is_found():
    with pytest.raises(AssertionError, match="apart in dimension 1, not 0: batch_dim=1"):
        check_per_sample(nn.LSTM(3, 4), torch.randn(4, 5, 3))
    positions = Layer(lambda m, x: m.linear(x) * torch.arange(4)[:, None, None])
    with pytest.raises(AssertionError, match="apart in dimension 1, not 0: batch_dim=1"):
        check_per_sample(positions, torch.randn(4, 5, 4))


def test_bad_input():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    cases = [
        (nn.ReLU(), x, {}, "expected at least one trainable parameter"),
        (nn.LazyLinear(3), x, {}, "weight has no shape yet"),
        (layer, x[:1], {}, r"two or more, in dimension 0, got \[1\]"),
        (layer, (x, x[:2]), {}, r"one number of samples, .*, got \[2, 5\]"),
        (layer, x, {"batch_dim": -1}, "counted from the first, got -1"),
        (layer, x, {"batch_dim": 2}, "dimension 2, got no tensor that has it"),
        (layer, x, {"dtypes": ()}, "expected at least one, got none"),
        (layer, x, {"tolerance": {SINGLE: 1}}, "expected one for torch.float64"),
        (Layer(lambda m, x: x), x, {}, "expected an output that depends on a parameter"),
    ]
    for module, inputs, options, message in cases:
        with pytest.raises(ValueError, match=message):
            check_per_sample(module, inputs, **options)


def test_the_worst_of_equal_errors_is_one_of_them():
    errors = {dtype: {"weight": {"sum": 0.5, "m2": 0.5}} for dtype in (DOUBLE, SINGLE)}
    assert PerSampleCheck(errors, ()).worst == (0.5, DOUBLE, "weight", "sum")


def test_the_kernel_library_does_not_load_the_toolkit():
    code = "import sys, sigeo_ext.testing; print('sigeo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.t = nn.Linear(4, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.layer(x) * self.t


def test_a_parameter_of_no_dimensions_is_checked():
    found = check_per_sample(Temperature(), torch.randn(5, 4))
    assert found.worst.error < 1e-5 and set(found.errors[DOUBLE]) >= {"t", "layer.weight"}
