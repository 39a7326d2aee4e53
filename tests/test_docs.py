"""The examples of docstrings and the Python blocks of pages run, YAML blocks load, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import yaml

from medi3d.config import load_task

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((REPOSITORY / "medi3d").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(language: str) -> list[object]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(page, line, match.group(1), id=f"{page.name}:{line}"))
    return found


@pytest.mark.parametrize(("page", "line", "source"), blocks("python"))
def test_a_python_block_runs(page: Path, line: int, source: str) -> None:
    # Blank lines in front give tracebacks the page's own line numbers.
    exec(compile("\n" * line + source, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "line", "source"), blocks("yaml"))
def test_a_yaml_block_is_a_valid_task(page: Path, line: int, source: str) -> None:
    values = yaml.safe_load(source)
    if "name" not in values:  # a part of a task; complete it
        values = {"name": "part", "kind": "segmentation", **values}
        values["data"] = {"labels": {1: "structure", 2: "other"}, **values.get("data", {})}
    assert load_task(f"{page.name}:{line}", values=values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
