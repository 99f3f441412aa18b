"""Evaluation of subnets: values, modes, and nothing changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sigeo import InputError, score_many
from sigeo.spaces import Product
from sigeo.supernet import RoutedSupernet, evaluate, recalibrated
from tests.sigeo.elastic_spaces import batches as elastic_batches
from tests.sigeo.elastic_spaces import space as elastic_space
from tests.sigeo.training import SPACE, batches

ARCHS = [SPACE.at(index) for index in (9558, 1462, 9558, 8001, 15000)]


def tracked(supernet):
    """With running statistics in every norm, not at their start."""
    for n in supernet.modules():
        if isinstance(n, nn.BatchNorm2d):
            n.track_running_stats = True
            n.running_mean = torch.full((n.num_features,), 0.1)
            n.running_var = torch.full((n.num_features,), 1.5)
            n.num_batches_tracked = torch.tensor(7)
    return supernet


def by_hand(outputs_of, archs):
    accuracy, loss = [], []
    for arch in archs:
        right = total = count = 0
        for inputs, labels in batches(3, 7):
            outputs = outputs_of(arch, inputs)
            right += int((outputs.argmax(1) == labels).sum())
            total += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
            count += len(labels)
        accuracy.append(right / count)
        loss.append(total / count)
    return torch.tensor(accuracy, dtype=torch.float64), torch.tensor(loss, dtype=torch.float64)


def assert_evaluated(found, expected):
    assert torch.equal(found.accuracy, expected[0])
    torch.testing.assert_close(found.loss, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 2, 8])
@pytest.mark.parametrize("make", [lambda s: s, tracked], ids=["plain", "tracked"])
def test_batch_statistics_one_by_one_and_together(make, at_once):
    supernet = make(SPACE.supernet(seed=1))
    plain = SPACE.supernet(seed=1)
    with torch.no_grad():
        expected = by_hand(lambda arch, x: plain.subnet(arch).train()(x), ARCHS)
    found = evaluate(supernet, ARCHS, batches(3, 7), at_once=at_once)
    assert_evaluated(found, expected)
    assert found.images == 5 * 21


@pytest.mark.parametrize("name", ["resnet", "mlp"])
def test_paths_that_are_kept_are_not_made_anew(name, monkeypatch):
    space = elastic_space(name)
    net, given = space.supernet(seed=1), elastic_batches()
    archs = [space.smallest, space.largest, space.smallest]
    together = evaluate(net, archs, given, at_once=3)
    assert not any(map(net.keeps, archs))
    alone = evaluate(net, archs, given, at_once=1)
    assert all(map(net.keeps, archs))
    monkeypatch.setattr(space, "network", lambda *_, **__: pytest.fail("made anew"))
    kept = evaluate(net, archs, given, at_once=3)
    assert torch.equal(kept.accuracy, together.accuracy) and torch.equal(kept.loss, alone.loss)
    assert_evaluated(kept, (together.accuracy, together.loss))


def test_tracked_statistics_are_used_as_they_are():
    supernet = tracked(SPACE.supernet(seed=1))
    with torch.no_grad():
        expected = by_hand(lambda arch, x: copy.deepcopy(supernet).eval()(x, arch), ARCHS)
    assert_evaluated(evaluate(supernet, ARCHS, batches(3, 7), norm="tracked"), expected)


@pytest.mark.parametrize("make", [lambda s: s, tracked], ids=["plain", "tracked"])
def test_recalibrated_statistics_are_the_mean_over_the_calibration_batches(make):
    calibration = batches(2, 9)

    def outputs(arch, x):
        network = copy.deepcopy(tracked(SPACE.supernet(seed=1))).subnet(arch).train()
        for n in network.modules():
            if isinstance(n, nn.BatchNorm2d):
                n.reset_running_stats()
                n.momentum = None
        for inputs, _ in calibration:
            network(inputs)
        return network.eval()(x)

    with torch.no_grad():
        expected = by_hand(outputs, ARCHS)
    supernet = make(SPACE.supernet(seed=1))
    found = evaluate(supernet, ARCHS, batches(3, 7), norm="recalibrated", calibration=calibration)
    assert_evaluated(found, expected)
    assert found.images == 5 * (21 + 18)


@pytest.mark.parametrize("which", ["nasbench201", "resnet"])
def test_a_recalibrated_network_is_what_was_evaluated_and_leaves_the_supernet(which):
    resnet = which == "resnet"
    space = elastic_space("resnet") if resnet else SPACE
    some = elastic_batches(count=2, size=9) if resnet else batches(2, 9)
    judged = elastic_batches(count=3, size=7) if resnet else batches(3, 7)
    supernet = space.supernet(seed=1)
    before = copy.deepcopy(supernet.state_dict())
    for arch in (space.at(9), space.at(space.size - 1)):
        found = evaluate(supernet, [arch], judged, norm="recalibrated", calibration=some)
        network = recalibrated(supernet.subnet(arch), some)
        assert not any(part.training for part in network.modules())
        with torch.no_grad():
            loss = [nn.functional.cross_entropy(network(x), y, reduction="sum") for x, y in judged]
        count = sum(len(y) for _, y in judged)
        torch.testing.assert_close(found.loss[0], (sum(loss) / count).double(), rtol=1e-5, atol=0)
    assert supernet.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())


def test_a_supernet_is_not_recalibrated_as_a_whole():
    with pytest.raises(
        InputError, match=r"expected a plain module, such as supernet.subnet\(arch\)"
    ):
        recalibrated(SPACE.supernet(seed=1), batches(1, 4))


def test_recalibration_leaves_dropout_and_momentum_alone():
    network = nn.Sequential(nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.9), nn.BatchNorm1d(4))
    images = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    made = recalibrated(network, [(images, torch.zeros(64))])
    assert network.training and network[0].num_batches_tracked == 0
    torch.testing.assert_close(made[0].running_mean, images.mean(0))
    torch.testing.assert_close(made[2].running_mean, torch.zeros(4), atol=1e-5, rtol=0)
    assert made[0].momentum == 0.3
    with pytest.raises(InputError, match="batches: expected at least one, got none"):
        recalibrated(network, [])


@pytest.mark.parametrize("norm", ["batch", "tracked", "recalibrated"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed_also_after_an_error(norm, fails):
    supernet = tracked(SPACE.supernet(seed=1)).train()
    supernet.head.eval()
    supernet.stem.conv.weight.grad = torch.ones_like(supernet.stem.conv.weight)
    before = {name: (value, value.clone()) for name, value in supernet.state_dict().items()}
    modes = [(m, m.training, getattr(m, "momentum", 0)) for m in supernet.modules()]
    given = batches()
    if fails:
        given[1] = (given[1][0], torch.full((8,), 9))
    calibration = batches() if norm == "recalibrated" else ()
    try:
        evaluate(supernet, ARCHS, given, norm=norm, calibration=calibration)
    except InputError as error:
        assert fails and "labels: expected classes from 0 to 3, got 9" in str(error)
    else:
        assert not fails
    after = supernet.state_dict()
    assert after.keys() == before.keys()
    for name, (value, copied) in before.items():
        assert after[name].data_ptr() == value.data_ptr() and torch.equal(after[name], copied)
    assert modes == [(m, m.training, getattr(m, "momentum", 0)) for m in supernet.modules()]
    assert torch.equal(supernet.stem.conv.weight.grad, torch.ones_like(supernet.stem.conv.weight))
    assert all(p.grad is None for n, p in supernet.named_parameters() if n != "stem.conv.weight")


def test_no_architecture():
    found = evaluate(SPACE.supernet(), [], batches())
    assert (len(found.accuracy), len(found.loss), found.images) == (0, 0, 0)


def test_bad_settings():
    supernet = SPACE.supernet()
    for options, message in (
        ({"norm": "x"}, "norm: must be batch, tracked or recalibrated, got 'x'"),
        ({"norm": "tracked"}, "keeps no running statistics"),
        ({"norm": "recalibrated"}, "takes at least one batch, got 0"),
        ({"calibration": batches()}, "norm='batch' takes no batch, got 2"),
        ({"norm": "recalibrated", "calibration": batches()[0]}, "calibration: expected pairs, as"),
        ({"at_once": 0}, "at_once: must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(supernet, ARCHS, batches(), **options)
    with pytest.raises(InputError, match="batches: expected at least one, got none"):
        evaluate(supernet, ARCHS, [])
    with pytest.raises(InputError, match=r"batches: expected pairs, as \[\(images, labels\)\]"):
        evaluate(supernet, ARCHS, batches()[0])


def test_architectures_come_in_anything_that_gives_several():
    supernet = SPACE.supernet()
    expected = evaluate(supernet, ARCHS, batches())
    found = evaluate(supernet, (arch for arch in ARCHS), iter(batches()))
    assert torch.equal(found.loss, expected.loss) and found.images == expected.images
    scores = score_many(supernet, iter(ARCHS), batches(), ["zico"])
    assert scores == score_many(supernet, ARCHS, batches(), ["zico"]) and len(scores) == 5
    for one, said in ((ARCHS[0], "Cell"), (str(ARCHS[0]), "str"), (7, "int '7'")):
        message = f"archs: expected several architectures, such as a list, got one {said}"
        for call in (
            lambda one: evaluate(supernet, one, batches()),
            lambda one: score_many(supernet, one, batches(), ["zico"]),
        ):
            with pytest.raises(InputError, match=message):
                call(one)


def test_architectures_of_another_space_are_refused_in_one_line():
    elastic = elastic_space("mlp")
    other = elastic_space("mlp", widths=(5, 9))
    nets = SPACE.supernet(), elastic.supernet()
    cell, images = SPACE.at(7), elastic_batches(count=1)
    regions = Product.whole(elastic).split(0, [(0,), (1, 2)])
    routed = RoutedSupernet.of(nets[1], regions)
    for net, wrong, message in (
        (nets[0], elastic.largest, "expected one of nasbench201, got Architecture 'depth=3,"),
        (nets[0], str(cell), "expected one of nasbench201, got str '|"),
        (nets[1], cell, "expected one of mlp, got Cell '|"),
        (nets[1], other.largest, "expected one of mlp, got Architecture 'depth=3,width1=9"),
        (nets[1], str(elastic.largest), "expected one of mlp, got str 'depth=3,"),
        (routed, cell, "expected one of mlp, got Cell '|"),
    ):
        entries = [
            lambda net, wrong: evaluate(net, [wrong], images),
            lambda net, wrong: net(images[0][0], wrong),
            lambda net, wrong: net.subnet(wrong),
        ]
        if net is not routed:
            entries.append(lambda net, wrong: score_many(net, [wrong], images * 2, ["zico"]))
            entries.append(lambda net, wrong: score_many(net, [wrong], images * 2, ["synflow"]))
        for entry in entries:
            with pytest.raises(InputError) as caught:
                entry(net, wrong)
            assert message in str(caught.value)
    assert elastic.encode(copy.deepcopy(elastic.largest)) == elastic.largest.codes
