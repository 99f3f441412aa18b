"""The other verbs: train, tables, score, doctor."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sigeo.cli.main import _parser
from tests.sigeo.cli.helpers import EXAMPLE, SMALL, run, strict


def test_train_makes_a_table(capsys):
    sizes = ["--channels", "2", "--cells", "1"]
    given = ["train", *sizes, "--archs", "4", "--runs", "2", "--epochs", "1", "--share", "0.2"]
    code, out, err = run(*given, "--out", "t", "--json", capsys=capsys)
    document = strict(out)
    assert code == 0, err
    assert [len(row["accuracy"]) for row in document["rows"]] == [2] * 4
    training = document["settings"]["training"]
    assert training["images"] == round(0.2 * 1437)
    # As NAS-Bench-201's tables were made: from 0.1 to 0 along a cosine.
    assert (training["lr"], training["schedule"], training.get("floor")) == (0.1, "cosine", 0.0)
    assert (training["momentum"], training["weight_decay"], training["clip"]) == (0.9, 5e-4, None)
    code, out, err = run(*given, "--out", "t", capsys=capsys)
    assert code == 0 and "4 best of 4" in out and "noise:" in err
    scores = ["correlate", "--scores", "t/table.parquet", "--table", "t/table.parquet"]
    code, out, _ = run(*scores, "--metric", "test_accuracy", "--json", capsys=capsys)
    runs = strict(out)["proxies"]
    assert code == 0 and runs["test_accuracy"]["pick"]["regret"] == 0
    assert {"test_accuracy_run0", "params"} <= set(runs)
    code, _, err = run("train", *sizes, "--share", "0.001", "--out", "t", capsys=capsys)
    assert code == 2 and "training images is less than one step" in err


@pytest.mark.parametrize("verb", [["rank", "--proxy", "params"], ["train", "--share", "0.05"]])
def test_architectures_are_read_from_a_pipe(verb, capsys):
    reading, writing = os.pipe()
    os.write(writing, f"{EXAMPLE}\n".encode())
    os.close(writing)
    sizes = ["--channels", "2", "--cells", "1", "--threads", "1", "--batch-size", "16"]
    given = [*verb, *sizes, "--archs-file", f"/dev/fd/{reading}", "--out", "p", "--json"]
    code, out, err = run(*given, capsys=capsys)
    os.close(reading)
    assert code == 0, err
    assert [row["arch"] for row in strict(out)["rows"]] == [EXAMPLE]


def test_train_says_why_tau_between_runs_is_undefined():
    from sigeo.cli.train import _ceiling
    from sigeo.scoring.standalone import Measurements

    one = Measurements(("a",), np.array([[90.0, 91.0]]))
    assert _ceiling(one) == "Kendall's tau undefined: it needs two architectures or more"
    tied = Measurements(("a", "b"), np.array([[90.0, 91.0], [90.0, 92.0]]))
    assert _ceiling(tied).startswith("Kendall's tau undefined: in one of the runs all")
    apart = Measurements(("a", "b"), np.array([[90.0, 91.0], [91.0, 92.0]]))
    assert _ceiling(apart) == "Kendall's tau 1.000"


def test_tables(capsys):
    Path("t.csv").write_text("arch_str,acc\na,1\nb,\nc,3\n")
    code, out, _ = run("tables", "t.csv", "--convert", "t.parquet", "--json", capsys=capsys)
    summary = strict(out)
    assert code == 0 and summary["columns"]["acc"] == {
        "count": 2,
        "min": 1.0,
        "mean": 2.0,
        "max": 3.0,
    }
    assert run("tables", "t.parquet", capsys=capsys)[0] == 0
    Path("t.csv").write_text("arch_str,acc\na,1\nb,inf\n")
    code, out, _ = run("tables", "t.csv", "--json", capsys=capsys)
    assert code == 0 and strict(out)["columns"]["acc"]["max"] == 1.0


def test_score_one_architecture_and_any_module(capsys):
    arch = EXAMPLE
    code, out, _ = run(
        "score", *SMALL, "--arch", arch, "--proxy", "sigeo,synflow", "--json", capsys=capsys
    )
    document = strict(out)
    assert code == 0 and set(document["scores"]) == {"sigeo", "synflow"} and document["finite"]
    Path("mine.py").write_text(
        "from torch import nn\n"
        "def net(width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))\n"
    )
    given = ["score", *SMALL[4:], "--model", "mine:net", "--proxy", "zico,params", "--json"]
    code, out, _ = run(*given, "--model-args", '{"width": 7}', capsys=capsys)
    document = strict(out)
    assert code == 0 and document["scores"]["params"] == 64 * 7 + 7 + 70 + 10
    assert document["settings"]["space"] is None and document["options"] == {}
    assert run(*given[:-1], capsys=capsys)[0] == 0


def test_score_says_how_an_architecture_was_scored_and_counts_it_as_rank_does(capsys):
    proxies = ["--proxy", "sigeo,params,flops", "--seed", "3", "--json"]
    code, out, _ = run("score", *SMALL, "--arch", EXAMPLE, *proxies, capsys=capsys)
    document = strict(out)
    assert code == 0 and list(document["scores"]) == ["sigeo", "params", "flops"]
    assert document["options"]["sigeo"]["lambdas"] == [1.0, 1.0, 0.0]
    Path("a.txt").write_text(EXAMPLE)
    code, out, _ = run("rank", *SMALL, "--archs-file", "a.txt", *proxies, capsys=capsys)
    ranked = strict(out)
    for name in ("params", "flops"):
        assert document["scores"][name] == ranked["rows"][0]["scores"][name]
    settings = document["settings"]
    assert set(settings) == {"space", "data", "batches", "batch_size", "seed"}
    assert all(settings[name] == ranked["settings"][name] for name in settings)


USER_MODULE = """
import sys
from torch import nn
print("imported")

