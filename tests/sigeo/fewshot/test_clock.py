"""The time of a system: all of its own work, over several processes."""

from __future__ import annotations

import json

import pytest

from sigeo.fewshot import clock, develop, metrics, recipes
from sigeo.fewshot.clock import Clock
from tests.sigeo.fewshot.ground import SMALL, SPACE, study


@pytest.fixture
def now(monkeypatch):
    """A time that goes on only where it is told to: now[0] in seconds."""
    seconds = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: seconds[0])
    return seconds


def test_a_killed_block_keeps_its_laps(now, tmp_path):
    file = tmp_path / "seconds.json"
    first = Clock(file)
    first.__enter__()
    now[0] += 5
    first.lap(every=1)
    now[0] += 0.5
    first.lap(every=1)  # too soon to be written
    now[0] += 2  # killed: the block never ends
    assert json.loads(file.read_text()) == 5
    again = Clock(file)
    with again:
        now[0] += 3
        again.lap(every=1)
        now[0] += 0.25
    assert again.seconds == json.loads(file.read_text()) == 8.25
    assert first.seconds == 5.5


@pytest.mark.parametrize("name", ["gm-nas", "hep-nas"])
def test_comparing_options_takes_time(name, now, monkeypatch):
    compare = metrics.GradientMatching.__call__

    def slow(self, subject):
        now[0] += 10
        return compare(self, subject)

    monkeypatch.setattr(metrics.GradientMatching, "__call__", slow)
    recipe = recipes.get(name, SPACE, **SMALL[name])
    family = develop.develop(recipe, study(1000), 0)
    # gm-nas looks at six edges, then twice at the five others; hep-nas at one, two and three.
    assert family.seconds == {"gm-nas": 160, "hep-nas": 60}[name]


@pytest.mark.parametrize("name", ["one-shot", "hep-nas"])
def test_the_time_of_a_training_is_kept_as_it_goes_on(name, now, tmp_path):
    file = tmp_path / "seconds.json"
    kept = []

    def progress(done, total):
        kept.append(json.loads(file.read_text()) if file.exists() else 0.0)
        now[0] += 2

    recipe = recipes.get(name, SPACE, **SMALL.get(name, {}))
    family = develop.develop(recipe, study(1000), 0, folder=tmp_path, progress=progress)
    assert kept == [2.0 * step for step in range(len(kept))] and len(kept) > 10
    assert family.seconds == 2.0 * len(kept) == json.loads(file.read_text())
