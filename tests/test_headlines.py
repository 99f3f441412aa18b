"""The table of headlines: its figures come from the rows, and say whether an aim is reached."""

from __future__ import annotations

import pytest

from bench import headlines, report
from bench.headlines import HEADLINES, Headline, of_rows


def row(impl, **config):
    return {
        "op": "o", "impl": impl, "shape": "s", "threads": 1, "p50_us": 2e6, "peak_mib": None,
        "config": config,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("aim", "cell"),
    [({"most": 2}, "2.00, reached"), ({"most": 1.9}, "2.00, missed"),
     ({"least": 2}, "2.00, reached"), ({"least": 2.1}, "2.00, missed"), ({}, "2.00")],
)  # fmt: skip
def test_a_figure_is_held_to_its_aim(aim, cell):
    rows = [row("ours", x=1), row("ours", x=2), row("ours", x=7), row("ours"), row("theirs", x=90)]
    assert Headline("b", "w", of_rows("x", impl="ours"), **aim).cell(rows) == cell
    assert Headline("b", "w", of_rows("x", impl="nobody"), **aim).cell(rows) == ""


def test_peers_are_compared_where_both_ran():
    rows = [row("ours", over_plain=2.0), row("peer", over_plain=6.0)]
    rows.append({**row("ours", over_plain=1.0), "shape": "another"})
    assert headlines.over_peer("ours", "peer")(rows) == 3
    assert headlines.over_peer("ours", "absent")(rows) is None


def test_memory_is_held_to_the_plain_peak_and_three_copies():
    def peak(impl, mib):
        return {**row(impl, parameters_mib=10.0), "op": "memory", "peak_mib": mib}

    assert headlines.memory_bound([peak("plain", 100.0), peak("capture", 290.0)]) == 2
    assert headlines.memory_bound([peak("capture", 290.0)]) is None


def test_the_page_has_a_line_a_headline_and_a_column_a_machine():
    rows = {headline.bench: {"small": [], "large": []} for headline in HEADLINES}
    rows["start"]["large"] = [row("sigeo_ext after torch")]
    lines = headlines.page(rows.__getitem__, report.table).splitlines()
    assert lines[0] == "| benchmark | what | aim | `large` | `small` |"
    assert len(lines) - 2 == len(HEADLINES) <= 30
    assert [line.split(" | ")[3] for line in lines if "import" in line] == ["2.000, missed"]


def test_every_headline_finds_its_rows_on_some_machine():
    for headline in HEADLINES:
        found = report.rows_of(headline.bench).values()
        seconds = ([{**r, "p50_s": r["p50_us"] / 1e6} for r in rows] for rows in found)
        assert any(headline.cell(rows) for rows in seconds), headline.what
