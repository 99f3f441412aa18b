"""Names that options take: those that the packages know, and refused before these are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from sigeo import proxies, spaces
from sigeo.cli import names, shared_weights
from sigeo.fewshot import choice, kind_functions, metrics, partition, recipes
from sigeo.space_sizes import SIZES
from sigeo.supernet.samplers import named
from tests.sigeo.cli.helpers import SMALL, run, strict

REFUSED = (
    ("rank", "--proxy", "zicoo"),
    ("score", "--arch", "x", "--proxy", "zico,zicoo"),
    ("rank", "--proxy", "zico", "--lambdas", "1,1,0"),
    ("score", "--arch", "x", "--proxy", "zico", "--inner-lr", "1"),
    ("rank", "--proxy", "zen:beta=1"),
    ("rank", "--proxy", "zen:repeats"),
    ("split", "--metric", "zen:beta=1"),
    ("split", "--metric", "lid:k=2"),
    ("rank", "--proxy", "zico,repeats=2"),
    ("rank", "--proxy", ","),
    ("rank", "--proxy", "zico,zico"),
    ("rank", "--proxy", "zen:seed=1,seed=2"),
    ("rank", "--proxy", "zen:seed=1,zen:seed=2"),
    ("score", "--arch", "x", "--proxy", "zen:repeats=2,naswot:repeats=2"),
    ("score", "--arch", "x", "--proxy", "sigeo:lambdas=[1,2,3]", "--lambdas", "1,1,0"),
    ("compare", "--proxy", "zicoo"),
    ("compare", "--recipes", "fair", "fairr:width=1"),
    ("compare",),  # without a table
    ("warmup", "--recipe", "fairr"),
    ("warmup", "--recipe", "fair:foo=1"),
    ("warmup", "--recipe", "one-shot:paths=2,paths=3"),
    ("warmup", "--warmup-lr", "0"),
    ("warmup", "--size", "foo=1"),
    ("compare", "--recipes", "efs-nas:groups=[[0, 1], [2], [3]],foo=1"),
    ("compare", "--table", "none.csv"),
    ("compare", "--table", os.devnull, "--recipes", "fair", "few-shot", "fair"),
    ("compare", "--table", os.devnull, "--recipes", "fair:width=0.5", "fair:width=0.50"),
    ("compare", "--table", os.devnull, "--recipes", "fair:width=1,width=2"),
    ("compare", "--table", os.devnull, "--budget", "63"),
    ("compare", "--table", os.devnull, "--proxy", "zico,zico"),
    ("split", "--kind", "colour"),
    ("split", "--table", "none.csv"),
    ("warmup", "--recipe", "fair", "--paths", "2"),
    ("warmup", "--epochs", "2", "--warmup", "0"),
    ("split", "--metric", "zicoo"),
    ("split", "--partition", "exactly"),
    ("split", "--choice", "between"),
    ("split", "--groups", "1"),
    ("split", "--factors", "1"),
    ("split", "--table", os.devnull, "--top", "0"),
    ("train", "--space", "nasbench"),
    ("train", "--data", "digitz"),
    ("train", "--space", "mlp", "--channels", "4"),
    ("train", "--archs-file", "none.txt"),
    ("train", "--share", "0"),
    ("rank", "--space", "mlp", "--size", "widths=a,8"),
    ("rank", "--size", "channels=4,8"),
    ("rank", "--space", "mlp", "--size", "widths=8,4"),
    ("rank", "--space", "mlp", "--size", "dropout=1"),
    ("rank", "--space", "mobilenet", "--size", "kernels=3,4"),
    ("rank", "--space", "transformer", "--size", "pool=class,mean"),
    ("rank", "--space", "transformer", "--size", "pool=max"),
    ("rank", "--space", "transformer", "--size", "pool=1"),
    ("rank", "--table", "none.csv"),
    ("rank", "--table", "."),
    ("rank", "--table", ""),
    ("rank", "--archs-file", "."),
    ("compare", "--table", "."),
    ("rank", "--init", "supernet:none.safetensors"),
    ("rank", "--init", "family:none"),
    ("score", "--arch", "x", "--cells", "1", "--size", "cells=2"),
    ("report", "none"),
    ("tables", "none.csv"),
    ("rank", "--device", "gpu"),
    ("rank", "--init", "scratchy"),
    ("rank", "--init", "candidate"),
    ("rank", "--metric", "acc"),
    ("rank", "--epochs", "2"),
    ("rank", "--dropout", "0.1"),
    ("score", "--model", "nowhere"),
    ("score", "--model", "nowhere:made"),
    ("score", "--model", "nowhere.net:made"),
    ("score", "--model", "some/net.py:made"),
    ("rank", "--out", os.devnull),
    ("split", "--out", f"{os.devnull}/run"),
    ("train", "--out", ""),
    ("score", "--model", "a:b", "--model-args", "3"),
    ("correlate", "--scores", "none.csv", "--table", os.devnull, "--metric", "x"),
    ("correlate", "--scores", "s", "--table", os.devnull, "--metric", "x", "--rank-sum", "zico"),
    ("tables", os.devnull, "--convert", "out.csv"),
)


def test_the_names_are_those_that_the_packages_know():
    assert list(SIZES) == spaces.names()
    for space, sizes in SIZES.items():
        assert list(sizes) == list(spaces.sizes_of(space))
    assert list(names.PROXIES) == proxies.names()
    for proxy, known in names.PROXIES.items():
        assert list(known) == list(proxies.options_of(proxy))
    assert list(names.RECIPES) == recipes.names()
    for recipe, known in names.RECIPES.items():
        assert list(known) == list(recipes.entry(recipe).options)
    assert list(names.METRICS) == metrics.names()
    assert list(names.PARTITIONS) == partition.names()
    assert list(names.CHOICES) == choice.names()
    assert list(names.KINDS) == kind_functions.names()
    assert shared_weights.SAMPLERS == named.NAMES


def test_wrong_arguments_are_refused_before_anything_heavy_is_imported():
    code = f"""
