"""`capture` on models with parts that are called several times, or parameters in odd places."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import check, error, loop
from tests.sigeo.zoo import CLASSES, Function, images

SAMPLES = 6


def sequences(samples):
    return (torch.randn(samples, 6, 6, dtype=torch.float64),)


def state_of_two() -> nn.Module:
    """A cell that makes one of its outputs of the other, and is called again and again."""

    def run(m, x):
        state = None
        for step in range(x.shape[1]):
            state = m.cell(x[:, step], state)
        return m.out(state[0])

    return Function(run, cell=nn.LSTMCell(6, 7), out=nn.Linear(7, CLASSES))


def recurrent_twice() -> nn.Module:
    def run(m, x):
        first, _ = m.cell(x)
        second, (last, _) = m.cell(torch.tanh(first))
        return m.out(second[:, 0] + last[0])

    return Function(run, cell=nn.LSTM(6, 6, batch_first=True), out=nn.Linear(6, CLASSES))


def own_keys() -> nn.Module:
    """Attention with keys and values that are parameters."""
    return Function(
        lambda m, x: m.out(m.attention(x, x, x)[0].mean(1)), out=nn.Linear(6, CLASSES),
        attention=nn.MultiheadAttention(6, 2, add_bias_kv=True, batch_first=True),
    )  # fmt: skip


def padding_mask(need_weights: bool):
    """Attention that leaves some tokens of each sample out."""

    def made() -> nn.Module:
        def run(m, x):
            padding = x[..., 0] > 0.8
            z, _ = m.attention(x, x, x, key_padding_mask=padding, need_weights=need_weights)
            return m.out(z.mean(1))

        return Function(
            run, attention=nn.MultiheadAttention(6, 2, batch_first=True), out=nn.Linear(6, CLASSES)
        )

    return made


def decoder() -> nn.Module:
    return Function(
        lambda m, x: m.out(m.layer(x, torch.tanh(x)).mean(1)), out=nn.Linear(6, CLASSES),
        layer=nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
    )  # fmt: skip


def one_number() -> nn.Module:
    """A learned temperature."""
    return Function(
        lambda m, x: m.out(x.mean(1)) * m.temperature.exp(), out=nn.Linear(6, CLASSES),
        temperature=nn.Parameter(torch.randn(())),
    )  # fmt: skip


def parametric_relu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 6, 3), nn.PReLU(), nn.Flatten(),
        nn.Linear(96, CLASSES),
    )  # fmt: skip


def rearranged() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.PixelShuffle(2), nn.Tanh(),
        nn.Conv2d(2, 6, 3), nn.PixelUnshuffle(2), nn.Conv2d(24, 4, 3), nn.Flatten(),
        nn.Linear(100, CLASSES),
    )  # fmt: skip


def unfolded() -> nn.Module:
    """A convolution as a matrix product of patches."""
    return Function(
        lambda m, x: m.out(torch.tanh(m.weight @ F.unfold(x, 3)).mean(2)),
        weight=nn.Parameter(torch.randn(7, 27)), out=nn.Linear(7, CLASSES),
    )  # fmt: skip


def standardised() -> nn.Module:
    """A convolution whose weight is normalised in each forward pass."""

    def run(m, x):
        w = m.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return m.out(torch.tanh(F.conv2d(x, w, m.conv.bias)).mean((2, 3)))

    return Function(run, conv=nn.Conv2d(3, 6, 3), out=nn.Linear(6, CLASSES))


def experts() -> nn.Module:
    """The two best experts of each token, all of them computed."""

    def run(m, x):
        share, chosen = m.gate(x).softmax(-1).topk(2, -1)
        every = torch.stack([m.a(x), m.b(x), m.c(x)], 2)
        best = every.gather(2, chosen[..., None].expand(-1, -1, -1, CLASSES))
        return (best * share[..., None]).sum(2).mean(1)

    return Function(
        run, gate=nn.Linear(6, 3), a=nn.Linear(6, CLASSES), b=nn.Linear(6, CLASSES),
        c=nn.Linear(6, CLASSES),
    )  # fmt: skip


class Passing(nn.Module):
    """Gives its input back beside what it computes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return x, torch.einsum("bti,io->bto", x, self.weight.softmax(0))


