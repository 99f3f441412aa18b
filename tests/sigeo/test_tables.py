"""Benchmark tables and rank correlation."""

from __future__ import annotations

import gzip
import io
import math
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy import stats

from sigeo import InputError
from sigeo.tables import (
    correlate,
    correlation,
    kendall,
    parts_first,
    read_table,
    repeated_kendall,
    spearman,
    spearman_difference,
    write_parquet,
)
from sigeo.tables.ranking import read_scores
from tests.conftest import shared_file

TEXT = """arch_str,index,cifar10_test_200,cifar10_test_12,cifar10_test_200_run0,note
a,0,90.5,70,,x
b,1,91.5,,91,y
c,2,88,60,87,z
"""


@pytest.fixture(params=["csv", "csv.gz", "parquet"])
def table(request, tmp_path):
    path = tmp_path / f"t.{request.param}"
    if request.param == "csv.gz":
        path.write_bytes(gzip.compress(TEXT.encode()))
    else:
        plain = tmp_path / "plain.csv"
        plain.write_text(TEXT)
        if request.param == "parquet":
            write_parquet(read_table(plain), path)
        else:
            path = plain
    return read_table(path)


def test_columns_and_metrics(table):
    assert table.archs == ("a", "b", "c")
    assert table.lookup("cifar10.test") == {"a": 90.5, "b": 91.5, "c": 88}
    assert table.column("cifar10.test.12") == "cifar10_test_12"
    assert table.column("cifar10_test_200_run0") == "cifar10_test_200_run0"
    assert table.lookup("cifar10.test.12") == {"a": 70, "c": 60}
    with pytest.raises(
        InputError, match="expected a column for metric 'cifar100.test', found index"
    ):
        table.lookup("cifar100.test")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_names_of_files_that_are_not_in_the_encoding_of_the_locale(suffix, tmp_path):
    text = b"arch_str,x\na,1\nb,2\n"
    file = tmp_path / os.fsdecode(b"t\xe9" + suffix.encode())  # no UTF-8
    if suffix == ".parquet":
        with file.open("wb") as out:
            parquet.write_table(pa.table({"arch_str": ["a", "b"], "x": [1.0, 2.0]}), out)
    else:
        file.write_bytes(gzip.compress(text) if suffix == ".csv.gz" else text)
    assert read_table(file).lookup("x") == {"a": 1.0, "b": 2.0}


def test_values_that_are_not_finite_count_as_none(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("arch_str,acc\na,90\nb,inf\nc,-inf\nd,nan\ne,\nb,70\n")
    assert read_table(file).lookup("acc") == {"a": 90, "b": 70}


@pytest.mark.parametrize("text", ["arch_str,caf\xe9\na,1\n", "\x1f\x8b\xff,acc\na,1\n"])
def test_names_of_columns_that_are_not_in_utf8(text, tmp_path):
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.csv: 'utf-8' codec can't decode byte 0x\w\w in"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "column"), [("arch,acc\ncaf\xe9,1\nb,2\n", "arch"), ("arch,set\na,caf\xe9\n", "set")]
)
def test_texts_in_csv_that_are_not_in_utf8(text, column, tmp_path):
    """Arrow takes such columns for ones of bytes."""
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    found = rf"t\.csv: expected texts in UTF-8, found bytes in column {column}$"
    with pytest.raises(InputError, match=found):
        read_table(tmp_path / "t.csv")


def test_bytes_in_parquet_are_refused_as_architectures_alone(tmp_path):
    path, some = tmp_path / "t.parquet", pa.array([b"\xe9"], pa.binary())
    parquet.write_table(pa.table({"arch_str": some, "acc": [1]}), path)
    with pytest.raises(InputError, match=r"t\.parquet: expected texts .* column arch_str$"):
        read_table(path)
    parquet.write_table(pa.table({"arch_str": ["a"], "acc": [1], "weights": some}), path)
    assert read_table(path).lookup("acc") == {"a": 1}


