"""Single samples of many subnets in one pass: equal to each of them alone."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from sigeo import InputError, proxies, score, score_many
from sigeo.capture import Batches, capture
from sigeo.scoring import many
from sigeo.scoring.many import stackable
from sigeo.spaces.nasbench201.stack import Stack
from sigeo.supernet import many_sample_statistics, shares_samples
from sigeo.supernet.samples import OF_SUBNETS
from sigeo_ext.testing import assert_close, threads
from tests.sigeo import elastic_spaces
from tests.sigeo.test_many import SPACE, TOLERANCE, TYPES, batches, cells, supernet

PROXIES = ("zico_sample", "sigeo_sample", "fisher_trace", "diag_fisher", "gradient_noise_scale")


def check_scores(net, archs, given, names, tolerance, **options):
    """Against each subnet alone."""
    many_scores = score_many(net, archs, given, names, **options)
    for arch, scores in zip(archs, many_scores, strict=True):
        alone = score(net.subnet(arch), given, names)
        assert list(scores) == list(names)
        for name, expected in alone.items():
            got = scores[name]
            assert got.finite == expected.finite
            assert got.value == pytest.approx(expected.value, rel=tolerance), (str(arch), name)
            for term, value in expected.terms.items():
                wanted = pytest.approx(value, rel=tolerance, abs=1e-9, nan_ok=True)
                assert got.terms[term] == wanted
    return many_scores


@TYPES
@pytest.mark.parametrize("frozen", [(), ("stem.conv.weight", "head.linear.bias")], ids=str)
def test_statistics_equal_each_subnet_alone(dtype, frozen, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    net, archs = supernet(dtype, device), cells(4)
    archs.append(archs[0])
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    data = Batches(batches(dtype, count=1, size=9), net, torch.device(device))
    for arch, found in zip(
        archs, many_sample_statistics(net, archs, data, want=OF_SUBNETS), strict=True
    ):
        subnet, (images, labels) = net.subnet(arch), data[0]
        with capture(subnet, OF_SUBNETS, batch_norm="contribution", grads=False) as expected:
            loss = F.cross_entropy(subnet(images), labels)
            loss.backward()
        got = found.statistics
        assert found.reached and found.loss == pytest.approx(loss.item(), rel=TOLERANCE[dtype])
        assert got.keys() == expected.keys() and got.units == expected.units == 9
        assert not got.unsupported
        for name in ("sample_sq_norm", "fisher_rao"):
            assert_close(getattr(got, name), getattr(expected, name), tolerance=TOLERANCE[dtype])
        for name in expected:
            for statistic, a, b in zip(
                expected[name]._fields, got[name], expected[name], strict=True
            ):
                assert a.dtype == b.dtype and a.shape == b.shape
                if statistic == "sign_sum" and dtype is torch.float32:
                    continue  # gradients within rounding of zero have any sign
                # Sums over the batch are zero but for rounding where a norm follows.
                error, scale = float((a - b).norm()), max(1.0, float(b.norm()))
                assert error <= 10 * TOLERANCE[dtype] * scale, (str(arch), name, statistic)
        with pytest.raises(InputError, match="want: gram was not asked for"):
            _ = got.gram


@pytest.mark.parametrize(
    ("dtype", "at_once"), [(torch.float32, None), (torch.float64, 1), (torch.float64, 3)], ids=str
)
def test_scores_equal_each_subnet_alone(dtype, at_once):
    net, archs, given = supernet(dtype), cells(3), batches(dtype)
    archs.insert(2, archs[0])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = check_scores(net, archs, given, PROXIES, TOLERANCE[dtype], at_once=at_once)
    assert found[2] == found[0] and len({s["fisher_trace"].value for s in found}) >= 4
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_scores_are_those_of_the_standalone_network_of_the_seed():
    archs, given = cells(4), batches(torch.float64)
    found = score_many(SPACE.supernet(seed=4).double(), archs, given, PROXIES)
    for arch, scores in zip(archs, found, strict=True):
        alone = score(SPACE.build(arch, seed=4).double(), given, ["zico_sample", "diag_fisher"])
        for name, expected in alone.items():
            assert scores[name].value == pytest.approx(expected.value, rel=1e-10)


def test_proxies_of_all_kinds_together():
    net, archs, given = supernet(torch.float64), cells(2), batches(torch.float64, count=2)
    names = ("gradsign", "zico", "fisher_trace", "params", "zico_sample", "synflow")
    mixed = score_many(net, archs, given, names)
    for names in (("fisher_trace", "zico_sample"), ("zico",), ("gradsign", "params", "synflow")):
        for scores, whole in zip(score_many(net, archs, given, names), mixed, strict=True):
            for name, expected in scores.items():
                assert whole[name].value == pytest.approx(expected.value, rel=1e-12)


def test_norms_without_scale_and_shift():
    net = SPACE.supernet(seed=0, affine=False).double()
    check_scores(net, cells(3), batches(torch.float64), PROXIES, 1e-10)


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_pass_gives_the_same_bits(count):
    net, archs, given = supernet(), cells(), batches()
    with threads(count):
        first = score_many(net, archs, given, PROXIES)
        assert first == score_many(net, archs, given, PROXIES)


def test_passes_are_shared_where_stacks_show_their_layers(monkeypatch):
    sizes = []
    original = many.many_sample_statistics

    def counted(supernet, archs, *rest, **named):
        sizes.append(len(archs))
        return original(supernet, archs, *rest, **named)

    monkeypatch.setattr(many, "many_sample_statistics", counted)
    net, archs, given = supernet(), cells(5), batches()
    score_many(net, archs, given, PROXIES, at_once=3)
    assert sizes == [3, 3], "the last one goes alone"
    score_many(net, archs, given, PROXIES, max_bytes=1)
    tracking = SPACE.supernet(track=True)
    score_many(tracking, archs, given, PROXIES)
    assert sizes == [3, 3]
    elastic = elastic_spaces.supernet(elastic_spaces.space("mlp"))
    proxy = proxies.get("fisher_trace")
    assert stackable(proxy) and stackable(proxy, net)
    assert not stackable(proxy, elastic) and not stackable(proxy, tracking)
    assert not stackable(proxies.get("gradsign"), net), "it counts the whole network"
    assert shares_samples(net) and not shares_samples(elastic) and not shares_samples(tracking)
    with pytest.raises(InputError, match="supernet: expected one whose stacks show their layers"):
        data = Batches(given, elastic, torch.device("cpu"))
        many_sample_statistics(elastic, [], data, want=frozenset({"sum"}))
    with pytest.raises(InputError, match="want: must be of .*, got 'gram'"):
        many_sample_statistics(net, archs, data, want=frozenset({"gram"}))


def test_other_meanings_of_batch_norm_go_one_by_one():
    net, archs, given = supernet(torch.float64), cells(3), batches(torch.float64)
    per_unit = proxies.get("fisher_trace", batch_norm="per_unit")
    assert not stackable(per_unit)
    for arch, scores in zip(archs, score_many(net, archs, given, [per_unit]), strict=True):
        expected = score(net.subnet(arch), given, [per_unit])["fisher_trace"]
        assert scores["fisher_trace"] == expected
    frozen = proxies.get("fisher_trace", batch_norm="frozen")
    with pytest.raises(InputError, match='batch_norm="frozen" needs running statistics'):
        score_many(net, archs, given, [frozen])


def test_a_subnet_that_is_not_finite_leaves_the_others_alone():
    net, archs, given = supernet(torch.float64), cells(3), batches(torch.float64)
    archs.append(SPACE.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|nor_conv_1x1~1|none~2|"))
    with torch.no_grad():
        net.blocks[0].slots["0_3"].conv.weight.fill_(float("nan"))
    found = check_scores(net, archs, given, ["fisher_trace", "zico_sample"], 1e-10)
    assert {s["fisher_trace"].finite for s in found} == {True, False}


def test_weights_that_are_all_frozen():
    net, given = supernet().requires_grad_(False), batches()
    for scores in score_many(net, cells(2), given, ["zico_sample"]):
        assert not scores["zico_sample"].finite
        assert "depends on no parameter" in scores["zico_sample"].notes[0]


@pytest.mark.parametrize("trained", ["nothing", "norms"])
def test_layers_that_are_all_frozen_however_they_are_measured(trained):
    net, archs, given = supernet(torch.float64), cells(1), batches(torch.float64)
    net.requires_grad_(False)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.requires_grad_(trained == "norms")
    together = score_many(net, archs, given, ["zico_sample"])
    for names in (["zico_sample"], ["zico_sample", "fisher_trace"]):
        apart = score_many(net, archs, given, names, at_once=1)
        assert [s["zico_sample"] for s in apart] == [s["zico_sample"] for s in together]
    assert {s["zico_sample"].finite for s in together} == {trained == "norms"}


def test_a_loss_that_is_no_mean_is_refused():
    def total(output, labels):
        return F.cross_entropy(output, labels, reduction="sum")

    with pytest.raises(InputError, match="loss_fn gives the sum of the samples' losses"):
        score_many(supernet(), cells(2), batches(), ["fisher_trace"], loss_fn=total)


def test_nothing_of_a_pass_is_left_behind(monkeypatch):
    made = []
    original = Stack.__init__

    def noted(self, *args, **named):
        original(self, *args, **named)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Stack, "__init__", noted)
    gc.collect()
    gc.disable()
    try:
        data = Batches(batches(), supernet(), torch.device("cpu"))
        many_sample_statistics(supernet(), cells(2), data, want=OF_SUBNETS)
        assert len(made) == 1 and made[0]() is None
    finally:
        gc.enable()
