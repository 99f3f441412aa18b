"""Bad input: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from sigeo import data
from sigeo.cli import options
from sigeo.supernet import load_checkpoint
from sigeo.supernet.checkpoint import save_checkpoint
from tests.sigeo.cli.helpers import EXAMPLE, SMALL, run, strict

BAD = {
    "sizes-of-model": (
        ["score", "--model", "torch.nn:Flatten", "--channels", "8"],
        "--channels, --cells, --size: have no effect with --model",
    ),
    "lambdas-without": (
        ["rank", "--proxy", "params", "--lambdas", "1,2,3"],
        "--lambdas: has no effect on params",
    ),
    "inner-lr-without": (
        ["rank", "--proxy", "sigeo_sample", "--inner-lr", "1"],
        "--inner-lr: has no effect on sigeo_sample",
    ),
    "metric-without": (["rank", "--metric", "x"], "--metric: has no effect without --table"),
    "metric-of-report": (["report", os.devnull, "--metric", "x"], "--metric: has no effect with"),
    "proxy": (["rank", "--proxy", "synfow"], "--proxy: must be one of az_expressivity,"),
    "no-proxy": (["rank", "--proxy", ","], "--proxy: expected at least one, got none"),
    "space": (["rank", "--space", "darts"], "resnet, transformer, got 'darts'"),
    "data": (["rank", "--data", "nowhere.npz"], "nowhere.npz: No such file or directory"),
    "data-long": (["rank", "--data", "a" * 300], f"{'a' * 300}: File name too long"),
    "archs": (
        ["rank", "--archs", "99999"],
        "--archs: the space has 15625 architectures, got 99999",
    ),
    "archs-file": (["rank", "--archs-file", "none.txt"], "none.txt: No such file or directory"),
    **{
        f"archs-twice-{verb}-{number}": (
            [verb, "--archs", number, "--archs-file", os.devnull],
            "argument --archs-file: not allowed with argument --archs",
        )
        for verb, number in (("rank", "3"), ("rank", "64"), ("train", "100"))
    },
    "init": (
        ["rank", "--init", "warm"],
        "--init: must be scratch, candidate, supernet, supernet:PATH or family:DIR, got 'warm'",
    ),
    "candidate": (
        ["rank", "--init", "candidate"],
        "--init candidate: needs --warmup or --warmup-steps, got none",
    ),
    "scratch": (
        ["rank", "--init", "scratch", "--warmup", "0.1"],
        "--init scratch: cannot be given with --warmup",
    ),
    "both": (
        ["rank", "--init", "supernet:x", "--warmup", "0.1"],
        "--warmup: cannot be given with --init supernet:PATH",
    ),
    "checkpoint": (
        ["rank", "--init", "supernet:none.safetensors"],
        "--init supernet: found no file none.safetensors",
    ),
    "warmup": (
        ["rank", "--warmup", "0.0001"],
        "--warmup: 0.0001 of 1437 training images is less than one step",
    ),
    "batches": (["rank", "--batches", "1"], "sigeo needs at least 2 batches, got 1"),
    "images": (
        ["rank", "--batches", "100"],
        "100 batches of 64 need 6400 training images, digits has 1437",
    ),
    "device": (
        ["rank", "--device", "tpu9", "--data", "nowhere.npz"],
        "device: must be cpu, cuda or cuda:N, got 'tpu9'",
    ),
    "device-score": (
        ["score", "--arch", EXAMPLE, "--device", "mps", "--data", "nowhere.npz"],
        "device: must be cpu, cuda or cuda:N, got 'mps'",
    ),
    "device-warmup": (
        ["warmup", "--device", "cuda:99"],
        "device: cuda:99 asked for, torch finds",
    ),
    "lambdas": (
        ["rank", "--lambdas", "1,2"],
        "--lambdas: must be three finite numbers A,B,C, got '1,2'",
    ),
    "lambdas-text": (["rank", "--lambdas", "a,b,c"], "three finite numbers A,B,C, got 'a,b,c'"),
    "fraction": (["rank", "--warmup", "1.5"], "--warmup: must be a number from 0 to 1, got '1.5'"),
    "fraction-text": (["rank", "--warmup", "ten"], "must be a number from 0 to 1, got 'ten'"),
    "not-a-number": (["warmup", "--warmup", "nan"], "must be a number from 0 to 1, got 'nan'"),
    "step-size": (
        ["rank", "--inner-lr", "-1"],
        "--inner-lr: must be a number from 0 to 1e38, got '-1'",
    ),
    "warmup-lr": (
        ["rank", "--warmup-lr", "inf"],
        "--warmup-lr: must be a number above 0, at most 1e38, got 'inf'",
    ),
    "schedule": (["rank", "--schedule", "steps"], "--schedule: invalid choice: 'steps'"),
    "unknown": (["rank", "--archs", "3", "--none"], "sigeo rank: unrecognized arguments: --none"),
    "of-another-verb": (
        ["warmup", "--init", "candidate"],
        "sigeo warmup: unrecognized arguments: --init candidate; --init is an option of rank\n",
    ),
    "flag-of-another-verb": (
        ["warmup", "--no-dedup"],
        "unrecognized arguments: --no-dedup; --no-dedup is an option of rank\n",
    ),
    "required-by-another-verb": (
        ["rank", "--scores", "s"],
        "unrecognized arguments: --scores s; --scores is an option of correlate\n",
    ),
    "one-of-several-of-another-verb": (
        ["rank", "--model=a:b"],
        "unrecognized arguments: --model=a:b; --model is an option of score\n",
    ),
    **{
        f"huge{option}": (["rank", option, value], f"{option}: {message}")
        for option, value, message in (
            ("--inner-lr", "1e300", "must be a number from 0 to 1e38, got '1e300'"),
            ("--warmup-lr", "1e39", "must be a number above 0, at most 1e38, got '1e39'"),
            ("--threads", "20000", "must be a whole number from 1 to 1024, got '20000'"),
            ("--batches", str(2**63), f"must be a whole number from 1 to {2**63 - 1}, got"),
            ("--channels", "2000000", "must be at most 1000000, got 2000000"),
        )
    },
    "no-share": (["train", "--share", "0"], "--share: must be a number above 0, at most 1, got"),
    "no-budget": (
        ["compare", "--table", os.devnull, "--budget", "63"],
        "--budget: must pay for at least one batch of 64, got 63",
    ),
    "recipe-twice": (
        ["compare", "--table", os.devnull, "--recipes", "fair:width=0.5", "fair:width=0.50"],
        "--recipes: fair:width=0.50 is given more than once",
    ),
    "proxy-twice": (["rank", "--proxy", "zico,zico"], "expected each once, got zico twice"),
    "option-twice": (["rank", "--proxy", "zen:seed=1,seed=2"], "zen: seed is given more than once"),
    "recipe-option-twice": (
        ["warmup", "--recipe", "one-shot:paths=2,paths=3"],
        "one-shot: paths is given more than once",
    ),
    "top-of-split": (["split", "--table", os.devnull, "--top", "nan"], "must be a number above 0"),
    "huge-lr": (["train", "--lr", "1e300"], "--lr: must be a number above 0, at most 1e38, got"),
    "huge-bootstrap": (
        ["correlate", "--bootstrap", "1e9", "--scores", "s"],
        "--bootstrap: must be a whole number from 1 to 1000000, got '1e9'",
    ),
    "zero": (["rank", "--archs", "0"], "--archs: must be a whole number from 1, got '0'"),
    "whole": (["rank", "--archs", "1.5"], "--archs: must be a whole number from 1, got '1.5'"),
    "one-image": (
        ["rank", "--batch-size", "1"],
        "--batch-size: must be a whole number from 2, got '1'",
    ),
    "one-image-score": (["score", "--arch", EXAMPLE, "--batch-size", "1"], "from 2, got '1'"),
    "one-image-warmup": (["warmup", "--warmup-batch", "1"], "from 2, got '1'"),
    **{
        f"seed-{verb}-{seed}": (
            [verb, "--seed", seed],
            f"--seed: must be a whole number from 0 to {2**63 - 1}, got '{seed}'",
        )
        for verb in ("rank", "score", "warmup", "train", "correlate")
        for seed in ("-1", str(2**63), "x")
    },
    "steps-and-share": (
        ["rank", "--warmup-steps", "3", "--warmup", "0.1"],
        "argument --warmup: not allowed with argument --warmup-steps",
    ),
    "steps-and-passes": (
        ["warmup", "--warmup-steps", "3", "--epochs", "2"],
        "--epochs: has no effect with --warmup-steps",
    ),
    "steps-and-checkpoint": (
        ["rank", "--init", "supernet:x", "--warmup-steps", "3"],
        "--warmup-steps: cannot be given with --init supernet:PATH",
    ),
    **{
        f"no-warmup{option}": (
            ["rank", option, value],
            f"{option}: has no effect without --warmup or --warmup-steps",
        )
        for option, value in (
            ("--epochs", "1"),
            ("--warmup-lr", "0.025"),
            ("--warmup-batch", "64"),
            ("--schedule", "constant"),
        )
    },
    "candidate-schedule": (
        ["rank", "--init", "candidate", "--warmup", "0.1", "--schedule", "cosine"],
        "--schedule: --init candidate keeps the published constant step size",
    ),
    "args-without-model": (
        ["score", "--arch", EXAMPLE, "--model-args", "{}"],
        "--model-args: has no effect with --arch",
    ),
    "rank-table": (["rank", "--table", "none.csv"], "--table: expected a file, none.csv: No such"),
    **{
        f"folder-{verb}-{option}": (
            [verb, option, "."],
            f"{option}: expected a file, . is a folder",
        )
        for verb, option in (
            ("rank", "--table"),
            ("rank", "--archs-file"),
            ("compare", "--table"),
            ("correlate", "--table"),
            ("split", "--table"),
        )
    },
    "folder-tables": (["tables", "."], "file: expected a file, . is a folder"),
    "no-name": (["rank", "--table", ""], "--table: expected a file, got ''"),
    "no-name-data": (["rank", "--data", ""], "--data: expected 'digits', a folder or an .npz file"),
    "no-name-report": (["report", ""], "run: expected a run's folder or a file, got ''"),
    "convert": (
        ["tables", os.devnull, "--convert", "out.csv"],
        "--convert: expected a name that ends in .parquet, got out.csv",
    ),
    "verb": (["rang"], "invalid choice: 'rang'"),
    "arch": (["score", "--arch", "|none~0|"], "expected 3 nodes joined by '+', got 1"),
    "model": (["score", "--model", "nowhere"], "--model: expected MODULE:CALLABLE, got 'nowhere'"),
    "no-module-name": (["score", "--model", ":x"], "--model: expected MODULE:CALLABLE, got ':x'"),
    "module": (["score", "--model", "nowhere:x"], "--model: nowhere:x: found no module 'nowhere'"),
    "callable": (["score", "--model", "torch.nn:Nothing"], "has no attribute 'Nothing'"),
    "no-module": (["score", "--model", "builtins:dict"], "must make an nn.Module, got dict"),
    "model-args": (
        ["score", "--model", "torch.nn:Linear", "--model-args", "3"],
        "--model-args: expected a JSON object, got 3",
    ),
    "bad-json": (
        ["score", "--model", "torch.nn:Linear", "--model-args", "{"],
        "--model-args: expected a JSON object",
    ),
    "arguments": (
        ["score", "--model", "torch.nn:Linear"],
        "--model: torch.nn:Linear: TypeError: Linear.__init__() missing 2 required",
    ),
    "shape": (
        [
            "score",
            "--model",
            "torch.nn:Linear",
            "--model-args",
            '{"in_features": 3, "out_features": 4}',
        ],
        "--model: does not run on images [1, 8, 8] of digits",
    ),
    "outputs": (["score", "--model", "torch.nn:Flatten"], None),
    "few-outputs": (
        ["score", "--model", "torch.nn:Identity"],
        "expected [images, 10 or more] outputs for digits, got [2, 1, 8, 8]",
    ),
    "table": (["tables", "none.csv"], "file: expected a file, none.csv: No such file or directory"),
    "scores": (
        ["correlate", "--scores", "none.csv", "--table", os.devnull, "--metric", "x"],
        "--scores: found no file none.csv",
    ),
    "report": (["report", "none"], "run: expected a run's folder or a file, none: No such"),
    "warmup-verb": (["warmup", "--warmup", "0"], "--warmup: must be above 0, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(name, capsys):
    arguments, message = BAD[name]
    code, out, err = run(*arguments, capsys=capsys)
    if message is None:  # a network without weights: nothing to score, and said so
        message = "model: expected at least one convolution or linear weight, found none"
    assert code == 2 and out == "" and message in err, err
    assert err.startswith(f"sigeo {arguments[0]}: " if name != "verb" else "sigeo: ")
    assert err.endswith("\n") and err.count("\n") == 1


def test_a_pipe_is_a_file():
    os.mkfifo("pipe")
    assert options.existing_file("pipe") == "pipe"
    assert options.existing_file(os.devnull) == os.devnull
    Path("link").symlink_to(".")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a file, link is a folder"):
        options.existing_file("link")


def test_a_table_without_the_column_and_one_without_the_architectures(ranking, capsys):
    folder, _ = ranking
    scores = str(folder / "scores.parquet")
    Path("a.csv").write_text("architecture,acc\nx,1\n")
    Path("b.csv").write_text("arch_str,acc\nx,1\n")
    nothing = pa.table({"arch_str": pa.array([], pa.string()), "acc": pa.array([], pa.float64())})
    parquet.write_table(nothing, "c.parquet")
    for table, metric, message in (
        ("a.csv", "acc", "a.csv: expected a column arch_str, found architecture, acc"),
        ("b.csv", "top1", "b.csv: expected a column for metric 'top1', found acc"),
        ("c.parquet", "acc", "architectures scored, c.parquet has 0 of 12\n"),
        (
            "b.csv",
            "acc",
            "--table: needs values of at least 3 of the architectures scored, b.csv has 0 of 12: "
            "those ranked are like |",
        ),
    ):
        code, _, err = run(
            "correlate", "--scores", scores, "--table", table, "--metric", metric, capsys=capsys
        )
        assert code == 2 and message in err and err.count("\n") == 1


def test_checkpoints_that_cannot_be_ranked_on_are_refused_before_images_are_read(
    capsys, monkeypatch
):
    run("warmup", *SMALL[:4], "--warmup", "0.1", "--out", "w", "--json", capsys=capsys)
    (path,) = Path("w").glob("*.safetensors")
    state, settings = load_checkpoint(path)
    weights = dict(state.weights)
    weights.popitem()
    save_checkpoint(Path("other"), replace(state, weights=weights), settings)
    save_checkpoint(Path("early"), replace(state, step=1), settings)
    Path("part").write_bytes(path.read_bytes()[:1000])
    wide = ["--channels", "3", *SMALL[2:]]
    settings["space"] = {"name": "nasbench201"}
    save_checkpoint(Path("sizes"), state, settings)

    def load(source):
        raise AssertionError("images are read")

    monkeypatch.setattr(data, "load", load)
    for file, sizes, message in (
        ("part", SMALL, "checkpoint part: damaged or truncated"),
        ("other", SMALL, "checkpoint other: does not fit the networks (Error(s) in loading"),
        ("early", SMALL, "checkpoint early: stands at step 1 of 3"),
        ("sizes", SMALL, "space: expected a description with all sizes"),
        (path, wide, "made for other networks (channels: there 2, here 3)"),
    ):
        code, _, err = run("rank", *sizes, "--init", f"supernet:{file}", capsys=capsys)
        assert code == 2 and message in err and err.count("\n") == 1, err


def test_a_checkpoint_of_other_images(capsys):
    run("warmup", *SMALL[:4], "--warmup", "0.1", "--out", "w", "--json", capsys=capsys)
    (path,) = Path("w").glob("*.safetensors")
    given = ["rank", *SMALL, "--init", f"supernet:{path}", "--image-size", "4"]
    code, _, err = run(*given, capsys=capsys)
    assert code == 2 and "made for other networks (image_size: there 8, here 4)" in err, err


def test_a_folder_that_cannot_be_written(capsys):
    Path("file").write_text("")
    code, _, err = run("rank", *SMALL, "--archs", "2", "--out", "file/run", capsys=capsys)
    file = Path("file").absolute()
    assert code == 2 and f"argument --out: expected a folder, {file} is not one" in err
    if os.geteuid() != 0:
        Path("locked").mkdir(mode=0o500)
        code, _, err = run("rank", *SMALL, "--archs", "2", "--out", "locked/run", capsys=capsys)
        assert code == 2 and "expected a folder to write in" in err


def test_a_store_of_another_version(ranking, capsys):
    import sqlite3

    folder = Path("old")
    shutil.copytree(ranking[0], folder)
    connection = sqlite3.connect(folder / "run.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    code, _, err = run("rank", *SMALL, "--archs", "2", "--out", "old", capsys=capsys)
    assert code == 2 and "expected version 1, got 99" in err and err.count("\n") == 1


def test_a_full_disk_while_scoring(capsys, monkeypatch):
    from sigeo.store import RunStore

    original = RunStore._prepare

    def small(self):
        original(self)
        self._connection.execute("PRAGMA max_page_count = 6")

    monkeypatch.setattr(RunStore, "_prepare", small)
    given = ["rank", *SMALL, "--archs", "400", "--proxy", "params,flops,l2_norm"]
    code, _, err = run(*given, capsys=capsys)
    assert code == 2 and "database or disk is full" in err and err.count("\n") == 1
    monkeypatch.setattr(RunStore, "_prepare", original)
    code, out, _ = run(*given, "--json", capsys=capsys)
    assert code == 0 and len(strict(out)["rows"]) == 400
