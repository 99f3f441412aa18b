"""The pages on few-shot search and systems: their code runs, their figures are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from sigeo import data, spaces
from sigeo.fewshot import Branching, metrics, partition, recipes
from sigeo.fewshot.choice import names
from sigeo.fewshot.develop import develop, least_budget
from sigeo.fewshot.recipes import registry
from sigeo.fewshot.study import Study
from tests.sigeo.fewshot import ground, test_selection
from tests.sigeo.fewshot.test_lid import subspace

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "fewshot.md").read_text(encoding="utf-8")
SPACE = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=4, cells=1)
SYSTEMS = (DOCS / "compare.md").read_text(encoding="utf-8")


def test_the_code_runs(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))  # for the page's own
    variables = {"__name__": "fewshot"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "fewshot.md", "exec", dont_inherit=True), variables)
    assert variables["logits"].shape == (16, 10)
    assert 0 <= variables["leaf"] < 4 == len(variables["divided"].supernets)
    assert len(variables["family"].supernets) == 2
    assert variables["family"].plan.root.cut.by in (4, 5)


def test_the_declarations_of_published_systems_are_valid():
    rows = PAGE.split("## Which published system is what")[1].split("**Not as")[0]
    variables = {
        **{name: getattr(partition, name) for name in partition.__all__},
        **{name: getattr(metrics, name) for name in metrics.__all__},
        "Branching": Branching,
    }
    found = re.findall(
        r"`((?:GradientMatching|gradient_matching_logits|LID|Exact|Branching)[.(].*?)`", rows
    )
    assert len(found) >= 9
    for expression in found:
        eval(expression, variables)


def test_every_rule_is_listed():
    section = PAGE.split("## Which choice is split")[1].split("## Weights")[0]
    for name in set(names()) - {"in_turn", "random"}:
        assert f'BestGroups("{name}")' in section


def test_the_estimates_of_dimension_are_those_of_the_page():
    found = [float(metrics.lid(subspace(m, 2000)).mean()) for m in (2, 5, 10)]
    assert "{:.2f}, {:.2f} and {:.2f}".format(*found) in " ".join(PAGE.split())


def test_the_page_on_systems_lists_every_recipe_and_its_code_runs():
    rows = SYSTEMS.split("## The recipes")[1].split("Metrics, partitions")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", rows, re.MULTILINE) == [
        "one-shot", "fair", "balanced", "greedy", "pi-nas", "few-shot", "gm-nas", "efs-nas",
        "metric-driven", "nas-lid", "random-split", "hep-nas", "gradual",
    ] == recipes.names()  # fmt: skip
    ground = Study(SPACE, data.load("digits"), 64_000, 200, {"batch_size": 64})
    assert re.findall(r"^\| `([\w-]+)` \|[^|]*\| ([\d,]+) \|", rows, re.MULTILINE) == [
        (name, f"{least_budget(recipes.get(name, SPACE), ground):,}")
        for name in recipes.names()
        if name != "gradual"  # of another space
    ]
    reduced = recipes.get("gm-nas", SPACE, repeats=4, batch=32)
    assert f"`gm-nas` needs {least_budget(reduced, ground):,}." in " ".join(SYSTEMS.split())
    variables = {}
    exec(re.search(r"```python\n(.*?)```", SYSTEMS, re.DOTALL)[1], variables)
    assert len(variables["accuracy"]) == 2 and len(variables["family"].supernets) == 5


def test_the_page_on_systems_lists_every_file(tmp_path, tmp_path_factory):
    section = SYSTEMS.split("## Files")[1].split("\n## ")[0]
    tables = [
        re.findall(r"`([\w.-]+)`", " ".join(re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)))
        for part in section.split("goes on from")
    ]

    def left(folder):
        return {re.sub(r"\d+", "N", file.name) for file in folder.iterdir() if file.is_file()}

    known = test_selection.table(tmp_path_factory.mktemp("known"))
    systems = [
        (ground.study(200), "random-split", {"before": [1], "after": 1}),
        (ground.study(1600), "hep-nas", ground.SMALL["hep-nas"]),
        (ground.study(200), "efs-nas", {"shared": ["stem"]}),
        (
            test_selection.study(),
            "gradual",
            {"calibration": 2, "groups": 2, "after": 50, "known": known},
        ),
    ]
    found = set()
    for study, name, options in systems:
        recipe = recipes.get(name, study.space, **options)
        family = develop(recipe, study, 0, folder=tmp_path / name)
        found |= left(tmp_path / name)
    assert found == set(tables[1]) and len(tables[1]) == len(found)
    family.save(tmp_path, {})
    assert left(tmp_path) == set(tables[0])
