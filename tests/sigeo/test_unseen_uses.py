"""`capture` of parameters with a use that a module which runs again for them does not have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES, assert_statistics, check, error, loop
from tests.sigeo.zoo import CLASSES, Function


class Hidden(torch.autograd.Function):
    """A product that nobody sees."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d * w, (d * x).sum(0)


def gain(run=lambda m, x: x * m.p.exp()) -> nn.Module:
    return Function(run, p=nn.Parameter(torch.randn(4) / 3))


def leaves_behind(function):
    """A module that uses its parameter for something that it does not return as well."""

    def run(m, x):
        m.aside = function(x, m.p)
        return x * m.p.exp()

    return gain(run)


def model_of(middle, part) -> nn.Module:
    torch.manual_seed(0)
    return Function(
        lambda m, x: m.out(middle(m, m.body(x)).tanh()),
        body=nn.Linear(4, 4),
        part=part(),
        out=nn.Linear(4, CLASSES),
    ).double()


def labelled():
    torch.manual_seed(1)
    return torch.randn(SAMPLES, 4, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


def aside(m, x):
    y = m.part(x)
    return y * m.part.aside.sigmoid()


SERVED = {
    "a custom function outside": (lambda m, x: m.part(x) + Hidden.apply(x, m.part.p), gain),
    "before": (lambda m, x: m.part(Hidden.apply(x, m.part.p)), gain),
    "between two calls": (lambda m, x: m.part(Hidden.apply(m.part(x), m.part.p)), gain),
    "in a checkpoint": (
        lambda m, x: m.part(x) + checkpoint(Hidden.apply, x, m.part.p, use_reentrant=False),
        gain,
    ),
    "beside a recurrent layer": (
        lambda m, x: m.part(x[:, None])[0][:, 0] + Hidden.apply(x, m.part.bias_ih_l0[:4]),
        lambda: nn.LSTM(4, 4, batch_first=True),
    ),
    "left behind": (aside, lambda: leaves_behind(Hidden.apply)),
    "left behind by a layer": (aside, lambda: leaves_behind(torch.mul)),
    "left behind in another way": (aside, lambda: leaves_behind(torch.pow)),
    "only outside": (lambda m, x: m.part(x) * m.part.p.exp(), gain),
}


@pytest.mark.parametrize("grads", [True, False])
@pytest.mark.parametrize("name", SERVED)
def test_uses_outside_of_a_module_that_runs_again_are_measured(name, grads):
    model, (x, labels) = model_of(*SERVED[name]), labelled()
    if name == "left behind in another way":
        x = model_of(*SERVED["only outside"])(x).detach().abs()[:, :4]
        model.body.weight.data.abs_(), model.body.bias.data.abs_()
    check(model, (x,), labels, grads=grads)


class Closed(nn.Module):
    """Uses a parameter of another module."""

    def __init__(self, theirs):
        super().__init__()
        self.theirs, self.q = [theirs], nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x * self.theirs[0].exp() * self.q.exp()


def closed():
    p = nn.Parameter(torch.randn(4))
    return Function(lambda m, x: m.inner(x) + x * m.p, p=p, inner=Closed(p))


def some_detached(m, x):
    y = x * m.p.exp()
    return torch.where((torch.arange(len(x)) == 0)[:, None], y.detach(), y)


@pytest.mark.parametrize("grads", [True, False])
@pytest.mark.parametrize("want", ["sum", "gram"])
@pytest.mark.parametrize(
    ("middle", "part", "reason"),
    [
        (lambda m, x: m.part(x), closed, "do not add up to the batch's"),
        (lambda m, x: m.part(x), lambda: gain(some_detached), "do not add up to the batch's"),
        (
            lambda m, x: m.part(x) + checkpoint(m.part, x, use_reentrant=True),
            gain,
            "do not add up to the batch's",
        ),
        (lambda m, x: checkpoint(m.part, x, use_reentrant=True), gain, "use_reentrant=True"),
    ],
    ids=["of another module", "detached by place", "reentrant, and not", "reentrant"],
)
def test_gradients_that_do_not_add_up_are_refused(middle, part, reason, want, grads):
    model, (x, labels) = model_of(middle, part), labelled()
    with (
        pytest.raises(InputError, match=f"part.p .*{reason}"),
        capture(model, {want}, grads=grads),
    ):
        F.cross_entropy(model(x), labels).backward()


@pytest.mark.parametrize("function", [torch.mul, torch.pow, Hidden.apply])
def test_what_a_module_leaves_for_the_loss_is_not_passed_over(function):
    model, (x, labels) = (
        model_of(lambda m, x: m.part(x), lambda: leaves_behind(function)),
        labelled(),
    )
    with pytest.raises(InputError, match=r"part.p "), capture(model):
        loss = F.cross_entropy(model(x), labels)
        (loss + model.part.aside.square().mean()).backward()


def test_a_hidden_use_in_the_loss_is_named():
    model, (x, labels) = model_of(lambda m, x: m.part(x), lambda: nn.Linear(4, 4)), labelled()
    with pytest.raises(InputError, match=r"part.bias .*Hidden uses it outside"), capture(model):
        loss = F.cross_entropy(model(x), labels)
        (loss + Hidden.apply(torch.ones(4, 4).double(), model.part.bias).sum()).backward()


def test_hooks_that_change_a_gradient_change_no_statistic():
    model, (x, labels) = model_of(lambda m, x: m.part(x), gain), labelled()
    rows = loop(model, (x,), labels)
    model.part.p.register_hook(lambda gradient: 3 * gradient)
    with capture(model, {"sum"}) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert error(stats["part.p"].sum, rows["part.p"].sum(0)) < 1e-10
    assert error(model.part.p.grad, 3 * rows["part.p"].mean(0)) < 1e-10
    assert len(model.part.p._backward_hooks) == 1


def test_gradients_too_small_for_the_precision_are_no_unseen_use():
    model, (x, labels) = model_of(lambda m, x: m.part(x), gain).half(), labelled()
    with capture(model, {"sum"}) as stats:
        (F.cross_entropy(model(x.half()), labels) * 1e-5).backward()
    assert stats["part.p"].sum.isfinite().all()


def test_statistics_with_products_take_no_more_runs_than_products(monkeypatch):
    from sigeo.capture.samples.fallback import Fallback

    model, (x, labels) = model_of(lambda m, x: m.part(x), gain), labelled()
    rows, runs = loop(model, (x,), labels), []
    of_unit = Fallback._of_unit
    monkeypatch.setattr(Fallback, "_of_unit", lambda *args: runs.append(0) or of_unit(*args))
    counts = []
    for want in (
        {"gram"},
        {"gram", "sum", "abs_sum", "sq_sum", "m2", "sample_sq_norm", "fisher_rao"},
    ):
        for max_bytes in (1, 8 * 4 * 8, 1 << 20):
            runs.clear()
            with capture(model, want, max_bytes=max_bytes) as stats:
                F.cross_entropy(model(x), labels).backward()
            counts.append(len(runs))
            if "sum" in want:
                assert_statistics(stats, rows, model)
    assert counts[3:] == counts[:3]
    assert counts[2] == SAMPLES
