"""Many subnets in one pass: equal to each of them alone."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F

from sigeo import InputError, data, proxies, score, score_many, spaces
from sigeo.capture import Batches, Request
from sigeo.capture.steps import SGD, ClippedAdagrad
from sigeo.proxies import OnGradient, OnStatistics, Outcome, Proxy
from sigeo.scoring.many import fitting, kept_bytes, stackable
from sigeo.spaces import InputShape
from sigeo.spaces.nasbench201.stack import Stack
from sigeo.spaces.nasbench201.supernet import CellSlots
from sigeo.supernet import add_gradients, many_gradient_statistics, supports
from sigeo_ext.testing import assert_close, threads

DIGITS = data.load("digits")
DISCONNECTED = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
# Its node 1 is zero, and a convolution on it still gives its norm's shift.
SHIFTED = "|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|avg_pool_3x3~0|skip_connect~1|nor_conv_1x1~2|"
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
TYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)

SPACE = spaces.get("nasbench201", InputShape(1, 8, 10), channels=4, cells=1)


def cells(count=6, seed=0):
    drawn = spaces.distinct(SPACE, count, random.Random(seed))
    return [*drawn, SPACE.parse(DISCONNECTED), SPACE.parse(SHIFTED)]


def supernet(dtype=torch.float32, device="cpu"):
    made = SPACE.supernet(seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms that scale and shift, as after some training
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return made.to(device)


def batches(dtype=torch.float32, *, count=4, size=16):
    order = DIGITS.order(0)[: count * size].view(count, size)
    return [(x.to(dtype), y) for x, y in map(DIGITS.batch, order)]


@pytest.fixture(params=["cells", "operations"])
def route(request, monkeypatch):
    """Subnet by subnet, as on a CPU; and operation by operation, as on a GPU."""
    if request.param == "operations":
        monkeypatch.setattr(Stack, "_cell", Stack._cell_by_operation)


@TYPES
def test_outputs_losses_and_gradients_equal_each_subnet_alone(dtype, route, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    net, archs = supernet(dtype, device), cells()
    archs.append(archs[0])  # a duplicate has rows of its own
    images, labels = (t.to(device) for t in batches(dtype, count=1)[0])
    stack = net.stack(archs)
    outputs = stack(images)
    losses = torch.stack([F.cross_entropy(y, labels) for y in outputs])
    losses.sum().backward()
    for subnet, arch in enumerate(archs):
        net.zero_grad()
        alone = net(images, arch)
        assert_close(outputs[subnet], alone, tolerance=TOLERANCE[dtype])
        F.cross_entropy(alone, labels).backward()
        for name, parameter in net.named_parameters():
            expected = parameter.grad
            if subnet not in stack.members.get(name, ()):
                assert expected is None, f"{name} of {arch} has no row"
                continue
            got = stack.weights[name].grad[stack.members[name].index(subnet)]
            expected = torch.zeros_like(parameter) if expected is None else expected
            # Gradients of shifts before a norm are zero but for rounding.
            error = float((got - expected).norm())
            assert error <= 10 * TOLERANCE[dtype] * max(float(expected.norm()), 1.0), name


def test_weights_are_read_where_they_are_unless_they_are_to_move():
    net = supernet()
    shared, own = net.stack(cells()), net.stack(cells(), own=True)
    where = {name: parameter.data_ptr() for name, parameter in net.named_parameters()}
    assert all(weight.data_ptr() == where[name] for name, weight in shared.weights.items())
    assert all(weight.stride(0) == 0 or len(weight) == 1 for weight in shared.weights.values())
    assert all(weight.data_ptr() != where[name] for name, weight in own.weights.items())
    of_one = net.stack(cells()[:1]).weights
    assert {name for name in where if ".slots." in name} > {n for n in of_one if ".slots." in n}


NAMES = (
    "sigeo", "zico", "grad_norm", "snip", "plain", "params", "l2_norm", "synflow",
    "sigeo_recsys_official", "fisher_trace",
)  # fmt: skip


@TYPES
@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_scores_equal_each_subnet_alone(dtype, at_once):
    net, archs, data_ = supernet(dtype), cells(), batches(dtype)
    names = NAMES if at_once == 3 else ("sigeo", "zico", "snip")
    archs.insert(2, archs[0])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    many = score_many(net, archs, data_, names, at_once=at_once)
    assert len(many) == len(archs) and many[2] is not many[0] and many[2] == many[0]
    for arch, scores in zip(archs, many, strict=True):
        assert list(scores) == list(names)
        for whole in (False, True):
            chosen = [n for n in names if proxies.get(n).whole_network == whole]
            if not chosen:
                continue
            alone = score(net.subnet(arch, whole=whole), data_, chosen)
            for name, expected in alone.items():
                got = scores[name]
                assert got.value == pytest.approx(expected.value, rel=TOLERANCE[dtype])
                assert got.finite == expected.finite and got.notes == expected.notes
                for term, value in expected.terms.items():
                    assert got.terms[term] == pytest.approx(value, rel=TOLERANCE[dtype], abs=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_several_courses_and_selections_share_the_first_pass():
    net, archs = supernet(torch.float64), cells(3)
    requests = [
        Request(),
        Request(steps=SGD(0.1)),
        Request(selection="all"),
        Request(steps=SGD(1.0), ddof=1),
    ]
    given = Batches(batches(torch.float64, count=5), net, torch.device("cpu"))
    together = many_gradient_statistics(net, archs, given, requests=requests)
    for place, request in enumerate(requests):
        apart = many_gradient_statistics(net, archs, given, requests=[request])
        for subnet in range(len(archs)):
            got, expected = together[subnet][place], apart[subnet][0]
            assert got.names == expected.names
            for a, b in zip(got.summary, expected.summary, strict=True):
                assert_close(a, b, tolerance=1e-12)
            assert torch.equal(got.losses, expected.losses)


def test_what_a_stack_cannot_measure_goes_one_by_one():
    assert supports(Request()) and supports(Request(steps=SGD(1.0), selection="all"))
    assert not supports(Request(samples=True))
    assert not supports(Request(rows=True))
    assert not supports(Request(steps=ClippedAdagrad()))
    assert stackable(proxies.get("sigeo")) and stackable(proxies.get("grad_norm"))
    assert not any(map(stackable, map(proxies.get, ("params", "sigeo_paper", "gradsign"))))


def test_scores_equal_each_subnet_alone_by_every_route_and_on_every_device(device, route):
    net, archs, given = supernet(torch.float64, device), cells(), batches(torch.float64)
    for arch, found in zip(archs, score_many(net, archs, given, ["sigeo", "zico"]), strict=True):
        for name, expected in score(net.subnet(arch), given, ["sigeo", "zico"]).items():
            assert found[name].value == pytest.approx(expected.value, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_passes_give_the_same_bits(count):
    net, archs, given = supernet(), cells(), batches()
    with threads(count):
        first = score_many(net, archs, given, ["sigeo", "zico"])
        assert first == score_many(net, archs, given, ["sigeo", "zico"])


def test_a_subnet_that_is_not_finite_leaves_the_others_alone():
    net, archs, given = supernet(), cells(3), batches()
    broken = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|nor_conv_1x1~1|none~2|"
    archs.append(SPACE.parse(broken))
    with torch.no_grad():
        net.blocks[0].slots["0_3"].conv.weight.fill_(float("nan"))
    scores = score_many(net, archs, given, ["zico"])
    for arch, found in zip(archs, scores, strict=True):
        alone = score(net.subnet(arch), given, ["zico"])
        assert found["zico"].finite == alone["zico"].finite
    assert len({s["zico"].finite for s in scores}) == 2


def weights_of(network):
    return sum(parameter.nbytes for parameter in network.parameters())


def test_memory_bounds_the_number_at_once(monkeypatch):
    from sigeo.scoring import many

    net, archs, given = supernet(), cells(), Batches(batches(), supernet(), torch.device("cpu"))
    subnets = sorted(map(net.subnet, archs), key=weights_of, reverse=True)
    kept = sum(kept_bytes(subnets[0], given, F.cross_entropy))
    once = given[0][0].nbytes + max(kept_bytes(subnets[0], given, F.cross_entropy))
    three = 2 * once + sum(2 * kept + 4 * weights_of(subnet) for subnet in subnets[:3])
    sizes = []
    original = many.many_gradient_statistics

    def counted(supernet, archs, *rest, **named):
        sizes.append(len(archs))
        return original(supernet, archs, *rest, **named)

    monkeypatch.setattr(many, "many_gradient_statistics", counted)
    bounded = score_many(net, archs, given, ["zico"], max_bytes=three)
    assert sizes == [3, 3, 2]
    score_many(net, archs, given, ["zico"], max_bytes=three - 1)
    assert sizes[3:] == [2] * 4
    score_many(net, archs, given, ["zico"], max_bytes=1)
    assert sizes[7:] == [1] * len(archs)
    samples = [proxies.get("zico"), proxies.get("diag_fisher")]
    assert fitting(net, archs, given, samples, F.cross_entropy, three) == 3
    assert fitting(net, archs, given, samples[:1], F.cross_entropy, 100 * three) > 100
    assert [s["zico"].value for s in bounded] == [
        pytest.approx(s["zico"].value, rel=1e-4) for s in score_many(net, archs, given, ["zico"])
    ]


def test_a_wrong_argument_is_named():
    net, given = supernet(), batches(count=1)
    assert score_many(net, [], batches(), ["zico"]) == []
    with pytest.raises(InputError, match="at_once: must be a whole number of at least 1, got 0"):
        score_many(net, cells(), given, ["snip"], at_once=0)
    with pytest.raises(InputError, match="max_bytes: must be a whole number of at least 1, got 0"):
        score_many(net, cells(), given, ["snip"], max_bytes=0)
    with pytest.raises(InputError, match="at_once: must be a whole number of at least 1, got 2.5"):
        score_many(net, cells(), given, ["snip"], at_once=2.5)
    with pytest.raises(InputError, match="supernet: expected shared weights .* got Linear"):
        score_many(torch.nn.Linear(2, 2), cells(), given, ["snip"])
    with pytest.raises(InputError, match="archs: expected at least one path, got none"):
        add_gradients(net, [], *given[0])
    with pytest.raises(InputError, match="zico needs at least 2 batches, got 1"):
        score_many(net, cells(), given, ["zico"])


def test_a_proxy_of_the_first_gradient_sees_each_subnets_own():
    net, archs, given = supernet(torch.float64), cells(3), batches(torch.float64)
    seen = []

    def function(gradient):
        present = [g for g in gradient.grads if g is not None]
        if len(present) == len(gradient.grads):
            seen.append((gradient.names, [tuple(g.shape) for g in present]))
        return sum(g.square().sum() for g in present)

    proxy = Proxy("mine", OnGradient(function), "this test", "backward")
    got = score_many(net, archs, given, [proxy])
    alone = [score(net.subnet(arch), given, [proxy])["mine"].value for arch in archs]
    assert [s["mine"].value for s in got] == pytest.approx(alone, rel=1e-10)
    for (names, shapes), arch in zip(seen, archs, strict=False):
        layers = dict(net.named_parameters())
        assert shapes == [tuple(layers[name].shape) for name in names]
        assert len(names) == sum(p.dim() > 1 for p in net.subnet(arch).parameters())


def test_a_subnet_is_built_only_for_a_proxy_that_reads_it(monkeypatch):
    net, archs, given = supernet(), cells(3), batches()
    built = []
    subnet = type(net).subnet
    monkeypatch.setattr(
        type(net), "subnet", lambda self, arch, **given: built.append(arch) or subnet(self, arch)
    )
    score_many(net, archs, given, ["zico", "sigeo"])
    assert built == []
    read = []

    def function(model, statistics):
        read.append(sum(p.numel() for p in model.parameters()))
        return Outcome(float(statistics.losses.sum()))

    proxy = Proxy("mine", OnStatistics(function, Request()), "this test", "batches")
    score_many(net, archs, given, [proxy, "zico"])
    assert built == archs
    assert read == [sum(p.numel() for p in subnet(net, arch).parameters()) for arch in archs]


@pytest.mark.parametrize("average", [False, True])
def test_gradients_of_several_paths_are_added_to_the_shared_weights(average):
    net, archs = supernet(torch.float64), cells(3)
    images, labels = batches(torch.float64, count=1)[0]
    for arch in archs:
        loss = F.cross_entropy(net(images, arch), labels) / (len(archs) if average else 1)
        loss.backward()
    expected = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    losses = add_gradients(net, archs, images, labels, average=average)
    assert losses.shape == (len(archs),) and not losses.requires_grad
    for name, parameter in net.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None
        else:
            error = float((parameter.grad - expected[name]).norm())
            assert error <= 1e-9 * max(1.0, float(expected[name].norm())), name
    once = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    add_gradients(net, archs, images, labels, average=average)
    for name, parameter in net.named_parameters():
        if name in once:
            assert_close(parameter.grad, 2 * once[name], tolerance=1e-12)


def test_weights_of_a_convolution_of_zeros_have_no_gradient(route):
    """Which an optimiser with momentum or weight decay tells from a gradient of zero."""
    net, apart = supernet(), supernet()
    archs, (images, labels) = [SPACE.parse(SHIFTED), SPACE.decode([1] * 6)], batches()[0]
    add_gradients(net, archs, images, labels)
    for arch in archs:
        F.cross_entropy(apart(images, arch), labels).backward()
    reached, expected = (
        {name for name, p in one.named_parameters() if p.grad is not None} for one in (net, apart)
    )
    slot = "blocks.0.slots.2_3"
    assert f"{slot}.norm.bias" in reached and f"{slot}.conv.weight" not in reached
    assert reached == expected


def test_frozen_weights_are_not_measured_and_not_moved():
    net, archs, given = supernet(torch.float64), cells(3), batches(torch.float64)
    net.stem.conv.weight.requires_grad_(False)
    net.head.linear.weight.requires_grad_(False)
    for arch, found in zip(archs, score_many(net, archs, given, ["sigeo", "snip"]), strict=True):
        for name, expected in score(net.subnet(arch), given, ["sigeo", "snip"]).items():
            assert found[name].value == pytest.approx(expected.value, rel=1e-10)
    add_gradients(net, archs, *given[0])
    assert net.stem.conv.weight.grad is None and net.stem.norm.weight.grad is not None


def test_a_supernet_that_is_all_frozen():
    net, archs, given = supernet().requires_grad_(False), cells(1), batches()
    losses = add_gradients(net, archs, *given[0])
    assert losses.shape == (len(archs),)
    names = ["sigeo", "zico", "snip"]
    for arch, found in zip(archs, score_many(net, archs, given, names), strict=True):
        assert found == score(net.subnet(arch), given, names)


def test_a_subnet_whose_weights_are_all_frozen_beside_one_that_has_others():
    net, given = supernet(torch.float64).requires_grad_(False), batches(torch.float64)
    archs = [SPACE.decode([3] * 6), SPACE.decode([2] * 6)]
    for block in net.blocks:
        if isinstance(block, CellSlots):
            block.slot(5, 3).requires_grad_(True)
    names = ["sigeo", "zico", "snip", "zico_sample"]
    trained, frozen = score_many(net, archs, given, names)
    assert all(found.finite for found in trained.values())
    assert {found.value for found in frozen.values()} == {-math.inf}
    alone = score(net.subnet(archs[1]), given, names[:3])
    assert {name: frozen[name] for name in alone} == alone


def test_memory_is_measured_also_without_gradients_switched_on():
    net, given = supernet(), Batches(batches(), supernet(), torch.device("cpu"))
    network = net.subnet(cells()[0])
    expected = sum(kept_bytes(network, given, F.cross_entropy))
    with torch.no_grad():
        assert sum(kept_bytes(network, given, F.cross_entropy)) == expected > 0


def test_inputs_of_another_form_are_refused():
    given = [((x,), y) for x, y in batches()]
    with pytest.raises(InputError, match="batches: inputs must be one tensor, got tuple"):
        score_many(supernet(), cells(1), given, ["zico"])
