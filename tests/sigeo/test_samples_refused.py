"""What `capture` refuses, and what is left behind then."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES


class Odd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.flip(0)

    @staticmethod
    def backward(ctx, d):
        return d.flip(0)


def test_statistics_of_a_parameter_that_there_is_not():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    with capture(model) as stats:
        model(torch.randn(SAMPLES, 4)).sum().backward()
    message = (
        "nope: not a parameter of the model; measured are 0.weight, 0.bias, 1.weight, 1.bias, "
        "2.weight and 1 more"
    )
    with pytest.raises(KeyError, match=message):
        stats["nope"]
    assert "nope" not in stats


def _overwritten(write, view=lambda z: z):
    """Something made of the samples x, by ``write(view of it, x)`` in place."""

    def how(x):
        z = x.clone()
        write(view(z), x)
        return z

    return how


def _twice_in_zeros(x):
    z = x.new_zeros(2 * len(x), 4)
    z[: len(x)], z[len(x) :] = x, x
    return z[: len(x)] + z[len(x) :]


def _partly_by_a_view(x):
    z = x.new_zeros(len(x), 2, 2)
    z.view(-1, 2)[:, :1].copy_(x.view(-1, 2)[:, :1])
    return x + z.flatten(1)


def _rolled_into_zeros(x):
    z = x.new_zeros(x.shape)
    z[:] = x.roll(1, 0)
    return x + z


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
        (lambda x: torch.nested.as_nested_tensor(list(x)).to_padded_tensor(0.0), "by its place"),
        (lambda x: x / torch.linalg.vector_norm(x, 1, dim=0), "over the samples"),
        (lambda x: x * x.norm(p=1, dim=0), "over the samples"),
        (_overwritten(lambda z, x: z[1:].add_(x[:-1])), "part of the samples"),
        (_overwritten(lambda z, x: z[1:].add_(other=x[:-1])), "part of the samples"),
        (_overwritten(lambda z, x: z.__setitem__(slice(1, None), x[:-1])), "part of the samples"),
        (_overwritten(lambda z, x: z.__setitem__(slice(None), x.roll(1, 0))), "along the samples"),
        (_overwritten(lambda z, x: z.mul_(z.flip(0)), lambda z: z.view(-1, 2, 2)), "along the"),
        (_overwritten(lambda z, x: z.copy_((x.t() @ x)[:1])), "over the samples"),
        (_twice_in_zeros, "a slice of another shape"),
        (_partly_by_a_view, "a view or a slice of another shape"),
        (_rolled_into_zeros, "along the samples"),
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


class Penalised(nn.Module):
    """A table and a layer whose parameters a loss also uses on their own."""

    def __init__(self):
        super().__init__()
        self.table, self.layer, self.last = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.layer(self.table(x)).tanh())


@pytest.mark.parametrize("names", [["layer.weight"], ["layer.bias", "table.weight"]])
def test_what_was_served_in_part_is_left_out_of_sums_over_parameters(names):
    model, x = Penalised().double(), torch.arange(SAMPLES) % 7
    wants = {"sum", "sample_sq_norm", "fisher_rao", "gram"}
    with capture(model, wants) as whole:
        model(x).mean().backward()
    with capture(model, wants, strict=False) as stats:
        penalty = sum(p.square().sum() for n, p in model.named_parameters() if n in names)
        (model(x).mean() + penalty).backward()
    assert sorted(stats.unsupported) == sorted(names)
    rest = {n: p for n, p in model.named_parameters() if n not in names}
    rows = []
    for one in x:
        grads = torch.autograd.grad(model(one[None]).sum(), list(rest.values()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    g, theta = torch.stack(rows), torch.cat([p.detach().flatten() for p in rest.values()])
    torch.testing.assert_close(stats.sample_sq_norm, g.square().sum(1))
    torch.testing.assert_close(stats.fisher_rao, g @ theta)
    torch.testing.assert_close(stats.gram, g @ g.t())
    assert (whole.sample_sq_norm > stats.sample_sq_norm).all()


def test_second_derivatives_are_refused_in_words():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(SAMPLES, 4, requires_grad=True)
    with capture(model, {"sum"}):
        y = model(x).mean()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        with pytest.raises(RuntimeError, match="capture: the loss differentiates a gradient again"):
            (y + slope.square().sum()).backward()


def implicit(m, x):
    """Solves z = f(z, x), whose gradient a hook solves for with passes of its own."""
    with torch.no_grad():
        z = m.solve(x, 30)
    z = m.solve(x, 1, z)
    before = z.detach().requires_grad_()
    after = m.solve(x, 1, before)

    def solved(gradient):
        found = gradient
        for _ in range(30):
            (step,) = torch.autograd.grad(after, before, found, retain_graph=True)
            found = gradient + step
        return found

    z.register_hook(solved)
    return m.second(z)


def along_its_slope(m, x):
    """Goes a step along the gradient of an energy of its own."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(m.first(x).square().sum(), x)
    return m.second(m.first(x) + slope)


