"""Plans: cover, routes, files, drawings."""

from __future__ import annotations

import collections
import json
import random

import pytest
from rich.console import Console

from sigeo import InputError, spaces
from sigeo.fewshot import kind_functions
from sigeo.fewshot.kind_functions import nonlinear_depth, register_kind
from sigeo.fewshot.plan import Cut, Node, Plan, joint, split_by_kind, whole_space
from sigeo.fewshot.plan_figure import draw_plan, plan_tree
from sigeo.fewshot.plan_file import load_plan, plan_document, plan_of, save_plan
from tests.sigeo.fewshot.space import EVERYTHING, SPACE, WHOLE


def random_plan(seed: int) -> Plan:
    """Three levels of cuts of random open choices, and one of kinds at the end."""
    rng = random.Random(seed)

    def grow(region, depth):
        if depth == 3:
            return Node(region)
        if depth == 2 and rng.random() < 0.3:
            cut = Cut("nonlinear_depth", ((0, 2), (1, 3)), 1.5)
            return Node.divided(region, cut)
        place = rng.choice(region.open())
        options = list(region.allowed[place])
        rng.shuffle(options)
        at = rng.randrange(1, len(options))
        cut = Cut(place, (tuple(sorted(options[:at])), tuple(sorted(options[at:]))), rng.random())
        return Node.divided(region, cut, lambda part, _: grow(part, depth + 1))

    return Plan(grow(WHOLE, 0))


@pytest.mark.parametrize("seed", range(4))
def test_every_architecture_is_served_exactly_once(seed):
    plan = random_plan(seed)
    members = [leaf for leaf, region in enumerate(plan.leaves) for _ in region]
    assert len(members) == SPACE.size == sum(plan.sizes)
    counts = collections.Counter(arch for region in plan.leaves for arch in region)
    assert set(counts.values()) == {1}
    for arch in EVERYTHING[::17]:
        (leaf,) = [number for number, region in enumerate(plan.leaves) if arch in region]
        assert plan.route(arch) == leaf
    assert tuple(map(len, plan.routed(EVERYTHING))) == plan.sizes


def test_one_leaf_serves_all_without_a_cut():
    plan = whole_space(SPACE)
    assert plan.sizes == (15625,)
    assert plan.route(EVERYTHING[3]) == 0


def test_joint_cuts_make_all_combinations():
    first = Cut(1, ((0, 1), (2, 3, 4)))
    second = Cut(2, ((0,), (1,), (2, 3, 4)))
    node = joint(WHOLE, [first, second])
    found = [(leaf.region.allowed[1], leaf.region.allowed[2]) for leaf in node.leaves()]
    assert found == [(one, two) for one in first.groups for two in second.groups]
    assert joint(WHOLE, []).cut is None


def test_nonlinear_depth_has_the_published_sizes():
    plan = split_by_kind(SPACE, "nonlinear_depth", [[0], [1], [2], [3]])
    assert plan.sizes == (1983, 7122, 5520, 1000)
    grouped = split_by_kind(SPACE, "nonlinear_depth", [[1, 0], [2], [3]])
    assert grouped.sizes == (1983 + 7122, 5520, 1000)
    assert grouped.root.cut.groups[0] == (0, 1)


def test_samples_of_kinds_within_a_part_stay_there():
    part = WHOLE.limited(0, [2, 3])
    plan = Plan(Node.divided(part, Cut("convolution_count", ((0, 1, 2), (3, 4, 5, 6)))))
    rng = random.Random(0)
    for region in plan.leaves:
        drawn = [region.sample(rng) for _ in range(20)]
        assert all(arch in region and arch in part for arch in drawn)
    assert sum(plan.sizes) == part.size
    outside = SPACE.decode((0, 1, 1, 1, 1, 1))
    with pytest.raises(InputError, match="no sub-supernet serves"):
        plan.route(outside)


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_survives_its_file(seed, tmp_path):
    plan = random_plan(seed)
    path = tmp_path / "plan.json"
    save_plan(path, plan, {"seed": seed})
    again, settings = load_plan(path, SPACE)
    assert again == plan
    assert settings == {"seed": seed}
    bigger = spaces.get("nasbench201", spaces.InputShape(3, 32, 10))
    assert load_plan(path, bigger)[0].sizes == plan.sizes


def test_cuts_that_are_none_are_refused():
    for groups in (((0, 1), (2, 3)), ((0, 1, 2, 3, 4),), ((0, 1, 2, 3, 4), ()), ((0, 1), (1, 2))):
        with pytest.raises(InputError):
            Node.divided(WHOLE, Cut(0, groups))
    with pytest.raises(InputError, match="choice must be from 0 to 5"):
        Node.divided(WHOLE, Cut(6, ((0, 1), (2, 3, 4))))
    with pytest.raises(InputError, match="hold each of"):
        split_by_kind(SPACE, "nonlinear_depth", [[0, 1], [2]])
    with pytest.raises(InputError, match="kind: must be one of"):
        split_by_kind(SPACE, "colour", [[0], [1]])
    elastic = spaces.get("mlp", spaces.InputShape(1, 8, 10))
    with pytest.raises(InputError, match="mlp has no kinds of architectures .* nasbench201 have"):
        split_by_kind(elastic, "nonlinear_depth", [[0], [1]])
    by_kind = split_by_kind(SPACE, "nonlinear_depth", [[0, 1], [2, 3]])
    with pytest.raises(InputError, match="not divided further"):
        Node.divided(by_kind.leaves[0], Cut(0, ((0, 1), (2, 3, 4))))
    cut = Cut(0, ((0, 1), (2, 3, 4)))
    with pytest.raises(InputError, match="children must be the parts"):
        Plan(Node(WHOLE, cut, (Node(WHOLE), Node(WHOLE))))
    with pytest.raises(ValueError, match="taken"):
        register_kind("nasbench201", "nonlinear_depth", lambda arch: 0, frozenset({0}))


