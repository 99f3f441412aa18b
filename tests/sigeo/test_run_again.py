"""Modules that run again for each unit: what they hold meanwhile, and that they do the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from sigeo.capture.samples.fallback import Fallback
from tests.sigeo.sample_loop import SAMPLES, check
from tests.sigeo.zoo import CLASSES, Function


class Repeated(nn.Module):
    """A recurrent layer that is called several times."""

    def __init__(self, calls):
        super().__init__()
        self.cell, self.calls = nn.LSTM(4, 4, batch_first=True), calls

    def forward(self, x):
        for _ in range(self.calls):
            x = self.cell(x)[0]
        return x[:, -1]


def test_all_calls_together_hold_at_most_half_of_max_bytes(monkeypatch):
    torch.manual_seed(0)
    model = Repeated(4).double()
    x = torch.randn(SAMPLES, 3, 4, dtype=torch.float64)
    made: list[Fallback] = []
    peak = 0
    of, unit_gradients = Fallback.of.__func__, Fallback.unit_gradients

    def noted(cls, *args):
        made.append(of(cls, *args))
        return made[-1]

    def watched(fallback, name, units):
        nonlocal peak
        found = unit_gradients(fallback, name, units)
        peak = max(peak, sum(g.nbytes for one in made for g in one.held.values()))
        return found

    monkeypatch.setattr(Fallback, "of", classmethod(noted))
    monkeypatch.setattr(Fallback, "unit_gradients", watched)
    of_one_call = SAMPLES * sum(p.nbytes for p in model.parameters())
    check(model, (x,), torch.arange(SAMPLES) % 4, max_bytes=4 * of_one_call)
    assert [one.holds for one in made] == [True, True, False, False]
    assert 0 < peak <= 2 * of_one_call


def test_nothing_is_held_when_the_pass_has_ended(monkeypatch):
    torch.manual_seed(0)
    model, x = Repeated(2), torch.randn(SAMPLES, 3, 4)
    made: list[Fallback] = []
    of = Fallback.of.__func__

    def noted(cls, *args):
        made.append(of(cls, *args))
        return made[-1]

    monkeypatch.setattr(Fallback, "of", classmethod(noted))
    gram_in_blocks = 8 * SAMPLES * max(p.numel() for p in model.parameters())
    with capture(model, {"gram", "sq_sum"}, max_bytes=4 * gram_in_blocks):
        model(x).square().mean().backward()
    assert any(one.holds for one in made)
    assert not any(one.held for one in made)


class Gain(nn.Module):
    """A factor in a way no kernel knows, of something else in the place of its input."""

    def __init__(self, before=lambda z: z):
        super().__init__()
        self.p, self.before = nn.Parameter(torch.randn(4)), before

    def forward(self, x):
        return self.before(x.clone()) * self.p.exp()


def with_gain(before, after=lambda z: z) -> nn.Module:
    torch.manual_seed(0)
    return Function(
        lambda m, x: m.out(after(m.gain(m.body(x))).tanh()),
        body=nn.Linear(4, 4),
        gain=Gain(before),
        out=nn.Linear(4, CLASSES),
    )


def labelled(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(SAMPLES, 4, dtype=dtype), torch.arange(SAMPLES) % CLASSES


def put_zero(index):
    def write(z):
        z[index] = 0.0
        return z

    return write


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (put_zero(0), "another output"),
        (put_zero(-1), "another output"),
        (put_zero(slice(1, None)), "another output"),
        (lambda z: z.fill_diagonal_(0.0), "another output"),
        (lambda z: z * (torch.arange(len(z)) > 2)[:, None], "another output"),
        (lambda z: z + torch.eye(len(z), 4), "another output"),
        (put_zero(2), "fails on one alone .index 2 is out of bounds"),
        (lambda z: z + torch.eye(SAMPLES, 4), "another output"),
    ],
    ids=["first", "last", "others", "diagonal", "mask", "one-hot", "third", "of the batch's size"],
)
def test_a_module_that_goes_by_places_in_the_batch_is_refused_by_name(before, reason):
    model, (x, labels) = with_gain(before).double(), labelled()
    with (
        pytest.raises(InputError, match=rf"gain.p .* its module \(Gain\) .* {reason}"),
        capture(model),
    ):
        F.cross_entropy(model(x), labels).backward()


def test_a_module_that_counts_its_calls_is_refused():
    calls = []
    model, (x, labels) = with_gain(lambda z: calls.append(0) or z * len(calls)), labelled()
    with pytest.raises(InputError, match="what earlier calls left behind"), capture(model):
        F.cross_entropy(model(x.float()), labels).backward()


@pytest.mark.parametrize(
    "before",
    [
        put_zero((slice(None), 0)),
        lambda z: z.masked_fill_(z > 0, 1.0),
        lambda z: torch.where(z[:, :1] > 0, z, 1.0),
        lambda z: F.layer_norm(z.float(), (4,)).double(),
    ],
)
@pytest.mark.parametrize("after", [lambda z: z, lambda z: z.mul_(2.0)], ids=["kept", "in place"])
def test_what_a_module_does_to_each_sample_alike_is_measured(before, after):
    x, labels = labelled()
    check(with_gain(before, after).double(), (x,), labels, tolerance=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_other_output(dtype, autocast):
    torch.manual_seed(0)
    layers = [Function(lambda m, x: F.linear(x, m.w.tanh()).relu(), w=nn.Linear(64, 64).weight)]
    layers = [module for _ in range(4) for module in (layers[0], nn.LayerNorm(64))]
    model = nn.Sequential(*layers).to(torch.float32 if autocast else dtype)
    x = torch.randn(16, 64, dtype=torch.float32 if autocast else dtype)
    with capture(model) as stats:
        with torch.autocast("cpu", dtype, enabled=autocast):
            y = model(x)
        y.float().square().sum(1).mean().backward()
    assert stats["0.w"].abs_sum.all()


def twice_its_input(module, args):
    return (2 * args[0],)


def half_its_output(module, args, output):
    return output / 2


@pytest.mark.parametrize(
    ("register", "hook"),
    [
        (nn.Module.register_forward_pre_hook, twice_its_input),
        (nn.Module.register_forward_hook, half_its_output),
    ],
)
def test_hooks_of_a_module_run_again_with_it(register, hook):
    model, (x, labels) = with_gain(lambda z: z).double(), labelled()
    register(model.gain, hook)
    check(model, (x,), labels)


def test_hooks_of_an_output_change_what_the_module_gets():
    def reversed_gradient(z):
        z.register_hook(lambda gradient: -2 * gradient)
        return z

    model, (x, labels) = with_gain(lambda z: z, reversed_gradient).double(), labelled()
    check(model, (x,), labels)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return -d


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_cancel_out_are_zero_but_for_rounding(dtype):
    model = with_gain(lambda z: z, lambda z: model.gain(Reversed.apply(z))).to(dtype)
    x, labels = labelled(dtype)
    with capture(model) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert stats["gain.p"].abs_sum.max() < 1e-6 * stats["body.weight"].abs_sum.max()


def test_an_output_that_cancels_out_is_zero_but_for_rounding():
    model = with_gain(lambda z: (z - F.normalize(z) * z.norm(dim=1, keepdim=True)) * 10)
    x, labels = labelled(torch.float32)
    with capture(model) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert stats["gain.p"].abs_sum.isfinite().all()


def test_a_nan_of_the_batch_is_one_of_its_unit():
    model, (x, labels) = with_gain(lambda z: z / z.relu()).double(), labelled()
    with capture(model) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert stats["gain.p"].abs_sum.isnan().any()


@pytest.mark.parametrize("change", [lambda h: h.relu_(), lambda h: h.add_(1.0)])
@pytest.mark.parametrize(
    "product", [F.linear, lambda x, w, b: torch.einsum("bti,oi->bto", x, w)], ids=["linear", "ein"]
)
def test_outputs_that_are_views_may_be_written_to(product, change):
    torch.manual_seed(0)
    scaled = Function(
        lambda m, x: product(x, m.w / m.w.norm(), m.b),
        w=nn.Linear(4, 4).weight,
        b=nn.Linear(4, 4).bias,
    )
    model = Function(
        lambda m, x: m.out(change(m.body(x))).mean(1), body=scaled, out=nn.Linear(4, 3)
    )
    x, labels = torch.randn(SAMPLES, 5, 4, dtype=torch.float64), torch.arange(SAMPLES) % 3
    check(model.double(), (x,), labels)


def test_several_outputs_may_be_written_to():
    torch.manual_seed(0)
    pair = Function(
        lambda m, x: (x * m.p.exp(), (x + m.p.exp())[:, 1:]), p=nn.Parameter(torch.randn(4))
    )
    model = Function(
        lambda m, x: m.out(torch.cat([part.tanh_() for part in m.pair(x)], 1)),
        pair=pair,
        out=nn.Linear(7, CLASSES),
    )
    x, labels = labelled()
    check(model.double(), (x,), labels)


def test_values_that_fall_on_the_other_side_of_a_grid_are_rounding(monkeypatch):
    class Rounded(nn.Module):
        """The largest entry moves by a step of the grid from one run to the next."""

        def __init__(self):
            super().__init__()
            self.w, self.runs = nn.Parameter(torch.randn(64, 64) / 8), 0

        def forward(self, x):
            self.runs += 1
            h = F.linear(x, self.w.tanh())
            step = torch.zeros_like(h)
            step.flatten(1)[:, 0] = (self.runs > 1) / 127
            return h + ((h * 127).round() / 127 + step - h).detach()

    torch.manual_seed(0)
    model, x = nn.Sequential(Rounded(), nn.Linear(64, 3)), torch.randn(SAMPLES, 300, 64)
    with capture(model, {"sample_sq_norm"}) as stats:
        F.cross_entropy(model(x).mean(1), torch.arange(SAMPLES) % 3).backward()
    assert bool((stats.sample_sq_norm > 0).all())


def test_hooks_that_change_the_gradient_where_it_is_kept_are_no_unseen_use():
    model, (x, labels) = with_gain(lambda z: z).double(), labelled()

    def clip(p):
        p.grad.mul_(0.1)

    hook = model.gain.p.register_post_accumulate_grad_hook(clip)
    with capture(model, {"sum"}) as stats:
        F.cross_entropy(model(x), labels).backward()
    torch.testing.assert_close(stats["gain.p"].sum / SAMPLES, model.gain.p.grad * 10)
    hook.remove()


def test_a_failed_capture_holds_nothing_and_is_not_to_be_read():
    model, (x, labels) = with_gain(put_zero(0)).double(), labelled()
    with pytest.raises(InputError), capture(model, {"sample_sq_norm"}) as stats:
        F.cross_entropy(model(x), labels).backward()
    with pytest.raises(InputError, match="nothing was measured: .* another output"):
        stats.sample_sq_norm  # noqa: B018
    assert "not to be read" in repr(stats)
    session = stats._session
    assert not session.fallbacks
    assert all(r.total is None and not r.uses for r in session.records.values())


def test_whatever_a_module_raises_about_one_unit_is_a_reason():
    def particular(z):
        if len(z) == 1:
            raise KeyError
        return z

    model, (x, labels) = with_gain(particular).double(), labelled()
    with capture(model, {"sum"}, strict=False) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert "fails on one alone (KeyError)" in stats.unsupported["gain.p"]


def test_what_a_module_keeps_of_its_pass_stays_that_of_the_batch():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.calls = nn.Parameter(torch.randn(4)), 0

        def forward(self, x):
            self.kept, self.calls = (x * self.p.exp()).softmax(-1), self.calls + 1
            return self.kept

    model, x = nn.Sequential(nn.Linear(4, 4), Keeping()), torch.randn(SAMPLES, 4)
    with capture(model) as stats:
        output = model(x)
        output.square().mean().backward()
    assert stats["1.p"].abs_sum.all()
    assert torch.equal(model[1].kept, output) and model[1].calls == 1


class Biased(nn.Module):
    """Attention whose first layer makes a bias of positions for all layers to add."""

    def __init__(self, buckets):
        super().__init__()
        self.qkv, self.table = nn.Linear(4, 12), nn.Embedding(3, 1) if buckets else None

    def forward(self, x, bias=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.table is not None:
            places = torch.arange(x.shape[1])
            bias = self.table((places[:, None] - places).abs().clamp_max(2))[None, :, :, 0]
        return x + (q @ k.mT + bias).softmax(-1) @ v, bias


class Biases(nn.Module):
    def __init__(self, hand_out=False):
        super().__init__()
        self.layers = nn.ModuleList([Biased(True), Biased(False)])
        self.hand_out = hand_out

    def forward(self, x):
        bias = None
        for layer in self.layers:
            x, bias = layer(x, bias)
        return (x, bias) if self.hand_out else x


def test_a_bias_that_a_module_hands_on_is_measured_by_one_further_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Biases(), nn.Flatten(), nn.Linear(20, CLASSES)).double()
    x = torch.randn(SAMPLES, 5, 4, dtype=torch.float64)
    stats = check(model, (x,), torch.arange(SAMPLES) % CLASSES)
    assert "modules ran again for each unit: 1.layers.0.table.weight" in repr(stats)


def test_a_bias_that_the_model_itself_hands_out_is_refused():
    torch.manual_seed(0)
    model, x = Biases(hand_out=True), torch.randn(SAMPLES, 5, 4)
    with capture(model, {"sum"}, strict=False) as stats:
        model(x)[0].square().mean().backward()
    assert list(stats.unsupported) == ["layers.0.table.weight"]
    assert "the same for all samples" in stats.unsupported["layers.0.table.weight"]
