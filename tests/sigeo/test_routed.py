"""Sub-supernets of a split space, trained as one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sigeo import InputError
from sigeo.spaces import Product
from sigeo.supernet import Balanced, Budget, RoutedSupernet, evaluate
from tests.sigeo.elastic_spaces import batches as elastic_batches
from tests.sigeo.elastic_spaces import space as elastic_space
from tests.sigeo.training import IMAGES, SPACE, assert_resumes, batches, source, trained, training

REGIONS = Product.whole(SPACE).split(0, [(0, 1), (2, 3), (4,)])
ARCHS = [SPACE.decode((option, 3, 1, 2, 3, 4)) for option in range(5)]


def made(share=()):
    return RoutedSupernet.of(SPACE.supernet(seed=3), REGIONS, share=share)


def test_an_architecture_runs_on_the_weights_of_its_region():
    routed = made()
    assert [routed.route(arch) for arch in ARCHS] == [0, 0, 1, 1, 2]
    with torch.no_grad():
        routed.parts[1].head.linear.bias.add_(1.0)
        usual = SPACE.supernet(seed=3)
        for arch in ARCHS:
            expected = usual(IMAGES[:8], arch) + (routed.route(arch) == 1)
            torch.testing.assert_close(routed(IMAGES[:8], arch), expected)
            torch.testing.assert_close(routed.subnet(arch)(IMAGES[:8]), expected)
    assert evaluate(routed, ARCHS, batches()).loss.shape == (5,)


def test_a_balanced_step_trains_every_part_on_the_same_batch():
    sampler = Balanced(SPACE, REGIONS, seed=1)
    config = training(limit=1, momentum=0.0, weight_decay=0.0, clip=None)
    found, budget = trained(sampler, made=made, config=config)
    assert budget == Budget(trained=3 * 16)
    images, labels = source().take(config, 0)
    for part, arch in zip(found.parts, sampler.paths(0), strict=True):
        alone = SPACE.supernet(seed=3)
        F.cross_entropy(alone(images, arch), labels).backward()
        for (name, p), moved in zip(alone.named_parameters(), part.parameters(), strict=True):
            expected = p.detach() - (0 if p.grad is None else 0.1 * p.grad)
            torch.testing.assert_close(moved.detach(), expected, msg=name)


def test_shared_ends_are_one_and_get_the_gradients_of_all():
    routed = made(share=("stem", "head"))
    assert routed.parts[0].stem is routed.parts[2].stem
    assert routed.parts[0].blocks is not routed.parts[1].blocks
    names = [name for name, _ in routed.named_parameters() if "stem" in name]
    assert all(name.startswith("parts.0.") for name in names)
    with pytest.raises(InputError, match="has no submodule 'tail' to share"):
        made(share=("tail",))


def test_shared_ends_of_an_elastic_supernet_that_has_run():
    chosen = elastic_space("mlp")
    net, arch = chosen.supernet(seed=0), chosen.largest
    images = elastic_batches(count=1)[0][0]
    net(images, arch)
    regions = Product.whole(chosen).split(0, [(0, 1), (2,)])
    routed = RoutedSupernet.of(net, regions, share=("head",))
    with torch.no_grad():
        routed.parts[0].head.bias.add_(1.0)
        torch.testing.assert_close(routed(images, arch), net(images, arch) + 1)
        torch.testing.assert_close(routed(images, arch), routed.subnet(arch)(images))


@pytest.mark.parametrize("share", [(), ("stem", "head")], ids=["apart", "shared ends"])
def test_stopped_trainings_go_on(share, tmp_path, monkeypatch):
    assert_resumes(
        lambda: {
            "sampler": Balanced(SPACE, REGIONS, seed=1, form="one"),
            "made": lambda: made(share),
        },
        tmp_path,
        monkeypatch,
    )


def test_step_sizes_of_parts_have_factors():
    config = training(
        limit=1,
        momentum=0.0,
        weight_decay=0.0,
        clip=None,
        scales=(("parts.0.", 0.0), ("parts.1", 2.0)),
    )
    assert config.describe()["scales"] == [["parts.0.", 0.0], ["parts.1", 2.0]]
    scaled, _ = trained(Balanced(SPACE, REGIONS, seed=1), made=made, config=config)
    plain = training(limit=1, momentum=0.0, weight_decay=0.0, clip=None)
    usual, _ = trained(Balanced(SPACE, REGIONS, seed=1), made=made, config=plain)
    start = SPACE.supernet(seed=3).stem.conv.weight
    moves = [[part.stem.conv.weight - start for part in routed.parts] for routed in (scaled, usual)]
    for factor, move, other in zip((0.0, 2.0, 1.0), *moves, strict=True):
        torch.testing.assert_close(move, factor * other, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="scales must be pairs .*, got .'a', -1"):
        training(scales=(("a", -1),))


def test_what_does_not_fit():
    with pytest.raises(InputError, match="got 3 regions and 0 parts"):
        RoutedSupernet([], REGIONS)
    routed = RoutedSupernet([SPACE.supernet()], REGIONS[:1])
    with pytest.raises(InputError, match="no region holds the architecture"):
        routed(IMAGES[:8], ARCHS[4])
