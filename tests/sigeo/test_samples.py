"""`capture`: any model against a loop over single samples in float64."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sigeo.capture import capture
from sigeo.capture.samples import small_parameters
from sigeo.capture.samples.fallback import Fallback
from tests.sigeo import zoo
from tests.sigeo.sample_loop import EVERYTHING, SAMPLES, assert_statistics, check, error, loop


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_model_equals_the_loop(name):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made(name, SAMPLES)
    check(model, inputs, labels)


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


def test_autocast_reaches_convolutions_as_without_capture():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Conv1d(4, 5, 3), nn.ConvTranspose1d(5, 2, 3))
    x = torch.randn(SAMPLES, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with capture(model, {"abs_sum"}) as stats:
            output = model(x)
            output.float().mean().backward()
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    assert stats["1.weight"].abs_sum.dtype == torch.float32


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


@pytest.mark.parametrize("grads", [True, False])
def test_parameters_that_the_loss_does_not_reach_have_statistics_of_zero(grads):
    model, x = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), torch.randn(5, 4)
    model.register_parameter("bare", nn.Parameter(torch.ones(3)))
    with capture(model, {"abs_sum", "sample_sq_norm"}, params="layers", grads=grads) as stats:
        (model(x).detach() * model.bare).sum().backward()  # which is not measured
    assert (stats.sample_sq_norm == 0).all() and (stats["0.weight"].abs_sum == 0).all()


@pytest.mark.parametrize("unit", [1, 2, 3])
def test_tables_that_are_measured_together_in_units(unit):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("many tables", SAMPLES)
    stats = check(model, inputs, labels, unit=unit)
    norms = [stats[f"tables.{n}.weight"].sq_norm for n in (1, 2, 3)]
    assert all(norm.shape == (SAMPLES // unit,) for norm in norms)


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


@pytest.mark.parametrize(
    ("max_bytes", "want", "runs"),
    [
        (1 << 28, EVERYTHING - {"gram"}, SAMPLES),
        (1 << 28, {"gram"}, SAMPLES),
        (1, EVERYTHING - {"gram"}, 4 * SAMPLES),  # one parameter after another
    ],
)
def test_a_module_runs_once_for_each_unit(max_bytes, want, runs):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("lstm", SAMPLES)
    (recurrent,) = (m for m in model.modules() if isinstance(m, nn.LSTM))
    assert len(list(recurrent.parameters())) == 4
    seen = []
    recurrent.register_forward_hook(lambda *_: seen.append(None))
    with capture(model, want, max_bytes=max_bytes):
        output = model(*inputs)
        seen.clear()
        F.cross_entropy(output, labels).backward()
    assert len(seen) == runs
    check(model, inputs, labels, max_bytes=max_bytes)


def test_an_expanded_parameter_is_added_without_running_a_module_again(monkeypatch):
    monkeypatch.setattr(Fallback, "of", lambda *_: pytest.fail("a module would run again"))

    def run(m, x):
        z = m.layer(x.flatten(1))
        return m.first.expand_as(z) + z - m.second.expand(len(z), -1)

    first, second = (nn.Parameter(torch.randn(1, zoo.CLASSES)) for _ in range(2))
    model = zoo.Function(run, layer=nn.Linear(192, zoo.CLASSES), first=first, second=second)
    check(model.double(), zoo.images(SAMPLES), torch.arange(SAMPLES) % zoo.CLASSES)


@pytest.mark.parametrize("unit", [1, 3])
@pytest.mark.parametrize("grads", [True, False])
def test_small_parameters_are_the_same_whether_measured_at_once_or_together(
    monkeypatch, unit, grads
):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3)
    )
    x, labels = torch.randn(SAMPLES, 2, 4), torch.randint(0, 3, (SAMPLES,))

    def measured():
        model.zero_grad()
        with capture(model, EVERYTHING, unit=unit, grads=grads) as stats:
            F.cross_entropy(model(x).mean(1), labels).backward()
        ordinary = [p.grad for p in model.parameters()]
        return {name: stats[name] for name in stats}, stats.sample_sq_norm, ordinary

    together, norms, gradients = measured()
    monkeypatch.setattr(small_parameters, "_WAITING", 0)
    alone, expected, ordinary = measured()
    assert torch.equal(norms, expected)
    for name, moments in alone.items():
        for a, b in zip(together[name], moments, strict=True):
            assert torch.equal(a, b), name
    if grads:
        for a, b in zip(gradients, ordinary, strict=True):  # added up in another order
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_statistics_are_shown_in_a_line():
    torch.manual_seed(0)
    model, x = Odd(), torch.randint(0, 9, (SAMPLES, 2))
    with capture(model, {"sample_sq_norm", "abs_sum"}, unit=2, strict=False) as stats:
        output = model(x)
        assert "after loss.backward(), not before" in repr(stats)
        output.sum().backward()
    assert repr(stats) == (
        "<SampleStatistics: 6 parameters; 3 units; abs_sum, sample_sq_norm; modules ran again for "
        "each unit: cell.weight_ih_l0 and 3 more; unsupported: out.weight>"
    )
    assert repr(stats["out.bias"]) == "SampleMoments(abs_sum=float32 [3], sq_norm=float64 [3])"
    table = "SampleMoments(abs_sum=sparse float32 [9, 2], sq_norm=float64 [3])"
    assert repr(stats["table.weight"]) == table


class Odd(nn.Module):
    """A table, a module that runs again, and a weight behind a mixture of the samples."""

    def __init__(self):
        super().__init__()
        self.table, self.cell = nn.Embedding(9, 2), nn.LSTM(2, 3, batch_first=True)
        self.out = nn.Linear(3, 3)

    def forward(self, x):
        last = self.cell(self.table(x))[0][:, -1]
        return last + self.out.bias + F.linear(last.flip(0), self.out.weight)


def test_norms_are_the_same_before_and_after_a_table_is_read():
    torch.manual_seed(0)
    model, inputs, labels = zoo.made("many tables", SAMPLES)
    with capture(model, {"sum", "sample_sq_norm"}) as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    before = stats.sample_sq_norm
    for name in stats:
        assert stats[name].sum is not None
    assert torch.equal(stats.sample_sq_norm, before)


@pytest.mark.parametrize("name", ["many tables", "tied embedding", "lstm", "transformer"])
def test_statistics_are_freed_with_the_capture(name):
    torch.manual_seed(0)
    model, inputs, labels = zoo.made(name, SAMPLES)
    gc.collect()
    gc.disable()
    try:
        with capture(model, {"abs_sum", "sample_sq_norm"}) as stats:
            F.cross_entropy(model(*inputs), labels).backward()
        session = weakref.ref(stats._session)
        del stats
        assert session() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.unsqueeze(dim=1).squeeze(1),
        lambda x: x.transpose(dim0=1, dim1=2).transpose(1, 2),
        lambda x: torch.flatten(x, start_dim=1).view(-1, 3, 4),
        lambda x: x.reshape(-1, 12).reshape((len(x), 3, 4)),
        lambda x: x.mean(dim=1, keepdim=True).unsqueeze(-1).flatten(2) + x,
        lambda x: x.sum(axis=1, keepdim=True) + x,
    ],
    ids=["names", "named dims", "flatten", "reshape", "mean", "numpy's names"],
)
def test_reshapes_are_followed_however_they_are_written(reshape):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, x):
            return self.second(reshape(self.first(x))).mean(1)

    torch.manual_seed(0)
    x, labels = torch.randn(SAMPLES, 3, 4).double(), torch.randint(0, 5, (SAMPLES,))
    check(Model().double(), (x,), labels)
