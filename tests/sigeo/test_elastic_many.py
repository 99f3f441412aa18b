"""Many subnets of an elastic supernet in one pass: equal to each of them alone."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from sigeo import InputError, proxies, score, score_many
from sigeo.capture import Batches, Request
from sigeo.capture.steps import SGD
from sigeo.scoring.many import fitting, kept_bytes
from sigeo.spaces.elastic.stack import Stack
from sigeo.supernet import add_gradients, many_gradient_statistics
from sigeo.supernet.many import backward
from sigeo_ext.testing import assert_close
from tests.sigeo.elastic_spaces import NAMES, archs_of, batches, space, supernet
from tests.sigeo.test_many import weights_of

EACH = pytest.mark.parametrize("name", NAMES)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
PROXIES = ("sigeo", "zico", "grad_norm", "snip", "plain", "synflow", "params", "l2_norm")


def check_scores(net, archs, given, names, tolerance):
    """Against each subnet alone, as a module of its own."""
    many = score_many(net, archs, given, names)
    frozen = not all(p.requires_grad for p in net.parameters())  # alone they are said to be still
    assert len(many) == len(archs)
    for arch, scores in zip(archs, many, strict=True):
        alone = score(net.subnet(arch), given, names)
        assert list(scores) == list(names)
        for name, expected in alone.items():
            got = scores[name]
            assert got.finite == expected.finite
            assert got.notes == expected.notes or frozen
            if expected.finite:
                assert got.value == pytest.approx(expected.value, rel=tolerance), name
            for term, value in expected.terms.items():
                wanted = pytest.approx(value, rel=tolerance, abs=1e-9, nan_ok=True)
                assert got.terms[term] == wanted
    return many


@EACH
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_scores_equal_each_subnet_alone(name, dtype):
    chosen = space(name)
    net, archs = supernet(chosen, dtype), archs_of(chosen, 3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    many = check_scores(net, archs, batches(dtype), PROXIES, TOLERANCE[dtype])
    assert many[-1] == many[0] and many[-1] is not many[0]
    assert len({scores["zico"].value for scores in many}) >= 3
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@EACH
@pytest.mark.parametrize("at_once", [1, 2], ids="{} at once".format)
def test_scores_do_not_depend_on_how_many_go_at_once(name, at_once):
    chosen = space(name)
    net, archs, given = supernet(chosen, torch.float64), archs_of(chosen, 1), batches(torch.float64)
    names = ["sigeo", "zico", "snip"]
    expected = score_many(net, archs, given, names)
    for got, wanted in zip(
        score_many(net, archs, given, names, at_once=at_once), expected, strict=True
    ):
        assert all(got[n].value == pytest.approx(wanted[n].value, rel=1e-12) for n in names)
    bounded = score_many(net, archs, given, names, max_bytes=1)
    assert [s["zico"].value for s in bounded] == [
        pytest.approx(s["zico"].value, rel=1e-12) for s in expected
    ]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_do_not_depend_on_the_grad_mode(mode):
    chosen = space("mlp")
    net, archs, given = supernet(chosen), archs_of(chosen, 3), batches()
    names = ["zico", "zico_sample", "synflow"]
    expected = score_many(net, archs, given, names)
    with mode():
        found = score_many(net, archs, given, names)
    assert found == expected and all(score.finite for row in found for score in row.values())


@EACH
def test_scores_are_those_of_the_standalone_network_of_the_seed(name):
    chosen = space(name)
    archs, given = archs_of(chosen, 2), batches()
    many = score_many(chosen.supernet(seed=4), archs, given, ["sigeo", "zico"])
    for arch, scores in zip(archs, many, strict=True):
        alone = score(chosen.build(arch, seed=4), given, ["sigeo", "zico"])
        for proxy, expected in alone.items():
            assert scores[proxy].value == pytest.approx(expected.value, rel=1e-4)


@EACH
def test_gradients_of_rows_are_those_of_each_subnet_alone(name):
    chosen = space(name)
    net, archs = supernet(chosen, torch.float64), archs_of(chosen, 3)
    images, labels = batches(torch.float64, count=1)[0]
    stack = net.stack(archs)
    outputs = stack(images)
    torch.stack([F.cross_entropy(y, labels) for y in outputs]).sum().backward()
    totals = {key: torch.zeros_like(parameter) for key, parameter in net.named_parameters()}
    for subnet, arch in enumerate(archs):
        alone = net.subnet(arch)
        expected = alone(images)
        assert_close(outputs[subnet], expected, tolerance=1e-10)
        F.cross_entropy(expected, labels).backward()
        for key, parameter in alone.named_parameters():
            row = stack.weights[key][stack.members[key].index(subnet)]
            assert row.shape == parameter.shape
            assert_close(row.grad, parameter.grad, tolerance=1e-9)
        net.zero_grad()
        F.cross_entropy(net(images, arch), labels).backward()
        for key, parameter in net.named_parameters():
            totals[key] += 0 if parameter.grad is None else parameter.grad
    for key, total in totals.items():
        found = stack.gradient(key) if key in stack.weights else torch.zeros_like(total)
        assert float((found - total).norm()) <= 1e-9 * max(1.0, float(total.norm())), key


@EACH
def test_rows_lie_where_the_shared_weights_do_unless_they_are_to_move(name):
    chosen = space(name)
    net, archs = supernet(chosen), archs_of(chosen, 3)
    storage = {key: p.untyped_storage().data_ptr() for key, p in net.named_parameters()}
    for own in (False, True):
        for key, rows in net.stack(archs, own=own).weights.items():
            for row in rows:
                assert row.is_leaf and row.requires_grad
                assert (row.untyped_storage().data_ptr() == storage[key]) != own
    layers = net.stack(archs).layers
    assert {key for key in layers if net.get_parameter(key).dim() < 2} == set()
    assert not any("norm" in key or "token" in key or "positions" in key for key in layers)


@EACH
def test_equal_prefixes_computed_once_give_the_same_bits(name):
    chosen = space(name)
    net, archs = supernet(chosen), archs_of(chosen, 6)
    images, labels = batches(count=1)[0]
    images = images.contiguous(memory_format=torch.channels_last)
    results = []
    for share in (True, False):
        stack = Stack(net, archs, own=False, share=share)
        outputs = stack(images)
        torch.stack([F.cross_entropy(y, labels) for y in outputs]).sum().backward()
        grads = {key: [row.grad for row in rows] for key, rows in stack.weights.items()}
        results.append((outputs, grads))
    (one, first), (two, second) = results
    assert torch.equal(one, two)
    for key in first:
        for a, b in zip(first[key], second[key], strict=True):
            assert torch.equal(a, b), key


@EACH
def test_an_output_that_is_taken_over_is_not_computed_again(name):
    chosen = space(name)
    net = supernet(chosen)
    images = batches(count=1)[0][0]
    arch = chosen.largest
    with torch.profiler.profile() as alone:
        net.stack([arch])(images)
    with torch.profiler.profile() as four:
        net.stack([arch] * 4)(images)

    def layers(profile):
        kinds = ("aten::convolution", "aten::linear")
        return sum(e.count for e in profile.key_averages() if e.key in kinds)

    assert layers(four) == layers(alone) > 0


def peak_bytes(run):
    """The most bytes of tensors that a function has at a time."""
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


@pytest.mark.parametrize("proxy", ["zico", "sigeo"])
@EACH
def test_memory_is_that_of_one_subnet_and_statistics_of_all(name, proxy):
    chosen = space(name)
    net, archs = supernet(chosen), list(dict.fromkeys(archs_of(chosen, 6)))
    given = Batches(batches(size=128), net, torch.device("cpu"))

    def fits(max_bytes):
        return fitting(net, archs, given, [proxies.get(proxy)], F.cross_entropy, max_bytes)

    one = next(2**n for n in range(40) if fits(2**n) > 1) // 2  # two do not fit
    room = one + 4 * max(map(weights_of, map(net.subnet, archs)))
    for max_bytes in (2 * room, 3 * room):
        count = fits(max_bytes)
        peak = peak_bytes(lambda: score_many(net, archs, given, [proxy], max_bytes=max_bytes))  # noqa: B023
        assert count > 2 and peak <= max_bytes


@EACH
def test_outputs_that_wait_for_a_later_subnet_are_no_more_than_one_has(name):
    chosen = space(name)
    net, drawn = supernet(chosen), list(dict.fromkeys(archs_of(chosen, 8)))
    images, labels = batches(count=1, size=128)[0]
    kept, weights = 0, 0
    for arch in drawn:
        subnet = net.subnet(arch)
        data = Batches([(images, labels)], subnet, torch.device("cpu"))
        kept = max(kept, sum(kept_bytes(subnet, data, F.cross_entropy)))
        weights += weights_of(subnet)
    stack = net.stack([*drawn, *drawn])  # each waits until all others have run
    peak = peak_bytes(lambda: backward(stack, images, labels, F.cross_entropy))
    assert peak <= 2 * kept + 2 * weights + images.nbytes


@EACH
def test_several_courses_and_selections(name):
    chosen = space(name)
    net, archs = supernet(chosen, torch.float64), archs_of(chosen, 1)
    requests = [Request(), Request(steps=SGD(0.1)), Request(selection="all")]
    given = Batches(batches(torch.float64), net, torch.device("cpu"))
    together = many_gradient_statistics(net, archs, given, requests=requests)
    for place, request in enumerate(requests):
        apart = many_gradient_statistics(net, archs, given, requests=[request])
        for subnet, arch in enumerate(archs):
            got, expected = together[subnet][place], apart[subnet][0]
            names = [key for key, _ in net.subnet(arch).named_parameters()]
            assert set(got.names) <= set(names)
            assert request.selection != "all" or sorted(got.names) == sorted(names)
            for a, b in zip(got.summary, expected.summary, strict=True):
                assert_close(a, b, tolerance=1e-12)


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_dropout_draws_what_each_subnet_alone_would(name):
    chosen = space(name, dropout=0.4)
    net, archs, given = supernet(chosen, torch.float64), archs_of(chosen, 3), batches(torch.float64)
    assert net.noisy and not supernet(space(name)).noisy
    torch.manual_seed(8)
    state = torch.get_rng_state()
    many = check_scores(net, archs, given, ["sigeo", "zico", "snip"], 1e-10)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    other = score_many(net, archs, given, ["zico"])
    assert all(a["zico"].value != b["zico"].value for a, b in zip(many, other, strict=True))
    for arch, scores in zip(archs, other, strict=True):
        alone = score(net.subnet(arch), given, ["zico"])["zico"].value
        assert scores["zico"].value == pytest.approx(alone, rel=1e-10)


@EACH
@pytest.mark.parametrize("average", [False, True])
def test_gradients_of_several_paths_are_added_to_the_shared_weights(name, average):
    chosen = space(name)
    net, archs = supernet(chosen, torch.float64), archs_of(chosen, 3)
    images, labels = batches(torch.float64, count=1)[0]
    for arch in archs:
        loss = F.cross_entropy(net(images, arch), labels) / (len(archs) if average else 1)
        loss.backward()
    expected = {key: p.grad for key, p in net.named_parameters()}
    net.zero_grad()
    for times in (1, 2):
        losses = add_gradients(net, archs, images, labels, average=average)
        assert losses.shape == (len(archs),) and not losses.requires_grad
        for key, parameter in net.named_parameters():
            wanted = times * expected[key]
            error = float((parameter.grad - wanted).norm())
            assert error <= 1e-9 * max(1.0, float(wanted.norm())), key


@EACH
def test_frozen_weights_are_not_measured_and_not_moved(name):
    chosen = space(name)
    net, archs, given = supernet(chosen, torch.float64), archs_of(chosen, 2), batches(torch.float64)
    frozen = next(iter(net.stack(archs).layers))
    net.get_parameter(frozen).requires_grad_(False)
    check_scores(net, archs, given, ["sigeo", "snip"], 1e-10)
    add_gradients(net, archs, *given[0])
    assert net.get_parameter(frozen).grad is None
    assert sum(p.grad is not None for p in net.parameters()) >= 2


def test_a_subnet_without_the_weights_that_are_trained_is_not_reached():
    chosen = space("mlp")
    net, given = supernet(chosen).requires_grad_(False), batches()
    net.get_submodule("layer3").requires_grad_(True)
    names = ["sigeo", "zico", "plain"]
    trained, frozen = score_many(net, [chosen.largest, chosen.smallest], given, names)
    assert all(found.finite for found in trained.values())
    assert frozen == score(net.subnet(chosen.smallest), given, names)


def test_proxies_that_go_one_by_one_see_the_extracted_network():
    chosen = space("resnet")
    net, archs, given = supernet(chosen, torch.float64), archs_of(chosen, 1), batches(torch.float64)
    names = ("fisher_trace", "gradsign", "flops")
    check_scores(net, archs, given, names, 1e-10)
    flops = [s["flops"].value for s in score_many(net, archs, given, ["flops"])]
    assert flops == [chosen.cost(arch).flops for arch in archs]
    assert all(proxies.get(name) for name in names)


def test_a_wrong_argument_is_named():
    net = supernet(space("mlp"))
    with pytest.raises(InputError, match="archs: expected at least one path, got none"):
        add_gradients(net, [], *batches(count=1)[0])
    assert score_many(net, [], batches(), ["zico"]) == []
