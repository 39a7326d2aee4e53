"""The public names: adding one is a decision, taking one away breaks somebody's code."""

from __future__ import annotations

import inspect

import pytest

import medi3d

PUBLIC = [
    "LabelMap",
    "Medi3dError",
    "Predictor",
    "Volume",
    "__version__",
    "create_encoder",
    "create_model",
    "inflate",
    "load_task",
    "predict",
]


def test_all_is_frozen() -> None:
    assert sorted(medi3d.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(medi3d, name)
    if name != "__version__":
        assert inspect.getdoc(thing)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("inflate", {"init", "depth_padding"}),
        ("create_encoder", {"in_channels", "init", "weights", "input_scale", "stages", "stem_stride", "depth_padding"}),
        ("load_task", {"overrides"}),
        ("predict", {"center_mm", "device"}),
        ("Predictor", {"device", "checkpoint", "overrides"}),
    ],
)
def test_keyword_arguments_are_frozen(name: str, keywords: set[str]) -> None:
    parameters = inspect.signature(getattr(medi3d, name)).parameters.values()
    assert keywords <= {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters)
