"""A synthetic chest CT with nodules of two kinds: what ``medi3d demo`` and the tests train on.

All random choices are drawn once into a :class:`PhantomPlan`; rendering a plan is a pure function of it. Anatomy is
placed in millimetres in a frame centred on the volume whose axes run superior, posterior, left (``SPL``). The chest is
small (about 128×192×192 mm), so that a training on it takes a minute or two on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from medi3d import io
from medi3d.types import Array, FloatArray, FloatTriple, PathLike
from medi3d.volume import Affine, LabelMap, Volume

EXTENT_MM: FloatTriple = (128.0, 192.0, 192.0)
"""Size of the imaged box along D, H, W."""

NODULE_LABELS = {"solid": 1, "subsolid": 2}

_AIR_HU, _FAT_HU, _MUSCLE_HU, _LUNG_HU, _BLOOD_HU = -1000.0, -90.0, 45.0, -850.0, 35.0
_SPONGY_BONE_HU, _RIB_HU, _DISC_HU = 220.0, 380.0, 80.0
_SOLID_HU, _HALO_HU, _CORE_HU = 40.0, -400.0, -120.0

_LUNGS = {"right": ((-8.0, 2.0, -41.0), (74.0, 56.0, 33.0)), "left": ((-8.0, 4.0, 41.0), (74.0, 54.0, 32.0))}
"""Centre and semi-axes of each lung."""
_HEART = ((-30.0, -20.0, 17.0), (34.0, 31.0, 33.0))
_HILUM_OFFSET_MM = 14.0


@dataclass(frozen=True)
class Nodule:
    """One nodule: a round solid one, or a sub-solid one with spicules and a small denser core."""

    kind: Literal["solid", "subsolid"]
    center_mm: FloatTriple
    diameter_mm: float
    phases: tuple[float, float, float]
    """Phases of the waves and spicules on its surface."""


@dataclass(frozen=True)
class Vessel:
    """A straight piece of a vessel tree."""

    start_mm: FloatTriple
    end_mm: FloatTriple
    radius_mm: float


@dataclass(frozen=True)
class PhantomPlan:
    """Everything that was drawn for one case; :func:`render_phantom` turns it into voxels."""

    spacing_mm: FloatTriple
    flips: tuple[bool, bool, bool]
    """Which of D, H, W the file stores in reverse; the affine tells."""
    body_scale: float
    nodules: tuple[Nodule, ...]
    vessels: tuple[Vessel, ...]
    noise_seed: int


def plan_phantom(seed: int) -> PhantomPlan:
    """Draw a chest: spacing, size, vessel trees and two to four nodules, at least one of each kind.

    Examples:
        >>> plan_phantom(3) == plan_phantom(3)
        True
    """
    rng = np.random.default_rng(seed)
    in_plane = rng.uniform(0.9, 1.3)
    return PhantomPlan(
        spacing_mm=(round(float(rng.uniform(2.0, 3.2)), 2), round(float(in_plane), 3), round(float(in_plane), 3)),
        flips=(bool(rng.random() < 0.3), bool(rng.random() < 0.3), bool(rng.random() < 0.3)),
        body_scale=float(rng.uniform(0.94, 1.0)),
        nodules=_draw_nodules(rng),
        vessels=tuple(piece for side in _LUNGS for piece in _draw_vessel_tree(rng, side)),
        noise_seed=int(rng.integers(2**31)),
    )


def render_phantom(plan: PhantomPlan) -> tuple[Volume, LabelMap]:
    """Turn a plan into voxels.

    Returns:
        The CT ``(1, D, H, W)``, int16 HU, and its label map: 0 background, 1 solid, 2 sub-solid nodule.

    Examples:
        >>> image, label = render_phantom(plan_phantom(0))
        >>> image.shape == label.shape, np.unique(label.array).tolist()
        (True, [0, 1, 2])
    """
    axes = _axes_mm(plan.spacing_mm)
    scaled = tuple(axis / plan.body_scale for axis in axes)
    image, lung = _render_anatomy(scaled[0], scaled[1], scaled[2])
    rng = np.random.default_rng(plan.noise_seed)
    _add_lung_texture(image, lung, plan.spacing_mm, rng)
    for vessel in plan.vessels:
        _draw_vessel(image, lung, axes, vessel)
    label = np.zeros(image.shape, np.uint8)
    for nodule in plan.nodules:
        _draw_nodule(image, label, axes, nodule)
    # The scanner's blur (about 1 mm full width), then its noise.
    image = gaussian_filter(image, [0.5 / mm for mm in plan.spacing_mm])
    image += rng.normal(scale=22.0, size=image.shape).astype(np.float32)
    voxels = np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    affine = _affine(voxels.shape, plan)
    order = tuple(slice(None, None, -1 if flip else 1) for flip in plan.flips)
    return Volume(voxels[order][None].copy(), affine), LabelMap(label[order][None].copy(), affine)


def write_phantom_dataset(
    folder: PathLike,
    *,
    cases: int,
    test_cases: int = 2,
    seed: int = 0,
    on_case: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a data set of phantoms in the layout of the Medical Segmentation Decathlon, fit for ``configs/demo.yaml``.

    Args:
        folder: where ``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs`` and ``labelsTs`` go.
        cases: number of training cases.
        test_cases: number of further cases; they are not listed for training, their labels are for evaluation.
        seed: one seed gives one data set, voxel by voxel; a case does not depend on how many there are.
        on_case: called with a case's name, how many are written, and how many there will be.

    Returns:
        The path of ``dataset.json``, which is written last.

    Examples:
        >>> write_phantom_dataset("data/raw/demo", cases=8)  # doctest: +SKIP
        PosixPath('data/raw/demo/dataset.json')
    """
    folder = Path(folder)
    splits = {"Tr": [f"chest_{i:03d}" for i in range(cases)], "Ts": [f"chest_test_{i:03d}" for i in range(test_cases)]}
    done = 0
    for stream, (split, names) in enumerate(splits.items()):
        for index, name in enumerate(names):
            case_seed = np.random.SeedSequence([seed, stream, index]).generate_state(1)[0]
            image, label = render_phantom(plan_phantom(int(case_seed)))
            io.write_volume(image, folder / f"images{split}" / f"{name}.nii.gz")
            io.write_label_map(label, folder / f"labels{split}" / f"{name}.nii.gz")
            done += 1
            if on_case is not None:
                on_case(name, done, cases + test_cases)
    path = folder / "dataset.json"
    path.write_text(json.dumps(_describe_dataset(splits["Tr"], splits["Ts"]), indent=2) + "\n", encoding="utf-8")
    return path


