from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medi3d.config import TaskConfig
from medi3d.errors import InputError, MissingDependencyError
from medi3d.report import Material, niivue, write_report
from medi3d.report.gallery import choose_cases, differences
from medi3d.report.scoreboard import describe_evaluation
from medi3d.report.scores import read_scores
from medi3d.report.words import describe_metric, format_value
from medi3d.runs.folder import RunFolder
from medi3d.volume import LabelMap, Volume
from tests.report.conftest import HOSTILE, shown_case, write_evaluation, write_run

VOID = ("img", "meta", "input", "br")


class Reader(HTMLParser):
    """Checks that every tag is closed, and gathers text and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [value for key in ("src", "href", "xlink:href") if (value := values.get(key)) is not None]
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def page(report_file: Path) -> str:
    return report_file.read_text(encoding="utf-8")


def without_code(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_the_page_stands_alone(page: str) -> None:
    read = Reader(page)
    assert read.open == []
    assert all(source.startswith(("data:", "#")) for source in read.sources), read.sources
    links = set(re.findall(r"https?://[^\s\"'<)]+", without_code(page)))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", without_code(page))
    assert len(read.ids) == len(set(read.ids))


def test_what_is_shown_is_escaped_and_names_no_one(page: str, report_file: Path) -> None:
    assert HOSTILE not in page
    text = Reader(page).text
    assert f"Balls {HOSTILE}" in text
    assert f"is damaged {HOSTILE}" in text
    for secret in ("jane_doe", str(report_file.parent), "/prepared/"):
        assert secret not in page
    assert "weights: weights.pt" in text


def test_the_page_says_the_numbers_in_words(page: str) -> None:
    text = " ".join(Reader(page).text.split())
    assert "Scored on 3 cases held out from training" in text
    assert "a Dice of 0.550 on average (95 % interval 0.300 to 0.800); the worst case, case_0, reaches 0.300." in text
    assert "For research only." in text
    assert "2.70" in text  # HD95 in mm has two digits
    assert "3 cases are few" in text
    assert "0.3 trained" not in text
    assert "3 trained on, 3 held out" in text
    assert "2 min" in text  # 120 s
    for title in ("How well it draws", "Cases to look at", "All 3 cases", "The data", "How it was trained"):
        assert title in text


def test_the_cases_shown_are_worst_first(page: str) -> None:
    assert re.findall(r'data-view="(\w+)"', page) == ["case_0", "case_2", "case_1"]
    assert page.count("data:image/webp;base64,") == 3


def test_a_page_without_viewer_needs_no_javascript_package(
    segmentation_run: RunFolder, label_evaluation: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    niivue.packed_niivue.cache_clear()
    monkeypatch.setattr(niivue, "find_spec", lambda name: None)
    store = tiny / "prepared" / "tiny_segmentation"
    load: Callable[[str], object] = lambda name: shown_case(store, name)  # noqa: E731
    both = [
        Material(evaluations=(label_evaluation,), load_case=load, viewer=viewer)  # type: ignore[arg-type]
        for viewer in (True, False)
    ]
    with pytest.raises(MissingDependencyError, match=r"pip install 'medi3d\[report\]', or --no-viewer"):
        write_report([segmentation_run.path], tmp_path / "a.html", both[0])
    page = write_report([segmentation_run.path], tmp_path / "a.html", both[1]).read_text(encoding="utf-8")
    assert "viewer-planes" not in page
    assert page.count("data:image/webp;base64,") == 3


def test_another_layout_of_the_package_is_told() -> None:
    with pytest.raises(MissingDependencyError, match=r"widget\.js: expected the widget of ipyniivue 2\.4"):
        niivue.export_class("export default 1", Path("widget.js"))
    code = 'x("Creating new Niivue instance");let C=y(B);v=new t$2(C)}'
    assert niivue.export_class(code, Path("widget.js")).endswith("\nexport {t$2 as Niivue};\n")


def test_runs_that_are_not_scored_are_described(segmentation_run: RunFolder, tmp_path: Path) -> None:
    text = Reader(write_report([segmentation_run.path], tmp_path / "a.html", Material()).read_text("utf-8")).text
    assert "have not been scored yet" in text
    assert "not at hand" in text


def test_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run here"):
        write_report([tmp_path], tmp_path / "a.html", Material())


def test_a_wanted_case_must_be_scored(segmentation_run: RunFolder, label_evaluation: Path, tmp_path: Path) -> None:
    material = Material(evaluations=(label_evaluation,), cases=("case_7",), viewer=False)
    with pytest.raises(InputError, match="no scores of the case case_7; scored are case_0, case_2, case_1"):
        write_report([segmentation_run.path], tmp_path / "a.html", material)


def test_a_classification_shows_its_curves_and_what_went_wrong(
    tiny: Path, classification_task: TaskConfig, class_evaluation: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", classification_task, tiny / "prepared" / "tiny_classification")
    material = Material(evaluations=(class_evaluation,), viewer=False)
    page = write_report([run.path], tmp_path / "a.html", material).read_text(encoding="utf-8")
    text = " ".join(Reader(page).text.split())
    for words in ("ROC curve", "Calibration.", "Decision curve", "2 dark, 1 bright", "50 % of the time (AUC 0.500"):
        assert words in text
    assert "0.25 is always 50 %. Lower is better." in text
    wrong = re.findall(r'<tr data-label="" class="wrong">(.*?)</tr>', page)
    assert len(wrong) == 1
    assert "case_a" in wrong[0]
    assert page.count("<svg") == 4


@pytest.mark.parametrize("damage", ["{", '{"scores": {}}'])
def test_a_damaged_evaluation_is_told(label_evaluation: Path, damage: str) -> None:
    (label_evaluation / "summary.json").write_text(damage)
    with pytest.raises(InputError, match=r"summary\.json: (not readable|not what `medi3d evaluate` writes)"):
        read_scores(label_evaluation)


def test_the_mean_dice_of_a_case_tells_how_good_it_is(label_evaluation: Path, class_evaluation: Path) -> None:
    assert list(read_scores(label_evaluation).goodness.items()) == [
        ("case_0", pytest.approx(0.3)), ("case_2", pytest.approx(0.55)), ("case_1", pytest.approx(0.8)),
    ]  # fmt: skip
    assert list(read_scores(class_evaluation).goodness.items()) == [("case_a", 0.2), ("case_c", 0.6), ("case_b", 0.9)]


def test_of_many_cases_the_worst_the_median_and_the_best_are_chosen(tmp_path: Path) -> None:
    rows = [{"case_id": f"c{index}", "label": "a", "dice": index / 10} for index in range(9)]
    rows.append({"case_id": "empty", "label": "a", "dice": ""})
    scores = read_scores(write_evaluation(tmp_path, rows, {"a": {"dice": (0.4, 0.3, 0.5, 9)}}))
    assert choose_cases(scores, ()) == {
        "c0": "worst", "c1": "2nd worst", "c2": "3rd worst", "c3": "4th worst", "c4": "median", "c8": "best",
    }  # fmt: skip
    assert choose_cases(scores, ("c8", "c0")) == {"c8": "rank 1 of 9", "c0": "rank 9 of 9"}


def test_lesions_stand_in_the_first_table_where_cases_have_several(label_evaluation: Path, tmp_path: Path) -> None:
    def heads(count: int) -> list[str]:
        row = {"case_id": "c", "label": "a", "dice": 0.5, "lesion_f1": 1.0, "reference_lesions": count}
        scores = {name: {"dice": (0.5, 0, 1, 1), "lesion_f1": (1, 1, 1, 1)} for name in ("a", "all labels")}
        table = describe_evaluation(read_scores(write_evaluation(tmp_path / str(count), [row], scores)))["table"]
        return [head["title"] for head in table["heads"]]

    assert heads(1) == ["Dice"]
    assert heads(2) == heads(0) == ["Dice", "Lesion F1"]


def test_metrics_that_no_table_knows_are_named_by_themselves() -> None:
    assert describe_metric("depth_error_mm")[:2] == ("Depth error", "mm")
    assert format_value("depth_error_mm", -0.12345) == "−0.123"
    assert format_value("hd95_mm", None) == "–"


def test_differences_tell_what_was_missed_and_what_was_too_much() -> None:
    assert differences(np.array([0, 1, 0, 2, 2]), np.array([0, 1, 1, 0, 1])).tolist() == [0, 1, 2, 3, 4]


# --- volumes in the page


AFFINE = np.array([[0, 0, -1.5, 40], [0, -1.0, 0, 20], [3.0, 0, 0, -7], [0, 0, 0, 1]])  # SPL


def test_an_embedded_volume_is_a_nifti_file_that_names_nobody(rng: np.random.Generator, tmp_path: Path) -> None:
    array = rng.integers(0, 255, (1, 4, 6, 5)).astype(np.uint8)
    content = base64.b64decode(niivue.as_nifti_text(Volume(array, AFFINE)))
    assert content[3] == 0, "a gzip header with a file name"
    assert content[4:8] == bytes(4), "a gzip header with a time"
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    for field in ("descrip", "aux_file", "db_name", "data_type", "intent_name"):
        assert not bytes(image.header[field]).strip(b"\0"), field
    assert len(gzip.decompress(content)) == 352 + array.size, "header extensions"
    stored = np.asarray(image.dataobj)
    for i, j, k in ((0, 0, 0), (4, 2, 3), (1, 5, 0)):
        assert stored[i, j, k] == array[0, k, j, i]
        assert np.allclose(image.affine @ (i, j, k, 1), AFFINE @ (k, j, i, 1))


def test_thinned_out_voxels_stay_where_they_were(rng: np.random.Generator) -> None:
    label = LabelMap(rng.integers(0, 9, (1, 7, 31, 12)).astype(np.uint8), AFFINE)
    small = niivue.shrink(label, longest=10)
    assert isinstance(small, LabelMap)
    assert small.shape == (7, 8, 6)
    assert small.array[0, 3, 5, 2] == label.array[0, 3, 20, 4]
    assert np.allclose(small.grid.index_to_world([3, 5, 2]), label.grid.index_to_world([3, 20, 4]))
    assert niivue.shrink(label, longest=31).shape == label.shape


def test_the_crosshair_begins_at_the_place() -> None:
    right, anterior, superior = niivue.crosshair_fraction((4, 10, 5), (0, 9, 1))
    assert (right, anterior, superior) == pytest.approx((0.7, 0.05, 0.125))


def test_the_window_becomes_eight_bits() -> None:
    values = niivue.to_byte_range(np.array([-5.0, 0.0, 1.0, 2.0, 9.0]), (0.0, 2.0))
    assert values.tolist() == [0, 0, 128, 255, 255]
    assert values.dtype == np.uint8


def test_the_volumes_of_a_case_lie_in_the_page(page: str) -> None:
    found = re.search(r'data-case="case_0">(.*?)</script>', page)
    assert found is not None
    volumes = json.loads(found.group(1))
    assert sorted(volumes["layers"]) == ["differences", "prediction", "reference"]
    assert all(0 < share < 1 for share in volumes["place"])
    settings = json.loads(re.search(r'id="viewer-settings">(.*?)</script>', page).group(1))  # type: ignore[union-attr]
    assert settings["layers"]["prediction"]["labels"]["labels"] == ["", "bright", "dark"]
    assert settings["layers"]["prediction"]["labels"]["G"] == [0, 0xB0, 0x8F]
