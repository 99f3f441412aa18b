"""The verb split: what it prints and writes, going on, refusals."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from sigeo import spaces
from sigeo.cli import options as cli_options
from sigeo.fewshot import load_plan, save_plan, whole_space
from sigeo.spaces.nasbench201 import Cell
from sigeo.spaces.nasbench201.cell import all_cells
from tests.sigeo.cli.helpers import SMALL, run, strict

SPACE = spaces.get("nasbench201", spaces.InputShape(1, 8, 10))
GIVEN = ["split", *SMALL, "--repeats", "1", "--out", "s"]


def write_table(path="t.csv", share=7):
    """Every seventh cell, the more 3x3 convolutions the better."""
    cells = all_cells()[::share]
    rows = [f"{cell},{cell.operations.count(3) + i / 10**6}\n" for i, cell in enumerate(cells)]
    Path(path).write_text("arch_str,acc\n" + "".join(rows))
    return ["--table", path, "--metric-column", "acc"]


def test_a_split_prints_its_tree_and_keeps_it(capsys):
    code, out, err = run(*GIVEN, "--leaves", "3", capsys=capsys)
    assert code == 0, err
    assert out.startswith("nasbench201: 15,625 architectures")
    assert "[0]" in out and "[2]" in out and "[3]" not in out
    plan, settings = load_plan(Path("s/plan.json"), SPACE)
    assert len(plan.leaves) == 3 and sum(plan.sizes) == 15625
    assert set(settings) == {"splitting", "batches", "batch_size", "weights"}
    how = settings["splitting"]
    assert how["branching"]["levels"] == [2, [2, 1]]
    assert how["metric"]["kind"].endswith("GradientMatching") and how["metric"]["repeats"] == 1
    assert how["partitioner"]["smallest"] == 2
    assert sorted(map(len, plan.root.cut.groups)) == [2, 3]
    assert Path("s/plan.svg").read_text().lstrip().startswith("<?xml")
    assert not list(Path("s").glob("*.partial*"))


def test_the_document_and_the_analysis(capsys):
    given = [*GIVEN, "--leaves", "2", "--metric", "params", *write_table(), "--top", "0.1"]
    code, out, err = run(*given, "--json", capsys=capsys)
    assert code == 0, err
    document = strict(out)
    assert document["schema"] == 1 and document["column"] == "acc"
    assert document["plan"] == json.loads(Path("s/plan.json").read_text())
    plan, _ = load_plan(Path("s/plan.json"), SPACE)
    assert tuple(document["leaves"]) == plan.sizes
    seen = document["analysis"]
    cells = all_cells()[::7]
    best = sorted(range(len(cells)), key=lambda i: -(cells[i].operations.count(3) + i / 10**6))[
        : len(cells) // 10
    ]
    assert seen["top"] == len(best)
    for number, leaf in enumerate(seen["leaves"]):
        assert leaf["size"] == plan.sizes[number]
        assert leaf["known"] == sum(plan.route(cell) == number for cell in cells)
        assert leaf["top"] == sum(plan.route(cells[i]) == number for i in best)
    assert seen["selected"]["best"]["regret"] == 0
    code, out, _ = run(*given, capsys=capsys)
    assert code == 0 and f"of the best {len(best)}" in out and "entropy" in out


METRICS = {
    "random": [],
    "table": ["--table", "t.csv", "--metric-column", "acc"],
    "lid": ["--repeats", "1", "--batch-size", "24"],
    "gradient_matching_logits": ["--repeats", "1", "--choice", "in_turn", "--order", "4,2"],
    "synflow": ["--repeats", "1", "--partition", "stoer_wagner", "--choice", "random"],
    "grad_norm": ["--repeats", "1", "--partition", "spectral", "--factors", "3", "--leaves", "3"],
}


@pytest.mark.parametrize("metric", METRICS)
def test_every_kind_of_metric_splits(metric, capsys):
    write_table()
    given = ["split", *SMALL, "--out", "s", "--metric", metric, *METRICS[metric]]
    code, out, err = run(*given, "--json", capsys=capsys)
    assert code == 0, err
    document = strict(out)
    assert sum(document["leaves"]) == 15625
    assert document["plan"]["settings"]["splitting"]["metric"] is not None


def test_one_supernet_an_operation(capsys):
    given = ["split", *SMALL, "--out", "s", "--metric", "random", "--choice", "in_turn"]
    given += ["--partition", "exhaustive", "--factors", "5", "--leaves", "5"]
    code, out, err = run(*given, "--json", capsys=capsys)
    assert code == 0, err
    assert strict(out)["leaves"] == [3125] * 5
    code, out, err = run(*given[:-1], "25", "--json", "--out", "t", capsys=capsys)
    assert code == 0, err
    assert strict(out)["leaves"] == [625] * 25


def test_kinds_divide_without_networks(capsys):
    given = ["split", "--kind", "nonlinear_depth", "--out", "s"]
    code, out, err = run(*given, "--json", capsys=capsys)
    assert code == 0, err
    assert strict(out)["leaves"] == [1983, 7122, 5520, 1000]
    code, out, _ = run(*given, "--groups", "0,1/2/3", "--out", "t", capsys=capsys)
    assert code == 0 and "nonlinear_depth: 0, 1  [0] 9,105" in out
    plan, _ = load_plan(Path("t/plan.json"), SPACE)
    assert plan.route(Cell((3, 0, 3, 0, 0, 3))) == 2


def test_a_warm_up_comes_first_and_is_kept(capsys):
    given = [*GIVEN, "--leaves", "2", "--warmup-steps", "3"]
    code, out, err = run(*given, "--json", capsys=capsys)
    assert code == 0, err
    assert strict(out)["plan"]["settings"]["weights"]["warmup"]["steps"] == 3
    assert list(Path("s").glob("supernet-*.safetensors"))


def test_a_finished_plan_is_not_measured_again(capsys, monkeypatch):
    given = [*GIVEN, "--leaves", "2", "--json"]
    first = strict(run(*given, capsys=capsys)[1])
    monkeypatch.setattr("sigeo.fewshot.metrics.GradientMatching.__call__", None)
    assert strict(run(*given, capsys=capsys)[1])["plan"] == first["plan"]
    with pytest.raises(TypeError):
        run(*given, "--seed", "1", "--out", "t", capsys=capsys)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["--metric", "random"], ["--metric", "random", "--leaves", "5"], "splitting.branching.le"),
        (
            ["--metric", "random"],
            ["--kind", "nonlinear_depth"],
            "settings than this splitting (bat",
        ),
        (
            ["--kind", "nonlinear_depth"],
            ["--warmup-steps", "3"],
            "settings than this splitting (bat",
        ),
        (
            ["--kind", "nonlinear_depth"],
            ["--kind", "nonlinear_depth", "--groups", "0,1/2,3"],
            "has other groups",
        ),
        (None, ["--kind", "nonlinear_depth"], "settings than this splitting (kind"),
    ],
)
def test_another_plan_stays_as_it_is(first, second, message, capsys):
    small = ["split", *SMALL, "--out", "s"]
    if first is None:
        Path("s").mkdir()
        save_plan("s/plan.json", whole_space(SPACE), {"recipe": "fair"})  # as of a system
    else:
        assert run(*small, *first, capsys=capsys)[0] == 0
    before, kept = sorted(os.listdir("s")), Path("s/plan.json").read_bytes()
    code, out, err = run(*small, *second, capsys=capsys)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert err.startswith("sigeo split: plan s/plan.json: ") and message in err, err
    assert err.endswith("; give another --out, or remove it\n")
    assert sorted(os.listdir("s")) == before and Path("s/plan.json").read_bytes() == kept


def test_a_share_that_is_none_is_refused_before_the_split(capsys, monkeypatch):
    given = [*GIVEN, "--leaves", "2", *write_table()]
    monkeypatch.setattr(cli_options, "load_data_and_space", lambda _: pytest.fail("went on"))
    for top in ("1.5", "2234"):
        code, _, err = run(*given, "--top", top, capsys=capsys)
        assert code == 2 and f"top must be a share or a number up to 2233, got {float(top)}" in err


def test_a_table_without_values_is_refused_as_such(capsys):
    cells = [str(cell) for cell in all_cells()[:3]]
    parquet.write_table(pyarrow.table({"arch_str": cells, "acc": [math.nan] * 3}), "t.parquet")
    given = ["--leaves", "2", "--table", "t.parquet", "--metric-column", "acc"]
    code, _, err = run(*GIVEN, *given, capsys=capsys)
    assert code == 2 and "expected at least one architecture with a value, got none" in err


REFUSED = {
    "column": (["--metric-column", "x"], "--metric-column: has no effect without --table"),
    "top": (["--top", "0.1"], "--top: has no effect without --table"),
    "groups": (["--groups", "0/1"], "--groups: has no effect without --kind"),
    "kind": (
        ["--kind", "colour"],
        "kind: must be one of convolution_count, nonlinear_count, nonlinear_depth",
    ),
    "both": (["--kind", "nonlinear_depth", "--leaves", "3"], "--leaves: has no effect with --kind"),
    "kinds-warmup": (
        ["--kind", "nonlinear_depth", "--warmup", "0.5"],
        "--warmup: has no effect with --kind",
    ),
    "kinds-groups": (
        ["--kind", "nonlinear_depth", "--groups", "0/1"],
        "groups of nonlinear_depth must hold each of [0, 1, 2, 3] once",
    ),
    "numbers": (["--factors", "two"], "must be whole numbers separated by commas, got 'two'"),
    "metric": (["--metric", "colour"], "--metric: must be one of gradient_matching"),
    "table": (["--metric", "table"], "--metric table: needs --table, got none"),
    "repeats": (["--metric", "random", "--repeats", "2"], "--repeats: has no effect with"),
    "partition": (["--partition", "colour"], "partition: must be one of exact"),
    "groups of three": (
        ["--smallest", "3"],
        "--smallest: must be at most 2, half the options of a choice of nasbench201, got 3",
    ),
    "smallest": (
        ["--partition", "spectral", "--smallest", "2"],
        "--smallest: has no effect with --partition spectral",
    ),
    "choice": (["--choice", "colour"], "--choice: must be one of in_turn"),
    "order": (["--order", "1,2"], "--order: has no effect without --choice in_turn"),
    "no-such-choice": (
        ["--choice", "in_turn", "--order", "9"],
        "sigeo split: choice: 9, in turn on level 0, cannot be ",
    ),
    "factors": (["--factors", "3,1"], "--factors: must be whole numbers from 2, got '3,1'"),
    "warmed": (
        ["--metric", "synflow", "--warmup", "0.5"],
        "synflow needs weights as drawn, got warmed-up ones",
    ),
    "lid": (
        ["--metric", "lid", "--batch-size", "16"],
        "expected 2 neighbours or more and more samples than neighbours",
    ),
    "leaves": (
        ["--leaves", "65"],
        "--leaves: must be at most 64, got 65 (split: cuts one below another need 7 or more",
    ),
    "leaves-warmup": (["--leaves", "128", "--warmup-steps", "3"], "--leaves: must be at most 64,"),
    "leaves-factors": (
        ["--leaves", "999999999", "--factors", "3,5"],
        "at most 9375, got 999999999 (split: cuts one below another need",
    ),
    "leaves-elastic": (
        ["--space", "resnet", "--leaves", "2000000"],
        "--leaves: must be at most 4096,",
    ),
    "leaves-space": (
        ["--space", "mlp", "--leaves", "9999", "--metric", "random"],
        "at most 32, got 9999 (split: cuts one below another need",
    ),
    "leaves-exhaustive": (
        ["--partition", "exhaustive", "--factors", "5", "--leaves", "9"],
        "sigeo split: partition: exhaustive makes 5 groups of as many options, got 2 to make",
    ),
    "lid-warmup": (
        ["--metric", "lid", "--batch-size", "16", "--warmup-steps", "3"],
        "lid: expected 2 neighbours or more and more samples than neighbours, got 16 samples",
    ),
    "metric-warmup": (
        ["--space", "mlp", "--metric", "gradient_matching", "--warmup-steps", "3"],
        "gradient_matching: does not serve mlp, whose supernet",
    ),
    "lid-blocks": (
        ["--space", "mlp", "--metric", "lid"],
        "lid: does not serve mlp, whose networks do not say what their blocks are; a proxy such",
    ),
    "too-many": (
        ["--metric", "random", "--leaves", "6", "--factors", "6"],
        "--leaves: must be at most 5, got 6 (split: cuts one below another need 1 or more choices",
    ),
    "images": (["--batches", "99"], "data: 99 batches of 64 need"),
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line(given, capsys):
    arguments, message = given
    sizes = [] if "--space" in arguments else ["--channels", "2", "--cells", "1"]
    code, out, err = run("split", *sizes, *arguments, "--out", "s", capsys=capsys)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err
    assert not list(Path("s").glob("*"))  # nothing was trained


@pytest.mark.slow
def test_kill_and_run_again(tmp_path):
    given = [sys.executable, "-m", "sigeo", *GIVEN[:-2], "--leaves", "8", "--json"]
    given += ["--threads", "1"]
    undisturbed = subprocess.run([*given, "--out", "u"], capture_output=True, text=True, check=True)
    process = subprocess.Popen(
        [*given, "--out", "k"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while (
        not list(Path("k").glob("plan-*.partial.json"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "finished before it could be killed"
    (partial,) = Path("k").glob("plan-*.partial.json")
    kept = json.loads(partial.read_text())["tree"]
    again = subprocess.run([*given, "--out", "k"], capture_output=True, text=True, check=True)
    plan = strict(again.stdout)["plan"]
    assert plan == strict(undisturbed.stdout)["plan"]
    assert {key: plan["tree"][key] for key in ("choice", "score")} == {
        key: kept[key] for key in ("choice", "score")
    }
    assert not list(Path("k").glob("*.partial*"))