@pytest.mark.parametrize("read", [read_table, read_scores])
def test_texts_in_parquet_that_are_not_in_utf8(read, tmp_path):
    """A file whose bytes are damaged, say: Arrow itself looks at them late."""
    texts = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"arch_str": texts, "acc": [1]}), path)
    with pytest.raises(InputError, match=r"t\.parquet: .*[Ii]nvalid UTF8"):
        read(path)


def test_rows_of_one_architecture_count_as_their_mean(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("arch_str,set,seed,acc\na,x,0,90\na,x,1,91\nb,x,0,80\nb,x,1,\na,y,0,\n")
    assert read_table(file).lookup("acc") == {"a": 90.5, "b": 80}
    file.write_text("arch_str,set,seed,acc\na,x,0,90\nb,x,0,80\na,y,0,10\n")
    with pytest.raises(InputError, match="measurement again, got set 'x' and 'y' of a; keep the"):
        read_table(file).lookup("acc")


def test_rows_of_one_architecture_on_other_data_as_pandas_categories(tmp_path):
    path, sets = tmp_path / "t.parquet", pa.array(["x", "y"]).dictionary_encode()
    parquet.write_table(pa.table({"arch_str": ["a", "a"], "set": sets, "acc": [90, 10]}), path)
    with pytest.raises(InputError, match="the same measurement again, got set 'x' and 'y' of a;"):
        read_table(path).lookup("acc")


def test_columns_of_codes_are_told_from_results(tmp_path):
    file = tmp_path / "t.csv"
    rows = [f"a{i},{i},{i % 5},{i % 5 + 60},{i % 5}.5,{i * i}" for i in range(20)]
    file.write_text("\n".join(["arch_str,index,op0,acc,loss,flops", *rows]))
    table = read_table(file)
    assert table.code_like("index") == "it numbers the rows, from 0 to 19"
    assert table.code_like("op0") == "it holds the whole numbers 0 to 4 alone"
    assert not any(map(table.code_like, ("acc", "loss", "flops")))


def test_tables_that_are_none(tmp_path):
    with pytest.raises(InputError, match="table: found no file"):
        read_table(tmp_path / "none.csv")
    for name, text, message in (
        ("a.csv", "architecture,x\na,1\n", "expected a column arch_str, found architecture, x"),
        ("b.csv", "", "b.csv: "),
        ("c.csv", "arch_str,x\na,1\nb\n", "c.csv: "),
        ("d.parquet", "nothing", "d.parquet: "),
        ("e.csv.gz", "nothing", "e.csv.gz: "),
        ("g.csv", "arch_str,x,x\na,1,2\n", "g.csv: expected each column once, found x more"),
        ("f.txt", "arch_str\n", "expected .csv, .csv.gz or .parquet, got f.txt"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / name)


def test_of_many_columns_the_message_names_those_of_a_similar_name(tmp_path):
    names = [f"{data}_{part}_{n}" for data in ("cifar10", "imagenet") for part in ("test", "time")
             for n in (12, 200)]  # fmt: skip
    path = tmp_path / "t.csv"
    path.write_text(f"arch_str,{','.join(names)}\na{',1' * 8}\n")
    with pytest.raises(InputError) as caught:
        read_table(path).column("cifar10.tets")
    message = str(caught.value)
    assert "found 8 numeric columns, cifar10_test_12, " in message and "imagenet" not in message
    with pytest.raises(InputError, match="found 8 numeric columns, none of such a name"):
        read_table(path).column("nosuch")


def test_a_parquet_file_with_a_column_twice(tmp_path):
    columns = [pa.array(["a"]), pa.array([1]), pa.array([2])]
    parquet.write_table(pa.table(columns, names=["arch_str", "x", "x"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="t.parquet: expected each column once, found x more"):
        read_table(tmp_path / "t.parquet")


def test_a_column_is_found_by_its_own_name_first(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arch_str,val.acc,val_acc,top.1_12,top.1_200\na,1,2,3,4\n")
    table = read_table(path)
    assert table.column("val.acc") == "val.acc" and table.column("val_acc") == "val_acc"
    assert table.column("top.1") == "top.1_200"


def test_converting_keeps_columns_types_and_metadata(tmp_path):
    plain, path = tmp_path / "t.csv", tmp_path / "t.parquet"
    plain.write_text("note,arch,seed,acc\nx,a,9007199254740993,1.5\ny,b,,2\n")
    write_parquet(read_table(plain), path)
    whole = parquet.read_table(path)
    assert whole.column_names == ["note", "arch_str", "seed", "acc"]
    assert whole.schema.types == [pa.string(), pa.string(), pa.int64(), pa.float64()]
    assert whole["seed"].to_pylist() == [9007199254740993, None]
    parquet.write_table(whole.replace_schema_metadata({"key": "value"}), path)
    before = parquet.read_table(path)
    write_parquet(read_table(path), path)  # in the place of its source
    assert parquet.read_table(path).equals(before, check_metadata=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.parquet"]


def test_a_conversion_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"arch_str": ["a"], "acc": [1]}), path)
    before = path.read_bytes()

    def fails(_, place):
        place.write(b"half")
        raise OSError(28, "No space left on device")

    table = read_table(path)
    monkeypatch.setattr(parquet, "write_table", fails)
    with pytest.raises(InputError, match="t.parquet: No space left on device"):
        write_parquet(table, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_coefficients_equal_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 12, 40).astype(float), rng.normal(size=40).round(1)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
        assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert math.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert math.isnan(kendall(np.ones(5), np.arange(5.0)))


def test_what_is_not_finite_ranks_last_and_is_counted():
    truth = np.arange(10.0)
    scores = np.arange(10.0)
    scores[:3] = [-np.inf, np.nan, np.inf]
    result = correlate(scores, truth)
    lowest = np.where(np.arange(10) < 3, -1.0, np.arange(10.0))
    assert result.not_finite == 3 and result.count == 10
    assert result.spearman.value == pytest.approx(spearman(lowest, truth))


def test_parts_rank_first_whatever_the_scores():
    scores, standing = np.array([9.0, np.nan, 1.0, 2.0, np.inf]), np.array([0, 0, 1, 1, 1])
    assert np.argsort(parts_first(scores, standing)).tolist() == [1, 0, 4, 2, 3]
    truth = np.array([1.0, 0.0, 3.0, 4.0, 2.0])
    result = correlate(scores, truth, standing=standing)
    assert result.not_finite == 2 and result.spearman.value == pytest.approx(1)
    assert correlate(scores, truth).spearman.value < 0.9


def test_intervals_cover_the_true_correlation():
    rng = np.random.default_rng(1)
    true, hits = 6 / math.pi * math.asin(0.7 / 2), 0
    for seed in range(60):
        x = rng.normal(size=(2, 150))
        a, b = x[0], 0.7 * x[0] + math.sqrt(1 - 0.49) * x[1]
        estimate = correlate(a, b, resamples=200, seed=seed).spearman
        hits += estimate.low <= true <= estimate.high
    assert hits >= 51  # 95 % of 60 is 57; fewer than 51 has probability below 1 %


def test_same_seed_same_interval():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 50))
    assert correlate(a, b, seed=3) == correlate(a, b, seed=3) != correlate(a, b, seed=4)


def test_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=300)
    first = truth + 0.6 * rng.normal(size=300)
    second = first + 0.6 * rng.normal(size=300)
    difference = spearman_difference(first, second, truth)
    assert difference.value == pytest.approx(spearman(first, truth) - spearman(second, truth))
    alone = [correlate(scores, truth).spearman for scores in (first, second)]
    unpaired = math.hypot(*(estimate.high - estimate.low for estimate in alone))
    assert difference.low > 0 and difference.high - difference.low < unpaired
    assert spearman_difference(first, first, truth).high == 0


