from __future__ import annotations

import pytest

from medi3d.errors import ConfigError
from medi3d.registry import Registry, unknown_name_message


@pytest.fixture
def shapes() -> Registry[int]:
    registry: Registry[int] = Registry("shape")
    registry.add("triangle", 3)
    registry.add("square", 4)
    return registry


def test_rows_are_found_and_listed_in_order(shapes: Registry[int]) -> None:
    assert shapes["triangle"] == 3
    assert list(shapes) == ["square", "triangle"]
    assert len(shapes) == 2
    assert "square" in shapes
    assert "circle" not in shapes


def test_a_decorator_adds_a_row() -> None:
    functions: Registry[object] = Registry("function")

    @functions.register("double")
    def double(x: int) -> int:
        return 2 * x

    assert functions["double"] is double
    assert double(2) == 4


def test_an_unknown_name_raises_with_the_nearest_and_the_list(shapes: Registry[int]) -> None:
    with pytest.raises(ConfigError, match="unknown shape 'sqare'; did you mean 'square'\\? Known: square, triangle"):
        shapes["sqare"]
    with pytest.raises(ConfigError, match=r"unknown shape 'xyz'\. Known: square, triangle"):
        shapes["xyz"]


def test_a_name_is_given_once(shapes: Registry[int]) -> None:
    with pytest.raises(ValueError, match="shape 'square' is registered twice"):
        shapes.add("square", 5)


def test_the_message_names_the_kind() -> None:
    assert unknown_name_message("task", "a", ["b"]) == "unknown task 'a'. Known: b"
