"""sigeo rank, warmup and report: their contracts and what they leave behind."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.sigeo.cli.helpers import EXAMPLE, SMALL, run, strict


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
    code, out, err = run("rank", *again, capsys=capsys)
    assert code == 0 and strict(out)["rows"] == document["rows"]
    assert "all scores were there already" in err


@pytest.mark.parametrize(
    ("init", "what"), [("candidate", "each network alone"), ("supernet", "shared weights")]
)
def test_a_warm_up_is_said_once_and_only_where_there_is_one(init, what, capsys):
    given = (*SMALL, "--archs", "2", "--proxy", "zico", "--init", init, "--out", "r")
    given += ("--warmup-steps", "2")
    first, again = (run("rank", *given, capsys=capsys)[2] for _ in range(2))
    assert first.count(f"warm-up of {what}: ") == 1 and "already" not in first
    assert "warm-up of" not in again and "all scores were there" in again


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


def test_proxies_with_options_of_their_own(capsys):
    given = ["rank", *SMALL, "--archs", "3", "--out", "r", "--json", "--proxy"]
    several = "linear_regions:samples=50, seed=3,sigeo:lambdas=[1, 2, 3],params"
    code, out, err = run(*given, several, "--inner-lr", "0.5", capsys=capsys)
    assert code == 0, err
    rows = strict(out)["rows"]
    assert rows[0]["options"]["linear_regions"] == {"samples": 50, "size": 3, "seed": 3}
    sigeo = rows[0]["options"]["sigeo"]
    assert (sigeo["lambdas"], sigeo["inner_lr"]) == ([1, 2, 3], 0.5)
    assert set(rows[0]["scores"]) == {"linear_regions", "sigeo", "params"}
    assert max(row["scores"]["linear_regions"] for row in rows) <= 50

    def again(text):
        code, out, err = run(*given, text, capsys=capsys)
        assert code == 0, err
        counts = {row["arch"]: row["scores"]["linear_regions"] for row in strict(out)["rows"]}
        return counts, "all scores were there already" in err

    few, there = again("linear_regions:seed=3,samples=50")
    assert there and few == {row["arch"]: row["scores"]["linear_regions"] for row in rows}
    many, there = again("linear_regions:samples=400")
    assert not there and max(many.values()) > 50


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
    assert code == 2 and "2 best of 2" in out
    assert err.splitlines()[1:] == [f"sigeo rank: r/{file}: Is a directory"]


def test_only_what_the_first_proxy_lacks_ranks_last(capsys, monkeypatch):
    from sigeo.scoring.networks import Networks
    from sigeo.store import Record

    def scored(self, arch, proxies):
        bad = {"sigeo": "nor_conv_1x1" in str(arch), "zico": True}
        return {p.name: Record(None if bad[p.name] else 1.0) for p in proxies}

    monkeypatch.setattr(Networks, "score", scored)
    other = EXAMPLE.replace("skip_connect~0", "nor_conv_1x1~0")
    Path("a.txt").write_text(f"{EXAMPLE}\n{other}")
    given = ["rank", *SMALL, "--archs-file", "a.txt", "--proxy"]
    for first, second, last, elsewhere in (("sigeo", "zico", 1, 2), ("zico", "sigeo", 2, 1)):
        code, _, err = run(*given, f"{first},{second}", "--out", first, capsys=capsys)
        notes = [
            f"architectures without a finite {first} score, which rank last: {last}",
            f"architectures with another score that is not finite: {elsewhere}",
        ]
        assert code == 0 and err.splitlines()[:2] == notes
        assert (
            f"Best first by {first}; {'; '.join(notes)}."
            in Path(f"{first}/report.html").read_text()
        )


def test_what_a_proxy_notes_on_most_networks_is_said_below_the_table(capsys, monkeypatch):
    from sigeo.scoring.networks import Networks
    from sigeo.store import Record

    def scored(self, arch, proxies):
        found = 1 + len(seen)
        seen.append(arch)
        often = (f"{found}.5 of 64 images have 3 zeros",)
        return {
            "jacov": Record(1.0, {}, often),
            "zico": Record(1.0, {}, often if found == 1 else ()),
        }

    seen = []
    monkeypatch.setattr(Networks, "score", scored)
    given = ["rank", *SMALL, "--archs", "3", "--proxy", "jacov,zico", "--out", "r"]
    code, _, err = run(*given, capsys=capsys)
    said = [line for line in err.splitlines() if "zeros" in line]
    assert code == 0 and len(said) == 1
    assert re.fullmatch(r"jacov, 3 of 3 networks: [123].5 of 64 images have 3 zeros", said[0])


def test_proxies_of_single_samples(capsys):
    names = "sigeo_sample,zico_sample,gradsign,fisher_trace,gradient_noise_scale"
    given = ["rank", *SMALL, "--archs", "3", "--proxy", names, "--json"]
    for more in ([], ["--warmup", "0.1"], ["--lambdas", "1,2,3"]):
        code, out, err = run(*given, *more, capsys=capsys)
        assert code == 0, err
        assert all(row["scores"]["fisher_trace"] > 0 for row in strict(out)["rows"])


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
    Path("a.txt").write_text(f"{arch}\r\n", encoding="utf-8-sig")  # as editors on Windows write it
    code, out, _ = run("rank", *SMALL, "--archs-file", "a.txt", "--json", capsys=capsys)
    assert code == 0 and [row["arch"] for row in strict(out)["rows"]] == [arch]
    Path("a.txt").write_bytes(arch.encode() + b"\n\xff\n")
    code, _, err = run("rank", *SMALL, "--archs-file", "a.txt", capsys=capsys)
    assert code == 2 and err.startswith("sigeo rank: a.txt: expected text in UTF-8, invalid start")


def test_many_networks_in_one_pass(capsys):
    given = (*SMALL, "--archs", "6", "--json")
    one = strict(run("rank", *given, "--many", "off", "--out", "a", capsys=capsys)[1])
    code, out, err = run("rank", *given, "--many", "4", "--out", "b", capsys=capsys)
    assert code == 0 and "scored 4 networks in one pass" in err
    for a, b in zip(one["rows"], strict(out)["rows"], strict=True):
        assert a["arch"] == b["arch"]
        # A ReLU's input within rounding of zero moves single gradients.
        assert a["scores"] == pytest.approx(b["scores"], rel=1e-3)


@pytest.mark.parametrize("value", ["0", "-3", "several"])
def test_a_wrong_number_of_networks_is_refused(value, capsys):
    code, _, err = run("rank", *SMALL, f"--many={value}", capsys=capsys)
    assert code == 2 and "--many: must be auto, off or a whole number from 1" in err


def test_candidates_are_scored_one_by_one(capsys):
    given = ("--init", "candidate", "--warmup", "0.1", "--many", "4")
    code, _, err = run("rank", *SMALL, *given, capsys=capsys)
    assert code == 2 and "--many: networks that are warmed up alone are scored one by one" in err


def test_many_that_a_space_does_not_serve_is_said(capsys):
    given = ("--space", "mlp", "--data", "digits", "--archs", "2", "--batch-size", "4")
    code, _, err = run("rank", *given, "--proxy", "zico_sample", "--many", "2", capsys=capsys)
    assert code == 0 and "--many: on mlp these proxies need networks one by one" in err


def test_many_without_a_proxy_that_can_be_measured_so_is_refused(capsys):
    given = (*SMALL, "--proxy", "params,synflow", "--many", "4")
    code, _, err = run("rank", *given, capsys=capsys)
    assert code == 2 and "--many: has no effect on params, synflow" in err
