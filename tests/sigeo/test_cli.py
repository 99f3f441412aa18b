"""The command line: its contracts, what it leaves behind, and one clear line for bad input."""

from __future__ import annotations

import html.parser
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from sigeo.cli import main
from tests.conftest import shared_file

EXAMPLE = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+"
    "|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
)
SMALL = ["--channels", "2", "--cells", "1", "--batches", "2", "--batch-size", "16"]


def run(*arguments: str, capsys) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def strict(text: str):
    """One JSON document, nothing else, no NaN or Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def ranking(tmp_path_factory):
    """A finished run and its JSON."""
    folder = tmp_path_factory.mktemp("run") / "r"
    command = [
        sys.executable,
        "-m",
        "sigeo",
        "rank",
        *SMALL,
        "--archs",
        "12",
        "--json",
        "--out",
        str(folder),
    ]
    command += ["--proxy", "sigeo,zico,params"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder, strict(result.stdout)


def test_rank_prints_the_document_of_the_contract(ranking):
    _, document = ranking
    assert document["schema"] == 1
    assert document["space"] == "nasbench201" and document["data"] == "digits"
    assert len(document["rows"]) == 12 and document["env"]["threads"] >= 1
    for row in document["rows"]:
        assert set(row) == {
            "arch",
            "index",
            "scores",
            "terms",
            "options",
            "finite",
            "notes",
            "seconds",
        }
        assert set(row["scores"]) == {"sigeo", "zico", "params"}
        assert set(row["terms"]["sigeo"]) == {"zico", "fr", "loss"}
        assert row["options"]["sigeo"]["lambdas"] == [1.0, 1.0, 0.0]
    values = [row["scores"]["sigeo"] for row in document["rows"]]
    assert values == sorted(values, reverse=True)


def test_rank_leaves_scores_report_and_store(ranking):
    folder, document = ranking
    table = pyarrow.parquet.read_table(folder / "scores.parquet")
    assert table["arch_str"].to_pylist() == [row["arch"] for row in document["rows"]]
    assert table["sigeo.fr"].to_pylist() == [
        row["terms"]["sigeo"]["fr"] for row in document["rows"]
    ]
    assert (folder / "run.sqlite").exists()
    page = (folder / "report.html").read_text()
    assert "http-equiv" not in page and "src=" not in page  # nothing is loaded from elsewhere
    assert page.count("<svg") == 2 and document["rows"][0]["arch"] in page


class Balanced(html.parser.HTMLParser):
    """Checks that every element that must be closed is."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "path", "use", "rect", "clippath"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_report_with_a_table(ranking, capsys):
    folder, document = ranking
    Path("t.csv").write_text(
        "arch_str,acc_200\n"
        + "".join(f"{r['arch']},{90 - i / 7}\n" for i, r in enumerate(document["rows"][:9]))
    )
    code, out, _ = run(
        "report",
        str(folder),
        "--table",
        "t.csv",
        "--metric",
        "acc",
        "--out",
        "r.html",
        capsys=capsys,
    )
    page = Path("r.html").read_text()
    assert code == 0 and out == "" and page.count("<svg") == 3
    assert "9 of 12 architectures are in t.csv" in page and "acc_200" in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []


def test_the_same_command_again_scores_nothing_and_gives_the_same(ranking, capsys, monkeypatch):
    folder, document = ranking
    from sigeo.scoring.networks import Networks

    monkeypatch.setattr(Networks, "score", lambda *_: pytest.fail("scored twice"))
    again = [
        *SMALL,
        "--archs",
        "12",
        "--json",
        "--out",
        str(folder),
        "--proxy",
        "sigeo,zico,params",
    ]
    code, out, _ = run("rank", *again, capsys=capsys)
    assert code == 0 and strict(out)["rows"] == document["rows"]


