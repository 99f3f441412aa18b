"""rank --init family:DIR: each architecture on the supernet that serves it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sigeo import data, proxies, score, spaces
from sigeo.fewshot import Cut, Node, Plan
from sigeo.fewshot.family import Family, family_weights, load_family
from sigeo.scoring.networks import Networks, Protocol
from sigeo.scoring.shared_weights import SystemWeights, load_shared_weights
from sigeo.spaces import Product
from sigeo.supernet import load_checkpoint
from sigeo.supernet.checkpoint import save_checkpoint
from sigeo.tables import kendall, read_table
from tests.sigeo.cli.helpers import SMALL, run, strict

SPACE = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=2, cells=1)
RANK = ["rank", *SMALL, "--threads", "1", "--archs-file", "archs.txt", "--json", "--out", "r"]
FAMILY = ["--init", "family:f"]


def save_family(folder, *, standing=(), first_seed=1):
    """Three supernets, by the operation on the first edge."""
    plan = Plan(Node.divided(Product.whole(SPACE), Cut(0, ((0, 1), (2, 3), (4,)))))
    supernets = tuple(SPACE.supernet(seed=first_seed + leaf) for leaf in range(3))
    Path(folder).mkdir(exist_ok=True)
    study = {"space": SPACE.describe()}
    Family(plan, supernets, standing).save(Path(folder), {"study": study, "recipe": "few-shot"})
    return load_family(folder, SPACE)


@pytest.fixture
def archs():
    """Of every leaf; of some the pruned form is another leaf's."""
    drawn = spaces.distinct(SPACE, 14, random.Random(0))
    text = "|avg_pool_3x3~0|+|nor_conv_3x3~0|none~1|+|nor_conv_1x1~0|none~1|nor_conv_3x3~2|"
    other = text.replace("avg_pool_3x3~0", "nor_conv_3x3~0")
    found = [*drawn, SPACE.parse(text), SPACE.parse(other)]
    Path("archs.txt").write_text("\n".join(map(str, found)), encoding="utf-8")
    return found


def scores_of(document):
    return {row["arch"]: row["scores"] for row in document["rows"]}


def by_hand(family, archs, names):
    """Each architecture alone, on a plain module with the weights of its leaf."""
    networks = Networks(
        SPACE, data.load("digits"), Protocol((proxies.get("params"),), batch_size=16, batches=2)
    )
    for supernet in family.supernets:
        supernet.to(memory_format=torch.channels_last)  # as a ranking lays weights out on a CPU
    found = {}
    for arch in archs:
        scores = score(family.supernet(arch).subnet(arch), networks.batches, names)
        found[str(arch)] = {name: scores[name].value for name in names}
    return found


@pytest.mark.parametrize("options", [[], ["--no-dedup"]], ids=["dedup", "no-dedup"])
def test_every_architecture_is_scored_on_the_leaf_that_serves_it(options, archs, capsys):
    family = save_family("f")
    served = {family.plan.route(arch) for arch in archs}
    moved = [a for a in archs if family.plan.route(SPACE.pruned(a)) != family.plan.route(a)]
    assert served == {0, 1, 2} and moved
    given = [*RANK, *FAMILY, *options, "--proxy", "zico,grad_norm"]
    code, out, err = run(*given, capsys=capsys)
    assert code == 0, err
    document = strict(out)
    assert scores_of(document) == by_hand(family, archs, ["zico", "grad_norm"])
    assert not any("standing" in row for row in document["rows"])
    assert "standing" not in read_table(Path("r/scores.parquet")).whole.column_names


def test_many_in_one_pass_are_of_one_leaf(archs, capsys):
    family = save_family("f")
    code, out, err = run(*RANK, *FAMILY, "--many", "4", "--proxy", "zico,params", capsys=capsys)
    assert code == 0 and "4 networks in one pass" in err
    expected = by_hand(family, archs, ["zico"])
    for arch, scores in scores_of(strict(out)).items():
        assert scores["zico"] == pytest.approx(expected[arch]["zico"], rel=1e-2), arch
        assert scores["params"] == SPACE.cost(SPACE.parse(arch)).parameters


