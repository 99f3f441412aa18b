"""The verb correlate."""

from __future__ import annotations

import contextlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sigeo import spaces
from sigeo.cli import console
from sigeo.tables import FEWEST, spearman
from tests.conftest import shared_file
from tests.sigeo.cli.helpers import EXAMPLE, SMALL, run, strict


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
        (
            "s.json",
            b'{"rows": [{"arch": "a", "scores": {"zico": 1}, "standing": 0.5}]}',
            "s.json: expected the JSON of sigeo rank (TypeError 'float' object",
        ),
        (
            "s.json",
            b'{"rows": [{"arch": "a", "scores": {"zico": 1}}, '
            b'{"arch": "b", "scores": {"zico": 1}, "standing": 0}]}',
            "s.json: expected the JSON of sigeo rank (KeyError 'standing')",
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


@pytest.mark.parametrize(
    ("head", "columns"),
    [
        (b"{", {}),
        (b"\xff", {}),
        (b"[]", {}),
        (b"{}", {}),
        (b'{"proxies": 1}', {}),
        (b'{"proxies": ["synflow"]}', {}),
        (b'{"proxies": ["zico"]}', {"zico": ["1", "2", "3"]}),
        (b'{"proxies": ["zico"]}', {"standing": [0, None, 1]}),
        (b'{"proxies": ["zico"]}', {"standing": [0.0, 1.0, 2.0]}),
    ],
)
@pytest.mark.parametrize("verb", ["correlate", "report"])
def test_a_ranking_that_is_damaged(verb, head, columns, capsys):
    table = pa.table({"arch_str": ["a", "b", "c"], "zico": [1.0, 2.0, 3.0], **columns})
    parquet.write_table(table.replace_schema_metadata({"sigeo": head}), "s.parquet")
    Path("t.csv").write_text("arch_str,acc\na,1\nb,2\nc,3\n")
    of = ["--scores", "s.parquet", "--table", "t.csv", "--metric", "acc"]
    code, out, err = run(verb, *(of if verb == "correlate" else ["s.parquet"]), capsys=capsys)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert "s.parquet: damaged, its metadata and columns are not those of sigeo rank" in err


@pytest.mark.parametrize("lacks", ["env", "settings", "seconds"])
def test_a_report_of_a_ranking_that_is_damaged(lacks, capsys):
    head = {"proxies": ["zico"], "space": "s", "data": "d", "settings": {}, "env": {}}
    columns = {"arch_str": ["a"], "zico": [1.0], "rank": [1], "index": [0], "seconds": [0.5]}
    columns |= {"notes": [[]]}
    for place in (head, columns):
        place.pop(lacks, None)
    table = pa.table(columns).replace_schema_metadata({"sigeo": json.dumps(head)})
    parquet.write_table(table, "s.parquet")
    code, out, err = run("report", "s.parquet", capsys=capsys)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert "s.parquet: damaged, not what sigeo rank wrote (KeyError: " in err


def test_a_metric_that_seems_to_be_a_code_is_said_to_be_one(capsys):
    rows = [f"a{place},{place},{place / 3}" for place in range(17)]
    Path("t.csv").write_text("\n".join(["arch_str,index,acc", *rows]))
    given = ["correlate", "--scores", "t.csv", "--table", "t.csv", "--json", "--metric"]
    for metric, said in (("index", 1), ("acc", 0)):
        code, out, err = run(*given, metric, capsys=capsys)
        assert code == 0 and strict(out)["column"] == metric
        told = "--metric: index seems to be a code and not a result: it numbers the rows, from 0"
        assert err.count(told) == said


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
    for scores in (folder, folder / "scores.parquet", "s.json", "s.csv"):
        given = ["correlate", "--scores", str(scores), "--table", "t.csv", "--metric", "acc"]
        code, out, _ = run(*given, "--json", capsys=capsys)
        results.append(strict(out)["proxies"])
        assert code == 0 and set(results[-1]) == {"sigeo", "zico", "params", "flops"}
        assert results[-1]["sigeo"] == results[0]["sigeo"]
        assert results[-1]["sigeo"]["spearman"]["value"] == pytest.approx(-1)
    top = {"threshold": "2", "top": "2", "draws": "3"}
    options = [part for name, value in top.items() for part in (f"--{name}", value)]
    code, out, _ = run(*given, *options, "--json", capsys=capsys)
    found, worst = strict(out)["proxies"]["sigeo"], 1 - 1 / len(rows)
    assert code == 0 and found["pick"] == {
        "value": 0,
        "regret": len(rows) - 1,
        "percentile": pytest.approx(100 / len(rows)),
    }
    assert found["random_surpasses"] == pytest.approx(1 - (1 - worst) ** 3)
    assert found["sparse_kendall"] < 0 and (found["top"], found["top_hits"]) == (2, 0)
    assert found["top_kendall"] is None
    code, out, err = run(*given, *options, capsys=capsys)
    assert code == 0 and "Kendall" in out and "percentile" in out
    assert "Kendall, best 2: takes 5 architectures or more" in err and "larger" not in err


def test_a_ranking_of_two_architectures_has_no_correlation(capsys):
    Path("t.csv").write_text("arch_str,acc\na,1\nb,2\nc,3\n")
    Path("s.csv").write_text("arch_str,zico\na,1\nx,2\n")
    given = ["correlate", "--scores", "s.csv", "--table", "t.csv", "--metric", "acc"]
    code, out, err = run(*given, capsys=capsys)
    message = "needs values of at least 3 of the architectures scored, t.csv has 1 of 2"
    assert (code, out, err) == (2, "", f"sigeo correlate: --table: {message}\n")


def test_correlate_with_the_published_table(ranking, capsys):
    folder, _ = ranking
    table = str(shared_file("data/nasbench201.csv.gz"))
    given = ["correlate", "--scores", str(folder / "scores.parquet"), "--table", table]
    code, out, _ = run(*given, "--metric", "cifar10.test", "--json", capsys=capsys)
    document = strict(out)
    assert code == 0 and document["column"] == "cifar10_test_200"
    assert set(document["proxies"]) == {"sigeo", "zico", "params", "flops"}


def test_undefined_correlations_come_last(capsys):
    from sigeo.cli.correlate import _show
    from sigeo.tables.correlation import Correlation, Estimate

    def found(value):
        return Correlation(Estimate(value, value, value), Estimate(value, value, value), 5, 0)

    values = {"a": 0.2, "b": math.nan, "c": -0.9, "d": math.nan, "e": 0.5}
    _show("acc", 5, 5, {name: found(value) for name, value in values.items()})
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line[0] in "│┃"]
    assert shown == ["proxy", "c", "e", "a", "b", "d"]


