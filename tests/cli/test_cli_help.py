"""Every command's help shows every word that its options were given: nothing is taken for markup."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from medi3d.cli import main


def read_helps(name: str) -> Iterator[str]:
    """Yield the command's own words, as the source has them."""
    function = getattr(import_module(f"medi3d.cli.{main._MODULES[name]}"), name)
    yield inspect.getdoc(function) or ""
    for hint in get_type_hints(function, include_extras=True).values():
        yield from (option.help for option in get_args(hint)[1:] if getattr(option, "help", None))


def read_letters(text: str) -> str:
    """Return a text without its white space, and without the lines that are drawn around it."""
    return re.sub(r"[\s│]", "", text)


@pytest.mark.parametrize("name", main._MODULES)
def test_every_word_of_the_help_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    answer = CliRunner().invoke(main.app, [name, "--help"])
    assert answer.exit_code == 0
    shown = read_letters(answer.output)
    helps = list(read_helps(name))
    assert len(helps) > 1 or name == "tasks"
    for text in helps:
        assert read_letters(text) in shown


def test_text_in_brackets_would_be_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    unescaped: Any = lambda text: text  # noqa: E731
    monkeypatch.setattr(main, "escape", unescaped)
    monkeypatch.setenv("COLUMNS", "1000")
    assert "data/prepared/<task>" not in CliRunner().invoke(main.app, ["plan", "--help"]).output