def _describe_dataset(training: list[str], test: list[str]) -> dict[str, object]:
    return {
        "name": "synthetic chest",
        "description": "Synthetic chest CT with solid and sub-solid nodules, made by medi3d",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(value): name for name, value in NODULE_LABELS.items()}},
        "numTraining": len(training),
        "numTest": len(test),
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in training],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
    }


# What is drawn ---------------------------------------------------------------------------------------------------


def _draw_nodules(rng: np.random.Generator) -> tuple[Nodule, ...]:
    kinds = ["solid", "subsolid", *rng.choice(["solid", "subsolid"], size=rng.integers(0, 3)).tolist()]
    nodules: list[Nodule] = []
    while len(nodules) < len(kinds):
        kind = kinds[len(nodules)]
        diameter = float(rng.uniform(12.0, 22.0) if kind == "solid" else rng.uniform(13.0, 23.0))
        center = _draw_point_in_lung(rng, diameter / 2)
        apart = all(
            np.linalg.norm(np.subtract(center, other.center_mm)) > (diameter + other.diameter_mm) / 2 + 6
            for other in nodules
        )
        if apart and _ellipsoid_level(center, *_HEART) > (1 + diameter / 2 / 31) ** 2:
            phases = rng.uniform(0, 2 * np.pi, size=3).tolist()
            nodules.append(Nodule(kind, center, diameter, (phases[0], phases[1], phases[2])))
    return tuple(nodules)


