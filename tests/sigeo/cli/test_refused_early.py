"""What no images would mend is refused before they are read, and leaves no folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sigeo import data
from tests.sigeo.cli.helpers import EXAMPLE, SMALL, run

STEPS = ["warmup", "--warmup-steps", "5"]
RESNET = ["--space", "resnet", "--size", "depths=2,2", "--size", "least=3"]
MOBILENET = ["--space", "mobilenet", "--size", "channels=4,5"]
TABLE = ["compare", "--table", "t.csv", "--metric", "acc"]
EARLY = [
    ([*STEPS, "--sampler", "sandwich"], "nasbench201 names no largest architecture"),
    ([*STEPS, "--sampler", "fair", "--paths", "3"], "paths: sampler fair has its own number"),
    ([*STEPS, "--sampler", "balanced", "--balance", "x"], "balance: must be one of 0->1, 0->2,"),
    ([*STEPS, "--balance", "0->1"], "balance: has no effect on sampler uniform"),
    ([*STEPS, "--objective", "in_place"], "objective in_place needs several paths a step"),
    ([*STEPS, "--objective", "cross_path"], "objective cross_path needs sampler disjoint"),
    ([*STEPS, "--space", "mlp", "--dropout", "0.1"], "that of mlp has no option 'dropout'"),
    ([*STEPS, "--device", "cuda:99"], "device: cuda:99 asked for, torch finds"),
    ([*STEPS, *RESNET], "least must be at most the smallest of depths, got 3"),
    ([*STEPS, *MOBILENET], "channels, blocks and strides must be as many, got 2, 3 and 3"),
    ([*STEPS, "--recipe", "one-shot:over=x"], "over must be one of architectures, operations"),
    ([*STEPS, "--recipe", "balanced:form=x"], "form must be one of one, each, got 'x'"),
    ([*STEPS, "--recipe", "greedy:epsilon=2"], "epsilon must be from 0 to 1, got 2.0"),
    ([*STEPS, "--recipe", "pi-nas:temperature=-1"], "temperature must be above 0, got -1.0"),
    ([*STEPS, "--recipe", "pi-nas:decay=2"], "decay must be from 0 to 1, got 2.0"),
    ([*STEPS, "--recipe", "pi-nas:padding=-1"], "padding must be at least 0, got -1"),
    ([*STEPS, "--recipe", "few-shot:choice=9"], "few-shot: choice: 9, in turn on level 0, cannot"),
    ([*STEPS, "--recipe", "metric-driven:metric=x"], "recipe metric-driven: metric"),
    ([*STEPS, "--recipe", "gradual"], "divides the stages of the space resnet by width"),
    ([*TABLE, "--recipes", "fair", "greedy:kept=20"], "kept must be from 1 to sampled = 10"),
    ([*TABLE, "--recipes", "fair", "fair:width=2"], "width must be above 0 and at most 1"),
    ([*TABLE, "--space", "mlp"], "--table: expected architectures of mlp, t.csv has others"),
    (["split", "--leaves", "99999"], "--leaves: must be at most"),
    (["split", "--smallest", "3"], "--smallest: must be at most 2"),
    (["split", "--kind", "nonlinear_depth", "--groups", "0/1"], "must hold each of [0, 1, 2, 3]"),
    (["split", "--metric", "zico", "--batches", "1"], "zico needs at least 2 batches, got 1"),
    (["split", "--metric", "synflow", "--warmup", "0.1"], "synflow needs weights as drawn"),
    (["split", "--warmup", "0.1", "--sampler", "sandwich"], "names no largest architecture"),
    (["train", "--archs", "99999"], "--archs: the space has 15625 architectures, got 99999"),
    (["rank", "--archs-file", "t.csv"], "t.csv:1: architecture 'arch_str,acc'"),
    (["rank", "--table", "t.csv", "--metric", "acc"], "architectures scored, t.csv has 1 of 64"),
    (["rank", "--proxy", "zen:repeats=x"], "proxy zen: repeats must be a whole number, got 'x'"),
    (["split", "--metric", "zen:repeats=x"], "proxy zen: repeats must be a whole number, got 'x'"),
    (["rank", "--proxy", "zen:repeats=0,zico"], "repeats: must be at least 1, got 0"),
    (["score", "--arch", EXAMPLE, "--proxy", "sigeo:lambdas=[1,2]"], "expected three finite num"),
    ([*TABLE, "--recipes", "fair", "--proxy", "zen:mixup=0"], "mixup: must be a finite number"),
    (["rank", "--proxy", "synflow", "--many", "4"], "--many: has no effect on synflow"),
    (["rank", "--proxy", "zico", "--batches", "1"], "zico needs at least 2 batches, got 1"),
    (["rank", "--warmup-steps", "5", "--sampler", "sandwich"], "names no largest architecture"),
    (["rank", "--init", "supernet:."], "checkpoint .: expected a file, got a folder"),
    (["rank", "--init", "family:t.csv"], "family t.csv: expected the folder of plan.json, got a"),
    (["rank", "--init", "family:."], "plan: found no file plan.json"),
    (["score", "--arch", "|none~0|"], "expected 3 nodes joined by '+', got 1"),
    (["score", "--arch", "7"], "--arch: expected an architecture string, got 7; that of index 7"),
    (["score", "--arch", EXAMPLE, "--proxy", "ntk_cond", "--batches", "2"], "at least 3 batches"),
    (["score", "--model", "torch.nn:Nothing"], "has no attribute 'Nothing'"),
    (["score", "--model", "builtins:dict"], "must make an nn.Module, got dict"),
]


@pytest.mark.parametrize(("arguments", "message"), EARLY)
def test_what_no_images_would_mend_is_refused_before_they_are_read(
    arguments, message, capsys, monkeypatch
):
    def load(source):
        raise AssertionError("images are read")

    monkeypatch.setattr(data, "load", load)
    lines = ["arch_str,acc", f"{EXAMPLE},90"]
    lines += [EXAMPLE.replace("avg_pool_3x3", other) + ",80" for other in ("none", "nor_conv_1x1")]
    Path("t.csv").write_text("\n".join(lines))
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err
    assert os.listdir() == ["t.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", *SMALL, "--batches", "100"], "need 1600 training images, digits has 1437"),
        (
            ["warmup", *SMALL[:4], "--warmup-steps", "9", "--warmup-lr", "1e30"],
            "of 9 is not finite",
        ),
        (
            ["train", *SMALL[:4], "--share", "0.001"],
            "--share: 0.001 of 1437 training images is less",
        ),
        (["split", *SMALL[:4], "--batch-size", "999"], "training images, digits has 1437"),
    ],
)
@pytest.mark.parametrize("out", [[], ["--out", "new/deeper"], ["--out", "there/new"]])
def test_what_fails_before_anything_is_written_leaves_no_folder(arguments, message, out, capsys):
    Path("there").mkdir()
    code, _, err = run(*arguments, *out, capsys=capsys)
    assert code == 2 and message in err, err
    assert os.listdir() == ["there"] and os.listdir("there") == []


def test_the_hint_of_an_index_is_the_architecture_of_that_index(capsys):
    small = [*SMALL, "--proxy", "params", "--space", "mlp"][4:]
    code, _, err = run("score", "--arch", "3", *small, capsys=capsys)
    text = err.partition("that of index 3 is '")[2].rstrip("'\n")
    assert code == 2 and text.startswith("depth=1,width1=")
    code, _, err = run("score", "--arch", text, *small, capsys=capsys)
    assert code == 0, err


def test_a_module_is_found_in_the_current_folder(capsys):
    Path("netz.py").write_text(
        "from torch import nn\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    given = ["--proxy", "params", *SMALL[4:]]
    code, _, err = run("score", "--model", "netz:make", *given, capsys=capsys)
    assert code == 0, err
    code, _, err = run("score", "--model", "netz.py:make", *given, capsys=capsys)
    assert code == 2 and "net:make for make in a file net.py" in err
