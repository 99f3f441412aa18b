"""`capture`: any model against a loop over single samples in float64."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sigeo import InputError
from sigeo.capture import capture
from sigeo.capture.samples.fallback import Fallback
from tests.sigeo import zoo

EVERYTHING = {
    "sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sample_sq_norm", "fisher_rao", "gram",
}  # fmt: skip
SAMPLES = 6


def loop(model, inputs, labels, loss_fn=F.cross_entropy):
    """The gradients of each sample's own loss, [samples, *shape] by name."""
    rows = []
    for b in range(len(labels)):
        model.zero_grad(set_to_none=True)
        loss_fn(model(*(x[b : b + 1] for x in inputs)), labels[b : b + 1]).backward()
        rows.append(
            {
                n: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone()
                for n, p in model.named_parameters()
                if p.requires_grad
            }
        )
    model.zero_grad(set_to_none=True)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def dense(tensor):
    return tensor.to_dense() if tensor.is_sparse else tensor


def error(actual, expected):
    difference = float((dense(actual) - expected).norm())
    scale = float(expected.norm())
    return difference / scale if scale > 1e-12 else difference


def assert_statistics(stats, rows, model, tolerance=1e-10, unit=1):
    """All statistics of all parameters, the norms and the inner products."""
    sq_norm, inner, gram = 0, 0, 0
    parameters = dict(model.named_parameters())
    for name, gradients in rows.items():
        g = gradients.unflatten(0, (-1, unit)).mean(1)
        got = stats[name]
        assert error(got.sum, g.sum(0)) <= tolerance, name
        assert error(got.abs_sum, g.abs().sum(0)) <= tolerance, name
        assert error(got.sq_sum, (g**2).sum(0)) <= tolerance, name
        assert error(got.m2, ((g - g.mean(0)) ** 2).sum(0)) <= tolerance, name
        sq_norm = sq_norm + (g**2).reshape(len(g), -1).sum(1)
        inner = inner + (g * parameters[name]).reshape(len(g), -1).sum(1)
        gram = gram + g.reshape(len(g), -1) @ g.reshape(len(g), -1).t()
    assert error(stats.sample_sq_norm, sq_norm) <= tolerance
    assert error(stats.fisher_rao, inner.detach()) <= tolerance
    assert error(stats.gram, gram) <= tolerance


def check(model, inputs, labels, loss_fn=F.cross_entropy, tolerance=1e-10, unit=1, **options):
    rows = loop(model, inputs, labels, loss_fn)
    given = {"unit": unit} if unit > 1 else {}
    with capture(model, EVERYTHING, **given, **options) as stats:
        loss_fn(model(*inputs), labels).backward()
    assert not stats.unsupported
    assert_statistics(stats, rows, model, tolerance, unit)
    for name, p in model.named_parameters():
        if p.requires_grad and p.grad is not None:
            assert error(p.grad.to_dense(), rows[name].mean(0)) <= tolerance, name
    return stats


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_model_equals_the_loop(name):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made(name, SAMPLES)
    check(model, inputs, labels)


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


def test_every_model_has_its_gradients_as_without_capture():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("convolutions", SAMPLES)
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(*inputs), labels).backward()
    with capture(model):
        F.cross_entropy(model(*inputs), labels).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert error(a.grad, b.grad) < 1e-12


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_float32(memory_format):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("smooth convolutions", SAMPLES)
    rows = loop(model, inputs, labels)
    single = copy.deepcopy(model).float().to(memory_format=memory_format)
    images = inputs[0].float().contiguous(memory_format=memory_format)
    with capture(single, EVERYTHING) as stats:
        F.cross_entropy(single(images), labels).backward()
    assert_statistics(stats, rows, model, tolerance=1e-5)


@pytest.mark.parametrize("name", ["convolutions", "transformer", "tied embedding", "lstm"])
@pytest.mark.parametrize("unit", [2, 3, 6])
def test_units_of_several_samples(name, unit):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made(name, SAMPLES)
    check(model, inputs, labels, unit=unit)


def test_a_sum_and_a_mean_give_the_same_statistics():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("convolutions", SAMPLES)
    found = []
    for reduction in ("mean", "sum"):
        with capture(model, EVERYTHING, reduction=reduction) as stats:
            F.cross_entropy(model(*inputs), labels, reduction=reduction).backward()
        found.append(stats)
        model.zero_grad()
    for name in found[0]:
        for a, b in zip(found[0][name], found[1][name], strict=True):
            assert (a is None) == (b is None)
            assert a is None or error(a, b) < 1e-12
    assert error(found[0].sample_sq_norm, found[1].sample_sq_norm) < 1e-12
    assert error(found[0].fisher_rao, found[1].fisher_rao) < 1e-12


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


class Checkpointed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        for layer in self.model:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


def test_gradient_checkpointing():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("smooth convolutions", SAMPLES)
    check(Checkpointed(model), inputs, labels)


