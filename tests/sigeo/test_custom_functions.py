"""`capture` on models that hand parameters to autograd functions of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from sigeo import InputError
from sigeo.capture import capture
from sigeo.capture.samples.axis import Axis
from sigeo.capture.samples.calls import Layer, Linear
from sigeo.capture.samples.graph import Graph
from tests.sigeo.sample_loop import SAMPLES, check
from tests.sigeo.zoo import CLASSES, Function


class Product(torch.autograd.Function):
    """x W^T, as textbooks write it."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, d):
        x, weight = ctx.saved_tensors
        return d @ weight, d.t() @ x


class Straight(torch.autograd.Function):
    """Signs, whose gradient is that of the values."""

    @staticmethod
    def forward(ctx, values):
        return values.sign()

    @staticmethod
    def backward(ctx, d):
        return d


def model_of(run) -> nn.Module:
    torch.manual_seed(0)
    parts = {"first": nn.Linear(4, 8), "out": nn.Linear(8, CLASSES)}
    return Function(run, weight=nn.Parameter(torch.randn(8, 8)), **parts).double()


def labelled():
    return (torch.randn(SAMPLES, 4, dtype=torch.float64),), torch.arange(SAMPLES) % CLASSES


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, h: Product.apply(h, m.weight),
        lambda m, h: Product.apply(h, m.weight.t()),
        lambda m, h: Product.apply(h, m.weight.clone()),
        lambda m, h: Product.apply(h, m.weight) + F.linear(h, m.weight),
        lambda m, h: Product.apply(Product.apply(h, m.weight), m.weight),
        lambda m, h: checkpoint(Product.apply, h, m.weight, use_reentrant=False),
        lambda m, h: F.linear(h, Straight.apply(m.weight)),
        lambda m, h: h @ Straight.apply(m.weight.t()) * Straight.apply(m.first.bias),
    ],
    ids=[
        "itself",
        "transposed",
        "a copy",
        "and a layer",
        "twice",
        "checkpointed",
        "quantised",
        "quantised view",
    ],
)
def test_parameters_that_only_a_custom_function_sees_are_measured(middle):
    model = model_of(lambda m, x: m.out(middle(m, m.first(x)).tanh()))
    check(model, *labelled())


def test_without_a_module_that_can_run_again_the_parameter_is_named():
    model = model_of(lambda m, x: m.out(Product.apply(m.first(x), m.weight)))
    inputs, labels = labelled()
    norm = nn.BatchNorm1d(8).double()
    model.add_module("norm", norm)
    with capture(model, {"sq_sum"}, batch_norm="contribution", strict=False) as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    assert set(stats.unsupported) == {"weight"}
    assert "batch norm" in stats.unsupported["weight"]


@pytest.mark.parametrize("of", [lambda h: h, lambda h: h.detach()], ids=["grad", "no grad"])
def test_what_an_unseen_function_makes_of_samples_is_no_constant(of):
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            with torch._C.DisableTorchFunction():
                return x * weight

        @staticmethod
        def backward(ctx, d):
            return d, d.sum(0)

    model = model_of(lambda m, x: m.out(Hidden.apply(of(m.first(x)), m.weight[0])))
    inputs, labels = labelled()
    with pytest.raises(InputError, match="not followed"), capture(model, {"sq_sum"}):
        F.cross_entropy(model(*inputs), labels).backward()


def test_functions_are_found_once():
    weight, other = (torch.randn(3, 3, requires_grad=True) for _ in range(2))
    x = torch.randn(2, 3)
    y = Product.apply(x, weight.t()) @ other[:1].expand(3, 3)
    graph = Graph()
    found = _of_functions(graph, y)
    assert [(name, leaf is weight) for name, leaf in found] == [
        ("MmBackward0", False),
        ("Product", True),
    ]
    assert list(graph.leaves([y * 2, x])) == []
    assert [name for name, _ in _of_functions(graph, Product.apply(y, other))] == ["Product"]
    assert [name for name, _ in _of_functions(Graph(), Straight.apply(other))] == ["Straight"]


def _of_functions(graph, output):
    return [(name, leaf) for name, leaf in graph.leaves([output]) if name is not None]


def test_what_only_reaches_a_layer_is_taken_by_no_function():
    table, weight = (torch.randn(3, 3, requires_grad=True) for _ in range(2))
    rows = F.embedding(torch.tensor([0, 2]), table)
    bags = F.embedding_bag(torch.tensor([[0, 2]]), table)
    y = Layer.apply(Linear(Axis(0, 2), {}), rows + bags, weight[1:].t().unsqueeze(0)[0].t(), None)
    assert _of_functions(Graph(), y.tanh() * 2) == []


