from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from medi3d.config import (
    PLANNED_KEYS,
    dump_task,
    flatten_keys,
    list_tasks,
    load_task,
    parse_duration,
    parse_task,
    read_yaml,
    task_path,
)
from medi3d.errors import ConfigError

SEGMENTATION = {"name": "mine", "kind": "segmentation", "data": {"labels": {1: "liver"}}}
CLASSIFICATION = {
    "name": "mine",
    "kind": "classification",
    "data": {"layout": "csv", "classes": ["no", "yes"], "columns": {"target": "y"}},
    "train": {"loss": "cross_entropy"},
}


REGIONS: dict[str, object] = {
    "name": "mine",
    "kind": "segmentation",
    "data": {
        "labels": {1: "necrosis", 2: "edema", 3: "enhancing"},
        "regions": {"whole": [1, 2, 3], "core": [1, 3], "e": [3]},
    },
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
        (merged(CLASSIFICATION, train={"loss": "dice_ce"}), "train.loss: it compares shapes, for segmentation"),
        (merged(CLASSIFICATION, train={"loss": "dice_focal"}), "train.loss: it compares shapes"),
        (merged(CLASSIFICATION, train={"loss": "tversky"}), "train.loss: it compares shapes"),
        (merged(CLASSIFICATION, train={"loss": "boundary"}), "train.loss: it compares shapes"),
        (merged(SEGMENTATION, preprocess={"normalize": ["mr", "ct"]}), "preprocess.normalize: give one entry"),
        (merged(SEGMENTATION, train={"class_weights": [1.0]}), "train.class_weights: give one weight"),
        (merged(REGIONS, train={"class_weights": [1.0] * 4}), "train.class_weights: give one weight"),
        (merged(SEGMENTATION, data={"labels": {1: "a", 2: "a"}}), "data.labels: give each label a name of its own"),
        (merged(SEGMENTATION, data={"channels": []}), "data.channels: name one channel"),
        (merged(SEGMENTATION, data={"channels": ["CT", "CT"]}), "data.channels: give each channel a name of its own"),
        (merged(SEGMENTATION, data={"quantities": ["suv", "suv"]}), "data.quantities: give one entry"),
        (merged(CLASSIFICATION, data={"classes": ["a", "a"]}), "data.classes: give each class a name of its own"),
        (merged(SEGMENTATION, data={"classes": ["a", "b"]}), "data.columns.target: name the column"),
        (merged(SEGMENTATION, data={"classes": ["a"], "layout": "csv"}), "data.classes: give at least two"),
        (merged(SEGMENTATION, data={"classes": ["a", "b"], "layout": "csv"}), "data.columns.target: name the column"),
        (merged(SEGMENTATION, data={"classes": ["a", "b"], "columns": {"target": "y"}}), "set data.layout to csv"),
        (merged(CLASSIFICATION, data={"regions": {"r": [1]}}), "data.regions: .*a classification task has none"),
        (merged(REGIONS, data={"regions": {"whole": [1, 2, 4]}}), "data.regions: list values of data.labels"),
        (merged(REGIONS, data={"regions": {"whole": []}}), "data.regions: list values of data.labels"),
        (merged(REGIONS, data={"regions": {"whole": [1, 1, 2, 3]}}), "data.regions: list values of data.labels"),
        (merged(REGIONS, data={"regions": {"core": [1, 3], "e": [3]}}), "data.regions: put each of data.labels"),
        (merged(REGIONS, data={"regions": {"whole": [1, 2, 3], "e": [3]}}), "data.regions: no two of data.labels"),
        (
            merged(REGIONS, data={"labels": {1: "core", 2: "b", 3: "e"}}),
            "data.regions: name no region like one of data.labels",
        ),
        (merged(REGIONS, data={"ignore_label": 3}), "data.ignore_label: take a value that is none of data.labels"),
        (merged(CLASSIFICATION, data={"ignore_label": 9}), "data.ignore_label: voxels are annotated in segmentation"),
        (merged(SEGMENTATION, preprocess={"clip_percentiles": [99, 1]}), "preprocess.clip_percentiles: the lower end"),
        (merged(CLASSIFICATION, model={"deep_supervision": 1}), "model.deep_supervision: .*for segmentation"),
        (merged(SEGMENTATION, model={"deep_supervision": 3, "stages": 3}), "model.deep_supervision: .*fewer than"),
        (
            merged(SEGMENTATION, model={"depth_plan": "anisotropic"}, preprocess={"spacing_mm": "native"}),
            "model.depth_plan: anisotropic needs one voxel size",
        ),
        (merged(SEGMENTATION, model={"network": "monai/dynunet", "drop_path": 0.1}), "model.drop_path: works on"),
        (
            merged(SEGMENTATION, model={"network": "monai/dynunet"}, train={"norm_statistics": "frozen"}),
            "train.norm_statistics: works on an inflated encoder",
        ),
        (
            merged(SEGMENTATION, model={"network": "monai/dynunet"}, train={"layer_decay": 0.9}),
            "train.layer_decay: works on an inflated encoder",
        ),
        (
            merged(SEGMENTATION, model={"network": "monai/dynunet"}, train={"freeze": 0.1}),
            "train.freeze: works on an inflated encoder",
        ),
        (merged(SEGMENTATION, train={"freeze": 0.7, "warmup": 0.3}), "train.freeze: .*together less than 1"),
        (merged(SEGMENTATION, train={"batch_size": 1, "augment": {"mixup": 0.2}}), "train.augment.mixup: it mixes"),
        (merged(CLASSIFICATION, train={"case_sampling": "rare_labels"}), "train.case_sampling: rare_labels is for"),
        (
            merged(SEGMENTATION, infer={"mirror": True}, train={"augment": {"mirror_axes": []}}),
            "infer.mirror: name the axes",
        ),
        (
            merged(SEGMENTATION, infer={"rotate_degrees": 8}, preprocess={"spacing_mm": "native"}),
            "infer.rotate_degrees: it needs one voxel size",
        ),
        (merged(SEGMENTATION, preprocess={"window_hu": [400, -1000]}), "preprocess.window_hu: the lower end"),
        (merged(SEGMENTATION, model={"decoder_channels": []}), "model.decoder_channels: give one entry"),
    ],
)
def test_fields_must_fit_each_other(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"mine.yaml: .*{message}"):
        parse_task(mapping, where="mine.yaml")


