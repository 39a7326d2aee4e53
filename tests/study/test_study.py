from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.io import atomic
from medi3d.runs.folder import RunFolder
from medi3d.study import (
    Cell,
    CellResult,
    Study,
    StudyDesign,
    contrast_arms,
    learning_curves,
    run_study,
    write_contrasts,
)


@pytest.fixture
def short(segmentation_task: TaskConfig) -> TaskConfig:
    return replace(segmentation_task, train=replace(segmentation_task.train, steps=2, validations=1, threads=1))


@pytest.fixture
def design(short: TaskConfig) -> StudyDesign:
    return StudyDesign(short, inits=("random", "slicewise"), fractions=(2,), seeds=2)


def result(init: str, seed: int, values: list[float], *, cases: int | None = 4, targets: list[int] | None = None):
    rows = [{"case_id": f"c{n}", "patient": n, "value": value} for n, value in enumerate(values)]
    for row, target in zip(rows, targets or [], strict=bool(targets)):
        row["target"] = target
    return CellResult(Cell(init, cases, seed), 4, 10, 0.1, float(np.mean(values)), ((10, 0.5),), tuple(rows))


def test_every_cell_is_run_once_and_arms_of_a_seed_share_cases(design: StudyDesign, tiny: Path, tmp_path: Path) -> None:
    prepared = tiny / "prepared" / design.task.name
    ran: list[str] = []
    results = run_study(
        design, tmp_path / "s", prepared=prepared, device="cpu", on_cell=lambda cell, *_: ran.append(cell.name)
    )
    assert ran == [cell.name for cell in design.cells()]
    assert len(results) == len(ran) == 4
    study = Study(tmp_path / "s")
    for seed in range(2):
        for cases in design.fractions:
            splits = [RunFolder(study.cell(Cell(init, cases, seed)) / "run").load_split() for init in design.inits]
            assert splits[0] == splits[1]
            assert len(splits[0].train) == cases
    subsets = [RunFolder(study.cell(Cell("random", 2, seed)) / "run").load_split().train for seed in range(2)]
    assert subsets[0] != subsets[1]

    ran.clear()
    (study.cell(Cell("slicewise", 2, 1)) / "result.json").unlink()
    again = run_study(
        design, tmp_path / "s", prepared=prepared, device="cpu", on_cell=lambda cell, *_: ran.append(cell.name)
    )
    assert ran == ["slicewise-2-1"]
    scores = {r.cell: r.score for r in results}
    assert {r.cell: r.score for r in again} == scores
    with (tmp_path / "s" / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert float(rows[0]["score"]) == pytest.approx(results[0].score, rel=1e-5)
    with (tmp_path / "s" / "cases.csv").open(newline="") as stream:
        values = [
            float(row["value"]) for row in csv.DictReader(stream) if (row["init"], row["seed"]) == ("random", "0")
        ]
    held_out = len(results[0].cases)
    assert np.mean(values[:held_out]) == pytest.approx(results[0].score, rel=1e-4)


def test_the_slicewise_arm_never_looks_across_slices(design: StudyDesign) -> None:
    arms = {cell.init: design.configure(cell).model for cell in design.cells()}
    assert arms["slicewise"].depth_plan == "slicewise"
    assert arms["slicewise"].init == "imagenet-inflated"
    assert arms["random"].init == "random"
    assert arms["random"].depth_plan != "slicewise"


def test_a_cell_that_another_process_is_at_is_left_to_it(design: StudyDesign, tiny: Path, tmp_path: Path) -> None:
    one = replace(design, fractions=(2,), seeds=1)
    taken = Study(tmp_path / "s").cell(Cell("random", 2, 0))
    taken.mkdir(parents=True)
    with atomic.lock(taken):
        results = run_study(one, tmp_path / "s", prepared=tiny / "prepared" / one.task.name, device="cpu")
    assert [r.cell.init for r in results] == ["slicewise"]


def test_another_setting_is_another_comparison(design: StudyDesign, tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.begin(design)
    study.begin(replace(design, seeds=3, fractions=(2, 4, None)))  # more of the same
    other = replace(design.task, train=replace(design.task.train, steps=3))
    with pytest.raises(ConfigError, match=r"other settings \(train.steps\); give another --name"):
        study.begin(replace(design, task=other))
    study.begin(replace(design, task=replace(design.task, model=replace(design.task.model, init="random"))))
    kept = json.loads(study.design_file.read_text())
    del kept["task"]["infer"]["rotate_degrees"]  # as a file from before there was this key
    study.design_file.write_text(json.dumps(kept))
    study.begin(replace(design, seeds=3))
    assert study.read_plan()["train.steps"] == 2
    assert json.loads(study.design_file.read_text())["seeds"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inits": ("random", "imagenet-typo")}, "imagenet-typo"),
        ({"inits": ("random",)}, "nothing to compare"),
        ({"inits": ("random", "random")}, "give each once"),
        ({"fractions": ()}, "at least one"),
        ({"seeds": 0}, "at least 1"),
    ],
)
def test_a_design_that_makes_no_sense_is_refused(short: TaskConfig, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudyDesign(short, **changes)


def test_differences_are_paired_by_seed_and_case() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.9, size=(5, 12))  # seeds and cases differ by far more than the arms do
    gain = rng.normal(0.01, 0.001, size=(5, 12))
    results = [result("random", s, list(base[s])) for s in range(5)]
    results += [result("imagenet-inflated", s, list(base[s] + gain[s])) for s in range(5)]
    first, second = contrast_arms(results)
    assert first.difference is None
    assert second.difference is not None
    assert second.score.value == pytest.approx((base + gain).mean())
    assert second.difference.value == pytest.approx(gain.mean())
    assert 0.009 < second.difference.low < gain.mean() < second.difference.high < 0.011
    assert second.score.high - second.score.low > 0.03
    assert second.p_value == pytest.approx(stats.ttest_rel((base + gain).mean(1), base.mean(1)).pvalue)


def test_the_interval_is_that_of_a_two_stage_bootstrap() -> None:
    """Its variance: that of the mean over seeds, and that of the mean over a seed's cases."""
    rng = np.random.default_rng(1)
    seeds, cases = 6, 40
    values = 0.7 + rng.normal(0, 0.05, size=(seeds, 1)) + rng.normal(0, 0.2, size=(seeds, cases))
    (only,) = contrast_arms([result("random", s, list(values[s])) for s in range(seeds)], samples=20000)
    between = values.mean(1).var() / seeds
    within = (values.var(1) / cases).mean() / seeds
    expected = 2 * 1.96 * np.sqrt(between + within)
    assert only.score.high - only.score.low == pytest.approx(expected, rel=0.06)


def test_classifiers_are_compared_by_auc_and_undefined_draws_are_left_out() -> None:
    targets = [0, 0, 1, 1]
    good, bad = [0.1, 0.2, 0.8, 0.9], [0.1, 0.8, 0.2, 0.9]
    results = [
        replace(result(init, 0, values, targets=targets), score=score)
        for init, values, score in (("random", bad, 0.75), ("imagenet-center", good, 1.0))
    ]
    contrast = contrast_arms(results)[1]
    assert contrast.score.low == contrast.score.high == 1.0
    assert contrast.difference is not None
    assert contrast.difference.value == pytest.approx(0.25)
    assert contrast.difference.low == 0.0
    assert np.isnan(contrast.p_value)  # one seed


def test_every_seed_has_its_learning_curve_whatever_the_size_of_its_fold() -> None:
    few = [replace(result("random", seed, [0.5]), cell=Cell("random", 8, seed), train_cases=8) for seed in range(2)]
    whole = [
        replace(
            result("random", seed, [0.5]), cell=Cell("random", None, seed), train_cases=size, curve=((5, 0.1 * seed),)
        )
        for seed, size in enumerate((371, 369, 370))
    ]
    curves = learning_curves([*few, *whole])
    assert list(curves) == ["8 training cases", "370 training cases"]
    assert curves["370 training cases"]["random"] == [((5, 0.0),), ((5, 0.1),), ((5, 0.2),)]


def test_p_values_are_adjusted_after_holm(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    results = []
    for init, gain in (("random", 0.0), ("imagenet-inflated", 0.01), ("imagenet-center", 0.03)):
        for cases in (8, None):
            for seed in range(4):
                results.append(result(init, seed, list(0.7 + gain + rng.normal(0, 0.01, size=6)), cases=cases))
    contrasts = contrast_arms(results)
    assert [c.cases for c in contrasts] == [8] * 3 + [None] * 3
    known = [c for c in contrasts if np.isfinite(c.p_value)]
    order = sorted(known, key=lambda c: c.p_value)
    expected = np.minimum(1, np.maximum.accumulate([c.p_value * (4 - rank) for rank, c in enumerate(order)]))
    assert [c.p_adjusted for c in order] == pytest.approx(list(expected))
    with write_contrasts(contrasts, tmp_path / "t.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["difference"] == rows[0]["p"] == ""
    assert float(rows[1]["p_holm"]) == pytest.approx(contrasts[1].p_adjusted, rel=1e-4)