def _draw_point_in_lung(rng: np.random.Generator, margin_mm: float) -> FloatTriple:
    """Draw a point whose ball of ``margin_mm`` lies inside a lung and inside the volume."""
    while True:
        center, semi_axes = _LUNGS["left" if rng.random() < 0.5 else "right"]
        point = np.asarray(center) + rng.uniform(-1, 1, size=3) * (np.asarray(semi_axes) - margin_mm - 3)
        inner = tuple(axis - margin_mm - 3 for axis in semi_axes)
        inside = abs(point[0]) < EXTENT_MM[0] / 2 - margin_mm - 4
        if inside and _ellipsoid_level(point, center, (inner[0], inner[1], inner[2])) < 1:
            return float(point[0]), float(point[1]), float(point[2])


def _draw_vessel_tree(rng: np.random.Generator, side: str) -> list[Vessel]:
    """Grow a tree from the hilum outwards: each piece forks into two thinner, shorter ones."""
    center = np.asarray(_LUNGS[side][0])
    inwards = -np.sign(center[2])
    hilum = center + np.array([0.0, 0.0, inwards * _HILUM_OFFSET_MM])
    trunks = [(hilum, np.array([up, ahead, -inwards * 0.5])) for up in (-0.9, 0.0, 0.9) for ahead in (-0.6, 0.6)]
    growing = [(start, direction, 22.0, 2.2) for start, direction in trunks]
    pieces = []
    while growing:
        start, direction, length, radius = growing.pop()
        direction = direction / np.linalg.norm(direction)
        end = start + direction * length
        pieces.append(Vessel(tuple(start.tolist()), tuple(end.tolist()), radius))
        if radius > 0.8:
            for _ in range(2):
                growing.append((end, direction + rng.normal(scale=0.55, size=3), length * 0.75, radius * 0.75))
    return pieces


# How it is rendered ----------------------------------------------------------------------------------------------

_Axes = tuple[FloatArray, FloatArray, FloatArray]


def _axes_mm(spacing_mm: FloatTriple) -> _Axes:
    """Return the coordinates of the voxel centres along each axis, shaped to broadcast to ``(D, H, W)``."""
    d, h, w = (
        ((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32)
        for n, mm in ((round(extent / mm), mm) for extent, mm in zip(EXTENT_MM, spacing_mm, strict=True))
    )
    return d[:, None, None], h[None, :, None], w[None, None, :]


def _affine(shape: tuple[int, ...], plan: PhantomPlan) -> Affine:
    """Return the affine of the stored array: SPL axes, reversed where the plan says so, centred on the origin."""
    to_ras = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]], dtype=np.float64)
    signs = np.where(plan.flips, -1.0, 1.0)
    affine = np.eye(4)
    affine[:3, :3] = to_ras * np.asarray(plan.spacing_mm) * signs
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def _ellipsoid_level(
    point_mm: FloatArray | FloatTriple | _Axes, center_mm: FloatTriple, semi_axes_mm: FloatTriple
) -> FloatArray:
    """Return the ellipsoid's quadratic form, below 1 inside; coordinates may be numbers or broadcastable arrays."""
    terms = [((x - c) / a) ** 2 for x, c, a in zip(point_mm, center_mm, semi_axes_mm, strict=True)]
    return np.asarray(terms[0] + terms[1] + terms[2])