def test_autocast_gives_float32_statistics():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("smooth convolutions", SAMPLES)
    rows = loop(model, inputs, labels)
    single = copy.deepcopy(model).float()
    with capture(single, EVERYTHING) as stats:
        with torch.autocast("cpu", torch.bfloat16):
            output = single(inputs[0].float())
            assert output.dtype == torch.bfloat16
        F.cross_entropy(output.float(), labels).backward()
    assert stats["0.weight"].abs_sum.dtype == torch.float32
    assert_statistics(stats, rows, model, tolerance=0.05)


def test_a_wrapped_compiled_model_runs_eagerly():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("convolutions", SAMPLES)
    rows = loop(model, inputs, labels)
    compiled = torch.compile(model)
    with capture(compiled, EVERYTHING) as stats:
        F.cross_entropy(compiled(*inputs), labels).backward()
    named = {f"_orig_mod.{name}": value for name, value in rows.items()}
    assert_statistics(stats, named, compiled)


def test_the_loss_may_leave_parameters_out():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("unused operation", SAMPLES)
    stats = check(model, inputs, labels)
    assert (stats["unused.weight"].abs_sum == 0).all()


def test_frozen_parameters_are_not_measured():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("convolutions", SAMPLES)
    model[0].weight.requires_grad_(False)
    stats = check(model, inputs, labels)
    assert "0.weight" not in stats.keys() and "0.bias" in stats.keys()  # noqa: SIM118


@pytest.mark.parametrize("name", zoo.MODELS)
def test_without_gradients_only_what_is_asked_for_is_formed(name):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made(name, SAMPLES)
    found = {}
    for want in ("fisher_rao", "sample_sq_norm"):
        for grads in (True, False):
            before = [p.grad for p in model.parameters()]
            with capture(model, {want}, grads=grads, batch_norm="frozen") as stats:
                F.cross_entropy(model(*inputs), labels).backward()
            found[want, grads] = getattr(stats, want)
            after = [p.grad for p in model.parameters()]
            assert grads or all(a is b for a, b in zip(before, after, strict=True))
    with capture(model, {"fisher_rao", "sample_sq_norm"}, batch_norm="frozen") as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    for (want, _), value in found.items():
        assert error(value, getattr(stats, want)) < 1e-10


class Odd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.flip(0)

    @staticmethod
    def backward(ctx, d):
        return d.flip(0)


