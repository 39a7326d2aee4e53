"""Validation scores against counts by hand, and what validation draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medi3d.config import TaskConfig, load_task
from medi3d.data.phantom_store import write_prepared_phantom
from medi3d.io.prepared import PreparedStore
from medi3d.train import validate


def test_validation_scores_are_those_of_an_independent_count(
    segmentation_task: TaskConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = PreparedStore(tiny / "prepared" / segmentation_task.name).cases()[:3]
    generator = torch.Generator().manual_seed(0)
    answers = [torch.randn(3, *case.shape, generator=generator) for case in cases]
    monkeypatch.setattr(validate, "predict_logits", lambda model, image, task: answers.pop(0))
    expected: dict[int, list[float]] = {1: [], 2: []}
    for case, logits in zip(cases, list(answers), strict=True):
        stored = case.label()
        assert stored is not None
        truth, found = np.asarray(stored[:])[0], logits.argmax(0).numpy()
        for label, scores in expected.items():
            scores.append(
                2 * ((truth == label) & (found == label)).sum() / ((truth == label).sum() + (found == label).sum())
            )
    score = validate.validate(torch.nn.Linear(1, 1), cases, segmentation_task).score
    assert score == pytest.approx(np.mean([np.mean(scores) for scores in expected.values()]), rel=1e-6)


def test_regions_are_scored_where_there_are_some_and_ignored_voxels_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task(
        "hippocampus", overrides={"data.regions": {"whole": [1, 2], "tail": [2]}, "data.ignore_label": 200}
    )
    cases = write_prepared_phantom(tmp_path / "store", task, cases=2, shapes=((8, 10, 9),), annotated=0.5)
    generator = torch.Generator().manual_seed(0)
    answers = [torch.randn(3, *case.shape, generator=generator) for case in cases]
    expected: list[list[float]] = [[], []]
    for case, logits in zip(cases, answers, strict=True):
        stored = case.label()
        assert stored is not None
        truth, found = np.asarray(stored[:])[0], logits.argmax(0).numpy()
        known = truth != 200
        assert 0 < known.mean() < 1
        for scores, members in zip(expected, ([1, 2], [2]), strict=True):
            one, two = np.isin(truth, members) & known, np.isin(found, members) & known
            if one.any():
                scores.append(2 * (one & two).sum() / (one.sum() + two.sum()))
    monkeypatch.setattr(validate, "predict_logits", lambda model, image, task: answers.pop(0))
    score = validate.validate(torch.nn.Linear(1, 1), cases, task).score
    assert score == pytest.approx(np.mean([np.mean(scores) for scores in expected]), rel=1e-6)


def test_a_label_that_no_case_has_does_not_count(
    segmentation_task: TaskConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = PreparedStore(tiny / "prepared" / segmentation_task.name).cases()[:2]
    more = replace(segmentation_task, data=replace(segmentation_task.data, labels={1: "one", 2: "two", 3: "none"}))

    def answer(model: object, image: torch.Tensor, task: TaskConfig) -> torch.Tensor:
        return torch.zeros(4, *image.shape[1:])

    monkeypatch.setattr(validate, "predict_logits", answer)
    assert validate.validate(torch.nn.Linear(1, 1), cases, more).score == 0.0


def test_a_few_cases_are_drawn(segmentation_task: TaskConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = PreparedStore(tiny / "prepared" / segmentation_task.name).cases()[:3]
    monkeypatch.setattr(validate, "predict_logits", lambda model, image, task: torch.zeros(3, *image.shape[1:]))
    drawn = validate.validate(torch.nn.Linear(1, 1), cases, segmentation_task, pictures=2).pictures
    assert list(drawn) == [case.case_id for case in cases[:2]]
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in drawn.values())


def test_area_under_the_curve_of_two_and_of_three_classes(
    classification_task: TaskConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = PreparedStore(tiny / "prepared" / classification_task.name).cases()[:4]
    assert [case.target for case in cases] == [0, 1, 0, 1]
    answers = [torch.tensor(values) for values in ([2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0])]
    monkeypatch.setattr(validate, "predict_logits", lambda model, image, task: answers.pop(0))
    # of the four pairs of a dark and a bright case, the second of two bright ones wins both of its own
    assert validate.validate(torch.nn.Linear(1, 1), cases, classification_task).score == pytest.approx(0.5)

    three = replace(classification_task, data=replace(classification_task.data, classes=("a", "b", "c")))
    relabelled = [replace(case, target=n % 3) for n, case in enumerate(cases)]
    answers += [torch.eye(3)[n % 3] for n in range(4)]
    assert validate.validate(torch.nn.Linear(1, 1), relabelled, three).score == 1.0


def test_one_class_has_no_area_under_the_curve(
    classification_task: TaskConfig, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    cases = PreparedStore(tiny / "prepared" / classification_task.name).cases()[:1]
    monkeypatch.setattr(validate, "predict_logits", lambda model, image, task: torch.zeros(2))
    assert np.isnan(validate.validate(torch.nn.Linear(1, 1), cases, classification_task).score)