def test_a_difference_counts_scores_that_do_not_vary_as_no_correlation():
    """Where only one architecture has another score, a third of the resamples lack it."""
    truth = np.arange(8.0)
    flat = np.where(truth == 7, 1.0, 0.0)
    found = spearman_difference(flat, truth, truth)
    assert found.value == pytest.approx(spearman(flat, truth) - 1)
    assert found.low == -1 < found.value < found.high < 0  # 0 at the upper end before
    assert math.isnan(spearman_difference(np.ones(8), truth, truth).value)


@pytest.mark.parametrize("count", [6, 8])
def test_an_interval_holds_its_estimate_where_one_architecture_alone_differs(count):
    """A third of the resamples lack it and count as 0: left out, the interval lay beside it."""
    scores, truth = np.ones(count), np.random.default_rng(0).permutation(count).astype(float)
    scores[truth.argmin()] = 0
    for estimate in (
        correlate(scores, truth).kendall,
        correlate(scores, truth).spearman,
        repeated_kendall([scores, scores], truth),
    ):
        assert estimate.low == 0 < estimate.value < estimate.high, estimate
        reverse = correlate(-scores, truth).kendall
        assert reverse.low < reverse.value < reverse.high == 0


def test_an_interval_of_three_architectures_holds_its_estimate_to_the_bit():
    scores, truth = np.array([0.0, 0.0, 1.0]), np.arange(3.0)
    for seed in range(5):
        found = correlate(scores, truth, seed=seed).kendall
        assert found.low <= found.value <= found.high


