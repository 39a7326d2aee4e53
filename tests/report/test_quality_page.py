from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from medi3d.errors import InputError
from medi3d.io.prepared import PreparedStore
from medi3d.report import quality as page_module
from medi3d.report.quality import without_paths, write_quality
from medi3d.report.thumbnails import draw_thumbnail, encode_png, label_colour, telling_place

FINDINGS = {
    "cases": [
        {
            "case_id": "case_4",
            "severity": 3,
            "findings": [{"kind": "units", "severity": 3, "message": "span 9 <b>"}],
        },
        {"case_id": "case_2", "severity": 1, "findings": [{"kind": "spacing", "severity": 1, "message": "odd & rare"}]},
        {"case_id": "gone", "severity": 1, "findings": []},
    ],
    "notes": ["label bright touches the rim"],
}


@pytest.fixture
def store(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    shutil.copytree(tiny / "prepared" / "tiny_segmentation", folder)
    (folder / "quality.json").write_text(json.dumps(FINDINGS), encoding="utf-8")
    return folder


def read_png(content: bytes) -> np.ndarray:
    """Return 8-bit RGB as another PNG reader sees it."""
    return np.rint(matplotlib.image.imread(io.BytesIO(content), format="png")[..., :3] * 255).astype("u1")


class Balanced(HTMLParser):
    """Checks that every tag is closed, and gathers the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_shows_the_worst_first(store: Path) -> None:
    path = write_quality(store, problems=[("case_9", "/data/Jane Doe/a.nii.gz: the file is <empty>")])
    assert path == store / "quality.html"
    page = path.read_text(encoding="utf-8")
    parsed = Balanced(page)
    assert parsed.open == []
    assert re.findall(r'alt="slices of (\w+)"', page) == ["case_4", "case_2", "case_0", "case_1", "case_3", "case_5"]
    assert page.count("data:image/png;base64,") == 6
    assert not re.search(r"<script|https?://|url\(|<link", page)
    for text in ("span 9 <b>", "odd & rare", "label bright touches the rim", "the file is <empty>", "IRP (6)"):
        assert text in parsed.text
    assert "span 9 <b>" not in page
    for secret in ("Jane", "Doe", "/data", str(store), store.name):
        assert secret not in page
    assert 'class="case s3"' in page
    pictures = [base64.b64decode(text) for text in re.findall(r"base64,([^\"]+)", page)]
    assert all(read_png(picture).shape[0] <= 96 for picture in pictures)


def test_the_page_is_the_same_twice(store: Path) -> None:
    first = write_quality(store, problems=[]).read_bytes()
    assert b"could not be prepared" not in first
    assert write_quality(store, problems=[]).read_bytes() == first


def test_huge_sets_show_the_worst_only(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_PICTURES", 2)
    page = write_quality(store, problems=[]).read_text(encoding="utf-8")
    assert re.findall(r'alt="slices of (\w+)"', page) == ["case_4", "case_2"]
    assert "4 more cases are not shown" in page


def test_classification_has_no_labels(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "prepared" / "tiny_classification", tmp_path / "store")
    (tmp_path / "store" / "quality.json").write_text('{"cases": [], "notes": []}', encoding="utf-8")
    page = write_quality(tmp_path / "store", problems=[]).read_text(encoding="utf-8")
    assert "bright (4), dark (4)" in page
    assert "Labels of the raw cases" not in page


def test_unfinished_stores_are_refused(store: Path) -> None:
    (store / "quality.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not readable JSON"):
        write_quality(store, problems=[])
    (store / "dataset.json").unlink()
    with pytest.raises(InputError, match="no finished prepared data here"):
        write_quality(store, problems=[])


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/data/Jane Doe/ct.nii.gz: the file is empty", "the file is empty"),
        ("raw/Jane Doe.nii and b.nii.gz: shapes (D, H, W) disagree: (1, 2, 3)", "shapes (D, H, W) disagree: (1, 2, 3)"),
        (r"C:\scans\jane.dcm: slice 3 is missing", "slice 3 is missing"),
        ("label /data/jane.nii does not exist", "label … does not exist"),
        ("expected 2 channels, got 1 files: jane_doe.nii.gz", "expected 2 channels, got 1 files: …"),
        ("[Errno 28] No space left on device: '/tmp/x/y'", "[Errno 28] No space left on device: '…'"),
        ("channel T1: the image is constant; NaN and/or inf", "channel T1: the image is constant; NaN and/or inf"),
    ],
)
def test_no_path_is_shown(message: str, shown: str) -> None:
    assert without_paths(message) == shown


# --- pictures


def test_png_is_read_by_others(rng: np.random.Generator) -> None:
    indices = rng.integers(0, 7, (13, 21)).astype("u1")
    palette = rng.integers(0, 256, (7, 3)).astype("u1")
    np.testing.assert_array_equal(read_png(encode_png(indices, palette)), palette[indices])


def test_slices_go_through_the_label(store: Path) -> None:
    for case in PreparedStore(store).cases():
        label = case.label()
        assert label is not None
        d, h, w = telling_place(case)
        for index, axis in ((d, 0), (h, 1), (w, 2)):
            counts = (label[0] > 0).sum(axis=tuple(other for other in range(3) if other != axis))
            assert counts[index] == counts.max()


def test_pictures_keep_proportions_and_stand_upright(store: Path) -> None:
    case = PreparedStore(store).cases()[0]
    extent = np.multiply(case.shape, case.record.prepared.spacing_mm)
    d, h, w = np.round(extent * 96 / extent.max()).astype(int)
    picture = read_png(draw_thumbnail(case))
    assert picture.shape[:2] == (max(d, h), w + 2 + w + 2 + h)
    coloured = np.ptp(picture.astype(int), axis=2) > 20
    assert coloured.any()
    colours = {tuple(colour) for colour in picture[coloured]}
    assert colours <= {label_colour(1), label_colour(2)}
    # D runs upwards: where the label lies high in D, its contour lies high in the second picture
    label = np.asarray(case.label()[0])  # type: ignore[index]
    rows = np.flatnonzero(label[:, telling_place(case)[1]].any(axis=1))
    coronal = coloured[:d, w + 2 : w + 2 + w].any(axis=1)
    drawn = d - 1 - np.flatnonzero(coronal)[::-1]
    scale = d / case.shape[0]
    assert abs(drawn[0] - rows[0] * scale) <= scale
    assert abs(drawn[-1] + 1 - (rows[-1] + 1) * scale) <= scale


def test_a_case_without_label_shows_its_middle(tiny: Path) -> None:
    case = PreparedStore(tiny / "prepared" / "tiny_classification").cases()[0]
    assert telling_place(case) == (4, 4, 4)
    picture = read_png(draw_thumbnail(replace(case)))
    assert np.ptp(picture.astype(int), axis=2).max() == 0


def test_large_slices_are_averaged_into_their_pixels(store: Path) -> None:
    from medi3d.report.thumbnails import _resized

    plane = np.arange(12 * 20, dtype="f4").reshape(12, 20)
    expected = plane.reshape(4, 3, 5, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(_resized(plane, np.array([4, 5])), expected)
    np.testing.assert_array_equal(_resized(plane, np.array([24, 20])), np.repeat(plane, 2, axis=0))