def passed_through() -> nn.Module:
    def run(m, x):
        before, after = m.passing(m.body(x))
        return m.out((before * after).mean(1))

    return Function(run, body=nn.Linear(6, 6), passing=Passing(), out=nn.Linear(6, CLASSES))


def in_place_behind_tokens() -> nn.Module:
    """A linear layer of many positions, whose output is modified in place."""

    def run(m, x):
        y = m.body(x)
        y += x
        y *= m.scale
        return m.out(m.again(y).relu_().mean(1))

    return Function(
        run, body=nn.Linear(6, 6), again=nn.Linear(6, 6), scale=nn.Parameter(torch.rand(6) + 0.5),
        out=nn.Linear(6, CLASSES),
    )  # fmt: skip


MODELS = {
    "passed through": (passed_through, sequences),
    "in place behind tokens": (in_place_behind_tokens, sequences),
    "state of two": (state_of_two, sequences),
    "recurrent twice": (recurrent_twice, sequences),
    "own keys": (own_keys, sequences),
    "padding mask": (padding_mask(False), sequences),
    "padding mask, with weights": (padding_mask(True), sequences),
    "decoder": (decoder, sequences),
    "one number": (one_number, sequences),
    "parametric relu": (parametric_relu, images),
    "rearranged": (rearranged, images),
    "unfolded": (unfolded, images),
    "standardised": (standardised, images),
    "experts": (experts, sequences),
}


@pytest.mark.parametrize("name", MODELS)
def test_unusual_models_equal_the_loop(name):
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    check(build().double(), inputs(SAMPLES), torch.arange(SAMPLES) % CLASSES)


@pytest.mark.parametrize("max_bytes", [1, 1 << 28])
def test_m2_of_a_shared_parameter_whose_first_sample_is_far_from_all_others(max_bytes):
    samples = 512
    torch.manual_seed(0)
    model = Function(lambda m, x: m.layer(m.layer(x)), layer=nn.Linear(CLASSES, CLASSES)).double()
    x = torch.randn(samples, CLASSES, dtype=torch.float64)
    x[0] *= 1e4

    def loss(output, labels):
        return output.square().sum(1).mean()

    g = loop(model, (x,), torch.zeros(samples), loss)["layer.weight"]
    single = copy.deepcopy(model).float()
    with capture(single, {"m2"}, max_bytes=max_bytes) as stats:
        loss(single(x.float()), None).backward()
    assert error(stats["layer.weight"].m2, (g - g.mean(0)).square().sum(0)) < 5e-6


def overlapping(m, x):
    return F.linear(m.layer(x.flatten(1)), m.p.unfold(0, 4, 1))


def with_gaps(m, x):
    return F.linear(m.layer(x.flatten(1)), m.p[0:CLASSES])


def joined_to_the_samples(m, x):
    z = torch.cat([m.p.expand(len(x), 4), m.layer(x.flatten(1))], 0)
    return m.out(z[: len(x)] + z[len(x) :])


@pytest.mark.parametrize(
    ("run", "shape", "outputs"),
    [(overlapping, (CLASSES + 3,), 4), (with_gaps, (8, 4), 4)],
)
def test_views_that_are_no_plain_part_of_their_parameter(run, shape, outputs):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(*shape, 2)[..., 0] if run is with_gaps else torch.randn(shape))
    model = Function(run, p=p, layer=nn.Linear(192, outputs))
    # Not .double(), which would close the gaps.
    for parameter in model.parameters():
        parameter.data = parameter.data.double() if run is overlapping else parameter.data
    inputs = images(6) if run is overlapping else (torch.randn(6, 3, 8, 8),)
    tolerance = 1e-10 if run is overlapping else 1e-5
    check(model, inputs, torch.arange(6) % CLASSES, tolerance=tolerance)