def _render_anatomy(d: FloatArray, h: FloatArray, w: FloatArray) -> tuple[FloatArray, Array]:
    """Return the chest without vessels, nodules and noise, and the mask of the lungs."""
    body = np.sqrt((h / 86) ** 2 + (w / 92) ** 2)  # (1, H, W): 1 on the skin
    outline = np.select([body > 1, body > 0.93], [_AIR_HU, _FAT_HU], _MUSCLE_HU).astype(np.float32)
    lung = np.any([_ellipsoid_level((d, h, w), *shape) < 1 for shape in _LUNGS.values()], axis=0)
    lung &= (_ellipsoid_level((d, h, w), *_HEART) > 1) & (body < 0.86)
    image = np.where(lung, np.float32(_LUNG_HU), outline)
    # Ribs: oblique bands of the shell between lungs and fat, bent downwards towards the front.
    band = np.sin(2 * np.pi * (d - 0.45 * h) / 25.0) > 0.45
    image[np.broadcast_to((body > 0.865) & (body < 0.915) & (h < 55), image.shape) & band] = _RIB_HU
    vertebra = np.cos(2 * np.pi * d / 24) > -0.75
    spine = ((h - 66) / 13) ** 2 + (w / 16) ** 2 < 1
    image[spine & ~vertebra] = _DISC_HU
    image[spine & vertebra] = _SPONGY_BONE_HU
    image[(((h - 8) / 7) ** 2 + ((w + 2) / 8) ** 2 < 1) & (d > 5)] = _AIR_HU  # the trachea
    return image, lung


def _add_lung_texture(image: FloatArray, lung: Array, spacing_mm: FloatTriple, rng: np.random.Generator) -> None:
    """Make the lung uneven on a scale of about 4 mm, and denser towards the back, where blood pools."""
    texture = gaussian_filter(
        rng.normal(size=image.shape).astype(np.float32), [2.0 / mm for mm in spacing_mm], truncate=2
    )
    gradient = np.linspace(-25, 25, image.shape[1], dtype=np.float32)[None, :, None]
    image += np.where(lung, texture * (25 / texture.std()) + gradient, 0)


def _local_box(axes: _Axes, low_mm: FloatArray, high_mm: FloatArray) -> tuple[tuple[slice, slice, slice], _Axes]:
    """Return the voxels between two corners, and their coordinates."""
    bounds = [np.searchsorted(axis.ravel(), (low, high)) for axis, low, high in zip(axes, low_mm, high_mm, strict=True)]
    d, h, w = (slice(int(start), int(stop)) for start, stop in bounds)
    return (d, h, w), (axes[0][d], axes[1][:, h], axes[2][:, :, w])


def _draw_vessel(image: FloatArray, lung: Array, axes: _Axes, vessel: Vessel) -> None:
    start, end = np.asarray(vessel.start_mm, np.float32), np.asarray(vessel.end_mm, np.float32)
    reach = vessel.radius_mm + 1
    box, local = _local_box(axes, np.minimum(start, end) - reach, np.maximum(start, end) + reach)
    if 0 in image[box].shape:
        return
    along = end - start
    offsets = [x - s for x, s in zip(local, start, strict=True)]
    position = sum(o * a for o, a in zip(offsets, along, strict=True)) / float(along @ along)
    position = np.clip(position, 0, 1)
    distance = sum((o - position * a) ** 2 for o, a in zip(offsets, along, strict=True))
    image[box][(distance < vessel.radius_mm**2) & lung[box]] = _BLOOD_HU


def _draw_nodule(image: FloatArray, label: Array, axes: _Axes, nodule: Nodule) -> None:
    center, radius = np.asarray(nodule.center_mm), nodule.diameter_mm / 2
    box, local = _local_box(axes, center - 1.4 * radius, center + 1.4 * radius)
    d, h, w = (x - np.float32(c) for x, c in zip(local, center, strict=True))
    distance = np.sqrt(d**2 + h**2 + w**2)
    azimuth, height = np.arctan2(h, w), d / np.maximum(distance, 1e-3)
    first, second, third = nodule.phases
    if nodule.kind == "solid":
        mask = distance < radius * (1 + 0.06 * np.sin(2 * azimuth + first) * np.cos(3 * height + second))
        image[box][mask] = _SOLID_HU
    else:
        spicules = np.maximum(np.sin(5 * azimuth + first) * np.sin(4 * height + second), 0) ** 2
        mask = distance < radius * (0.86 + 0.4 * spicules + 0.05 * np.sin(3 * azimuth + third))
        image[box][mask] = _HALO_HU
        image[box][mask & (distance < 0.4 * radius)] = _CORE_HU
    label[box][mask] = NODULE_LABELS[nodule.kind]
