"""Copies of parts of an elastic supernet: sizes, what is inherited, who is served by which."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from sigeo import InputError, score_many, spaces
from sigeo.spaces import Groups
from sigeo.spaces.elastic.parts import part
from sigeo.supernet import add_gradients, evaluate
from tests.sigeo.elastic_spaces import archs_of, batches, space, supernet

SPACE = space("resnet")  # widths 5, 6, 8 and 10, 13, 16


def grown(groups, dtype=torch.float64):
    """Shared weights that were divided again and again."""
    made = supernet(SPACE, dtype)
    for count in range(1, groups + 1):
        made = made.divided(SPACE.width_groups(count))
    return made


def test_the_widest_of_each_group_are_those_published():
    """arXiv 2206.05896: 3, 6, 7 and 7 widths, one more alone from the top each time."""
    published = spaces.ResNet.published(spaces.InputShape(3, 224, 1000))
    widths = [
        [48, 56, 64],
        [88, 96, 104, 112, 120, 128],
        [176, 192, 208, 216, 232, 240, 256],
        [360, 384, 408, 432, 464, 488, 512],
    ]
    for count in range(1, 8):
        found = published.width_groups(count)
        options = [published.choices[one.choice].options for one in found]
        tops = [[int(o[top]) for top in one.tops] for o, one in zip(options, found, strict=True)]
        assert tops == [stage[-min(count, len(stage)) :] for stage in widths]
    assert [len(one.tops) for one in published.width_groups(9)] == [3, 6, 7, 7]
    pieces = [one.pieces for one in published.width_groups(2)]
    assert [len(names) for names in pieces] == [5, 5, 8, 6] and pieces[3][-1] == "head"


def test_copies_are_as_wide_as_their_widths_need_and_inner_widths_are_all_there():
    shapes = {name: tuple(p.shape) for name, p in grown(2).named_parameters()}
    # The first range ends at width 6 (of a stage of up to 8), and 13 (of 16).
    assert shapes["stage1_block2.0.first.conv.weight"] == (8, 6, 3, 3)
    assert shapes["stage1_block2.0.second.conv.weight"] == (6, 8, 3, 3)
    assert shapes["stage1_block2.1.second.norm.bias"] == (8,)
    assert shapes["stage2_block1.0.shortcut.conv.weight"] == (13, 8, 1, 1)
    assert shapes["head.0.linear.weight"] == (10, 13) and shapes["head.1.linear.bias"] == (10,)
    assert shapes["stem.0.conv.weight"] == (8, 1, 3, 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_copies_inherit_the_leading_slices_of_what_served_their_widths(count):
    before = supernet(SPACE) if count == 1 else grown(count - 1, torch.float32)
    after = before.divided(SPACE.width_groups(count))
    old = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        piece, _, rest = name.partition(".")
        if piece == "stem" or count == 1:
            source = name if piece == "stem" else f"{piece}.{rest.partition('.')[2]}"
        else:  # with g copies, copy 0 and the new copy 1 come out of copy 0
            number, _, rest = rest.partition(".")
            source = f"{piece}.{max(0, int(number) - 1)}.{rest}"
        assert torch.equal(parameter, part(old[source], parameter.shape)), name
        assert parameter.data_ptr() != old[source].data_ptr()
    assert f"head.{count - 1}.linear.bias" in dict(after.named_parameters())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_before_any_training_everything_computes_what_it_did(count):
    before = supernet(SPACE, torch.float64) if count == 1 else grown(count - 1)
    after = before.divided(SPACE.width_groups(count))
    x = batches(torch.float64)[0][0]
    rng = random.Random(count)
    names = [choice.name for choice in SPACE.choices]
    for widths in itertools.product(range(3), repeat=2):
        codes = list(SPACE.sample(rng).codes)
        codes[names.index("width1")], codes[names.index("width2")] = widths
        arch = SPACE.decode(codes)
        assert torch.equal(after(x, arch), before(x, arch))
        assert torch.equal(after.subnet(arch)(x), before.subnet(arch)(x))


def test_a_copy_is_used_by_its_widths_alone():
    made = grown(3)
    x = batches(torch.float64)[0][0]
    archs = archs_of(SPACE, count=12)
    before = [made(x, arch) for arch in archs]
    with torch.no_grad():
        for piece in ("stage1_block1", "stage1_block2"):
            for parameter in made.get_submodule(f"{piece}.1").parameters():
                parameter.mul_(1.5)
    changed = [not torch.equal(made(x, a), y) for a, y in zip(archs, before, strict=True)]
    assert changed == [arch.options()["width1"] == "6" for arch in archs]
    assert any(changed) and not all(changed)


def test_stacks_run_and_train_every_subnet_on_its_own_copies():
    made = grown(2)
    inputs, labels = batches(torch.float64)[0]
    archs = archs_of(SPACE)
    with torch.no_grad():  # copies that inherited the same weights are to differ
        for name, parameter in made.named_parameters():
            parameter.mul_(1 + 0.1 * (".1." in name))
    stack = made.stack(archs)
    alone = torch.stack([made(inputs, arch) for arch in archs])
    torch.testing.assert_close(stack(inputs), alone, rtol=1e-12, atol=1e-12)
    losses = add_gradients(made, archs, inputs, labels)
    found = {n: None if p.grad is None else p.grad.clone() for n, p in made.named_parameters()}
    made.zero_grad()
    expected = []
    for arch in archs:
        loss = torch.nn.functional.cross_entropy(made(inputs, arch), labels)
        loss.backward()
        expected.append(loss.detach())
    torch.testing.assert_close(losses, torch.stack(expected))
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", ["batch", "recalibrated"])
def test_evaluation_is_that_of_the_undivided_supernet(norm):
    archs = archs_of(SPACE)
    whole, made = supernet(SPACE, torch.float64), grown(3)
    given = batches(torch.float64)
    options = {"norm": norm, "calibration": given[1:] if norm == "recalibrated" else ()}
    found = evaluate(made, archs, given[:1], **options)
    expected = evaluate(whole, archs, given[:1], **options)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.accuracy, expected.accuracy)
    assert len(found.loss.unique()) > 3
    assert not any(name.endswith("running_mean") for name in made.state_dict())


@pytest.mark.parametrize("at_once", [1, 4])
def test_scores_are_those_of_the_undivided_supernet(at_once):
    archs = archs_of(SPACE, count=3)
    names = ["zico", "params", "sigeo"]
    scores = [
        score_many(made, archs, batches(torch.float64, count=2), names, at_once=at_once)
        for made in (supernet(SPACE, torch.float64), grown(3))
    ]
    for mine, theirs in zip(*scores, strict=True):
        for name in names:
            assert mine[name].value == pytest.approx(theirs[name].value, rel=1e-7)


def test_noise_is_of_the_largest_alone_in_train_mode():
    made = grown(2)
    x = batches(torch.float64)[0][0]
    smaller = SPACE.decode([0] + [len(c.options) - 1 for c in SPACE.choices[1:]])
    before = [made(x, arch) for arch in (SPACE.largest, smaller)]
    assert not made.noisy
    made.regularise(lambda network: SPACE.regularised(network, dropout=0.2, drop_path=0.5))
    assert made.noisy
    torch.manual_seed(0)
    draws = [made(x, SPACE.largest) for _ in range(2)]
    assert not torch.equal(*draws) and torch.equal(made(x, smaller), before[1])
    assert torch.equal(made.subnet(SPACE.largest)(x), before[0])
    made.eval()
    quiet = made(x, SPACE.largest)
    torch.testing.assert_close(quiet, before[0])
    made.train().regularise(None)
    assert not made.noisy and torch.equal(made(x, SPACE.largest), before[0])


def test_drop_path_drops_branches_of_whole_samples_in_the_last_two_stages():
    deep = space("resnet", depths=(1, 1, 1), channels=8)
    network = deep.network(deep.largest, track=False)
    plain = deep.network(deep.largest, track=False)
    deep.regularised(network, dropout=0.25, drop_path=0.5)
    added = {n for n, _ in network.named_modules()} - {n for n, _ in plain.named_modules()}
    assert added == {"stage2_block1.second.2", "stage3_block1.second.2", "head.linear.0",
                     "head.linear.1"}  # fmt: skip
    drop = network.get_submodule("stage3_block1.second.2")
    torch.manual_seed(0)
    kept = drop(torch.ones(1000, 2, 3, 3)).flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert bool((kept == kept[:, :1]).all()) and 400 < int((kept[:, 0] == 0).sum()) < 600
    assert torch.equal(drop.eval()(kept), kept)


def test_modes_devices_and_frozen_weights_are_kept():
    whole = SPACE.supernet(seed=0).to(memory_format=torch.channels_last).eval()
    whole.get_parameter("stage1_block1.first.conv.weight").requires_grad_(False)
    made = whole.divided(SPACE.width_groups(2))
    assert not made.training and not made.get_submodule("stage2_block1.1").training
    for number in (0, 1):
        weight = made.get_parameter(f"stage1_block1.{number}.first.conv.weight")
        assert not weight.requires_grad
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert len(list(whole.parameters())) < len(list(made.parameters()))
    assert "stage1_block1.first.conv.weight" in whole.state_dict()  # as it was


def test_hooks_are_of_one_supernet_alone():
    whole = supernet(SPACE)
    calls = []
    whole.register_forward_hook(lambda *_: calls.append("whole"))
    made = whole.divided(SPACE.width_groups(2))
    made.register_forward_pre_hook(lambda *_: calls.append("made"))
    x = batches(torch.float32)[0][0]
    whole(x, SPACE.largest)
    assert calls == ["whole"]
    made(x, SPACE.largest)
    assert calls == ["whole", "made"]
    made.register_buffer("mean", torch.zeros(1))
    assert "mean" not in whole.state_dict()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([Groups(9, (0, 2), ("head",))], "groups: choice must be from 0 to 7, got 9"),
        ([Groups(1, (0, 1), ("head",))], "tops of width1 must ascend from 0 or more to 2, got"),
        ([Groups(1, (1, 1, 2), ("head",))], r"to 2, got \[1, 1, 2\]"),
        ([Groups(1, (), ("head",))], r"to 2, got \[\]"),
        ([Groups(1, (-1, 2), ("head",))], r"to 2, got \[-1, 2\]"),
        ([Groups(1, (0, 2), ("tail",))], "each piece once, of stem, .*, got 'tail'"),
        ([Groups(1, (0, 2), ("head", "head"))], "each piece once, of stem, .*, got 'head'"),
        ([Groups(0, (0, 1), ("head", "stage1_block2"))],
         "network has, got 'stage1_block2', which depth1 1 leaves out"),
    ],
)  # fmt: skip
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(InputError, match=message):
        supernet(SPACE).divided(groups)


def test_groups_only_become_finer():
    made = grown(2)
    with pytest.raises(InputError, match=r"stage1_block1 must be finer than of tops \[1, 2\]"):
        made.divided(SPACE.width_groups(1))
    with pytest.raises(InputError, match=r"stage1_block1 must be finer .* got None"):
        made.divided(SPACE.width_groups(3)[1:])
    with pytest.raises(InputError, match="resnet: groups must be a whole number of at least 1"):
        SPACE.width_groups(0)
    for one in SPACE.width_groups(2):
        assert Groups.read(one.describe()) == one
    with pytest.raises(InputError, match="groups: expected choice, tops and pieces, got"):
        Groups.read({"choice": 1, "tops": 3})
