from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as label_components

from medi3d import io
from medi3d.evaluate import evaluate_segmentation, segment_scores
from medi3d.evaluate.lesions import LesionCounts, count_lesions
from medi3d.volume import LabelMap

SHAPE = (7, 12, 18)


def place(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Boxes (h, w, height, width) through slices 2 to 4."""
    mask = np.zeros(SHAPE, bool)
    for h, w, height, width in boxes:
        mask[2:5, h : h + height, w : w + width] = True
    return mask


def test_counts_by_hand() -> None:
    truth = place((1, 1, 4, 4), (1, 8, 4, 4), (8, 1, 3, 3))
    # One found well (IoU 12/20 = 0.6), one grazed (IoU 4/28 = 1/7), one missed, and one that is not there.
    guess = place((1, 2, 4, 4), (1, 11, 4, 4), (8, 13, 2, 2))
    assert count_lesions(guess, truth) == LesionCounts(3, 3, 2, pytest.approx(0.6))
    assert count_lesions(guess, truth, lesion_iou=0.2).matched == 1
    assert count_lesions(guess, truth, lesion_iou=0.6).matched == 1
    assert count_lesions(guess, truth, lesion_iou=0).matched == 2
    found = segment_scores(guess.astype(np.uint8), truth.astype(np.uint8), labels={1: "it"}, spacing_mm=(3, 1, 1))["it"]
    names = ("lesion_precision", "lesion_recall", "lesion_f1", "panoptic_quality")
    assert [found[name] for name in names] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0.6 / 3])


def test_a_prediction_that_melts_lesions_finds_one() -> None:
    truth = place((1, 1, 4, 4), (1, 6, 4, 4))
    melted = place((1, 1, 4, 9))
    assert count_lesions(melted, truth) == LesionCounts(1, 2, 1, 0.0)
    assert count_lesions(truth, melted) == LesionCounts(2, 1, 1, 0.0)


def test_the_largest_matching_is_taken_not_the_first() -> None:
    """The first prediction touches both, the second only the first lesion: two can be matched."""
    truth = place((1, 1, 4, 4), (1, 7, 4, 4))
    guess = place((1, 4, 2, 5)) | place((4, 1, 1, 4))
    for axes in ([], [1], [2], [1, 2]):  # whichever comes first
        flipped = np.flip(guess, axes), np.flip(truth, axes)
        assert count_lesions(*flipped, lesion_iou=0) == LesionCounts(2, 2, 2, 0.0)


def test_an_iou_of_one_half_is_found_but_is_not_panoptic() -> None:
    assert count_lesions(place((1, 1, 4, 2)), place((1, 1, 4, 4)), lesion_iou=0.5) == LesionCounts(1, 1, 1, 0.0)


def test_corners_connect() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[2, 3, 4] = mask[3, 4, 5] = True
    assert count_lesions(mask, mask).reference == 1


def brute_force(guess: np.ndarray, truth: np.ndarray, least: float) -> tuple[int, int, int]:
    """Components by scipy, pairs by their definition, the largest matching by trying all."""
    masks = []
    for mask in (guess, truth):
        numbers, count = label_components(mask, np.ones((3, 3, 3)))
        masks.append([numbers == number for number in range(1, count + 1)])
    fits = [[(a & b).any() and (a & b).sum() / (a | b).sum() >= least for b in masks[1]] for a in masks[0]]

    def best(row: int, taken: frozenset[int]) -> int:
        if row == len(fits):
            return 0
        free = [column for column, fit in enumerate(fits[row]) if fit and column not in taken]
        return max([best(row + 1, taken), *(1 + best(row + 1, taken | {column}) for column in free)])

    return len(masks[0]), len(masks[1]), best(0, frozenset())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), least=st.sampled_from([0.0, 0.1, 0.3]))
def test_counts_are_those_of_brute_force(seed: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    truth, guess = (rng.random((3, 5, 6)) < 0.17 for _ in range(2))
    found = count_lesions(guess, truth, lesion_iou=least)
    assert (found.predicted, found.reference, found.matched) == brute_force(guess, truth, least)


def test_voxels_that_nobody_annotated_enter_no_size() -> None:
    truth, guess = place((1, 1, 4, 8)), place((1, 1, 4, 4))
    known = np.ones(SHAPE, bool)
    known[:, :, 5:] = False
    assert count_lesions(guess, truth, known=known).panoptic_iou == 1
    assert count_lesions(truth, truth, known=known).panoptic_iou == 1
    assert count_lesions(guess, truth).panoptic_iou == 0
    assert count_lesions(guess | place((8, 12, 2, 2)), truth, known=known).predicted == 1


def test_lesions_of_all_cases_are_pooled(tmp_path: Path) -> None:
    """One case with 3 of 4 found, one with its only lesion missed: 3 of 5, not the mean of 3/4 and 0."""
    truth = {"a": place((0, 0, 2, 2), (0, 5, 2, 2), (0, 10, 2, 2), (8, 0, 2, 2)), "b": place((1, 1, 3, 3))}
    guess = {"a": truth["a"] & ~place((8, 0, 2, 2)), "b": place((8, 8, 2, 2))}
    for name, masks in (("r", truth), ("p", guess)):
        for case, mask in masks.items():
            io.write_label_map(
                LabelMap(mask[None].astype(np.uint8), np.diag([3.0, 1, 1, 1])), tmp_path / name / f"{case}.nii.gz"
            )
    result = evaluate_segmentation(tmp_path / "p", tmp_path / "r", {1: "it"}, bootstrap=200)
    scores = result.scores["it"]
    assert scores["lesion_recall"].value == pytest.approx(3 / 5)
    assert scores["lesion_precision"].value == pytest.approx(3 / 4)
    assert scores["lesion_f1"].value == pytest.approx(6 / 9)
    assert scores["panoptic_quality"].value == pytest.approx(3 / 4.5)
    assert result.scores["all labels"]["lesion_recall"] == scores["lesion_recall"]
    assert scores["dice"].value == pytest.approx((2 * 36 / (36 + 48) + 0) / 2)