import sys
from sigeo.cli import main
for arguments in {REFUSED}:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    heavy = {{"torch", "numpy", "pyarrow", "scipy", "sklearn"}} & sys.modules.keys()
    assert code == 2 and not heavy, (arguments, code, heavy)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == len(REFUSED) and "VERB" not in result.stderr


def test_what_a_table_lacks_is_said_before_torch_is_imported(tmp_path):
    (tmp_path / "t.csv").write_text("arch_str,acc\na,1\nb,2\nc,3\nd,\n")
    wrong = ("--table", "t.csv", "--metric", "auc")
    given = (
        ("compare", "--table", "t.csv", "--metric", "acc", "--archs", "4"),
        ("compare", *wrong),
        ("rank", *wrong),
        ("split", "--table", "t.csv", "--metric-column", "auc"),
        ("report", "t.csv", *wrong),
        ("correlate", "--scores", "t.csv", *wrong),
    )
    code = f"""
import sys
from sigeo.cli import main
for arguments in {given}:
    assert main(arguments) == 2 and "torch" not in sys.modules, arguments
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    first, *others = result.stderr.splitlines()
    assert "--archs: t.csv has 3 architectures with acc, got 4" in first
    assert len(others) == len(given) - 1
    assert all("t.csv: expected a column for metric 'auc', found acc" in line for line in others)


def test_a_sum_of_what_has_no_scores_is_refused_before_the_table_is_read(tmp_path):
    columns = {"arch_str": ["a", "b"], "zico": [1.0, 2.0]}
    ranking = pa.table(columns).replace_schema_metadata({"sigeo": '{"proxies": ["zico"]}'})
    parquet.write_table(ranking, tmp_path / "scores.parquet")
    (tmp_path / "t.csv").write_text("no table at all")
    given = ["correlate", "--scores", ".", "--table", "t.csv", "--metric", "acc"]
    code = f"""
import sys
from sigeo.cli import main
for option in ("--rank-sum", "--log-rank-sum"):
    assert main([*{given}, option, "zico,swap"]) == 2
    assert not {{"torch", "scipy"}} & sys.modules.keys(), option
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("rank-sum: expected of zico, which have scores, got swap") == 2


@pytest.fixture
def own(monkeypatch):
    """A proxy and a recipe that are not the project's, both called "own"."""
    for registry, known in (
        (proxies.registry, "_FACTORIES"),
        (recipes.registry, "_ENTRIES"),
    ):
        monkeypatch.setattr(registry, known, dict(getattr(registry, known)))

    @proxies.register("own")
    def negative_size():
        score = proxies.OnModel(lambda model, inputs: proxies.Outcome(-len(list(model.modules()))))
        return proxies.Proxy(name="own", measurement=score, source="here", cost="free")

    @recipes.recipe("own", "here")
    def own_recipe(space, *, mine=1):
        return recipes.get("one-shot", space)


def test_proxies_and_recipes_of_ones_own_are_taken(own, capsys):
    given = ["rank", *SMALL, "--archs", "2", "--proxy", "params,own", "--json"]
    code, out, err = run(*given, capsys=capsys)
    assert code == 0, err
    assert all(row["scores"]["own"] < 0 for row in strict(out)["rows"])
    given = ["split", *SMALL, "--metric", "own", "--repeats", "1", "--leaves", "2", "--json"]
    code, out, err = run(*given, capsys=capsys)
    assert code == 0, err
    assert strict(out)["plan"]["settings"]["splitting"]["metric"]["proxy"]["name"] == "own"
    given = ["warmup", *SMALL[:4], "--recipe", "own:mine=2", "--warmup-steps", "1", "--json"]
    code, out, err = run(*given, capsys=capsys)
    assert code == 0, err
    assert strict(out)["settings"]["recipe"] == "own"


def test_where_there_are_ones_own_a_wrong_name_is_refused_with_them(own, capsys):
    for arguments, known in (
        (["rank", "--proxy", "zicoo"], " own,"),
        (["warmup", "--recipe", "fairr"], ", own,"),
        (["warmup", "--recipe", "own:your=1"], "of own, whose options are mine, got 'your=1'"),
    ):
        code, _, err = run(*arguments, capsys=capsys)
        assert code == 2 and known in err and err.count("\n") == 1