def test_undefined_correlation_has_no_interval():
    result = correlate(np.ones(8), np.arange(8.0))
    assert math.isnan(result.spearman.value) and math.isnan(result.kendall.low)


def test_published_correlations_of_the_baselines():
    table = read_table(shared_file("data/nasbench201.csv.gz"))
    truth = table.values["cifar10_test_200"]
    assert spearman(table.values["flops_cifar10"], truth) == pytest.approx(0.732, abs=5e-4)
    assert spearman(table.values["params_cifar10"], truth) == pytest.approx(0.753, abs=5e-4)


def test_repeated_rankings_are_averaged_and_compared_in_pairs():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(80)
    good = [truth + rng.standard_normal(80) for _ in range(3)]
    shifted = [run + 0.05 * rng.standard_normal(80) for run in good]
    good[0][3] = math.nan
    mean = repeated_kendall(good, truth, resamples=200)
    each = [kendall(np.where(np.isnan(run), -np.inf, run), truth) for run in good]
    assert mean.value == pytest.approx(np.mean(each)) and mean.low < mean.value < mean.high
    apart = repeated_kendall(shifted, truth, resamples=200)
    paired = repeated_kendall(shifted, truth, baseline=good, resamples=200)
    assert paired.value == pytest.approx(apart.value - mean.value)
    assert paired.high - paired.low < (apart.high - apart.low) / 3
    none = repeated_kendall(good, truth, baseline=good, resamples=50)
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_resampled_kendall_is_that_of_each_resample(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, 30).astype(float), rng.standard_normal(30).round(1)
    a[4] = -np.inf
    draws = rng.integers(0, 30, (40, 30))
    draws[0] = 7  # one architecture alone: undefined
    one_by_one = np.array([kendall(a[draw], b[draw]) for draw in draws])
    np.testing.assert_allclose(correlation._kendalls(a, b, draws), one_by_one, atol=1e-14)
    monkeypatch.setattr(correlation, "_LARGE", 10)
    np.testing.assert_array_equal(correlation._kendalls(a, b, draws), one_by_one)


def test_only_the_callers_thread_reads(table, tmp_path, monkeypatch):
    """A thread of Arrow's that lets go of a file of Python's at the process's end aborts it."""
    readers = []

    class Watched(io.FileIO):
        def __getattribute__(self, name):
            readers.append(threading.get_ident())
            return super().__getattribute__(name)

    monkeypatch.setattr(Path, "open", lambda path, mode: Watched(path, mode))
    read_table(table.path)
    ranking = pa.table({"arch_str": ["a"], "zico": [1.0]})
    head = {"sigeo": '{"proxies": ["zico"]}'}
    parquet.write_table(ranking.replace_schema_metadata(head), tmp_path / "scores.parquet")
    read_scores(tmp_path / "scores.parquet")
    assert set(readers) == {threading.get_ident()}