def test_routes_are_measured_on_one_leaf(archs):
    save_family("f")
    protocol = Protocol(
        (proxies.get("zico"),), "supernet", batches=2, batch_size=16, at_once="auto"
    )
    networks = Networks(SPACE, data.load("digits"), protocol, shared=family_weights("f", SPACE))
    size, routes = networks.choose_at_once(spaces.distinct(SPACE, 64, random.Random(1)))
    assert routes is not None and size >= 1


def test_the_same_family_is_not_scored_twice_and_another_is(archs, capsys, monkeypatch):
    save_family("f")
    given = [*RANK, *FAMILY, "--proxy", "zico"]
    first = strict(run(*given, capsys=capsys)[1])
    known = first["settings"]["checkpoint"]
    assert known["family"]["recipe"] == "few-shot" and len(set(known["weights"])) == 3
    with monkeypatch.context() as patch:
        patch.setattr(Networks, "score", lambda *_: pytest.fail("scored twice"))
        assert strict(run(*given, capsys=capsys)[1])["rows"] == first["rows"]
    save_family("f", first_seed=7)
    other = scores_of(strict(run(*given, capsys=capsys)[1]))
    assert all(other[arch] != scores for arch, scores in scores_of(first).items())


def test_parts_that_the_system_prefers_come_first(archs, capsys):
    family = save_family("f", standing=(0, 2, 1))
    code, out, err = run(*RANK, *FAMILY, "--proxy", "zico", capsys=capsys)
    assert code == 0 and "parts of the space that the system prefers come first" in err
    rows = [(row["arch"], row["scores"]["zico"]) for row in strict(out)["rows"]]
    places = [
        (-family.standing[family.plan.route(SPACE.parse(arch))], -value) for arch, value in rows
    ]
    assert places == sorted(places) and places != sorted(places, key=lambda place: place[1])


def test_what_a_system_prefers_is_written_and_counts_in_correlations(archs, capsys):
    save_family("f", standing=(0, 2, 1))
    text = "arch_str,acc\n" + "".join(f"{arch},{i}\n" for i, arch in enumerate(archs))
    Path("t.csv").write_text(text, encoding="utf-8")
    table = ["--table", "t.csv", "--metric", "acc"]
    code, out, err = run(*RANK, *FAMILY, "--proxy", "zico,params", *table, capsys=capsys)
    assert code == 0, err
    rows = strict(out)["rows"]
    standing = read_table(Path("r/scores.parquet")).values["standing"].tolist()
    assert [row["standing"] for row in rows] == standing == sorted(standing, reverse=True)
    truth = np.array([[str(arch) for arch in archs].index(row["arch"]) for row in rows])
    pairs = [(row["standing"], row["scores"]["zico"]) for row in rows]
    places = [sorted(set(pairs)).index(pair) for pair in pairs]
    expected = {
        "zico": kendall(np.array(places), truth),
        "params": kendall(np.array([row["scores"]["params"] for row in rows]), truth),
    }
    page = Path("r/report.html").read_text(encoding="utf-8")
    assert "Best first by the parts that the system prefers, then by zico" in page
    assert "the parts that the system prefers count first" in page
    assert "supernet of few-shot, plan " in page
    Path("s.json").write_text(out, encoding="utf-8")
    for scores in ("r", "s.json"):
        given = ["correlate", "--scores", scores, *table, "--bootstrap", "10", "--json"]
        code, out, err = run(*given, capsys=capsys)
        assert code == 0 and "parts of the space that the system prefers count first" in err
        document = strict(out)
        assert document["standing"]
        for name, tau in expected.items():
            assert document["proxies"][name]["kendall"]["value"] == pytest.approx(tau)
            assert f"{tau:.3f}" in page
        assert document["proxies"]["zico"]["pick"]["value"] == np.mean(
            [value for value, pair in zip(truth, pairs, strict=True) if pair == pairs[0]]
        )


def test_a_system_without_scale_and_shift_is_ranked_on_as_it_was_trained(archs, capsys):
    entrant = "few-shot:affine=false,before=2,after=1"
    given = ["--recipe", entrant, "--warmup-steps", "40", "--warmup-batch", "16", "--out", "f"]
    code, out, err = run("warmup", *SMALL[:4], *given, "--json", capsys=capsys)
    assert code == 0, err
    assert strict(out)["settings"]["supernet"] == {"affine": False}
    family = load_family("f", SPACE)
    for supernet in family.supernets:
        assert not any("norm" in name for name, _ in supernet.named_parameters())
    code, out, err = run(*RANK, *FAMILY, "--proxy", "zico,grad_norm", capsys=capsys)
    assert code == 0, err
    document = strict(out)
    assert document["settings"]["supernet"] == {"affine": False}
    assert scores_of(document) == by_hand(family, archs, ["zico", "grad_norm"])