@pytest.mark.parametrize("suffix", ["parquet", "json", "csv"])
def test_costs_beside_the_scores_of_an_elastic_space(suffix, capsys):
    given = ["rank", "--space", "mlp", "--size", "widths=8,24,64", "--size", "depths=1,3"]
    given += [*SMALL[4:], "--archs", "8", "--proxy", "grad_norm", "--out", "r", "--json"]
    code, text, err = run(*given, capsys=capsys)
    assert code == 0, err
    archs = [row["arch"] for row in strict(text)["rows"]]
    space = spaces.get("mlp", spaces.InputShape(1, 8, 10), widths=(8, 24, 64), depths=(1, 3))
    flops = [space.cost(space.parse(arch)).flops for arch in archs]
    rows = [f'"{arch}",{number}\n' for arch, number in zip(archs, flops, strict=True)]
    Path("t.csv").write_text("arch_str,acc\n" + "".join(rows))
    Path("r.json").write_text(text)
    scores = {"parquet": "r", "json": "r.json", "csv": "t.csv"}[suffix]
    given = ["correlate", "--scores", scores, "--table", "t.csv", "--metric", "acc", "--json"]
    code, out, err = run(*given, "--bootstrap", "10", capsys=capsys)
    found = strict(out)["proxies"]
    assert code == 0
    if suffix == "csv":  # a table of scores does not say which sizes it is of
        assert set(found) == {"acc"} and "params and flops: not known" in err
    else:
        assert set(found) == {"grad_norm", "params", "flops"} and "not known" not in err
        assert found["flops"]["spearman"]["value"] == pytest.approx(1)


