"""sigeo warmup: samplers, norms and dropout, and rankings on what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sigeo import spaces
from sigeo.cli.shared_weights import SAMPLERS
from sigeo.fewshot.family import load_family
from sigeo.supernet import load_checkpoint
from sigeo.supernet.samplers.named import NAMES
from tests.sigeo.cli.helpers import SMALL, run, strict

WARM = ["warmup", *SMALL[:4], "--warmup-steps", "2", "--warmup-batch", "16", "--out", "w"]
HELD = 1437 // 10  # images of the digits that scores of greedy paths take


def test_the_verb_knows_every_sampler():
    assert SAMPLERS == NAMES


@pytest.mark.parametrize(
    ("options", "trained", "evaluated"),
    [
        (["--sampler", "operations", "--paths", "2"], 64, 0),
        (["--sampler", "fair"], 160, 0),
        (["--sampler", "balanced", "--balance", "0->3"], 160, 0),
        (["--sampler", "disjoint", "--schedule", "linear"], 64, 0),
        (["--sampler", "greedy"], 32, 10 * HELD),
        (["--autocast", "bfloat16"], 32, 0),
        (["--augment", "flip", "--label-smoothing", "0.1"], 32, 0),
        (["--sampler", "disjoint", "--objective", "cross_path"], 64, 64),
        (["--paths", "3", "--objective", "in_place"], 96, 0),
        (["--norm", "tracked", "--no-affine", "--path-dropout", "0.2", "--dropout", "0.1"], 32, 0),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else None,
)
def test_what_is_trained_is_counted_and_kept(options, trained, evaluated, capsys):
    code, out, err = run(*WARM, *options, "--json", capsys=capsys)
    assert code == 0, err
    document = strict(out)
    assert document["budget"] == {"trained": trained, "evaluated": evaluated}
    state, settings = load_checkpoint(Path(document["checkpoint"]))
    assert state.step == 2 and settings == document["settings"]
    given = ["rank", *SMALL, "--archs", "2", "--json", "--proxy", "zico"]
    code, out, err = run(*given, "--init", f"supernet:{document['checkpoint']}", capsys=capsys)
    assert code == 0, err
    assert strict(out)["settings"].get("supernet") == settings.get("supernet")


def test_options_of_the_weights_are_in_their_settings(capsys):
    code, out, _ = run(*WARM, "--norm", "tracked", "--no-affine", "--json", capsys=capsys)
    tracked = strict(out)
    assert tracked["settings"]["supernet"] == {"track": True, "affine": False}
    code, out, _ = run(*WARM, "--norm", "batch", "--json", capsys=capsys)
    usual = strict(out)
    assert code == 0 and "supernet" not in usual["settings"]
    assert "sampler" not in usual["settings"]["warmup"]
    assert usual["checkpoint"] != tracked["checkpoint"]
    names = load_checkpoint(Path(tracked["checkpoint"]))[0].weights
    assert "stem.norm.running_mean" in names and "stem.norm.weight" not in names


def test_the_recipe_of_bignas_on_an_elastic_space(capsys):
    given = ["warmup", "--space", "mlp", "--warmup-steps", "2", "--warmup-batch", "16"]
    given += ["--sampler", "sandwich", "--objective", "in_place", "--out", "w", "--json"]
    code, out, err = run(*given, capsys=capsys)
    assert code == 0, err
    assert strict(out)["budget"] == {"trained": 4 * 32, "evaluated": 0}
    code, out, err = run(*given, "--norm", "tracked", capsys=capsys)
    assert code == 2 and "supernet: that of mlp has no option 'track'" in err


def test_the_cost_is_said(capsys):
    code, out, _ = run(*WARM, "--sampler", "greedy", capsys=capsys)
    assert code == 0
    assert f"2 steps of 16 on 32 images, 32 processed, {10 * HELD} forward only: " in out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*WARM, "--sampler", "sandwich"], "sandwich: nasbench201 names no largest architecture"),
        ([*WARM, "--sampler", "fair", "--paths", "2"], "fair has its own number of paths a step"),
        ([*WARM, "--balance", "0->1"], "balance: has no effect on sampler uniform"),
        (
            [*WARM, "--sampler", "balanced", "--balance", "9->9"],
            "balance: must be one of 0->1, 0->2, 1->2, 0->3, 1->3, 2->3, got '9->9'",
        ),
        (
            [*WARM, "--objective", "cross_path"],
            "objective cross_path needs sampler disjoint, got uniform",
        ),
        (["rank", "--label-smoothing", "0.1"], "--label-smoothing: has no effect without"),
        (
            ["warmup", *SMALL[:4], "--warmup", "1", "--sampler", "greedy"],
            "greedy paths need 143 held-out images beside the 1437 to train on",
        ),
        ([*WARM, "--path-dropout", "1"], "--path-dropout: must be a number from 0 to below 1"),
        (["rank", "--sampler", "fair"], "--sampler: has no effect without --warmup"),
        (["rank", "--norm", "tracked"], "--norm: is of shared weights that a warm-up trains"),
        (
            ["rank", "--init", "candidate", "--warmup", "0.1", "--sampler", "fair"],
            "--sampler: with --init candidate each network is trained alone",
        ),
        (
            ["rank", "--init", "candidate", "--warmup", "0.1", "--no-affine"],
            "--no-affine: is of shared weights that a warm-up trains",
        ),
    ],
    ids=lambda value: None,
)
def test_what_does_not_go_together(given, message, capsys):
    code, out, err = run(*given, capsys=capsys)
    assert code == 2 and out == "" and message in err, err


def test_a_recipe_leaves_a_plan_and_its_supernets(capsys):
    from sigeo import spaces
    from sigeo.fewshot.family import load_family

    given = ["warmup", "--channels", "3", "--cells", "1", "--threads", "1", "--out", "w"]
    given += ["--warmup-steps", "40", "--warmup-batch", "16", "--recipe", "efs-nas"]
    code, out, err = run(*given, "--json", capsys=capsys)
    document = strict(out)
    assert code == 0, err
    assert document["architectures"] == [9105, 5520, 1000]
    assert 600 <= document["budget"]["trained"] <= 640
    space = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=3, cells=1)
    family = load_family(Path("w"), space)
    assert [str(s.skeleton.channels) for s in family.supernets] == ["1"] * 3
    code, out, _ = run(*given, capsys=capsys)
    assert code == 0 and "3 supernet(s)" in out
    ranking = ["rank", *given[1:7], "--archs", "6", "--proxy", "zico,params", "--init", "family:w"]
    code, out, err = run(*ranking, "--batches", "2", "--json", capsys=capsys)
    assert code == 0 and strict(out)["settings"]["checkpoint"]["family"]["recipe"] == "efs-nas"
    for row in strict(out)["rows"]:  # networks are narrower, costs those of the space
        assert row["scores"]["params"] == space.cost(space.parse(row["arch"])).parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "x"], "--recipe: must be one of"),
        (["--recipe", "fair", "--sampler", "fair"], "--sampler: a recipe decides that itself"),
        (["--recipe", "fair", "--dropout", "0.1"], "have no effect with --recipe"),
        (["--held-out", "10"], "--held-out: has no effect without --recipe"),
        (["--recipe", "fair", "--held-out", "1400"], "study: holding 1400 images out needs"),
        (
            ["--recipe", "few-shot"],
            "needs 448 processed images or more, got 320 of 5 steps",
        ),
        (
            ["--recipe", "gm-nas"],
            "--warmup-steps 8013 would do (fewer repeats than 100 take less)",
        ),
        (["--recipe", "gm-nas:4"], "OPTION=VALUE of gm-nas, whose options are repeats, crit"),
        (["--recipe", "one-shot:over=x"], "over must be one of architectures, operations"),
    ],
)
def test_recipes_that_cannot_be_carried_out(options, message, capsys):
    given = ["warmup", "--channels", "2", "--cells", "1", "--warmup-steps", "5", "--out", "w"]
    code, out, err = run(*given, *options, capsys=capsys)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err


def test_the_one_shot_to_few_shot_scheme_on_an_elastic_space(capsys):
    sizes = ["--size", "channels=4", "--size", "depths=1,1", "--size", "ratios=0.5,1"]
    given = ["warmup", "--space", "resnet", *sizes, "--warmup-batch", "16", "--threads", "1"]
    given += ["--recipe", "gradual:calibration=2", "--warmup-steps", "28", "--json"]
    code, out, err = run(*given, "--out", "g", capsys=capsys)
    assert code == 0, err
    document = strict(out)
    assert document["budget"] == {"trained": 28 * 16, "evaluated": 0}
    assert len(document["checkpoints"]) == 1 and document["settings"]["options"]["calibration"] == 2
    shape = spaces.InputShape(1, 8, 10)
    space = spaces.get("resnet", shape, channels=4, depths=(1, 1), ratios=(0.5, 1))
    family = load_family("g", space)
    assert [len(one.tops) for one in family.supernets[0].groups] == [2, 2]
    stages = sorted(path.name for path in Path("g").glob("gradual*/0/*.safetensors"))
    assert stages == ["stage-0.safetensors", "stage-1.safetensors"]
    trained = document["settings"]["trainings"]
    assert [one["schedule"] for one in trained] == ["cosine", "cosine"]
    assert sum(one["steps"] for one in trained) * 4 == 28  # of four paths
    assert all(one["weight_decay"] == 1e-5 and one["clip"] == 1 for one in trained)
    kept = json.loads(Path("g/plan.json").read_text())
    assert kept["settings"]["trainings"] == trained
    code, _, err = run(*given[:-1], "--schedule", "cosine", "--out", "h", capsys=capsys)
    assert code == 2 and err.endswith("--schedule: a recipe decides that itself\n")
    code, _, err = run(*given[:-1], "--warmup-steps", "2", "--out", "h", capsys=capsys)
    assert code == 2 and "needs 384 processed images or more, got 32 of 2 steps" in err
    assert not Path("h").exists()


def test_rankings_average_over_the_checkpoints_that_are_kept(capsys):
    warm = ["warmup", *SMALL[:4], "--warmup", "0.025", "--epochs", "3", "--warmup-batch", "16"]
    code, out, err = run(*warm, "--keep", "4", capsys=capsys)
    assert code == 2 and "keep must be at most 3, its passes over 36 images, got 4" in err
    code, out, err = run(*warm, "--keep", "2", "--json", "--out", "w", capsys=capsys)
    assert code == 0, err
    path = strict(out)["checkpoint"]
    assert strict(out)["settings"]["warmup"]["keep"] == 2
    given = ["rank", *SMALL, "--archs", "2", "--json", "--proxy", "zico", "--init"]
    code, out, err = run(*given, f"supernet:{path}", "--out", "r", capsys=capsys)
    assert code == 0 and "scores are means over 2 checkpoints of the weights" in err
    assert strict(out)["checkpoints"] == 2
    page, weights = Path("r/report.html").read_text(), strict(out)["settings"]["checkpoint"]
    assert "means over 2 checkpoints of the weights" in page
    assert f"supernet, loaded, hash {weights['weights'][:8]}" in page
    assert f"{weights['warmup']['images']} images" in page and "3 pass(es), batches of 16" in page
    assert len(weights["kept"]) == 1
    for verb in (["rank", "--warmup", "1", "--init", "candidate"], ["rank"]):
        code, _, err = run(*verb, "--keep", "2", capsys=capsys)
        assert code == 2 and err.count("--keep: ") == 1 and err.count("\n") == 1


def test_a_recipe_keeps_the_checkpoints_of_its_last_trainings(capsys):
    warm = ["warmup", *SMALL[:4], "--held-out", "1400", "--warmup-batch", "16"]
    given = [*warm, "--recipe", "one-shot", "--out", "f", "--warmup-steps"]
    code, _, err = run(*given, "5", "--keep", "3", capsys=capsys)
    assert code == 2 and "one-shot: keep must be at most 2, the passes" in err
    assert "a budget of 90 processed images, 6 steps of 16, would do" in err
    code, _, err = run(*given, "6", "--keep", "3", capsys=capsys)
    assert code == 0, err
    space = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=2, cells=1)
    assert len(load_family("f", space).earlier) == 2
    rank = ["rank", *SMALL, "--archs", "2", "--proxy", "zico", "--init", "family:f"]
    code, _, err = run(*rank, "--out", "r", capsys=capsys)
    assert code == 0 and "scores are means over 3 checkpoints of the weights" in err


def test_a_diverged_warm_up_is_an_error_and_leaves_nothing(capsys):
    given = [*WARM, "--warmup-steps", "8", "--warmup-lr", "1e12"]
    code, out, err = run(*given, "--json", capsys=capsys)
    assert (code, out) == (2, "") and err.startswith("sigeo warmup: warm-up: the loss of step ")
    assert err.endswith(" of 8 is not finite; take a smaller lr, it is 1e+12\n")
    assert not list(Path("w").glob("*.safetensors"))
