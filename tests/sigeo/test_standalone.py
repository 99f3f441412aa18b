"""Architectures trained alone and tabulated."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyarrow import parquet

from sigeo import InputError, spaces
from sigeo.data import ImageData, Split
from sigeo.scoring import standalone
from sigeo.store import RunStore
from sigeo.supernet import WarmUp
from sigeo.tables import read_table


def images(count, seed):
    """Bright or dark halves, which a small network learns in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    noise = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
    noise[labels == 1, :, :4] += 100
    return Split(noise.to(torch.uint8), labels)


DATA = ImageData("halves", images(96, 0), images(50, 1), classes=2)
SPACE = spaces.get("nasbench201", spaces.InputShape(1, 8, 2), channels=4, cells=1)
PROTOCOL = standalone.Standalone(WarmUp(96, 4, 16, lr=0.1, schedule="cosine", clip=None), runs=2)
# The first two are one network: what they skip from node 1 is zero.
ARCHS = [
    SPACE.decode((0, 3, 0, 1, 0, 2)),
    SPACE.decode((0, 3, 1, 1, 1, 2)),
    SPACE.decode((0, 0, 0, 0, 0, 0)),
]


def open_store(folder, protocol=PROTOCOL, data=DATA):
    return RunStore(folder / "run.sqlite", standalone.settings(SPACE, data, protocol))


def test_networks_learn_and_equal_ones_share_their_trainings(tmp_path, monkeypatch):
    trained = []
    train = standalone.accuracy_alone
    monkeypatch.setattr(
        standalone, "accuracy_alone", lambda *a: trained.append(str(a[2])) or train(*a)
    )
    seen = []
    with open_store(tmp_path) as store:
        found = standalone.measure(
            SPACE, DATA, ARCHS, PROTOCOL, store, progress=lambda *d: seen.append(d)
        )
    assert len(trained) == 4 and seen[-1] == (6, 6)
    assert (found.accuracy[0] == found.accuracy[1]).all() and found.accuracy[0].min() > 90
    # The disconnected network says the same of every image.
    share = 100 * float((DATA.test.labels == 0).float().mean())
    assert (
        np.isclose(found.accuracy[2], share).all()
        or np.isclose(found.accuracy[2], 100 - share).all()
    )
    again = standalone.accuracy_alone(SPACE, DATA, SPACE.representative(ARCHS[0]), PROTOCOL, 1)
    assert again == found.accuracy[0, 1]


def test_what_is_kept_is_not_trained_again(tmp_path, monkeypatch):
    with open_store(tmp_path) as store:
        first = standalone.measure(SPACE, DATA, ARCHS[:1], PROTOCOL, store)
    trained = []
    train = standalone.accuracy_alone
    monkeypatch.setattr(standalone, "accuracy_alone", lambda *a: trained.append(a[4]) or train(*a))
    more = standalone.Standalone(PROTOCOL.training, runs=3)
    with open_store(tmp_path, more) as store:
        found = standalone.measure(SPACE, DATA, ARCHS[:1], more, store)
    assert trained == [2]
    assert (found.accuracy[:, :2] == first.accuracy).all()


def test_noise_and_the_table(tmp_path):
    accuracy = np.array([[90.0, 92.0], [80.0, 84.0], [70.0, 71.0]])
    measured = standalone.Measurements(tuple(ARCHS), accuracy)
    assert measured.noise == pytest.approx(math.sqrt((2 + 8 + 0.5) / 3))
    assert measured.ceiling == pytest.approx(1)
    parquet.write_table(standalone.as_table(SPACE, measured), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.archs == tuple(map(str, ARCHS))
    assert list(table.lookup("test_accuracy").values()) == [91, 82, 70.5]
    assert table.values["test_accuracy_run1"].tolist() == [92, 84, 71]
    assert table.values["params"][0] == SPACE.cost(ARCHS[0]).parameters
    alone = standalone.Measurements(tuple(ARCHS), accuracy[:, :1])
    assert math.isnan(alone.noise) and math.isnan(alone.ceiling)


def test_numbers_beyond_int64_are_text():
    shape = spaces.InputShape(1, 8, 2)
    space = spaces.get("mlp", shape, widths=(2, 3, 4, 5), depths=tuple(range(1, 36)))
    archs = (space.smallest, space.largest)
    table = standalone.as_table(space, standalone.Measurements(archs, np.ones((2, 1))))
    assert table["index"].to_pylist() == [str(space.index(arch)) for arch in archs]
    assert space.index(space.largest) >= 1 << 63


def test_trainings_that_cannot_be(tmp_path):
    untested = ImageData("halves", DATA.train, Split(DATA.test.images[:0], DATA.test.labels[:0]), 2)
    nothing = standalone.Standalone(WarmUp(0), runs=1)
    with open_store(tmp_path) as store:
        with pytest.raises(InputError, match="expected test images, halves has none"):
            standalone.measure(SPACE, untested, ARCHS, PROTOCOL, store)
        with pytest.raises(InputError, match="at least one run of one step, got 1 of 0"):
            standalone.measure(SPACE, DATA, ARCHS, nothing, store)


@pytest.mark.parametrize("what", ["images", "labels"])
def test_accuracies_on_other_test_images_are_not_taken_for_these(what, tmp_path):
    """Mended labels, say, in a file of the same name."""
    short = replace(PROTOCOL, training=replace(PROTOCOL.training, epochs=1), runs=1)
    mended = replace(DATA.test, **{what: getattr(DATA.test, what).flip(0)})
    data = replace(DATA, test=mended)
    with open_store(tmp_path, short) as store:
        before = standalone.measure(SPACE, DATA, ARCHS[:1], short, store)
    with open_store(tmp_path, short, data) as store:
        found = standalone.measure(SPACE, data, ARCHS[:1], short, store)
    alone = standalone.accuracy_alone(SPACE, data, SPACE.representative(ARCHS[0]), short, 0)
    assert found.accuracy[0, 0] == alone != before.accuracy[0, 0]