@pytest.mark.parametrize("path", ["f", "f/leaf-0.safetensors"])
def test_what_loads_weights_knows_no_options_of_the_command_line(path):
    save_family("f")
    with pytest.raises(SystemWeights) as caught:
        load_shared_weights(Path(path), SPACE, 0)
    assert str(caught.value).startswith(f"checkpoint {path}: ") and "--" not in str(caught.value)


def _a_training():
    save_family("f")
    state, settings = load_checkpoint(Path("f/leaf-0.safetensors"))
    save_checkpoint(Path("final-0.safetensors"), state, {**settings, "phase": "final-0"})


def _plan_alone():
    save_family("f")
    for leaf in range(3):
        Path(f"f/leaf-{leaf}.safetensors").unlink()


def _leaf_missing():
    save_family("f")
    Path("f/leaf-2.safetensors").unlink()


def _leaf_truncated():
    save_family("f")
    leaf = Path("f/leaf-2.safetensors")
    leaf.write_bytes(leaf.read_bytes()[:-8])


def _nothing():
    pass


def _empty():
    Path("f").mkdir()


@pytest.mark.parametrize(
    ("prepare", "given", "message"),
    [
        (save_family, ["--init", "family:f", "--warmup", "0.1"], "--warmup: cannot be given with"),
        (save_family, ["--init", "family:f", "--norm", "tracked"], "--norm: is of shared weights"),
        (
            save_family,
            ["--init", "family:f", "--channels", "3"],
            "family f: made for other networks (channels: there 2, here 3)",
        ),
        (save_family, ["--init", "family:f/plan.json"], "expected the folder of plan.json, got a"),
        (_nothing, ["--init", "family:f"], "--init family: found no folder f"),
        (_empty, ["--init", "family:f"], "plan: found no file f/plan.json"),
        (
            _plan_alone,
            ["--init", "family:f"],
            "no weights, leaf-0.safetensors and so on; warmup --re",
        ),
        (_leaf_truncated, ["--init", "family:f"], "leaf-2.safetensors: damaged or truncated ("),
        (
            save_family,
            ["--init", "supernet:f/plan.json"],
            "--init supernet:f/plan.json: a plan, which says which supernet serves which part of a "
            "space and holds no weights; --init family:DIR takes the folder",
        ),
        (_leaf_missing, ["--init", "family:f"], "found no file f/leaf-2.safetensors"),
        (_nothing, ["--init", "family:"], "--init: must be scratch, candidate, supernet"),
        (
            save_family,
            ["--init", "supernet:f/leaf-0.safetensors"],
            "a supernet of the system few-shot, which may serve a part of the space alone; the "
            "folder that warmup --recipe leaves is taken by --init family:f",
        ),
        (
            _a_training,
            ["--init", "supernet:final-0.safetensors"],
            "a training's checkpoint of the system few-shot, which may serve a part of the space "
            "alone; the folder that warmup --recipe leaves is taken by --init family:DIR",
        ),
        (
            save_family,
            ["--init", "supernet:f"],
            "checkpoint f: expected a file, got a folder; the folder that warmup --recipe leaves",
        ),
    ],
)
def test_what_cannot_be_ranked_on(prepare, given, message, archs, capsys, monkeypatch):
    prepare("f") if prepare is save_family else prepare()

    def load(source):
        raise AssertionError("images are read")

    monkeypatch.setattr(data, "load", load)
    code, out, err = run("rank", *SMALL, *given, capsys=capsys)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err


@pytest.mark.parametrize("name", ["study", "width", "standing"])
def test_a_plan_of_damaged_settings_is_one_line(name, archs, capsys):
    save_family("f")
    document = json.loads(Path("f/plan.json").read_text(encoding="utf-8"))
    document["settings"][name] = {"width": 2, "standing": [1], "study": {"space": 3}}[name]
    Path("f/plan.json").write_text(json.dumps(document), encoding="utf-8")
    code, _, err = run("rank", *SMALL, "--init", "family:f", capsys=capsys)
    assert code == 2 and err.count("\n") == 1, err
