"""The verb compare."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sigeo import spaces
from sigeo.cli import options as cli_options
from tests.sigeo.cli.helpers import run, strict

SIZES = ["--channels", "2", "--cells", "1", "--threads", "1"]
TRAINING = ["--budget", "1500", "--held-out", "40", "--batch-size", "16", "--seeds", "2"]


def write_table(count=12):
    space = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=2, cells=1)
    rng = random.Random(0)
    rows = [
        f"{arch},{value},{value + rng.random()},{value + rng.random()}"
        for value, arch in enumerate(spaces.distinct(space, count, rng))
    ]
    text = "\n".join(["arch_str,acc,acc_run0,acc_run1", *rows]) + "\n"
    Path("t.csv").write_text(text)
    return ["--table", "t.csv", "--metric", "acc"]


def test_compare_two_systems(capsys):
    given = ["compare", *SIZES, *TRAINING, *write_table(), "--archs", "10", "--out", "c"]
    given += ["--recipes", "one-shot", "efs-nas:width=0.5", "--proxy", "zico", "--bootstrap", "50"]
    code, out, err = run(*given, "--json", capsys=capsys)
    assert code == 0, err
    document = strict(out)
    assert strict(Path("c/comparison.json").read_text()) == document
    systems = document["systems"]
    assert [(s["system"], s["by"]) for s in systems] == [
        (system, by)
        for system in ("one-shot", "efs-nas:width=0.5")
        for by in ("accuracy", "-loss", "zico")
    ]
    assert document["architectures"] == 10 and document["seeds"] == [0, 1]
    assert systems[0]["gain"] is None and systems[3]["gain"]["low"] <= systems[3]["gain"]["high"]
    assert systems[3]["sizes"] == [[9105, 5520, 1000]] * 2
    assert 1300 < systems[0]["processed"] <= 1500 and 0.5 < document["ceiling"] <= 1
    assert [found["top"] for system in systems for found in system["quality"]] == [5] * 12
    code, out, err = run(*given, "--top", "4", capsys=capsys)  # everything is there
    assert code == 0 and "Ranked by other measures" in out and "noise ceiling" in err
    code, _, err_of_report = run("report", "c", capsys=capsys)
    assert code == 2 and "c: holds a comparison, whose report is c/comparison.html" in err_of_report
    page = Path("c/comparison.html").read_text()
    assert "efs-nas" in page and "<svg" in page and "noise ceiling" in page
    for text in ("Kendall, best 4: takes 5 architectures or m", "of training and dividing, not"):
        assert text in page and text in err
    assert "undefined" in page and "wall time, s" in out and "Between seeds" not in err


def test_systems_that_the_budget_does_not_pay_for_are_left_out_or_refused_at_once(capsys):
    given = ["compare", *SIZES, *TRAINING, *write_table(), "--archs", "4", "--out", "c"]
    code, _, err = run(*given, "--recipes", "one-shot", "gm-nas", capsys=capsys)
    assert code == 2 and "gm-nas: needs a budget of at least " in err and "comparing options" in err
    assert "(fewer repeats than 100 take less)" in err
    assert not Path("c/one-shot").exists()
    code, out, err = run(*given, "--seeds", "1", "--bootstrap", "5", "--json", capsys=capsys)
    taken = {system["system"] for system in strict(out)["systems"]}
    assert code == 0 and {"one-shot", "fair", "efs-nas", "few-shot"} <= taken
    assert "gm-nas" not in taken and "left out: gm-nas: needs a budget of at least " in err


def test_averages_over_checkpoints_are_another_study(capsys):
    few = ["--budget", "200", "--held-out", "1400", "--batch-size", "16", "--seeds", "1"]
    given = ["compare", *SIZES, *few, *write_table(4), "--archs", "4", "--out", "c", "--json"]
    given += ["--recipes", "one-shot", "--bootstrap", "5"]
    code, out, err = run(*given, "--keep", "3", capsys=capsys)
    assert code == 0, err
    training = strict(out)["study"]["training"]
    assert training["keep"] == 3 and "steps" not in training
    assert "mean over up to 3 checkpoints a pass apart" in Path("c/comparison.html").read_text()
    code, _, err = run(*given, capsys=capsys)
    assert code == 2 and "study.training.keep: there 3, here nothing" in err
    assert "a folder serves one budget, data and training: give another --out" in err
    code, _, err = run(*given, "--keep", "99", capsys=capsys)
    assert code == 2 and "one-shot: keep must be at most 5, the passes over the images" in err


def test_list_names_every_recipe_and_its_options(capsys):
    from sigeo.fewshot import recipes

    code, out, _ = run("compare", "--list", capsys=capsys)
    assert code == 0
    assert all(name in out for name in recipes.names()) and "criterion=between_mean" in out
    assert "flip=true, padding=null" in out
    code, out, _ = run("compare", "--list", "--json", capsys=capsys)
    listed = {entry["name"]: entry["options"] for entry in strict(out)["recipes"]}
    assert code == 0 and list(listed) == recipes.names() and listed["gm-nas"]["repeats"] == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--table: expected a benchmark table, got none"),
        (
            ["--table", "t.csv", "--metric", "acc", "--recipes", "x"],
            "--recipes: must be one of one-",
        ),
        (
            ["--table", "t.csv", "--metric", "acc", "--recipes", "fair", "fair"],
            "--recipes: fair is given more than once",
        ),
        (["--table", "t.csv", "--metric", "x"], "expected a column for metric 'x'"),
        (
            ["--table", "t.csv", "--metric", "acc", "--budget", "10", "--recipes", "fair"],
            "--budget: must pay for at least one batch of 64, got 10",
        ),
        (
            ["--table", "t.csv", "--metric", "acc", "--recipes", 'one-shot:paths="x"'],
            "recipe one-shot: paths must be a whole number, got 'x'",
        ),
        (["--recipes", "gm-nas:4"], "OPTION=VALUE of gm-nas, whose options are repeats, crit"),
        (
            ["--recipes", "fair: repeats=4"],
            "of fair, whose options are width, affine, got 'repeats=4'",
        ),
        (
            ["--table", "t.csv", "--metric", "acc", "--archs", "10", "--top", "11"],
            "--top: must be at most the 10 architectures ranked, got 11",
        ),
        (
            ["--table", "t.csv", "--metric", "acc", "--archs", "13"],
            "--archs: t.csv has 12 architectures with acc, got 13",
        ),
        (["--table", "t.csv", "--metric", "acc", "--proxy", "zico,x"], "proxy"),
        (
            ["--table", "t.csv", "--metric", "acc", "--space", "mlp"],
            "--table: expected architectures of mlp, t.csv has others (",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(options, message, capsys):
    write_table()
    sizes = [] if "--space" in options else SIZES
    code, out, err = run("compare", *sizes, *options, "--out", "c", capsys=capsys)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err
    assert not Path("c").exists()  # nothing was trained


@pytest.mark.parametrize("options", [["--archs", "13"], ["--top", "13"], ["--metric", "x"]])
def test_what_the_table_lacks_is_said_before_the_data_are_loaded(options, capsys, monkeypatch):
    monkeypatch.setattr(cli_options, "load_data_and_space", lambda _: pytest.fail("went on"))
    code, _, err = run("compare", *write_table(), *options, capsys=capsys)
    assert code == 2 and err.count("\n") == 1, err


def test_architectures_without_a_value_are_none_that_the_table_has(capsys):
    given = write_table()
    with open("t.csv", "a", encoding="utf-8") as table:
        table.write("".join(f"more{i},,," + "\n" for i in range(3)))
    code, _, err = run("compare", *given, "--archs", "13", capsys=capsys)
    assert code == 2 and "--archs: t.csv has 12 architectures with acc, got 13" in err


def test_a_ranking_has_three_architectures_or_more(capsys):
    code, _, err = run("compare", *write_table(), "--archs", "2", capsys=capsys)
    assert code == 2 and "--archs: must be a whole number from 3" in err
    code, _, err = run("compare", *write_table(2), "--out", "c", capsys=capsys)
    assert code == 2 and "--table: expected at least 3 architectures with acc, found 2" in err


def test_what_a_recipe_knows_is_not_ranked(capsys):
    sizes = {"channels": 4, "depths": (1, 1), "ratios": (0.5, 1)}
    space = spaces.get("resnet", spaces.InputShape(1, 8, 10), **sizes)
    archs = spaces.distinct(space, 9, random.Random(0))
    for name, some in (("t.csv", archs), ("known.csv", archs[:5]), ("all.csv", archs[:7])):
        rows = [f'"{arch}",{value}' for value, arch in enumerate(some)]
        Path(name).write_text("\n".join(["arch_str,acc", *rows]) + "\n")
    given = ["compare", "--space", "resnet", "--size", "channels=4", "--size", "depths=1,1"]
    given += [
        "--size",
        "ratios=0.5,1",
        "--budget",
        "3000",
        "--held-out",
        "40",
        "--batch-size",
        "16",
    ]
    given += ["--seeds", "1", "--table", "t.csv", "--metric", "acc", "--bootstrap", "5"]
    options = ":groups=1,calibration=1,metric=acc,known="
    code, out, err = run(*given, "--recipes", f"gradual{options}known.csv", "--json", capsys=capsys)
    assert code == 0, err
    assert "left out: 5 of 9 architectures, which a recipe knows" in err
    document = strict(out)
    assert document["architectures"] == 4 and document["systems"][0]["quality"][0]["top"] == 4
    code, _, err = run(*given, "--recipes", f"gradual{options}all.csv", capsys=capsys)
    assert code == 2
    assert "--table: expected at least 3 to rank beside 7 of 9 architectures, which a rec" in err