def test_a_parameter_that_is_joined_along_the_samples_is_not_taken_for_unused():
    torch.manual_seed(0)
    model = Function(
        joined_to_the_samples,
        p=nn.Parameter(torch.randn(1, 4)),
        layer=nn.Linear(192, 4),
        out=nn.Linear(4, CLASSES),
    )
    with pytest.raises(InputError), capture(model) as stats:
        F.cross_entropy(model(torch.randn(6, 3, 8, 8)), torch.arange(6) % 5).backward()
        assert stats["p"].abs_sum.any()


def test_an_input_modified_in_place_after_a_module_that_must_run_again():
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4))

        def forward(self, h):
            return F.relu(h) * self.w.exp()

    gain, layer = Gain(), nn.Linear(3, 4)

    def run(m, x):
        h = m.layer(x)
        y = m.gain(h)
        h.add_(5)
        return y

    model = Function(run, layer=layer, gain=gain)
    with (
        pytest.raises(InputError, match="gain.w .* its input was modified in place"),
        capture(model),
    ):
        model(torch.randn(5, 3)).square().mean().backward()


def test_captures_of_attention_in_several_threads():
    def work(seed):
        torch.manual_seed(seed)
        model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        with capture(model, {"sample_sq_norm"}) as stats:
            model(torch.randn(4, 3, 8)).square().mean().backward()
        return stats.sample_sq_norm

    linear = F.linear
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: work(0).shape, range(12)))
    assert found == [(4,)] * 12
    assert F.linear is linear


def test_norms_of_tensors_that_are_not_contiguous_and_indices_of_32_bits():
    def run(m, indices):
        z = m.norm(m.table(indices).transpose(1, 2))
        return m.out(z.flatten(1))

    model = Function(
        run, table=nn.Embedding(9, 6), norm=nn.GroupNorm(2, 6), out=nn.Linear(18, CLASSES)
    ).double()
    inputs = (torch.randint(0, 9, (6, 3), dtype=torch.int32),)
    check(model, inputs, torch.arange(6) % CLASSES)


def test_what_cannot_be_measured_is_said_in_one_line():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(InputError, match="expected at least one sample, got none"), capture(model):
        model(torch.randn(0, 3))
    with pytest.raises(InputError, match="expected use_reentrant=False"), capture(model):
        x = torch.randn(5, 3, requires_grad=True)
        F.linear(checkpoint(model, x, use_reentrant=True), torch.ones(1, 2)).sum().backward()


def test_a_nan_stays_one_where_a_parameter_is_used_twice():
    layer = nn.Linear(3, 3)
    x = torch.randn(4, 3)
    x[2, 1] = torch.nan
    with capture(layer, {"sign_sum"}) as stats:
        (layer(x) + layer(2 * x)).sum().backward()
    assert stats["weight"].sign_sum.isnan().any()


def test_a_module_that_must_run_again_and_draws_random_numbers_is_refused():
    model = nn.LSTM(4, 5, 2, dropout=0.5, batch_first=True)
    with pytest.raises(InputError, match="would draw other random numbers"), capture(model):
        model(torch.randn(3, 6, 4))[0].square().mean().backward()


def test_parts_of_the_model_are_not_the_model():
    convolve = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.ModuleDict({"features": convolve, "head": nn.Linear(4, 2)})
    with pytest.raises(InputError, match="no per-sample gradient here"), capture(model):
        model["head"](model["features"](torch.randn(5, 3, 8, 8))).square().mean().backward()
    with capture(model, strict=False) as stats:
        (model["head"].weight * 2).sum().backward()
    with pytest.raises(InputError, match="the model itself was not called in the body"):
        _ = stats.sample_sq_norm
    model = nn.Linear(3, 2)
    with pytest.raises(InputError, match="want: expected a set or list of names, got the text"):
        capture(model, "abs_sum").__enter__()


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(()).item()])
def test_numbers_of_every_generator_are_noticed(draw):
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4))

        def forward(self, h):
            return h * self.w.exp() * float(draw())

    model = nn.Sequential(nn.Linear(3, 4), Gain())
    with pytest.raises(InputError, match="would draw other random numbers"), capture(model):
        model(torch.randn(5, 3)).square().mean().backward()
