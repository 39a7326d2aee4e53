"""Label → prepared grid → native grid, for every real volume: what is lost, beside nnU-Net and TorchIO.

    python benchmarks/round_trip.py [--peers PYTHON] [--spacings 1 2] [--sets hippocampus lung_nodule ...] [--limit N]

medi3d prepares each case as ``medi3d preprocess`` does and resamples the label back to the recorded grid. nnU-Net's
default preprocessor takes image and label to the same spacing, its export takes the label's one-hot volumes back as it
does probabilities. TorchIO: ToCanonical, Resample, and Resample to the original. nibabel compares the files. Volumes
without a label get one by Otsu's threshold; of 4-D files the first frame is taken. PYTHON has nnU-Net installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torchio as tio
from nnunet_folder import nnunet_version

from medi3d import io
from medi3d.config import parse_task
from medi3d.preprocess import RawCase, prepare_case, resample_to
from medi3d.volume import LabelMap

DATA = Path(os.environ.get("MEDI3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Case:
    """One volume: the image and the label as they came, and as NIfTI files for tools that read nothing else."""

    name: str
    image: Path
    label: Path
    image_nifti: Path
    label_nifti: Path

    @classmethod
    def of_nifti(cls, name: str, image: Path, label: Path) -> Case:
        """Return a case whose files are NIfTI already."""
        return cls(name, image, label, image, label)


@dataclass(frozen=True)
class Score:
    """How one label of one case came back: Dice, and volume over what it was."""

    dice: float
    volume_ratio: float


@dataclass(frozen=True)
class Verdict:
    """How one case came back: its labels, and how far its corners are off (infinitely for another shape)."""

    scores: tuple[Score, ...]
    corner_error_mm: float
    same_header: bool


def hippocampus(folder: Path, scratch: Path) -> Iterator[Case]:
    for image in visible(folder / "imagesTr", "*.nii.gz"):
        yield Case.of_nifti(image.name.split(".")[0], image, folder / "labelsTr" / image.name)


def lung_nodules(folder: Path, scratch: Path) -> Iterator[Case]:
    for image in visible(folder / "images", "*.nii.gz"):
        yield Case.of_nifti(image.name.split(".")[0], image, folder / "masks" / image.name)


def brain_tumors(folder: Path, scratch: Path) -> Iterator[Case]:
    for case in visible(folder, "*/"):
        yield Case.of_nifti(case.name, *(next(case.glob(f"{part}*.nii.gz")) for part in ("Flair", "OT")))


def dicom_series(folder: Path, scratch: Path) -> Iterator[Case]:
    for series in visible(folder, "*/"):
        yield stage(series, None, scratch)


def odd_volumes(folder: Path, scratch: Path) -> Iterator[Case]:
    for image in visible(folder, "*"):
        label = image.with_name(image.name.replace("_image", "_label"))
        if "_label" not in image.name:
            yield stage(image, label if label != image else None, scratch)


SETS: dict[str, tuple[str, Callable[[Path, Path], Iterator[Case]]]] = {
    "hippocampus": ("hippocampus", hippocampus),
    "lung_nodule": ("lung nodules", lung_nodules),
    "brain_tumor": ("brain tumours", brain_tumors),
    "dicom": ("DICOM series, by threshold", dicom_series),
    "odd_volumes": ("odd volumes", odd_volumes),
}
"""Folder of the data → title and the function that lists its cases."""


def visible(folder: Path, pattern: str) -> list[Path]:
    """List what matches in a folder, sorted, without hidden files."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def stage(image: Path, label: Path | None, scratch: Path) -> Case:
    """Write an image of any format, and its label or a thresholded one, as NIfTI."""
    name = io.case_name(image)
    is_4d = io.read_header(image).channels > 1
    volume = io.read_volume(image, frame=0 if is_4d else None)
    if label is None:
        mask = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(volume.array[0]), 0, 1))
        label_map = LabelMap(mask[None], volume.affine)
    else:
        label_map = io.read_label_map(label)
    image_nifti, label_nifti = (scratch / f"{name}_{part}.nii.gz" for part in ("image", "label"))
    io.write_volume(volume, image_nifti)
    io.write_label_map(label_map, label_nifti)
    return Case(name, image_nifti if is_4d else image, label or label_nifti, image_nifti, label_nifti)


def run_medi3d(cases: dict[Path, Case], spacing: float) -> None:
    """Write what comes back to each key's path."""
    for output, case in cases.items():
        values = [int(value) for value in np.unique(np.asarray(nib.load(case.label_nifti).dataobj)) if value]
        task = parse_task(
            {
                "name": "round_trip",
                "kind": "segmentation",
                "data": {"labels": {value: f"label {value}" for value in range(1, max(values) + 1)}},
                "preprocess": {"spacing_mm": spacing, "normalize": ["none"]},
            },
            where="round_trip.py",
        )
        _, label, record = prepare_case(RawCase(case.name, case.name, (case.image,), label=case.label), task)
        assert label is not None
        io.write_label_map(resample_to(label, record.native, fill=0.0), output)