class Net(nn.Sequential):
    def __init__(self, fails=None):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.fails = fails

    def forward(self, x):
        print("run")
        if self.fails == "empty":
            raise ZeroDivisionError
        if self.fails == "lines":
            raise KeyError("first line\\nsecond line")
        return super().forward(x)

def broken():
    raise MemoryError("no room\\nat all")

def leaves():
    sys.exit(3)
"""


@pytest.fixture
def user_module(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "user_module", raising=False)
    Path("user_module.py").write_text(USER_MODULE)
    Path("user_broken.py").write_text("raise SyntaxWarning('odd')")
    Path("user_syntax.py").write_text("def")


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("user_broken:x", "{}", "--model: user_broken:x: SyntaxWarning: odd"),
        ("user_syntax:x", "{}", "--model: user_syntax:x: SyntaxError: invalid syntax"),
        ("user_module:broken", "{}", "--model: user_module:broken: MemoryError: no room at all"),
        ("user_module:leaves", "{}", "--model: user_module:leaves: SystemExit: 3"),
        ("user_module:Net", '{"fails": "empty"}', "images [1, 8, 8] of digits: ZeroDivisionError"),
        ("user_module:Net", '{"fails": "lines"}', "of digits: KeyError: 'first line"),
    ],
)
def test_whatever_a_users_model_raises_is_one_line(target, arguments, message, capsys):
    given = ["score", "--model", target, "--model-args", arguments, "--json"]
    code, out, err = run(*given, capsys=capsys)
    own = [line for line in err.splitlines() if line not in ("imported", "run")]
    assert code == 2 and out == "" and len(own) == 1 and message in own[0], err
    assert own[0].startswith("sigeo score: --model: ")


def test_an_architecture_that_does_not_run_is_no_fault_of_a_model(capsys, monkeypatch):
    from torch import nn

    from sigeo.spaces import NASBench201

    given = ["score", "--arch", EXAMPLE]
    for network, message in (
        (nn.Linear(3, 4), "--arch: does not run on images [1, 8, 8] of digits: RuntimeError: mat"),
        (nn.Flatten(), "--arch: expected [images, 65 or more] outputs for x, got [2, 64]"),
    ):
        monkeypatch.setattr(NASBench201, "build", lambda *_, network=network, **__: network)
        code, _, err = run(*given, capsys=capsys)
        assert code == 2 and message in err and err.count("\n") == 1
        labels = np.arange(300) % 65
        np.savez("x.npz", train_images=np.ones((300, 8, 8), np.uint8), train_labels=labels)
        given += ["--data", "x.npz"]


@pytest.mark.slow
@pytest.mark.usefixtures("user_module")
def test_the_installed_script_finds_a_model_in_the_current_folder():
    script = shutil.which("sigeo", path=Path(sys.executable).parent)
    if script is None:
        pytest.skip("needs the package installed in this environment")
    given = [script, "score", "--model", "user_module:Net", "--proxy", "zico", "--json"]
    result = subprocess.run(given, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert strict(result.stdout)["scores"]["zico"] is not None
    lines = result.stderr.splitlines()  # reading the images is said in between, where it is slow
    assert [line for line in lines if line in ("imported", "run")][:2] == ["imported", "run"]


def test_only_what_keeps_its_work_promises_to_go_on(capsys, monkeypatch):
    from sigeo.cli import options
    from sigeo.tables import table

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "load_data_and_space", interrupt)
    monkeypatch.setattr(table, "_read", interrupt)
    for verb, more in (
        (["rank"], "; the same command goes on from here"),
        (["warmup"], "; the same command goes on from here"),
        (["score", "--arch", EXAMPLE], ""),
        (["tables", os.devnull], ""),
    ):
        code, _, err = run(*verb, capsys=capsys)
        assert code == 130 and err == f"sigeo {verb[0]}: stopped{more}\n"


def test_what_follows_from_an_interrupt_is_one(capsys, monkeypatch):
    """As in Python 3.11 where Ctrl-C comes while torch makes its classes."""
    from sigeo.cli import options

    def interrupt(*_):
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr(options, "load_data_and_space", interrupt)
    code, _, err = run("rank", capsys=capsys)
    assert code == 130 and err == "sigeo rank: stopped; the same command goes on from here\n"


def test_an_interrupt_that_a_library_swallowed_is_one(capsys, monkeypatch):
    """As numpy does where Ctrl-C comes while it is imported: it then lacks a part of its own."""
    from sigeo.cli import options

    def interrupt(*_):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("module 'numpy._core' has no attribute '_multiarray_umath'")

    monkeypatch.setattr(options, "load_data_and_space", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job behind ignores it
    try:
        code, _, err = run("rank", capsys=capsys)
        assert code == 130 and err == "sigeo rank: stopped; the same command goes on from here\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_help_of_every_verb(capsys):
    for verb in (
        "rank",
        "score",
        "warmup",
        "train",
        "correlate",
        "tables",
        "report",
        "doctor",
    ):
        code, out, _ = run(verb, "--help", capsys=capsys)
        assert code == 0 and out.startswith(f"usage: sigeo {verb}")


def test_the_help_of_an_option_says_its_default():
    verbs = next(a for a in _parser()._actions if isinstance(a.choices, dict)).choices
    options = [option for verb in verbs.values() for option in verb._actions]
    without = (None, False, [], argparse.SUPPRESS)
    known = [option for option in options if option.default not in without]
    assert [option.dest for option in known if "default" not in option.help] == []


def test_tables_takes_values_whose_sum_is_too_large(capsys):
    Path("t.csv").write_text("arch_str,synflow\na,1.5e308\nb,1.25e308\nc,1e308\n")
    code, out, err = run("tables", "t.csv", "--json", capsys=capsys)
    assert code == 0 and err == ""
    assert strict(out)["columns"]["synflow"]["mean"] == pytest.approx(1.25e308)
