"""The page of the study of systems: written also where a measure is undefined."""

from __future__ import annotations

import json

import numpy as np

from bench import harness, study_systems
from bench.report import table
from sigeo.cli.compare import _finite
from sigeo.fewshot import comparison, whole_space
from sigeo.fewshot.comparison import ACCURACY, Outcome
from tests.sigeo.fewshot.ground import SPACE


def test_undefined_measures_are_said(tmp_path, monkeypatch):
    truth = np.arange(8.0)
    same = Outcome(whole_space(SPACE), {ACCURACY: np.zeros(8)}, 100.0, 2.0, 64)
    apart = Outcome(whole_space(SPACE), {ACCURACY: truth}, 100.0, 2.0, 64)
    standings = comparison.judge(
        {"one-shot": [same], "fair": [apart]}, truth, threshold=0.1, top=5, resamples=10
    )
    document = {
        "command": "c", "settings": "s", "sha": "0", "env": {"torch": "2"}, "architectures": 8,
        "seeds": [0], "ceiling": None, "systems": [_finite(s.document()) for s in standings],
    }  # fmt: skip
    (tmp_path / "systems.json").write_text(json.dumps(document))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    page = study_systems.page(table)
    assert "| Kendall, best 5 |" in page and "between the table's own runs: undefined." in page
    first, second = (next(r for r in page.splitlines() if f"`{name}`" in r)
                     for name in ("one-shot", "fair"))  # fmt: skip
    assert first.split(" | ")[1] == "undefined" and first.split(" | ")[4] == "undefined"
    assert second.split(" | ")[1].startswith("1.000") and second.split(" | ")[4] == "1.000"