def test_kinds_that_a_function_was_not_said_to_have(monkeypatch):
    monkeypatch.setattr(kind_functions, "_FUNCTIONS", dict(kind_functions._FUNCTIONS))
    register_kind("nasbench201", "own", nonlinear_depth, frozenset({0, 1}))
    plan = split_by_kind(SPACE, "own", [[0], [1]])
    deep = next(arch for arch in EVERYTHING if nonlinear_depth(arch) == 3)
    with pytest.raises(InputError, match=r"^plan: own of .* is 3, none of \[\(0,\), \(1,\)\]$"):
        plan.route(deep)


def damaged(change):
    document = json.loads(json.dumps(plan_document(random_plan(0))))
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "expected format sigeo-plan-1"),
        (lambda d: d.pop("root"), "expected the keys"),
        (lambda d: d["space"].update(name="darts"), "made for the space darts"),
        (lambda d: d["root"].pop(), "options of 6 choices"),
        (lambda d: d["root"][0].append("nothing"), "options must be some of"),
        (lambda d: d["tree"].pop("score"), "expected the keys"),
        (lambda d: d["tree"].update(score="high"), "score must be a number"),
        (lambda d: d["tree"].update(choice="9->9"), "choice must be one of"),
        (lambda d: d["tree"]["groups"].pop(), "one child a group"),
        (lambda d: d["tree"]["groups"][0].pop(), "must hold each of|none empty"),
        (lambda d: d["tree"].update(children=[{}, 3]), "must be an object"),
    ],
)
def test_a_damaged_plan_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        plan_of(damaged(change), SPACE)


def places(value, path=()):
    """The path of every value in a document."""
    if not isinstance(value, (dict, list)):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(p for key, inside in items for p in places(inside, (*path, key)))]


OTHERS = (None, True, -1, 99, 10**400, 0.5, "", "none", [], [[]], [1, 1], {}, {"choice": []})


@pytest.mark.parametrize("seed", range(3))
def test_no_other_document_gets_through_as_anything_but_a_plan(seed):
    whole = json.loads(json.dumps(plan_document(random_plan(seed), {"a": 1})))
    rng = random.Random(seed)
    refused = 0
    for path in places(whole)[1:]:
        document = json.loads(json.dumps(whole))
        inside = document
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = rng.choice(OTHERS)
        try:
            plan = plan_of(document, SPACE)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert isinstance(plan, Plan)
    assert refused > 30


def test_files_that_are_no_plan_are_refused(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(InputError, match="found no file"):
        load_plan(path, SPACE)
    path.write_text('{"format": NaN}')
    with pytest.raises(InputError, match="NaN is no JSON number"):
        load_plan(path, SPACE)
    path.write_text('{"format": ')
    with pytest.raises(InputError, match="damaged"):
        load_plan(path, SPACE)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged"):
        load_plan(path, SPACE)
    path.write_text("[]")
    with pytest.raises(InputError, match="expected format sigeo-plan-1, got list"):
        load_plan(path, SPACE)


def test_kinds_of_many_are_not_counted(monkeypatch):
    plan = split_by_kind(SPACE, "nonlinear_depth", [[0, 1], [2, 3]])
    monkeypatch.setattr("sigeo.fewshot.plan._COUNTED", 15624)
    assert plan.sizes == (None, None)
    part = WHOLE.limited(0, [1])
    within = Plan(Node.divided(part, Cut("nonlinear_depth", ((0, 1), (2, 3)))))
    assert sum(within.sizes) == part.size
    with (console := Console(width=120)).capture() as captured:
        console.print(plan_tree(plan))
    assert "[1] not counted" in captured.get()


def test_the_tree_names_cuts_groups_and_sizes(tmp_path):
    plan = Plan(
        Node.divided(
            WHOLE,
            Cut(0, ((0, 1), (2, 3, 4)), 0.25),
            lambda part, place: (
                Node.divided(part, Cut("nonlinear_depth", ((0, 1), (2, 3))))
                if place
                else Node(part)
            ),
        )
    )
    console = Console(width=120, record=True)
    with console.capture() as captured:
        console.print(plan_tree(plan))
    text = captured.get()
    assert "nasbench201: 15,625 architectures" in text
    assert "0->1 (0.25): none, skip_connect  [0] 6,250" in text
    assert "nonlinear_depth: 2, 3  [2]" in text
    for kind in ("svg", "png"):
        one, other = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
        draw_plan(plan, one)
        draw_plan(plan, other)
        assert one.read_bytes() == other.read_bytes()
    assert "nor_conv_3x3" in (tmp_path / "a.svg").read_text()
    with pytest.raises(InputError, match=".svg or .png"):
        draw_plan(plan, tmp_path / "a.pdf")