@pytest.mark.parametrize(
    "mapping",
    [
        SEGMENTATION,
        CLASSIFICATION,
        REGIONS,
        merged(REGIONS, data={"ignore_label": 255}, train={"class_weights": [1, 2, 3]}),
        merged(SEGMENTATION, data={"classes": ["a", "b"], "layout": "csv", "columns": {"target": "y"}}),
        merged(CLASSIFICATION, train={"loss": "focal", "class_weights": [1, 3], "label_smoothing": 0.1}),
        merged(SEGMENTATION, model={"deep_supervision": 2, "stages": 3}),
        merged(SEGMENTATION, model={"deep_supervision": 2}),
        merged(
            SEGMENTATION, train={"freeze": 0.6, "warmup": 0.3, "norm_statistics": "frozen"}, model={"drop_path": 0.1}
        ),
        merged(SEGMENTATION, train={"loss": "cross_entropy", "augment": {"mixup": 0.2}}),
        merged(SEGMENTATION, model={"network": "monai/basic_unet"}),
    ],
)
def test_valid_mappings_stay_valid_and_survive_a_dump(mapping: dict[str, object]) -> None:
    task = parse_task(mapping, where="mine.yaml")
    assert parse_task(yaml.safe_load(yaml.safe_dump(dump_task(task))), where="dump") == task


def test_what_is_planned_is_open_until_it_is_planned() -> None:
    task = parse_task(SEGMENTATION, where="mine.yaml")
    for name in ("patch_size", "batch_size", "steps", "learning_rate", "precision"):
        with pytest.raises(ConfigError, match=rf"mine: train\.{name} is not planned yet; run `medi3d plan`, or set it"):
            getattr(task, name)
    planned = load_task("mine", values=SEGMENTATION, overrides={"train.patch_size": 48, "train.learning_rate": 1e-3})
    assert (planned.patch_size, planned.learning_rate) == ((48, 48, 48), 1e-3)
    assert all(flatten_keys(dump_task(task), where="task")[key] is None for key in PLANNED_KEYS)


