"""The cases that a page shows: which ones, their pictures, and what its viewer needs of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medi3d.config import TaskConfig
from medi3d.errors import InputError
from medi3d.report.figures import Scene
from medi3d.report.montage import CaseImages, draw_montage, scene_of, telling_place
from medi3d.report.niivue import as_nifti_text, crosshair_fraction, packed_niivue, shrink, to_byte_range
from medi3d.report.scoreboard import case_scores
from medi3d.report.scores import Scores
from medi3d.types import Array
from medi3d.volume import LABEL_COLORS, LabelMap, Volume

LoadCase = Callable[[str], CaseImages | None]
"""Case id → what there is to see of it; ``None`` where its image is not at hand."""

_WORST = 4
_DIFFERENCES = (("#43d0a0", "in both"), ("#648fff", "missed"), ("#dc267f", "too much"), ("#ffb000", "another label"))
_DIRECTION = {"azimuth": 110, "elevation": 15}
"""From where the solid is seen at first, in degrees: from the patient's left and a little above."""


def choose_cases(scores: Scores, wanted: Sequence[str]) -> dict[str, str]:
    """Choose the cases to be shown: case id → why, worst first.

    Args:
        scores: of the evaluation.
        wanted: cases that a user names; none: the worst ones, the median and the best.

    Raises:
        InputError: a wanted case was not scored.
    """
    order = list(scores.goodness)
    unknown = [case for case in wanted if case not in order]
    if unknown:
        raise InputError(f"no scores of the case {unknown[0]}; scored are {', '.join(order[:8])}, …")
    rank = {case: f"rank {len(order) - index} of {len(order)}" for index, case in enumerate(order)}
    if wanted:
        return {case: rank[case] for case in wanted}
    chosen = {
        case: "worst" if index == 0 else f"{_ordinal(index + 1)} worst" for index, case in enumerate(order[:_WORST])
    }
    for index, why in ((len(order) // 2, "median"), (len(order) - 1, "best")):
        chosen.setdefault(order[index], why)
    return chosen


def describe_gallery(
    scores: Scores, task: TaskConfig, load_case: LoadCase, *, wanted: Sequence[str], with_viewer: bool
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return what ``report.html`` shows as pictures and in its viewer; ``None`` where no image is at hand.

    Raises:
        MissingDependencyError: a viewer is asked for, and NiiVue is not installed.
        InputError: a wanted case was not scored.
    """
    labels = task.data.labels
    code = packed_niivue() if with_viewer else ""
    pictures: list[dict[str, str]] = []
    volumes: list[dict[str, Any]] = []
    for case_id, why in choose_cases(scores, wanted).items():
        case = load_case(case_id)
        if case is None:
            continue
        picture = base64.b64encode(draw_montage(case, labels)).decode("ascii")
        pictures.append({"id": case_id, "rank": why, "scores": case_scores(scores, case_id), "picture": picture})
        if with_viewer:
            volumes.append({"id": case_id, "rank": why, "volumes": case_volumes(case, labels)})
    if not pictures:
        return None, None
    gallery = {"cases": pictures, "title": "Cases to look at", "explanation": _explain(scores, task)}
    if not with_viewer:
        return gallery, None
    layers = [layer for layer in _layers(labels) if layer["key"] in volumes[0]["volumes"]["layers"]]
    colours = {layer["key"]: layer["colours"] for layer in layers}
    settings = {"layers": colours, **_DIRECTION}
    return gallery, {"cases": volumes, "layers": layers, "settings": settings, "code": code}


def case_volumes(case: CaseImages, labels: Mapping[int, str]) -> dict[str, Any]:
    """Return a case's volumes for the viewer, thinned out and in 8 bits, and where its crosshair begins."""
    scene, _ = scene_of(case, labels)
    window = (float(np.percentile(case.image.array[0], 0.5)), float(np.percentile(case.image.array[0], 99.5)))
    affine = case.image.affine
    image = Volume(to_byte_range(case.image.array[:1], window), affine)
    layers: dict[str, Array] = {}
    if case.prediction is not None:
        layers["prediction"] = case.prediction.array
        if case.reference is not None:
            layers["reference"] = case.reference.array
            layers["differences"] = differences(case.prediction.array, case.reference.array)
    if case.heat is not None:
        layers["heat"] = to_byte_range(case.heat.array, (0.0, 1.0))
    place = telling_place(scene)
    return {
        "image": as_nifti_text(shrink(image)),
        "layers": {
            name: as_nifti_text(shrink(LabelMap(array.astype(np.uint8), affine))) for name, array in layers.items()
        },
        "place": crosshair_fraction(_shape(scene), place),
    }


def differences(prediction: Array, reference: Array) -> Array:
    """Return 1 where both have the same label, 2 where one was missed, 3 where too much was drawn, 4 for another label.

    Example:
        >>> differences(np.array([0, 1, 0, 2, 2]), np.array([0, 1, 1, 0, 1])).tolist()
        [0, 1, 2, 3, 4]
    """
    drawn, true = prediction > 0, reference > 0
    cases = [drawn & (prediction == reference), true & ~drawn, drawn & ~true, drawn & true]
    values: Array = np.select(cases, [1, 2, 3, 4], 0).astype(np.uint8)
    return values


def _shape(scene: Scene) -> tuple[int, int, int]:
    d, h, w = scene.image.shape
    return d, h, w


def _layers(labels: Mapping[int, str]) -> list[dict[str, Any]]:
    own = [(LABEL_COLORS[(value - 1) % len(LABEL_COLORS)], name) for value, name in sorted(labels.items())]
    heat = {"colormap": "inferno", "from": 40}
    return [
        _label_layer("prediction", "prediction", own),
        _label_layer("reference", "truth", own),
        _label_layer("differences", "differences", list(_DIFFERENCES)),
        {
            "key": "heat", "title": "what spoke for the class", "colours": heat,
            "legend": [{"colour": "linear-gradient(90deg,#56106e,#bc3754,#f98c0a,#fcffa4)", "name": "little to much"}],
        },
    ]  # fmt: skip


def _label_layer(key: str, title: str, entries: Sequence[tuple[str, str]]) -> dict[str, Any]:
    rgb = [tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour, _ in entries]
    columns = {letter: [0, *(values[index] for values in rgb)] for index, letter in enumerate("RGB")}
    names = ["", *(name for _, name in entries)]
    table = columns | {"A": [0] + [255] * len(rgb), "I": list(range(len(names))), "labels": names}
    legend = [{"colour": colour, "name": name} for colour, name in entries]
    return {"key": key, "title": title, "colours": {"labels": table}, "legend": legend}


def _ordinal(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"


def _explain(scores: Scores, task: TaskConfig) -> str:
    beyond = (
        " Where the cube reaches beyond the scan, the scan is mirrored or drawn out."
        if task.preprocess.crop == "cube"
        else ""
    )
    if scores.kind == "segmentation":
        return (
            "The three large pictures lie where drawing and truth differ most, the small ones at even distances "
            "through the region. Coloured line: drawn by the network. Dashed white line: the truth." + beyond
        )
    return (
        "Bright colours mark what spoke for the class that was predicted (Grad-CAM over all stages of the network). "
        "They show where it looked, not why, and not whether it was right. The small pictures are the image alone."
        + beyond
    )
