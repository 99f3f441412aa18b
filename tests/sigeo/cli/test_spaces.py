"""The verbs on elastic spaces."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from sigeo.cli import options
from tests.sigeo.cli.helpers import run, strict

SIZES = {
    "mlp": ["--size", "widths=4,8", "--size", "depths=1,2"],
    "mobilenet": [
        *("--size", "channels=4,6", "--size", "blocks=1,2", "--size", "strides=1,2"),
        *("--size", "stem=4", "--size", "first=4", "--size", "last=8"),
    ],
    "resnet": ["--channels", "6", "--size", "depths=2,1", "--size", "ratios=0.5,1"],
    "transformer": ["--size", "patch=4", "--size", "widths=4,8", "--size", "pool=mean"],
}
FEW = ["--batches", "2", "--batch-size", "16", "--threads", "1", "--json"]
EACH = pytest.mark.parametrize("name", list(SIZES))


def ranked(name, *more, capsys):
    code, out, err = run("rank", "--space", name, *SIZES[name], *FEW, *more, capsys=capsys)
    assert code == 0, err
    return strict(out)


@EACH
def test_rank_together_is_rank_one_by_one(name, capsys):
    proxy = ["--proxy", "zico,snip,params,flops"]
    one = ranked(name, "--archs", "5", *proxy, "--many", "off", "--out", "a", capsys=capsys)
    many = ranked(name, "--archs", "5", *proxy, "--many", "3", "--out", "b", capsys=capsys)
    assert one["space"] == name and len(one["rows"]) == 5
    for a, b in zip(one["rows"], many["rows"], strict=True):
        assert a["arch"] == b["arch"] and a["index"] == b["index"]
        for key, value in a["scores"].items():
            assert b["scores"][key] == pytest.approx(value, rel=1e-3)
    assert pyarrow.parquet.read_table("b/scores.parquet").num_rows == 5


@EACH
def test_rank_of_a_file_on_weights_that_are_warmed_up(name, capsys, tmp_path):
    drawn = ranked(name, "--archs", "3", "--proxy", "params", "--out", "a", capsys=capsys)
    wanted = [row["arch"] for row in drawn["rows"]]
    (tmp_path / "archs.txt").write_text("\n".join(wanted) + "\n")
    warm = ("--warmup-steps", "3", "--paths", "2", "--init", "supernet", "--out", "b")
    given = ("--archs-file", "archs.txt", "--proxy", "zico,sigeo")
    found = ranked(name, *given, *warm, capsys=capsys)
    assert sorted(row["arch"] for row in found["rows"]) == sorted(wanted)
    assert ranked(name, *given, *warm, capsys=capsys)["rows"] == found["rows"]
    cold = ranked(name, *given, "--out", "c", capsys=capsys)
    assert [r["scores"] for r in cold["rows"]] != [r["scores"] for r in found["rows"]]


@EACH
def test_score_equals_rank(name, capsys):
    row = ranked(name, "--archs", "1", "--proxy", "zico,flops", capsys=capsys)["rows"][0]
    arguments = ["--arch", row["arch"], "--proxy", "zico,flops", *FEW]
    code, out, err = run("score", "--space", name, *SIZES[name], *arguments, capsys=capsys)
    assert code == 0, err
    scores = strict(out)["scores"]
    assert scores["flops"] == row["scores"]["flops"]
    assert scores["zico"] == pytest.approx(row["scores"]["zico"], rel=1e-3)


@pytest.mark.parametrize(
    "verb",
    [
        ["rank", "--archs", "3", "--proxy", "grad_norm", "--many", "off"],
        ["rank", "--archs", "3", "--proxy", "grad_norm", "--many", "3"],
        ["score", "--arch", "depth=2,width1=8,width2=4", "--proxy", "grad_norm"],
        ["split", "--metric", "grad_norm", "--repeats", "1", "--leaves", "2"],
        ["compare", "--recipes", "one-shot", "--proxy", "grad_norm", "--seeds", "1"],
    ],
    ids=" ".join,
)
def test_what_dropout_draws_follows_from_the_seed(verb, capsys):
    archs = [f"depth=2,width1={a},width2={b}" for a in (4, 8) for b in (4, 8)]
    rows = "\n".join(f'"{arch}",{value}' for value, arch in enumerate(archs))
    Path("t.csv").write_text(f"arch_str,acc\n{rows}\n")
    given = [*verb, "--space", "mlp", *SIZES["mlp"], "--size", "dropout=0.5", "--json"]
    given += ["--batch-size", "16", "--threads", "1"]
    if verb[0] != "compare":
        given += ["--batches", "2"]
    else:
        given += ["--table", "t.csv", "--metric", "acc", "--budget", "200", "--held-out", "40"]
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        out = [] if verb[0] == "score" else ["--out", str(state)]
        code, text, err = run(*given, *out, capsys=capsys)
        assert code == 0 and torch.equal(torch.get_rng_state(), before), err
        document = strict(text)
        kept = document.get("scores", document.get("plan"))
        if verb[0] in ("rank", "compare"):
            with closing(sqlite3.connect(f"{state}/run.sqlite")) as store:
                kept = store.execute(
                    "SELECT network, value FROM scores WHERE proxy LIKE 'grad_norm%' ORDER BY 1"
                ).fetchall()
        found.append(kept)
    assert found[0] and found[0] == found[1]


def test_each_network_warmed_up_alone_leaves_the_supernet_alone(capsys):
    warm = ("--init", "candidate", "--warmup-steps", "2", "--proxy", "zico")
    found = ranked("resnet", "--archs", "2", *warm, "--out", "a", capsys=capsys)
    row = found["rows"][-1]
    with open("one.txt", "w", encoding="utf-8") as file:
        file.write(row["arch"])
    alone = ranked("resnet", "--archs-file", "one.txt", *warm, "--out", "b", capsys=capsys)
    assert alone["rows"][0]["scores"] == row["scores"]


def test_numbers_beyond_int64_are_text_in_the_table(capsys):
    sizes = ("--size", "widths=2,3,4,5", "--size", f"depths={','.join(map(str, range(1, 36)))}")
    many = ranked("mlp", "--archs", "1", "--proxy", "params", capsys=capsys)
    assert isinstance(many["rows"][0]["index"], int)
    arguments = ["--archs", "2", "--proxy", "params", "--out", "big", *FEW]
    code, out, err = run("rank", "--space", "mlp", *sizes, *arguments, capsys=capsys)
    assert code == 0, err
    numbers = [row["index"] for row in strict(out)["rows"]]
    assert max(numbers) >= 1 << 63
    table = pyarrow.parquet.read_table("big/scores.parquet")
    assert [int(text) for text in table["index"].to_pylist()] == numbers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--space", "resnet", "--size", "cells=2"],
            "--size cells: resnet has no such size, it has channels, depths",
        ),
        (["--space", "resnet", "--size", "depths"], "must be NAME=VALUE or NAME=V,V,..."),
        (["--channels", "4", "--size", "channels=4"], "--size: channels is given twice"),
        (
            ["--space", "mlp", "--channels", "4"],
            "--channels: mlp has no such size, it has widths, de",
        ),
        (
            ["--space", "mlp", "--cells", "4"],
            "--cells: mlp has no such size, it has widths, depths,",
        ),
        (["--space", "vgg"], "--space: must be one of mlp, mobilenet, nasbench201, resnet"),
        (
            ["--space", "mlp", "--size", "widths=a,8"],
            "--size widths: must be a whole number of at least 1, got 'a'",
        ),
        (["--size", "channels=4,8"], "channels: must be a whole number of at least 1, got (4, 8)"),
        (["--space", "mlp", "--size", "dropout=x"], "--size dropout: must be from 0 to below 1, g"),
        (
            ["--space", "transformer", "--size", "pool=class,mean"],
            "--size pool: must be class or mean, got ('class', 'mean')",
        ),
        (["--space", "mlp", "--size", "widths=0,8"], "--size widths: must be a whole number"),
    ],
)
def test_wrong_sizes_are_one_line(arguments, message, capsys):
    code, out, err = run("rank", *arguments, capsys=capsys)
    assert code == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1


def test_values_of_sizes():
    parser_type = options._space_size
    assert parser_type("a=1") == ("a", 1) and parser_type("a=1,0.5") == ("a", (1, 0.5))
    assert parser_type("pool=mean") == ("pool", "mean")
