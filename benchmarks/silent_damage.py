"""Ten defects, made from one real case, and what each tool does with them; writes the table of docs/damage.md.

    python benchmarks/silent_damage.py [--peers PYTHON] [--page docs/damage.md]

Every reading is a process of its own. A cell says whether the tool stopped with an error, warned, or went on in
silence, and then how much of what it handed on is right. PYTHON is an interpreter with nnU-Net (benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import damage_readers
import nibabel as nib
import numpy as np
import yaml
from damage_readers import READERS
from nnunet_folder import NnunetFolder, nnunet_version
from numpy.typing import NDArray

from medi3d.io import PreparedStore

DATA = Path(os.environ.get("MEDI3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
PAGE = Path(__file__).parents[1] / "docs" / "damage.md"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
MEDI3D = [sys.executable, "-c", "from medi3d.cli.main import run; run()", "preprocess"]
TASK = {
    "name": "damage",
    "kind": "segmentation",
    "data": {"channels": ["MRI"], "labels": {1: "anterior", 2: "posterior"}},
    "preprocess": {"spacing_mm": "native", "normalize": ["none"]},
}

Voxels = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """The files of a case, and the voxels and affines (nibabel's axes) that a reader should hand on."""

    image: Path
    label: Path
    voxels: Voxels
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Defect:
    """One way in which a case is damaged.

    Args:
        title: for the table.
        make: writes the damage into a case.
        judge: says in a few words how right what a tool handed on is: of the case and of the tool's voxels and affine.
        suffix: of the image file.
    """

    title: str
    make: Callable[[Pair], None]
    judge: Callable[[Pair, Voxels, NDArray[np.float64]], str]
    suffix: str = ".nii.gz"


def voxels_right(pair: Pair, voxels: Voxels, affine: NDArray[np.float64]) -> str:
    if voxels.shape != pair.voxels.shape:
        return f"another shape, {voxels.shape}"
    return f"{100 * np.mean(voxels == pair.voxels):.0f} % of voxels right"


def what_became(pair: Pair, voxels: Voxels, affine: NDArray[np.float64]) -> str:
    """Say what became of the voxels that are not finite in the file."""
    bad = ~np.isfinite(nib.load(pair.image).get_fdata())
    found = voxels[bad]
    if not np.isfinite(found).any():
        return "handed on as they are"
    values = ", ".join(f"{value:.3g}" for value in np.unique(found)[:2])
    return f"they became {values}"


def label_moved(pair: Pair, voxels: Voxels, affine: NDArray[np.float64]) -> str:
    return "label and image are not compared"


def which_form(pair: Pair, voxels: Voxels, affine: NDArray[np.float64]) -> str:
    """Say which of the two affines of the file was taken."""
    forms = {"sform": nib.load(pair.image).header.get_sform(), "qform": nib.load(pair.image).header.get_qform()}
    taken = [name for name, form in forms.items() if np.allclose(form, affine, atol=0.01)]
    return f"takes the {taken[0]}" if taken else "takes neither"


def cut_file(pair: Pair) -> None:
    content = pair.image.read_bytes()
    pair.image.write_bytes(content[: len(content) // 3])


def flip_byte(pair: Pair) -> None:
    content = bytearray(pair.image.read_bytes())
    content[len(content) // 2] ^= 0xFF
    pair.image.write_bytes(bytes(content))


def spoil_checksum(pair: Pair) -> None:
    content = bytearray(pair.image.read_bytes())
    content[-8] ^= 0xFF  # the trailer: CRC-32, then the length (RFC 1952)
    pair.image.write_bytes(bytes(content))


def set_voxels(pair: Pair, value: float) -> None:
    voxels = pair.voxels.copy()
    voxels[tuple(slice(n // 3, n // 2) for n in voxels.shape)] = value
    write_nifti(voxels, pair.affine, pair.image)


def add_twin(pair: Pair) -> None:
    """Put the mirrored image beside ``x.nii.gz`` as ``x.nii``."""
    write_nifti(pair.voxels[::-1].copy(), pair.affine, pair.image.with_suffix(""))


def move_label(pair: Pair, change: NDArray[np.float64]) -> None:
    """Write the label with another affine: ``change`` (4×4, millimetres) applied to its own."""
    label = nib.load(pair.label)
    write_nifti(np.asarray(label.dataobj), change @ label.affine, pair.label)


def move_qform(pair: Pair) -> None:
    image = nib.load(pair.image)
    shifted = image.affine.copy()
    shifted[:3, 3] += (0, 15, 0)
    changed = nib.Nifti1Image(pair.voxels, image.affine)
    changed.set_sform(image.affine, code=1)
    changed.set_qform(shifted, code=1)
    nib.save(changed, pair.image)


SHIFT = np.array([[1, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
QUARTER_TURN = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])

DEFECTS = (
    Defect("`.nii.gz` cut to a third", cut_file, voxels_right),
    Defect("`.nii.gz`, one byte flipped", flip_byte, voxels_right),
    Defect("`.nii.gz`, wrong checksum", spoil_checksum, voxels_right),
    Defect("`.nii` cut to a third", cut_file, voxels_right, suffix=".nii"),
    Defect("`x.nii` beside `x.nii.gz`, the latter asked for", add_twin, voxels_right),
    Defect("some voxels NaN", lambda pair: set_voxels(pair, np.nan), what_became),
    Defect("some voxels infinite", lambda pair: set_voxels(pair, np.inf), what_became),
    Defect("label of another origin (10 mm)", lambda pair: move_label(pair, SHIFT), label_moved),
    Defect("label of another direction (90°)", lambda pair: move_label(pair, QUARTER_TURN), label_moved),
    Defect("sform and qform disagree (15 mm)", move_qform, which_form),
)


def write_nifti(voxels: NDArray[np.generic], affine: NDArray[np.float64], path: Path) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), path)


def make_case(folder: Path, suffix: str) -> Pair:
    """Write the undamaged case: the first hippocampus, as float32, in the layout that medi3d and nnU-Net share."""
    source = sorted((DATA / "hippocampus" / "imagesTr").glob("hippo*.nii.gz"))[0]
    image = nib.load(source)
    label = nib.load(DATA / "hippocampus" / "labelsTr" / source.name)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    pair = Pair(folder / f"imagesTr/x_0000{suffix}", folder / f"labelsTr/x{suffix}", voxels, image.affine)
    for path, array in ((pair.image, voxels), (pair.label, np.asarray(label.dataobj, dtype=np.uint8))):
        path.parent.mkdir(parents=True)
        write_nifti(array, image.affine, path)
    return pair


def run_reader(tool: str, pair: Pair, result: Path) -> subprocess.CompletedProcess[str]:
    """Let a library read the case in a process of its own."""
    command = [sys.executable, damage_readers.__file__, tool, pair.image, pair.label, result]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def read_with(tool: str, defect: Defect, pair: Pair, scratch: Path, usual: set[str]) -> str:
    """Let a library read the case and say what came of it; ``usual`` is what it prints about a sound case."""
    result = scratch / f"{tool}.npz"
    done = run_reader(tool, pair, result)
    if done.returncode:
        return "**error**: " + shorten(done.stderr)
    with np.load(result) as arrays:
        verdict = defect.judge(pair, arrays["voxels"], arrays["affine"])
    warned = any("warning" in line.lower() for line in set(done.stderr.splitlines()) - usual)
    return ("warning: " if warned else "silent: ") + verdict


def read_with_nnunet(python: Path, defect: Defect, pair: Pair, scratch: Path) -> str:
    """Let nnU-Net verify the case and say what it printed."""
    nnunet = NnunetFolder(python, scratch / "nnunet")
    nnunet.fill([("x", pair.image, pair.label)], channel="MRI", labels=TASK["data"]["labels"], suffix=defect.suffix)
    if defect.make is add_twin:
        (nnunet.raw / "imagesTr" / "x_0000.nii").symlink_to(pair.image.with_suffix(""))
    command = nnunet.command("extract_fingerprint", "--verify_dataset_integrity", "-np", "1", "--no_pbar")
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **nnunet.env})
    if done.returncode:
        return "**error**: " + shorten(done.stdout + done.stderr)
    warned = re.findall(r"^Warning: (\w+) mismatch", done.stdout, re.MULTILINE)
    said = "“most likely OK”" if "most likely OK" in done.stdout else "nothing said"
    return f"warning: {', '.join(warned).lower()} mismatch; {said}" if warned else f"silent: {said}"


def prepare_with_medi3d(raw: Path, scratch: Path) -> tuple[str, Path]:
    """Run ``medi3d preprocess``; return the last problem that it named, if any, and the store."""
    task, store = scratch / "damage.yaml", scratch / "prepared"
    task.write_text(yaml.safe_dump(TASK), encoding="utf-8")
    options = ["--task", task, "--data", raw, "--output", store, "--workers", "1"]
    done = subprocess.run([*MEDI3D, *map(str, options)], capture_output=True, text=True)
    problems = re.findall(r"^(?:problem: [^:]*|medi3d): (.*)$", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode and not problems:
        raise RuntimeError(f"medi3d preprocess failed: {done.stdout}{done.stderr}")
    return problems[-1] if problems else "", store


def read_with_medi3d(defect: Defect, pair: Pair, scratch: Path) -> str:
    """Let medi3d prepare the case and say which problem it named."""
    problem, store = prepare_with_medi3d(pair.image.parents[1], scratch)
    if problem:
        return "**error**: " + shorten(problem)
    case = PreparedStore(store).cases()[0]
    prepared = np.asarray(case.image()[:])
    return f"silent: prepared, {np.isfinite(prepared).mean():.0%} of voxels finite"


def shorten(text: str, length: int = 120) -> str:
    """Return the error that a text tells of first, else its last line, without folders, for a Markdown table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)] or lines[-1:]
    line = re.sub(r"/\S*/", "", said[0]).replace("|", "\\|")
    return line if len(line) <= length else line[:length].rsplit(" ", 1)[0] + " …"


def measure(defect: Defect, peers: Path | None, usual: dict[str, set[str]]) -> list[str]:
    """Return a row of the table: the defect's title and a cell for every tool."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pair = make_case(scratch / "raw", defect.suffix)
        defect.make(pair)
        cells = [read_with(tool, defect, pair, scratch, usual[tool]) for tool in READERS]
        if peers:
            cells.append(read_with_nnunet(peers, defect, pair, scratch))
        return [defect.title, *cells, read_with_medi3d(defect, pair, scratch)]


def check_undamaged(scratch: Path) -> dict[str, set[str]]:
    """Make sure that every tool reads the sound case right, and return the lines that it prints meanwhile."""
    pair = make_case(scratch / "raw", ".nii.gz")
    usual = {}
    for tool in READERS:
        done = run_reader(tool, pair, scratch / "sound.npz")
        with np.load(scratch / "sound.npz") as arrays:
            assert voxels_right(pair, arrays["voxels"], arrays["affine"]) == "100 % of voxels right", tool
        usual[tool] = set(done.stderr.splitlines())
    assert not prepare_with_medi3d(scratch / "raw", scratch)[0]
    return usual


def main() -> None:
    """Make the ten defects, show them to every tool, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="interpreter that has nnU-Net")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose table is replaced")
    options = parser.parse_args()
    found = nnunet_version(options.peers)
    if not found:
        print("nnU-Net is not installed: its column is left out")
    with tempfile.TemporaryDirectory() as scratch:
        usual = check_undamaged(Path(scratch))
    heads = ["defect", *(f"{tool} {version(package)}" for tool, (package, _) in READERS.items())]
    heads += [f"nnU-Net {found}, `--verify_dataset_integrity`"] if found else []
    rows = [[*heads, "`medi3d preprocess`"], ["---"] * (len(heads) + 1)]
    for defect in DEFECTS:
        rows.append(measure(defect, options.peers if found else None, usual))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    before, rest = options.page.read_text(encoding="utf-8").split(BEGIN)
    page = f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
