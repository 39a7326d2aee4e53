from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from medi3d.config import TaskConfig, dump_task, list_tasks, load_task, parse_task, read_yaml, task_path
from medi3d.errors import ConfigError

SEGMENTATION = {"name": "mine", "kind": "segmentation", "data": {"labels": {1: "liver"}}}
CLASSIFICATION = {
    "name": "mine",
    "kind": "classification",
    "data": {"layout": "csv", "classes": ["no", "yes"], "columns": {"target": "y"}},
    "train": {"loss": "cross_entropy"},
}


def merged(base: dict[str, object], **sections: dict[str, object]) -> dict[str, object]:
    result = dict(base)
    for section, values in sections.items():
        before = result.get(section, {})
        assert isinstance(before, dict)
        result[section] = {**before, **values}
    return result


def test_the_built_in_tasks_are_all_valid() -> None:
    tasks = list_tasks()
    assert set(tasks) >= {"hippocampus", "lung_nodule", "lung_nodule_seg", "brain_tumor", "demo"}
    for name, description in tasks.items():
        task = load_task(name)
        assert task.name == name
        assert description == task.description != ""
        assert task.data.source


@pytest.mark.parametrize("name", sorted(list_tasks()))
def test_a_dumped_task_is_read_back_equal(name: str) -> None:
    task = load_task(name)
    assert parse_task(yaml.safe_load(yaml.safe_dump(dump_task(task))), where="dump") == task


def test_derived_numbers() -> None:
    tumor, nodule = load_task("brain_tumor"), load_task("lung_nodule")
    assert (tumor.in_channels, tumor.num_classes, tumor.normalizations) == (2, 5, ("mr", "mr"))
    assert (nodule.in_channels, nodule.num_classes) == (1, 2)


def test_a_task_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign"):
        load_task("demo").name = "other"  # type: ignore[misc]


def test_overrides_go_over_the_file_and_are_read_as_yaml() -> None:
    task = load_task(
        "hippocampus",
        overrides={"train.steps": "7", "preprocess.spacing_mm": 1.5, "train.augment.mirror_axes": "[D, H]"},
    )
    assert task.train.steps == 7
    assert task.preprocess.spacing_mm == (1.5, 1.5, 1.5)
    assert task.train.augment.mirror_axes == ("D", "H")
    assert load_task("hippocampus").train.steps != 7


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SEGMENTATION))
    assert load_task(path).data.labels == {1: "liver"}
    assert load_task("ignored", values=SEGMENTATION).name == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.stepz": 3}, "hippocampus: train.stepz: .*did you mean 'train.steps'"),
        ({"tarin.steps": 3}, "hippocampus: tarin: .*did you mean 'train'"),
        ({"train.steps": "many"}, "hippocampus: train.steps: .* Got: 'many'"),
        ({"train.steps": 0}, "train.steps: .*greater than 0"),
        ({"train.foreground_fraction": 1.5}, "train.foreground_fraction: .*less than or equal to 1"),
        ({"preprocess.spacing_mm": [1, 1]}, "preprocess.spacing_mm"),
        ({"train.optimizer": "adam"}, "train.optimizer: .*'adamw' or 'sgd'"),
        ({"train.steps": "[1"}, "train.steps: '\\[1' is not a YAML value"),
    ],
)
def test_a_wrong_value_names_file_and_key(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_task("hippocampus", overrides=overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (merged(SEGMENTATION, data={"labels": {}}), "data.labels: give the foreground values"),
        (merged(SEGMENTATION, data={"labels": {1: "a", 3: "b"}}), "data.labels: give the foreground values"),
        (merged(CLASSIFICATION, data={"classes": ["one"]}), "data.classes: give at least two"),
        (merged(CLASSIFICATION, data={"columns": {}}), "data.columns.target"),
        (merged(CLASSIFICATION, data={"layout": "msd"}), "data.columns.target"),
        (merged(CLASSIFICATION, train={"loss": "dice_ce"}), "dice_ce is for segmentation"),
        (merged(SEGMENTATION, preprocess={"normalize": ["mr", "ct"]}), "preprocess.normalize: give one entry"),
        (merged(SEGMENTATION, train={"class_weights": [1.0]}), "train.class_weights: give one weight"),
        (merged(SEGMENTATION, preprocess={"window_hu": [400, -1000]}), "preprocess.window_hu: the lower end"),
        (merged(SEGMENTATION, model={"decoder_channels": [8]}), "model.decoder_channels"),
    ],
)
def test_fields_must_fit_each_other(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"mine.yaml: .*{message}"):
        parse_task(mapping, where="mine.yaml")


def test_valid_mappings_stay_valid() -> None:
    for mapping in (SEGMENTATION, CLASSIFICATION):
        assert isinstance(parse_task(mapping, where="mine.yaml"), TaskConfig)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown task 'hipocampus'; did you mean 'hippocampus'"):
        load_task("hipocampus")
    with pytest.raises(ConfigError, match="no such task file; `medi3d tasks` lists"):
        task_path("nowhere/mine.yaml")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="not a readable YAML file"):
        read_yaml(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="expected a YAML mapping of configuration keys, got list"):
        read_yaml(path)
    path.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not a readable YAML file"):
        read_yaml(path)