@pytest.mark.parametrize("run", [implicit, along_its_slope])
def test_backward_passes_within_the_model_are_refused(run):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 5)

        def solve(self, x, steps, z=0.0):
            for _ in range(steps):
                z = torch.tanh(x + 0.3 * self.first(x + z))
            return z

        def forward(self, x):
            return run(self, x)

    model = Model()
    with pytest.raises(InputError, match="a backward pass runs in the model's"), capture(model):
        model(torch.randn(SAMPLES, 4)).square().mean().backward()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_looking_at_a_gradient_is_no_use_of_its_parameter():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(SAMPLES, 4)
    model(x).mean().backward(create_graph=True)
    with capture(model, {"sum"}) as stats:
        assert any(p.grad.requires_grad for p in model.parameters())
        model.zero_grad()
        model(x).mean().backward()
    torch.testing.assert_close(stats["0.bias"].sum / SAMPLES, model[0].bias.grad)


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


def test_complex_parameters_are_named():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, dtype=torch.cfloat))

        def forward(self, x):
            return (x * self.w).abs() + (x @ self.w.real[:, None])

    model, x = nn.Sequential(nn.Linear(3, 4), Turned()), torch.randn(5, 3)
    with pytest.raises(InputError, match=r"1\.w .* it is complex"):
        capture(model).__enter__()
    with capture(model, strict=False) as stats:
        model(x).square().mean().backward()
    assert set(stats.unsupported) == {"1.w"}
    with capture(model[0]) as expected:
        model(x).square().mean().backward()
    torch.testing.assert_close(stats.sample_sq_norm, expected.sample_sq_norm)


def test_frozen_layers_count_nothing():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), torch.randn(3, 4)
    model[0].weight.requires_grad_(False)
    with capture(model, {"gram"}, params="layers") as stats:
        model(x).square().mean().backward()
    assert stats.keys() == []
    assert torch.equal(stats.gram, torch.zeros(3, 3, dtype=torch.float64))
    labels = torch.arange(3)
    for name in ("zico_sample", "gradsign"):  # measured alone, and beside one of all parameters
        alone = sigeo.score(model, [(x, labels)], [name])[name]
        both = sigeo.score(model, [(x, labels)], [name, "fisher_trace"])[name]
        assert alone.value == both.value


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


def test_without_a_backward_pass_there_is_nothing_to_read():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(5, 4), torch.randint(0, 3, (5,))
    with capture(model, {"abs_sum", "sample_sq_norm"}) as stats:
        loss = F.cross_entropy(model(x), y)
    for read in (lambda: stats.sample_sq_norm, lambda: stats["weight"]):
        with pytest.raises(InputError, match="no backward pass in the body reached a parameter"):
            read()
    with pytest.raises(InputError, match="backward pass must be in the body, got one behind it"):
        loss.backward()


def _without_gradients(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("backward", [torch.Tensor.backward, torch.autograd.backward])
@pytest.mark.parametrize(
    "outside", [lambda model, x: x, lambda model, x: model(x).detach(), _without_gradients]
)
def test_a_backward_pass_that_reaches_no_parameter_is_said(outside, backward):
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(5, 4)
    scale = torch.ones((), requires_grad=True)
    with capture(model, {"abs_sum", "sample_sq_norm"}) as stats:
        model(x)
        backward((outside(model, x) * scale).sum())
    for read in (lambda: stats.sample_sq_norm, lambda: stats["0.weight"]):
        with pytest.raises(InputError, match="no backward pass in the body reached a parameter"):
            read()


def test_tensors_in_the_place_of_parameters_are_refused_by_name():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(5, 4)
    own = dict(model.named_parameters())
    alike = {name: (2 * p).detach().requires_grad_() for name, p in own.items()}
    parts = [alike, {"1.bias": alike["1.bias"]}, {name: 2 * p for name, p in own.items()}]
    for others in parts:
        first = next(iter(others))
        message = f"parameter {first} has no .* in its place, as torch.func.functional_call does"
        with pytest.raises(InputError, match=message), capture(model):
            torch.func.functional_call(model, others, (x,))
    with capture(model, strict=False) as stats:
        torch.func.functional_call(model, parts[1], (x,)).sum().backward()
    assert set(stats.unsupported) == {"1.bias", "1.weight"}
    assert "another output than in the batch" in stats.unsupported["1.weight"]
    assert (stats["0.weight"].abs_sum > 0).any()


def test_constants_in_the_place_of_parameters_are_a_teacher():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), torch.randn(5, 4)
    teacher = {name: p.detach() + 1 for name, p in model.named_parameters()}
    with capture(model, reduction="sum") as stats:
        target = torch.func.functional_call(model, teacher, (x,))
        (model(x) - target).square().sum().backward()
    with capture(model, reduction="sum") as expected:
        (model(x) - target).square().sum().backward()
    torch.testing.assert_close(stats.sample_sq_norm, expected.sample_sq_norm)


def test_a_capture_of_parameters_in_a_capture_of_them_is_refused():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(5, 4)
    for inner, name in ((model, "0.weight"), (model[1], "weight")):
        refused = pytest.raises(InputError, match=f"parameter {name} is captured already")
        with refused, capture(model, params="layers"), capture(inner):
            pass
        assert not inner._forward_pre_hooks
    with capture(model, set()), capture(model) as stats:  # the outer one measures nothing
        model(x).sum().backward()
    assert stats.units == 5
    with capture(model) as first:
        model(x).sum().backward()
        with capture(model[1]) as second:  # the first has measured its pass
            model[1](x[:, :3]).sum().backward()
    assert first.units == second.units == 5


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