class Flipping(nn.Module):
    """Shuffles the samples where nobody sees it."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(4, 4), nn.Linear(4, 5), how

    def forward(self, x):
        return self.second(self.how(self.first(x)))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (Odd.apply, "along the samples"),
        (lambda x: x.flip(0), "along the samples"),
        (lambda x: x[torch.randperm(len(x))], "along the samples"),
        (lambda x: x - x.mean(0), "over the samples"),
        (lambda x: torch.roll(x, 1, 0), "along the samples"),
        (lambda x: x.cumsum(0), "along the samples"),
        (lambda x: x.t() @ x @ x.t() @ x, "over the samples"),
        (lambda x: torch.linalg.qr(x)[0], "no rule"),
    ],
)
def test_what_mixes_samples_is_refused_by_name(how, reason):
    model, x = Flipping(how).double(), torch.randn(SAMPLES, 4, dtype=torch.float64)
    with pytest.raises(InputError, match=reason), capture(model):
        model(x)
    with capture(model, strict=False) as stats:
        model(x).sum().backward()
    assert "second.weight" in stats.unsupported
    with pytest.raises(KeyError):
        stats["second.weight"]


def test_bad_arguments():
    model = nn.Linear(4, 5)
    cases = [
        ({"want": ["median"]}, "want: must be of sum, .*, got 'median'"),
        ({"unit": 0}, 'unit: must be "sample" or a number from 1, got 0'),
        ({"reduction": "none"}, 'reduction: must be "mean" or "sum", got \'none\''),
        ({"batch_norm": "off"}, "batch_norm: must be refuse, frozen, .*, got 'off'"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message), capture(model, **options):
            pass
    with pytest.raises(InputError, match="4 samples must be whole"), capture(model, unit=3):
        model(torch.randn(4, 4))
    with pytest.raises(InputError, match="after loss.backward"), capture(model) as stats:
        model(torch.randn(4, 4))
        _ = stats.sample_sq_norm


def test_hooks_and_modes_are_gone_after_an_exception():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
    with pytest.raises(ZeroDivisionError), capture(model):
        model(torch.randn(3, 4))
        _ = 1 / 0
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert type(model(torch.randn(3, 4)).grad_fn).__name__ == "ReluBackward0"
    assert torch.overrides._get_current_function_mode() is None


def test_a_second_backward_pass_is_refused():
    model, x, y = nn.Linear(4, 3), torch.randn(5, 4), torch.randint(0, 3, (5,))
    with pytest.raises(InputError, match="measures one backward pass"), capture(model):
        F.cross_entropy(model(x), y).backward()
        F.cross_entropy(model(x), y).backward()
    with pytest.raises(InputError, match="measures one backward pass"), capture(model):
        output = model(x)
        F.cross_entropy(output, y).backward(retain_graph=True)
        F.cross_entropy(output, y).backward()


def test_attention_without_heads():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 5)

        def forward(self, x):
            q, k, v = self.project(x).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))

    torch.manual_seed(0)
    inputs = (torch.randn(SAMPLES, SAMPLES, 8, dtype=torch.float64),)
    check(Attention().double(), inputs, torch.randint(0, 5, (SAMPLES,)))


def test_sparse_statistics_come_without_a_warning(recwarn):
    model = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(4, 3))
    with capture(model) as stats:
        F.cross_entropy(model(torch.randint(0, 9, (5, 2))), torch.randint(0, 3, (5,))).backward()
    assert stats["0.weight"].abs_sum.is_sparse
    assert not [w for w in recwarn if "parse" in str(w.message)]


def test_without_a_backward_pass_there_is_nothing_to_read():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(5, 4), torch.randint(0, 3, (5,))
    with capture(model, {"abs_sum", "sample_sq_norm"}) as stats:
        loss = F.cross_entropy(model(x), y)
    for read in (lambda: stats.sample_sq_norm, lambda: stats["weight"]):
        with pytest.raises(InputError, match="no backward pass was in the body"):
            read()
    with pytest.raises(InputError, match="backward pass must be in the body, got one behind it"):
        loss.backward()


def test_a_loss_that_reaches_no_parameter_has_statistics_of_zero():
    model, x = nn.Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    with capture(model, {"abs_sum", "sample_sq_norm"}) as stats:
        model(x)
        x.square().mean().backward()
    assert (stats.sample_sq_norm == 0).all() and (stats["weight"].abs_sum == 0).all()


def test_a_model_of_fallbacks_alone_can_be_read_in_the_body_and_measures_one_pass():
    torch.manual_seed(0)
    model, x = nn.LSTM(4, 3, batch_first=True).double(), torch.randn(5, 6, 4, dtype=torch.float64)
    with capture(model, {"sample_sq_norm"}) as stats:
        model(x)[0].sum().backward()
        assert stats.sample_sq_norm.shape == (5,)
    with pytest.raises(InputError, match="measures one backward pass"), capture(model):
        output = model(x)[0]
        output.sum().backward(retain_graph=True)
        output.sum().backward()


def test_lazy_layers_must_have_been_made():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(InputError, match=r"1\.weight has no shape yet"), capture(model):
        model(torch.randn(2, 4))


@pytest.mark.parametrize("unit", [1, 2, 3])
def test_tables_that_are_measured_together_in_units(unit):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("many tables", SAMPLES)
    stats = check(model, inputs, labels, unit=unit)
    norms = [stats[f"tables.{n}.weight"].sq_norm for n in (1, 2, 3)]
    assert all(norm.shape == (SAMPLES // unit,) for norm in norms)


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


def test_gradients_of_activations_are_not_kept_until_the_end():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.Conv2d(7, 7, 1))
    model.append(nn.BatchNorm2d(7)).eval()
    x = torch.randn(5, 3, 9, 9)
    with capture(model, {"abs_sum"}):
        loss = model(x).square().mean()
        loss.backward()
        alive = [t for t in gc.get_objects() if type(t) is torch.Tensor]
        assert loss.grad_fn is not None
        assert not any(t.numel() == 5 * 7 * 9 * 9 for t in alive)


def test_a_capture_imports_neither_a_compiler_nor_a_computer_algebra_system():
    code = """
import sys, torch
from torch import nn
from sigeo.capture import capture
from sigeo.capture.samples.fallback import Fallback
model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
model.scale = nn.Parameter(torch.ones(8))
model.register_forward_hook(lambda m, args, y: y * m.scale)
with capture(model):
    model(torch.randn(3, 4, 8)).square().mean().backward()
print(*[name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@pytest.mark.parametrize(
    "name",
    ["convolutions", "inverted residual", "layer scale", "vision transformer", "transformer",
     "click-through", "slices", "siamese", "windows"],
)  # fmt: skip
def test_common_models_run_no_module_again(name, monkeypatch):
    monkeypatch.setattr(Fallback, "of", lambda *_: pytest.fail("a module would run again"))
    model, inputs, labels = zoo.made(name, SAMPLES)
    check(model, inputs, labels)


def test_an_expanded_parameter_is_added_without_running_a_module_again(monkeypatch):
    monkeypatch.setattr(Fallback, "of", lambda *_: pytest.fail("a module would run again"))

    def run(m, x):
        z = m.layer(x.flatten(1))
        return m.first.expand_as(z) + z - m.second.expand(len(z), -1)

    first, second = (nn.Parameter(torch.randn(1, zoo.CLASSES)) for _ in range(2))
    model = zoo.Function(run, layer=nn.Linear(192, zoo.CLASSES), first=first, second=second)
    check(model.double(), zoo.images(SAMPLES), torch.arange(SAMPLES) % zoo.CLASSES)