def test_outputs_are_regions_labels_or_classes() -> None:
    outputs = [parse_task(mapping, where="").out_channels for mapping in (SEGMENTATION, CLASSIFICATION, REGIONS)]
    assert outputs == [2, 2, 3]
    assert parse_task(REGIONS, where="").num_classes == 4


@pytest.mark.parametrize("key", ["train.budget", "train.save_every"])
def test_durations_are_checked_at_load(key: str) -> None:
    task = load_task("hippocampus", overrides={key: "1h30m"})
    assert parse_duration(flatten_keys(dump_task(task), where="")[key]) == 5400  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"hippocampus: {key}: .*'10 minutes' is no duration; write 45s, 10m"):
        load_task("hippocampus", overrides={key: "10 minutes"})
    with pytest.raises(ConfigError, match="'0m' is no time at all"):
        load_task("hippocampus", overrides={key: "0m"})


def test_yamls_no_is_a_word_for_precision() -> None:
    assert load_task("hippocampus", overrides={"train.precision": "no"}).train.precision == "no"
    with pytest.raises(ConfigError, match=r"train\.precision: Input should be 'no', 'bf16' or 'fp16'"):
        load_task("hippocampus", overrides={"train.precision": "yes"})


_EARLIER_RUN = """
name: hippocampus
kind: segmentation
description: Anterior and posterior hippocampus
data:
  layout: msd
  channels: [T1]
  labels: {1: anterior, 2: posterior}
  classes: []
  fourth_axis: channels
  quantities: [stored]
  allow_empty_labels: false
  hash_case_ids: false
  table: cases.csv
  columns: {case: case_id, patient: patient_id, images: [image], label: null, target: null, center: null}
  patterns: {images: [], label: null}
  source: Task04_Hippocampus
preprocess:
  spacing_mm: [1.0, 1.0, 1.0]
  interpolation: linear
  normalize: [mr]
  window_hu: [-1000.0, 400.0]
  clip_percentiles: [0.5, 99.5]
  bias_correction: none
  dataset_intensities: []
  crop: none
  cube_mm: 48.0
  padding: reflect
model:
  backbone: tf_efficientnet_lite0
  init: imagenet-inflated
  weights: null
  stem_stride: null
  depth_plan: symmetric
  stages: 5
  decoder_channels: [16, 32, 48, 64, 96]
  dropout: 0.0
train:
  patch_size: [40, 56, 40]
  batch_size: 2
  steps: 1000
  budget: null
  optimizer: adamw
  learning_rate: 0.003
  weight_decay: 0.01
  schedule: cosine
  warmup: 0.03
  loss: dice_ce
  class_weights: []
  foreground_fraction: 0.67
  grad_clip: 12.0
  precision: 'no'
  validations: 4
  folds: 5
  cases: null
  seed: 0
  workers: 0
  augment:
    mirror_axes: [W]
    rotate_degrees: 15.0
    scale: 0.15
    spatial_probability: 0.5
    noise_std: 0.1
    brightness: 0.1
    contrast: 0.25
    gamma: 0.3
    intensity_probability: 0.3
infer: {overlap: 0.5, window_batch: 1, mirror: false}
evaluate: {tolerance_mm: 1.0, bootstrap: 2000}
"""


def test_a_run_of_the_first_schema_is_still_read() -> None:
    """``config.yaml`` of a run that was made before there were plans holds every key that is planned now."""
    values = yaml.safe_load(_EARLIER_RUN)
    task = parse_task(values, where="config.yaml")
    assert (task.patch_size, task.batch_size, task.steps, task.learning_rate) == ((40, 56, 40), 2, 1000, 3e-3)
    assert (task.model.stages, task.model.depth_plan, task.train.workers) == (5, "symmetric", 0)
    kept = flatten_keys(dump_task(task), where="dump")
    assert all(kept[key] == value for key, value in flatten_keys(values, where="config.yaml").items())


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
