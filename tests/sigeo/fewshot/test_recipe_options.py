"""What recipes refuse before anything is trained, and the least that they cost."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from sigeo import InputError, spaces
from sigeo.fewshot import Branching, Splitting, metrics, recipes
from sigeo.fewshot import partition as partitions
from sigeo.fewshot.checks import fewer
from sigeo.fewshot.choice import AnyChoice
from sigeo.fewshot.develop import Development, check, develop, least_budget
from sigeo.fewshot.metrics import Subject
from sigeo.fewshot.partition import Exact
from sigeo.fewshot.recipe import Paths, Recipe, uniform_paths
from sigeo.fewshot.recipes.registry import entry
from sigeo.spaces import Product
from sigeo.supernet import Uniform
from tests.sigeo.fewshot.ground import SMALL, SPACE, study


def test_recipes_import_nothing_slow_that_their_checks_do_without():
    code = "import sys, sigeo.fewshot; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(result.stdout.split())
    assert "sigeo.fewshot" in loaded, result.stderr
    assert not loaded & {"scipy", "sklearn", "networkx", "matplotlib", "jinja2"}


def made(name, **options):
    return recipes.get(name, SPACE, **{**SMALL.get(name, {}), **options})


@pytest.mark.parametrize(("repeats", "advice"), [(3, " (fewer repeats than 3 take less)"), (1, "")])
def test_fewer_repeats_are_advised_where_there_are_any(repeats, advice):
    assert fewer(made("gm-nas", repeats=repeats)) == advice
    assert fewer(made("metric-driven", draws=repeats)) == advice.replace("repeats", "draws")
    assert fewer(made("metric-driven")) == ""


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hep-nas", {"teachers": "sibling"}, "teachers must be one of both, parent, siblings"),
        ("hep-nas", {"judged": 0}, "judged must be at least 1, got 0"),
        ("hep-nas", {"rounds": 0}, "rounds must be at least 1, got 0"),
        ("hep-nas", {"smallest": 1}, "smallest must be at least 2, or one part .*, got 1"),
        ("hep-nas", {"children": 0}, "children must be above 0, got 0"),
        ("one-shot", {"paths": 0}, "a step must train at least 1, got 0"),
        ("one-shot", {"width": 1.5}, "width must be above 0 and at most 1, got 1.5"),
        ("balanced", {"groups": []}, r"hold each of \[0, 1, 2, 3\] once, none empty, got \[\]"),
        ("balanced", {"groups": [[0, 1, 2, 3], []]}, "hold each of .* once, none empty"),
        ("balanced", {"groups": [[0, 1], [1, 2], [3]]}, "hold each of .* once"),
        ("balanced", {"groups": [[1], [2], [3]]}, "hold each of .* once"),
        ("efs-nas", {"groups": []}, "hold each of"),
        ("efs-nas", {"groups": [[0, 1], [2, 3, 9]]}, "hold each of"),
        ("metric-driven", {"metric": "table"}, "metric table: needs a table as known, which"),
        ("pi-nas", {"padding": 1.5}, "padding must be a whole number or None, got 1.5"),
        ("pi-nas", {"padding": True}, "padding must be a whole number or None, got True"),
        ("efs-nas", {"width": "1"}, "width must be a number or None, got '1'"),
        ("efs-nas", {"shared": [1]}, r"shared must be names of submodules, got \[1\]"),
        ("greedy", {"kept": 0}, "kept must be from 1 to sampled = 4, got 0"),
        ("greedy", {"sampled": 0}, "kept must be from 1 to sampled = 0"),
        ("greedy", {"images": 0}, "images must be at least 1, got 0"),
        ("greedy", {"start": 0.99}, "0 <= start <= full <= 1, got 0.99 and 0.96"),
        ("gm-nas", {"batch": 0}, "needs at least 1 batch of at least 2 images, got 1 of 0"),
        ("gm-nas", {"batch": -3}, "got 1 of -3"),
        ("gm-nas", {"smallest": 0}, "smallest must be a whole number of at least 1, got 0"),
        ("random-split", {"smallest": -1}, "smallest must be a whole number of at least 1, got -1"),
        ("gm-nas", {"after": -1}, "lengths of training must be at least 0, and one above"),
        ("metric-driven", {"batches": 0}, "got 0 of 8"),
        ("metric-driven", {"draws": 0}, "draws must be at least 1, got 0"),
        ("metric-driven", {"draws": 1.5}, "draws must be a whole number or None, got 1.5"),
        ("metric-driven", {"draws": 2, "metric": "random"}, "draws has no effect with the metric"),
        ("metric-driven", {"leaves": 9}, r"at most 8 with .* in order \[0, 1, 2\], got 9"),
        ("metric-driven", {"leaves": 126, "factors": [5]}, "leaves must be at most 125 with"),
        ("metric-driven", {"leaves": 11, "factors": [2, 8], "order": [0, 1]}, "at most 10 with"),
        ("metric-driven", {"leaves": 8, "factors": [8], "order": [0]}, "at most 5 with"),
        ("metric-driven", {"leaves": 10**14}, "expected 1 to 1,000,000 leaves"),
        ("metric-driven", {"leaves": 7, "order": [4]}, "leaves must be at most 2 with"),
        ("metric-driven", {"metric": "synflow", "before": 1}, "synflow needs weights as drawn"),
        ("nas-lid", {"partition": "halves"}, "partition must be one of exact, mixture, spectral"),
        ("nas-lid", {"k": 8}, "batch must be more than k = 8 neighbours, got 8"),
        ("nas-lid", {"k": 1}, "k must be a whole number of at least 2, got 1"),
        ("few-shot", {"before": json.loads("1e400")}, r"must be a number below 1e\+15, got inf"),
        ("few-shot", {"before": math.nan}, r"before must be a number below 1e\+15, got nan"),
        ("few-shot", {"before": "two"}, "before must be a number, got 'two'"),
        ("few-shot", {"transfer": 1}, "transfer must be true or false, got 1"),
        ("gm-nas", {"criterion": 1}, "criterion must be a name like between_mean, got 1"),
        ("gm-nas", {"before": [1, 10**400]}, r"before must be a list like \[20.0, 20.0\]"),
        ("one-shot", {"paths": 10**400}, r"paths must be a whole number below 1e\+15, got 1000"),
        ("efs-nas", {"route": "x"}, "route must be one of total, cumulative, got 'x'"),
    ],
)  # fmt: skip
def test_numbers_out_of_their_range_are_refused_in_one_sentence(name, options, message):
    with pytest.raises(InputError, match=message) as raised:
        made(name, **options)
    assert str(raised.value).startswith(f"recipe {name}: ")
    assert str(raised.value).count("recipe") == 1


def test_other_errors_of_a_recipe_are_bad_input_as_well(monkeypatch):
    def divides(space, *, parts=2):
        return Recipe(width=1 / parts)

    monkeypatch.setitem(recipes.registry._ENTRIES, "x", replace(entry("fair"), make=divides))
    with pytest.raises(InputError, match="recipe x: division by zero"):
        recipes.get("x", SPACE, parts=0)


@pytest.mark.parametrize(("factors", "order"), [([2], [0, 1]), ([2, 8], [0, 1]), ([7], [3, 1])])
def test_as_many_leaves_as_a_recipe_takes_can_be_cut(factors, order):
    taken = []
    for leaves in range(1, 20):
        try:
            options = {"factors": factors, "order": order, "metric": "random"}
            recipe = made("metric-driven", leaves=leaves, **options)
        except InputError:
            continue
        recipe.splitting.check(Product.whole(SPACE), None, None)
        taken.append(leaves)
    assert taken == list(range(1, {2: 4, 8: 10, 7: 5}[factors[-1]] + 1))


def test_lengths_may_be_fractions_and_whole_numbers_alike():
    fraction = made("few-shot", before=1.5, after=0.5)
    assert fraction.before == (1.5,) and fraction.after == 0.5
    for name in ("gm-nas", "nas-lid", "random-split", "hep-nas"):
        levels = len(entry(name).options["before"])
        assert made(name, before=[0.5] * levels, after=1.5).units(SPACE) > 0
    assert made("hep-nas", children=2.5).hierarchy.children == 2.5
    assert made("metric-driven", before=0.5).before == (0.5,) * 3
    whole, same = made("gm-nas", before=[2, 2]), made("gm-nas", before=[2.0, 2.0])
    assert json.dumps(whole.options) == json.dumps(same.options)  # one run, not two
    whole, same = made("efs-nas", width=1), made("efs-nas", width=1.0)
    assert json.dumps(whole.options) == json.dumps(same.options)
    assert made("efs-nas", width=None).options == made("efs-nas").options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("few-shot", {"choice": 6}, "choice: 6, in turn on level 0, cannot be split"),
        ("metric-driven", {"order": [0, 1, 0]}, "choice: 0, in turn on level 2, cannot be split"),
        (
            "random-split",
            {"before": [1] * 7, "after": 1},
            "random-split: split: .* 7 or more .* got 6",
        ),
        ("one-shot", {"over": "x"}, "over must be one of architectures, operations"),
        ("greedy", {"epsilon": 2}, "epsilon must be from 0 to 1, got 2"),
        ("pi-nas", {"decay": 2.0}, "decay must be from 0 to 1"),
        ("efs-nas", {"shared": ["x"]}, "has no submodule 'x' to share"),
        ("efs-nas", {"groups": [[0, 1, 2, 3]]}, "a cut needs two groups or more"),
    ],
)
def test_what_does_not_fit_the_space_is_found_before_training(name, options, message):
    with pytest.raises(InputError, match=message):
        check(made(name, **options), study(10**6))


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "gradual"])
def test_the_least_budget_pays_for_a_recipe_and_one_image_less_does_not(name):
    recipe = made(name)
    least = least_budget(recipe, study())
    check(recipe, study(least))
    with pytest.raises(InputError, match="budget"):
        check(recipe, study(least - 1))


@pytest.mark.parametrize("name", ["greedy", "gm-nas", "few-shot", "hep-nas"])
def test_the_least_budget_is_enough_to_the_end(name):
    recipe = made(name)
    least = least_budget(recipe, study())
    family = develop(recipe, study(least), 0)
    assert family.cost.trained + family.cost.evaluated / 3 <= least
    with pytest.raises(InputError, match=rf"^{name}: needs a budget of at least {least:,} proc"):
        develop(recipe, study(least - 1), 0)


def test_the_dearest_choices_are_reckoned_with():
    space = spaces.get("mobilenet", spaces.InputShape(1, 8, 2))
    metric = metrics.get("grad_norm")
    splitting = Splitting(metric, Branching((2,)), Exact(), AnyChoice(), inherit="never")
    recipe = Recipe("any", "", splitting=splitting)
    work = Development(recipe, replace(study(), space=space), 0, None, None)
    whole = Product.whole(space)
    costs = [
        metric.cost(Subject(whole, place, 0, None, work.batches)).trained
        for place in range(len(space.choices))
    ]
    assert work.overhead == max(costs) > costs[0]  # any of them may be drawn


def test_paths_are_checked():
    with pytest.raises(InputError, match="images must be at least 0, got -1"):
        Paths(uniform_paths, images=-1)


def test_a_step_has_no_more_paths_than_the_budget_pays_for():
    def sampler(ground):
        return Uniform(ground.space, seed=ground.seed, region=ground.region, paths=2)

    with pytest.raises(
        InputError, match="^two: paths: a step of the sampler has 2, .* at most trained, 1,"
    ):
        develop(Recipe("two", "here", paths=Paths(sampler)), study(190), 0)
    assert develop(Recipe("two", "here", paths=Paths(sampler, trained=2)), study(190), 0)


def test_rounds_of_scored_paths_are_paid_for_as_wholes():
    for start in (0.0, 1 / 15, 0.5, 0.96, 1.0):
        paths = made("greedy", start=start, full=1.0, kept=3).paths
        # Four paths on eight images a round, of which three are trained.
        scored = [paths.evaluated(steps, 24) / (4 * 8) for steps in range(200)]
        assert scored == [math.ceil((steps - round(start * steps)) / 3) for steps in range(200)]
        assert scored == sorted(scored)
        assert paths.evaluated(9, 5) * 8 == paths.evaluated(9, 24) * 5
    family = develop(made("greedy", kept=3), study(190), 0)
    assert (family.cost.trained, family.cost.evaluated) == (8 * 16, 5 * 4 * 8)


ELASTIC = spaces.get("resnet", spaces.InputShape(1, 8, 2), channels=4, depths=(1, 1))


@pytest.mark.parametrize(
    ("name", "space", "options", "message"),
    [
        (
            "gm-nas",
            ELASTIC,
            {"batch": 8},
            "gradient_matching: does not serve resnet, .*; a proxy such as zico does",
        ),
        (
            "metric-driven",
            ELASTIC,
            {"batch": 8, "leaves": 4, "order": [1, 2]},
            "options of resnet use parts of one weight",
        ),
        ("nas-lid", ELASTIC, SMALL["nas-lid"], "lid: does not serve resnet, whose"),
        ("few-shot", SPACE, {"choice": 9}, "choice: 9, in turn on level 0, cannot be split"),
        ("few-shot", ELASTIC, {"choice": 99}, "choice: 99, in turn on level 0"),
        ("few-shot", ELASTIC, {}, r"few-shot: choice: 0, in turn .* left are \[1, 2, 4, 5\]"),
        (
            "random-split",
            ELASTIC,
            {"before": [1] * 5},
            "5 or more choices .* at least 2 options, got 4",
        ),
        ("efs-nas", SPACE, {"shared": ["x"]}, "has no submodule 'x' to share"),
        (
            "metric-driven",
            SPACE,
            {"metric": "zico", "batches": 1, "before": 1},
            "metric-driven: zico needs at least 2 batches, got 1",
        ),
    ],
)
def test_what_no_budget_helps_is_named_before_the_budget(name, space, options, message):
    ground = replace(study(16), space=space)
    with pytest.raises(InputError, match=message):
        check(recipes.get(name, space, **options), ground)
    with pytest.raises(InputError, match=message):
        develop(recipes.get(name, space, **options), ground, 0)


def test_proxies_of_weights_as_drawn_measure_before_any_training():
    made("metric-driven", metric="synflow", leaves=2)
    made("metric-driven", metric="grad_norm", before=1, leaves=2)


@pytest.mark.parametrize("partition", ["exact", "mixture", "spectral", "stoer_wagner"])
def test_nas_lid_groups_options_by_each_published_partition(partition):
    small = {**SMALL["nas-lid"], "before": [2], "partition": partition}
    recipe = recipes.get("nas-lid", SPACE, **small)
    assert recipe.splitting.partitioner == partitions.get(
        partition, **({"smallest": 2} if partition == "exact" else {})
    )
    family = develop(recipe, study(600), 0)
    assert len(family.plan.leaves) == 2 and sum(family.plan.sizes) == SPACE.size
