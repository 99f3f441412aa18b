"""The Python of README.md and the pages in docs runs as it stands, a page from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sigeo.proxies import registry

ROOT = Path(__file__).resolve().parents[1]
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
_ELSEWHERE = ("compare.md", "fewshot.md")  # in tests/sigeo/fewshot/test_docs.py, with their results
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name not in _ELSEWHERE and _CODE.search(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))  # for the page's own
    variables = {"__name__": page.stem}
    for block in _CODE.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, page.name, "exec"), variables)