def test_rank_prints_a_table_for_people(capsys):
    code, out, err = run("rank", *SMALL, "--archs", "3", "--top", "2", capsys=capsys)
    assert code == 0 and "2 best of 3" in out and "params" in out and "flops" in out
    assert "runs/nasbench201-digits/scores.parquet" in err
    assert Path("runs/nasbench201-digits/report.html").exists()


def test_warm_up_then_rank_from_the_checkpoint(capsys):
    code, out, _ = run(
        "warmup", *SMALL[:4], "--warmup", "0.1", "--out", "w", "--json", capsys=capsys
    )
    document = strict(out)
    assert code == 0 and document["images"] == 144 and document["steps"] == 3
    given = ["rank", *SMALL, "--archs", "3", "--json"]
    code, loaded, _ = run(
        *given, "--init", f"supernet:{document['checkpoint']}", "--out", "a", capsys=capsys
    )
    assert code == 0
    code, here, err = run(*given, "--warmup", "0.1", "--out", "b", capsys=capsys)
    assert code == 0 and "144 images, 1 pass(es), 3 steps of 64" in err
    key = lambda text: [(r["arch"], r["scores"]) for r in strict(text)["rows"]]  # noqa: E731
    assert key(loaded) == key(here)
    assert strict(here)["settings"]["warmup"]["steps"] == 3


def test_candidates_take_the_published_lambdas(capsys):
    given = ["rank", *SMALL, "--archs", "2", "--json", "--init", "candidate", "--warmup", "0.1"]
    code, out, _ = run(*given, capsys=capsys)
    document = strict(out)
    assert code == 0 and document["rows"][0]["options"]["sigeo"]["lambdas"] == [1.0, 50.0, 1.0]
    assert document["settings"]["warmup"]["lr"] == 1.0
    assert document["settings"]["warmup"]["epochs"] == 1
    code, out, _ = run(*given, "--lambdas", "1,2,3", capsys=capsys)
    assert strict(out)["rows"][0]["options"]["sigeo"]["lambdas"] == [1.0, 2.0, 3.0]


def test_only_the_preset_for_vision_takes_the_published_lambdas_of_candidates(capsys):
    given = ["rank", *SMALL, "--archs", "2", "--json", "--init", "candidate", "--warmup", "0.1"]
    code, out, _ = run(*given, "--proxy", "sigeo_paper,sigeo_cv_official", capsys=capsys)
    options = strict(out)["rows"][0]["options"]
    assert code == 0 and options["sigeo_cv_official"]["lambdas"] == [1.0, 50.0, 1.0]
    assert options["sigeo_paper"]["lambdas"] == [1.0, 1.0, 0.0]


def test_a_warm_up_of_a_number_of_steps(capsys):
    given = ["warmup", *SMALL[:4], "--warmup-steps", "30", "--out", "w", "--json"]
    code, out, _ = run(*given, capsys=capsys)
    document = strict(out)
    assert code == 0 and document["steps"] == 30 and document["images"] == 1437
    assert document["settings"]["warmup"]["batch_size"] == 64
    given = ["rank", *SMALL, "--archs", "2", "--json", "--proxy", "zico", "--warmup-steps", "3"]
    code, out, err = run(*given, "--warmup-batch", "8", capsys=capsys)
    warmup = strict(out)["settings"]["warmup"]
    assert code == 0 and "24 images, 1 pass(es), 3 steps of 8" in err
    assert warmup["steps"] == 3 and warmup["images"] == 24 and warmup["lr"] == 0.025
    assert strict(out)["settings"]["init"] == "supernet"
    code, out, _ = run(*given, "--init", "candidate", capsys=capsys)
    warmup = strict(out)["settings"]["warmup"]
    assert code == 0 and warmup["steps"] == 3 and warmup["images"] == 3 * 128
    assert (warmup["lr"], warmup["momentum"], warmup["shuffle"]) == (1.0, 0.0, False)