def run_torchio(cases: dict[Path, Case], spacing: float) -> None:
    """Write what comes back to each key's path."""
    for output, case in cases.items():
        label = tio.LabelMap(case.label_nifti)
        prepared = tio.Resample(spacing)(tio.ToCanonical()(label))
        tio.Resample(label)(prepared).save(output)


def run_nnunet(cases: dict[Path, Case], spacing: float, *, python: Path) -> None:
    """Write what comes back to each key's path, in the interpreter that has nnU-Net."""
    jobs = [[str(case.image_nifti), str(case.label_nifti), str(output)] for output, case in cases.items()]
    script = Path(__file__).with_name("nnunet_round_trip.py")
    unused = {f"nnUNet_{part}": "unused" for part in ("raw", "preprocessed", "results")}  # it warns where they lack
    command = [python, script, str(spacing)]
    subprocess.run(command, input=json.dumps(jobs), text=True, check=True, env={**os.environ, **unused})


def compare(truth: Path, returned: Path) -> Verdict:
    """Compare a label map that came back with the one that went."""
    before, after = nib.load(truth), nib.load(returned)
    voxels = [np.rint(np.asarray(image.dataobj)).astype(int) for image in (before, after)]
    if voxels[0].shape != voxels[1].shape:
        return Verdict((), float("inf"), False)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in before.shape], [1.0], indexing="ij")).reshape(4, -1)
    error = float(np.linalg.norm((before.affine - after.affine) @ corners, axis=0).max())
    scores = tuple(score_label(voxels[0] == value, voxels[1] == value) for value in np.unique(voxels[0]) if value)
    return Verdict(scores, error, nib.aff2axcodes(before.affine) == nib.aff2axcodes(after.affine) and error < 1e-3)


def score_label(truth: np.ndarray, returned: np.ndarray) -> Score:
    """Return Dice and volume ratio of one label's masks."""
    both, was, now = (int(np.count_nonzero(mask)) for mask in (truth & returned, truth, returned))
    return Score(2 * both / (was + now), now / was)


def describe(verdicts: Iterable[Verdict]) -> str:
    """Return the cells of a row: what became of all labels of a set."""
    verdicts = list(verdicts)
    scores = [score for verdict in verdicts for score in verdict.scores]
    dice, ratios = np.array([s.dice for s in scores]), np.array([s.volume_ratio for s in scores])
    same = Counter(verdict.same_header for verdict in verdicts)[True]
    error = max(verdict.corner_error_mm for verdict in verdicts)
    volumes = f"{ratios.mean():.3f} ({ratios.min():.2f}–{ratios.max():.2f})"
    return (
        f"{len(scores)} | {dice.mean():.4f} | {np.percentile(dice, 5):.3f} | {dice.min():.3f} "
        f"| {np.count_nonzero(dice == 0)} | {volumes} | {same} of {len(verdicts)} | {error:.0e}"
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="interpreter that has nnU-Net")
    parser.add_argument("--spacings", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--limit", type=int, help="cases of a set, to see whether all runs")
    return parser.parse_args()


def main() -> None:
    """Send every label there and back with every tool and print a Markdown table."""
    options = parse_options()
    tools: dict[str, Callable[[dict[Path, Case], float], None]] = {"medi3d": run_medi3d, "TorchIO": run_torchio}
    found = nnunet_version(options.peers)
    if found:
        tools["nnU-Net"] = partial(run_nnunet, python=options.peers)
    print(f"nnU-Net {found or 'is not installed: left out'}, TorchIO {tio.__version__}\n")
    print("| volumes | mm | tool | labels | Dice, mean | 5th percentile | worst | lost | volume, mean (range) ", end="")
    print("| same header | corners off by, mm |\n|" + "---|" * 11, flush=True)
    for name in options.sets:
        if not (DATA / name).is_dir():
            print(f"{name} is left out: {DATA / name} is absent; set MEDI3D_TEST_DATA", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            run_set(name, Path(scratch), tools, options)


def run_set(name: str, scratch: Path, tools: dict[str, Callable[..., None]], options: argparse.Namespace) -> None:
    """Print the rows of one set."""
    title, list_cases = SETS[name]
    cases = list(list_cases(DATA / name, scratch))[: options.limit]
    for spacing in options.spacings:
        for tool, run in tools.items():
            folder = scratch / f"{tool}_{spacing:g}"
            folder.mkdir()
            jobs = {folder / f"{case.name}.nii.gz": case for case in cases}
            run(jobs, spacing)
            row = describe(compare(case.label_nifti, output) for output, case in jobs.items())
            print(f"| {title} | {spacing:g} | {tool} | {row} |", flush=True)


if __name__ == "__main__":
    main()