@torch.jit.script
def _writes(values: torch.Tensor, parameter: torch.Tensor):
    values[:, 0] = parameter[1]


def _writes_unseen(values, parameter):
    with torch._C.DisableTorchFunction():
        values[:, 0] = parameter[1]


def _scales_unseen(values, parameter):
    with torch._C.DisableTorchFunction():
        values.mul_(parameter.exp())


@pytest.mark.parametrize("write", [_writes, _writes_unseen, _scales_unseen])
@pytest.mark.parametrize("of", [lambda m: m.first.bias, lambda m: m.weight.t()[1]])
def test_what_an_unseen_function_writes_counts_beside_a_layer(write, of):
    def run(m, x):
        h = F.linear(m.first(x), m.weight).tanh().clone()
        write(h, of(m))
        return m.out(h)

    check(model_of(run), *labelled())


class Scripted(nn.Module):
    """A scripted function takes a parameter, behind a layer or alone."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.weight = layer, nn.Parameter(torch.randn(3))
        self.gated = torch.jit.script(_gated)

    def forward(self, x):
        return self.gated(self.first(x), self.weight)


def _gated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * weight.sigmoid()


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Linear(3, 3)])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_parameters_of_scripted_functions_are_not_passed_over(layer):
    model, x = Scripted(layer), torch.randn(SAMPLES, 3)
    for _ in range(3):  # torch changes the function's graph after the first runs
        with capture(model, strict=False) as stats:
            model(x).square().sum().backward()
        assert set(stats.unsupported) == {"weight"}
        with pytest.raises(InputError, match="weight has no per-sample"), capture(model):
            model(x)


class Fixed(torch.autograd.Function):
    """A product whose factor gets no gradient."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor)
        return x * factor

    @staticmethod
    def backward(ctx, d):
        return d * ctx.saved_tensors[0], None


def test_a_custom_function_may_keep_the_gradient_of_a_computed_factor():
    inputs, labels = labelled()
    model = model_of(lambda m, x: m.out(Fixed.apply(m.first(x), m.weight.exp()[0])))
    check(model, inputs, labels)


def _tangent(m, h):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(h, h.cos())
        return forward_ad.unpack_dual(F.linear(dual, m.weight).tanh()).tangent


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, h: torch.vmap(m.first)(h),
        lambda m, h: torch.vmap(lambda row: h @ row)(m.weight).t(),
        lambda m, h: torch.vmap(lambda row: row.sort().values * m.weight[0])(h),
        lambda m, h: torch.func.jvp(lambda z: F.linear(z, m.weight), (h,), (h.cos(),))[1],
        lambda m, h: torch.func.grad(lambda z: F.linear(z, m.weight).tanh().sum())(h),
        lambda m, h: torch.func.hessian(lambda s: (h * s * m.weight[0]).sin())(h.new_ones(())),
        _tangent,
    ],
    ids=["vmap", "vmap of a parameter", "vmap of rows", "jvp", "grad", "hessian", "forward mode"],
)
@pytest.mark.parametrize("width", [4, 8], ids=["of inputs", "of what a layer made"])
def test_transforms_in_the_model_are_refused_by_name(middle, width):
    torch.manual_seed(0)
    parts = {"first": nn.Linear(width, 8), "out": nn.Linear(8, CLASSES)}
    weight = nn.Parameter(torch.randn(8, width))
    before = nn.Linear(4, 8) if width == 8 else nn.Identity()

    def run(m, x):
        z = middle(m, m.before(x))
        return m.out(z if z.shape[1] == 8 else torch.cat([z, z], 1))

    model = Function(run, weight=weight, before=before, **parts).double()
    x, labels = labelled()
    with pytest.raises(InputError, match="not followed"), capture(model):
        F.cross_entropy(model(*x), labels).backward()
    with capture(model, strict=False) as stats:
        F.cross_entropy(model(*x), labels).backward()
    assert {"out.weight", "out.bias"} <= set(stats.unsupported)


def test_a_level_of_forward_derivatives_that_is_open_elsewhere_changes_nothing():
    model = model_of(lambda m, x: m.out(F.linear(m.first(x), m.weight).tanh()))
    with forward_ad.dual_level():  # one for all threads
        assert "again" not in repr(check(model, *labelled()))