def test_the_largest_seed(capsys):
    largest = ["--seed", str(2**63 - 1)]
    given = ["rank", *SMALL, "--archs", "2", "--json", "--proxy", "zico", "--warmup", "1"]
    code, out, _ = run(*given, "--epochs", "2", *largest, capsys=capsys)
    assert code == 0 and strict(out)["settings"]["seed"] == 2**63 - 1
    assert run("score", *SMALL, "--arch", EXAMPLE, *largest, capsys=capsys)[0] == 0


def test_a_table_or_metric_that_is_not_there_costs_no_scoring(capsys, monkeypatch):
    from sigeo.scoring import networks

    monkeypatch.setattr(networks, "Networks", lambda *_, **__: pytest.fail("went on"))
    Path("t.csv").write_text("arch_str,acc\na,1\n")
    code, out, err = run("rank", "--table", "t.csv", "--metric", "top1", capsys=capsys)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "t.csv: expected a column for metric 'top1', found acc" in err


@pytest.mark.parametrize("file", ["report.html", "scores.parquet"])
def test_the_result_is_printed_also_if_a_file_cannot_be_written(file, capsys):
    Path("r", file).mkdir(parents=True)
    given = ["rank", *SMALL, "--archs", "2", "--proxy", "params", "--out", "r"]
    code, out, err = run(*given, "--json", capsys=capsys)
    assert code == 2 and len(strict(out)["rows"]) == 2
    assert err == f"sigeo rank: r/{file}: Is a directory\n"
    code, out, err = run(*given, capsys=capsys)
    assert code == 2 and "2 best of 2" in out and err.count("\n") == 1


def test_only_what_the_first_proxy_lacks_ranks_last(capsys, monkeypatch):
    from sigeo.scoring.networks import Networks
    from sigeo.store import Record

    def scored(self, arch, proxies):
        bad = {"sigeo": "nor_conv_1x1" in str(arch), "zico": True}
        return {p.name: Record(None if bad[p.name] else 1.0) for p in proxies}

    monkeypatch.setattr(Networks, "score", scored)
    other = EXAMPLE.replace("skip_connect~0", "nor_conv_1x1~0")
    Path("a.txt").write_text(f"{EXAMPLE}\n{other}")
    given = ["rank", *SMALL, "--archs-file", "a.txt", "--out", "r", "--proxy"]
    for first, second, last, elsewhere in (("sigeo", "zico", 1, 2), ("zico", "sigeo", 2, 1)):
        code, _, err = run(*given, f"{first},{second}", capsys=capsys)
        notes = [
            f"architectures without a finite {first} score, which rank last: {last}",
            f"architectures with another score that is not finite: {elsewhere}",
        ]
        assert code == 0 and err.splitlines()[:2] == notes
        assert f"Best first by {first}; {'; '.join(notes)}." in Path("r/report.html").read_text()


def test_archs_file(capsys):
    arch = EXAMPLE
    Path("a.txt").write_text(f"{arch}\n\n{arch.replace('avg_pool_3x3', 'none')}\n{arch}\n")
    code, out, _ = run("rank", *SMALL, "--archs-file", "a.txt", "--json", capsys=capsys)
    assert code == 0 and len(strict(out)["rows"]) == 2
    Path("a.txt").write_text(f"{arch}\n{arch[:-3]}\n")
    code, _, err = run("rank", *SMALL, "--archs-file", "a.txt", capsys=capsys)
    assert (
        code == 2 and err.startswith("sigeo rank: a.txt:2: architecture") and err.count("\n") == 1
    )
    Path("a.txt").write_bytes(arch.encode() + b"\n\xff\n")
    code, _, err = run("rank", *SMALL, "--archs-file", "a.txt", capsys=capsys)
    assert code == 2 and err.startswith("sigeo rank: a.txt: expected text in UTF-8, invalid start")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", b"\xff\xfe", "s.json: expected text in UTF-8, invalid start byte at 0"),
        ("s.json", b"{", "s.json: expected the JSON of sigeo rank (JSONDecodeError"),
        ("s.json", b'{"rows": []}', "s.json: expected the JSON of sigeo rank (IndexError"),
        (
            "s.json",
            b'{"rows": [{"arch": "a", "scores": {"zico": "high"}}]}',
            "s.json: scores of a: zico must be a number or null, got 'high'",
        ),
        (
            "s.json",
            b'{"rows": [{"arch": "a", "scores": {"zico": 1}}, {"arch": "b", "scores": {}}]}',
            "s.json: expected the JSON of sigeo rank (KeyError 'zico')",
        ),
        ("s.csv", b"arch_str,x,x\na,1,2\n", "s.csv: expected each column once, found x more"),
    ],
)
def test_scores_that_are_damaged(name, content, message, capsys):
    Path(name).write_bytes(content)
    Path("t.csv").write_text("arch_str,acc\na,1\n")
    given = ["correlate", "--scores", name, "--table", "t.csv", "--metric", "acc"]
    code, out, err = run(*given, capsys=capsys)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err