@pytest.fixture
def scores_of_mlps(monkeypatch):
    """A ranking's JSON of three MLPs that a table has and a string that is none."""
    space = spaces.get("mlp", spaces.InputShape(1, 8, 10), widths=(8, 24, 64), depths=(1, 3))
    archs = [str(arch) for arch in spaces.distinct(space, 3, random.Random(0))]
    rows = [f'"{arch}",{i}\n' for i, arch in enumerate(archs)]
    Path("t.csv").write_text("arch_str,acc\n" + "".join(rows))
    reported = []

    @contextlib.contextmanager
    def progress(what):
        yield lambda *counts: reported.append(counts)

    monkeypatch.setattr(console, "progress", progress)
    document = {
        "settings": {"space": space.describe()},
        "rows": [{"arch": arch, "scores": {"zico": i}} for i, arch in enumerate([*archs, "none"])],
    }
    return document, reported


def correlated(document, capsys):
    Path("s.json").write_text(json.dumps(document))
    given = ["correlate", "--scores", "s.json", "--table", "t.csv", "--metric", "acc", "--json"]
    code, out, err = run(*given, "--bootstrap", "10", capsys=capsys)
    assert code == 0, err
    return set(strict(out)["proxies"]), err


def test_costs_are_counted_for_what_the_table_has_and_say_how_far(scores_of_mlps, capsys):
    document, reported = scores_of_mlps
    assert correlated(document, capsys) == ({"zico", "params", "flops"}, "")
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_equal_networks_among_the_architectures_are_counted(capsys):
    rest = "|none~0|none~1|+|skip_connect~0|none~1|none~2|"
    archs = [EXAMPLE, f"|none~0|+{rest}", f"|nor_conv_3x3~0|+{rest}", f"|avg_pool_3x3~0|+{rest}"]
    rows = "".join(f"{arch},{i}\n" for i, arch in enumerate(archs))
    Path("t.csv").write_text("arch_str,acc\n" + rows)
    given = ["correlate", "--scores", "t.csv", "--table", "t.csv", "--metric", "acc", "--json"]
    code, out, err = run(*given, "--bootstrap", "10", capsys=capsys)
    assert code == 0 and strict(out)["different"] == 2
    assert "2 different networks among the 4 architectures" in err
    Path("t.csv").write_text("arch_str,acc\nmine,1\nyours,2\nhers,3\n")
    code, out, err = run(*given, "--bootstrap", "10", capsys=capsys)
    assert code == 0 and strict(out)["different"] is None and "different networks" not in err


def test_costs_that_are_not_known_say_why(scores_of_mlps, capsys):
    document, _ = scores_of_mlps
    with open("t.csv", "a", encoding="utf-8") as table:
        table.write("none,7\n")
    names, err = correlated(document, capsys)
    assert names == {"zico"} and err.count("\n") == 1
    assert "params and flops: not known, the scores are of mlp: " in err and "none" in err
    document["settings"]["space"]["name"] = "maze"
    names, err = correlated(document, capsys)
    assert names == {"zico"} and err.count("\n") == 1
    assert "params and flops: not known, the scores are of no space known here (" in err
    assert "'maze'" in err