def test_correlate_in_every_format(ranking, capsys):
    folder, document = ranking
    rows = document["rows"]
    Path("t.csv").write_text(
        "arch_str,acc\n" + "".join(f"{r['arch']},{i}\n" for i, r in enumerate(rows))
    )
    Path("s.json").write_text(json.dumps(document))
    Path("s.csv").write_text(
        "arch_str,zico,sigeo\n"
        + "".join(f"{r['arch']},{r['scores']['zico']},{r['scores']['sigeo']}\n" for r in rows)
    )
    results = []
    for scores in (folder / "scores.parquet", "s.json", "s.csv"):
        given = ["correlate", "--scores", str(scores), "--table", "t.csv", "--metric", "acc"]
        code, out, _ = run(*given, "--json", capsys=capsys)
        results.append(strict(out)["proxies"])
        assert code == 0 and set(results[-1]) == {"sigeo", "zico", "params", "flops"}
        assert results[-1]["sigeo"] == results[0]["sigeo"]
        assert results[-1]["sigeo"]["spearman"]["value"] == pytest.approx(-1)
    code, out, _ = run(*given, capsys=capsys)
    assert code == 0 and "Kendall" in out


def test_correlate_with_the_published_table(ranking, capsys):
    folder, _ = ranking
    table = str(shared_file("data/nasbench201.csv.gz"))
    given = ["correlate", "--scores", str(folder / "scores.parquet"), "--table", table]
    code, out, _ = run(*given, "--metric", "cifar10.test", "--json", capsys=capsys)
    document = strict(out)
    assert code == 0 and document["column"] == "cifar10_test_200"
    assert set(document["proxies"]) == {"sigeo", "zico", "params", "flops"}


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
        (":x", "{}", "--model: :x: ValueError: Empty module name"),
        ("user_module:broken", "{}", "--model: user_module:broken: MemoryError: no room"),
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
    assert own[0].startswith("sigeo score: --model: ") and "at all" not in own[0]


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
    assert "imported\nrun\n" in result.stderr


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
        (["tables", "t.csv"], ""),
    ):
        code, _, err = run(*verb, capsys=capsys)
        assert code == 130 and err == f"sigeo {verb[0]}: stopped{more}\n"


def test_doctor(capsys):
    code, out, _ = run("doctor", "--json", capsys=capsys)
    document = strict(out)
    assert code == 0 and all(test["ok"] for test in document["self_test"])
    assert document["implementations"].keys() and document["versions"]["torch"]
    assert run("doctor", capsys=capsys)[0] == 0


def test_doctor_finds_a_kernel_that_is_wrong(capsys, monkeypatch):
    from sigeo_ext import moments

    monkeypatch.setattr(moments, "update_", lambda *_, **__: None)
    assert run("doctor", "--json", capsys=capsys)[0] == 1


def test_doctor_finds_a_kernel_that_fails(capsys, monkeypatch):
    from sigeo_ext import moments

    monkeypatch.setattr(moments, "update_", lambda: None)
    code, out, _ = run("doctor", "--json", capsys=capsys)
    (test,) = [test for test in strict(out)["self_test"] if test["device"] == "cpu"]
    assert code == 1 and not test["ok"] and test["problem"].startswith("TypeError: ")
    assert run("doctor", capsys=capsys)[0] == 1