@pytest.mark.parametrize(("count", "top"), [(4, 4), (7, 5), (60, 6)])
def test_the_best_are_a_tenth_but_as_many_as_tau_takes(count, top, capsys):
    rows = "".join(f"mine{i},{i}\n" for i in range(count))
    Path("t.csv").write_text("arch_str,acc\n" + rows)
    given = ["correlate", "--scores", "t.csv", "--table", "t.csv", "--metric", "acc"]
    given += ["--bootstrap", "10"]
    code, out, _ = run(*given, "--json", capsys=capsys)
    found = strict(out)["proxies"]["acc"]
    assert code == 0 and found["top"] == top
    assert (found["top_kendall"] is None) == (count < FEWEST)
    code, _, err = run(*given, capsys=capsys)
    said = f"Kendall, best {top}: takes {FEWEST} architectures or more"
    assert code == 0 and (said in err) == (count < FEWEST) and "larger" not in err
    code, _, err = run(*given, "--top", str(count + 1), capsys=capsys)
    assert code == 2 and f"--top: must be at most the {count} architectures ranked, got" in err


@pytest.mark.parametrize("verb", ["correlate", "compare"])
def test_the_help_says_how_many_are_the_best(verb, capsys):
    _, out, _ = run(verb, "--help", capsys=capsys)
    assert f"(default: a tenth, {FEWEST} at least, or all of fewer)" in " ".join(out.split())


def test_scores_of_the_wrong_kind(capsys):
    np.savez("x.npz", a=np.zeros(1))
    Path("x.json").write_text("[]")
    Path("t.csv").write_text("arch_str,acc\nx,1\n")
    for scores in ("x.json", "t.csv"):
        code, _, err = run(
            "correlate", "--scores", scores, "--table", "t.csv", "--metric", "acc", capsys=capsys
        )
        assert code == 2 and err.count("\n") == 1


def test_sums_of_ranks_are_lines_of_their_own(capsys):
    Path("t.csv").write_text("arch_str,acc\n" + "".join(f"a{i},{i}\n" for i in range(5)))
    # The last two are not in the table, and count among the candidates all the same.
    zico, swap = [1, 5, 2, 3, 6, 5.5, 0.5], [4, 1, 3, "", 5, 4.5, 4.25]
    rows = "".join(f"a{i},{z},{s}\n" for i, (z, s) in enumerate(zip(zico, swap, strict=True)))
    Path("s.csv").write_text("arch_str,zico,swap\n" + rows)
    given = ["correlate", "--scores", "s.csv", "--table", "t.csv", "--metric", "acc"]
    sums = ["--rank-sum", "zico,swap", "--log-rank-sum", "swap, zico", "--rank-sum", "swap,zico"]
    code, out, _ = run(*given, *sums, "--json", capsys=capsys)
    assert code == 0
    found = strict(out)["proxies"]
    expected = {
        "rank_sum(zico,swap)": [6, 7, 6, 5, 14],
        "rank_sum(swap,zico)": [6, 7, 6, 5, 14],
        "log_rank_sum(swap,zico)": np.log([8, 10, 9, 4, 49]).tolist(),
    }
    assert set(found) == {"zico", "swap", *expected}
    for name, values in expected.items():
        rho = spearman(np.array(values, dtype=float), np.arange(5.0))
        assert found[name]["spearman"]["value"] == pytest.approx(rho) and found[name]["count"] == 5
    code, out, _ = run(*given, "--rank-sum", "zico,swap", capsys=capsys)
    assert code == 0 and "rank_sum" in out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--rank-sum", "zico,flops"), "--rank-sum: expected of zico, swap, which have scores, "),
        (("--log-rank-sum", "zico"), "--log-rank-sum: expected two proxies or more, each once, "),
        (("--rank-sum", "zico,zico"), "--rank-sum: expected two proxies or more, each once, "),
        (("--rank-sum", ""), "--rank-sum: expected two proxies or more, each once, got ''"),
    ],
)
def test_sums_of_ranks_that_cannot_be(option, message, capsys):
    Path("t.csv").write_text("arch_str,acc\na,1\nb,2\nc,3\n")
    Path("s.csv").write_text("arch_str,zico,swap\na,1,1\nb,2,2\nc,3,1\n")
    given = ["correlate", "--scores", "s.csv", "--table", "t.csv", "--metric", "acc"]
    code, out, err = run(*given, *option, capsys=capsys)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err