def test_doctor_finds_kernels_that_do_not_load(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigeo_ext", None)  # what makes any import of it fail
    code, out, err = run("doctor", "--json", capsys=capsys)
    document = strict(out)
    assert code == 1 and err == "" and document["self_test"] == []
    assert "sigeo_ext" in document["problem"] and document["versions"]["torch"]
    code, out, err = run("doctor", capsys=capsys)
    assert code == 1 and err == "" and "WRONG" in out


@pytest.mark.slow
def test_doctor_says_which_implementation_there_is_not():
    given = [sys.executable, "-m", "sigeo", "doctor", "--json"]
    environment = {**os.environ, "SIGEO_EXT_IMPL": "fastest"}
    result = subprocess.run(given, capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and result.stderr == ""
    assert "SIGEO_EXT_IMPL must be one of" in strict(result.stdout)["problem"]


BAD = {
    "proxy": (["rank", "--proxy", "zen"], "proxy must be one of"),
    "no-proxy": (["rank", "--proxy", ","], "proxies: expected at least one"),
    "space": (["rank", "--space", "darts"], "space must be one of nasbench201, got 'darts'"),
    "data": (["rank", "--data", "nowhere.npz"], "found no nowhere.npz"),
    "archs": (
        ["rank", "--archs", "99999"],
        "--archs: the space has 15625 architectures, got 99999",
    ),
    "archs-file": (["rank", "--archs-file", "none.txt"], "none.txt: No such file or directory"),
    "init": (
        ["rank", "--init", "warm"],
        "--init: must be scratch, candidate, supernet or supernet:PATH",
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
        "checkpoint: found no file none.safetensors",
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
        ["warmup", "--device", "cuda:99", "--data", "nowhere.npz"],
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
    "step-size": (["rank", "--inner-lr", "-1"], "--inner-lr: must be a number from 0, got '-1'"),
    "warmup-lr": (
        ["rank", "--warmup-lr", "inf"],
        "--warmup-lr: must be a number from 0, got 'inf'",
    ),
    "schedule": (["rank", "--schedule", "steps"], "--schedule: invalid choice: 'steps'"),
    "unknown": (["rank", "--archs", "3", "--none"], "sigeo rank: unrecognized arguments: --none"),
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
        for verb in ("rank", "score", "warmup", "correlate")
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
    "rank-table": (["rank", "--table", "none.csv"], "table: found no file none.csv"),
    "convert": (
        ["tables", "none.csv", "--convert", "out.csv"],
        "--convert: expected a name that ends in .parquet, got out.csv",
    ),
    "verb": (["rang"], "invalid choice: 'rang'"),
    "arch": (["score", "--arch", "|none~0|"], "expected 3 nodes joined by '+', got 1"),
    "model": (["score", "--model", "nowhere"], "--model: expected MODULE:CALLABLE, got 'nowhere'"),
    "module": (["score", "--model", "nowhere:x"], "--model: nowhere:x: ModuleNotFoundError: No"),
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
    "table": (["tables", "none.csv"], "table: found no file none.csv"),
    "scores": (
        ["correlate", "--scores", "none.csv", "--table", "t.csv", "--metric", "x"],
        "found no file none.csv",
    ),
    "report": (["report", "none"], "scores: found no file none"),
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


def test_a_table_without_the_column_and_one_without_the_architectures(ranking, capsys):
    folder, _ = ranking
    scores = str(folder / "scores.parquet")
    Path("a.csv").write_text("architecture,acc\nx,1\n")
    Path("b.csv").write_text("arch_str,acc\nx,1\n")
    for table, metric, message in (
        ("a.csv", "acc", "a.csv: expected a column arch_str, found architecture, acc"),
        ("b.csv", "top1", "b.csv: expected a column for metric 'top1', found acc"),
        ("b.csv", "acc", "--table: expected at least 3 of the 12 architectures in b.csv, found 0"),
    ):
        code, _, err = run(
            "correlate", "--scores", scores, "--table", table, "--metric", metric, capsys=capsys
        )
        assert code == 2 and message in err and err.count("\n") == 1


def test_a_truncated_checkpoint(capsys):
    run("warmup", *SMALL[:4], "--warmup", "0.1", "--out", "w", "--json", capsys=capsys)
    (path,) = Path("w").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = run("rank", *SMALL, "--init", f"supernet:{path}", capsys=capsys)
    assert code == 2 and "damaged or truncated" in err and err.count("\n") == 1


def test_a_folder_that_cannot_be_written(capsys):
    Path("file").write_text("")
    code, _, err = run("rank", *SMALL, "--archs", "2", "--out", "file/run", capsys=capsys)
    assert code == 2 and "file/run: Not a directory" in err
    if os.geteuid() != 0:
        Path("locked").mkdir(mode=0o500)
        code, _, err = run("rank", *SMALL, "--archs", "2", "--out", "locked/run", capsys=capsys)
        assert code == 2 and "Permission denied" in err


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


@pytest.mark.slow
@pytest.mark.parametrize("when", ["warming up", "scoring"])
def test_kill_and_run_again(when, tmp_path):
    """Nothing lost, nothing computed twice, the same result as an undisturbed run."""
    given = [
        sys.executable,
        "-m",
        "sigeo",
        "rank",
        "--channels",
        "4",
        "--cells",
        "1",
        "--archs",
        "30",
    ]
    given += ["--warmup", "1", "--epochs", "4", "--seed", "1", "--json", "--threads", "1"]
    undisturbed = subprocess.run([*given, "--out", "u"], capture_output=True, text=True, check=True)
    process = subprocess.Popen(
        [*given, "--out", "k"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wanted = 1 if when == "warming up" else 5
    count = _checkpoints if when == "warming up" else _scores
    deadline = time.monotonic() + 120
    while count(Path("k")) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "finished before it could be killed"
    kept = _times(Path("k"))
    if when == "scoring":
        assert len(kept) >= 5
    again = subprocess.run([*given, "--out", "k"], capture_output=True, text=True, check=True)
    strip = lambda text: [{**row, "seconds": 0} for row in strict(text)["rows"]]  # noqa: E731
    assert strip(again.stdout) == strip(undisturbed.stdout)
    after = _times(Path("k"))
    assert all(after[key] == seconds for key, seconds in kept.items()), "computed twice"


def _checkpoints(folder: Path) -> int:
    return len(list(folder.glob("supernet-*.safetensors")))


def _scores(folder: Path) -> int:
    return len(_times(folder))


def _times(folder: Path) -> dict[tuple[str, str], float]:
    import sqlite3

    if not (folder / "run.sqlite").exists():
        return {}
    connection = sqlite3.connect(folder / "run.sqlite", timeout=10)
    try:
        rows = connection.execute("SELECT network, proxy, seconds FROM scores").fetchall()
    except sqlite3.Error:
        return {}
    finally:
        connection.close()
    return {(network, proxy): seconds for network, proxy, seconds in rows}


def test_help_of_every_verb(capsys):
    for verb in ("rank", "score", "warmup", "correlate", "tables", "report", "doctor"):
        code, out, _ = run(verb, "--help", capsys=capsys)
        assert code == 0 and out.startswith(f"usage: sigeo {verb}")


def test_scores_of_the_wrong_kind(capsys):
    np.savez("x.npz", a=np.zeros(1))
    Path("x.json").write_text("[]")
    Path("t.csv").write_text("arch_str,acc\nx,1\n")
    for scores in ("x.json", "t.csv"):
        code, _, err = run(
            "correlate", "--scores", scores, "--table", "t.csv", "--metric", "acc", capsys=capsys
        )
        assert code == 2 and err.count("\n") == 1
