from __future__ import annotations

import json
from pathlib import Path

import pytest

from medi3d.config import ColumnsConfig, DataConfig, PatternsConfig
from medi3d.errors import ConfigError, InputError
from medi3d.preprocess import find_raw_cases, group_channels, list_raw_cases

MSD = DataConfig(labels={1: "a"}, source="https://example.org/public")
TWO = DataConfig(channels=("Flair", "T1c"), labels={1: "a"})


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


# --- nothing there


@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_or_empty_folder_tells_what_belongs_there(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "raw"
    if exists:
        folder.mkdir()
    state = "is empty" if exists else "does not exist"
    with pytest.raises(InputError, match=rf"raw {state}; expected \(layout msd\): imagesTr/<case>") as caught:
        find_raw_cases(folder, MSD, need_label=True)
    assert "https://example.org/public" in str(caught.value)
    assert "`medi3d demo`" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (MSD, "labelsTr/<case>"),
        (
            DataConfig(layout="patterns", patterns=PatternsConfig(images=("{case}/a.nii",))),
            r"files that match \{case\}",
        ),
    ],
)
def test_a_folder_of_other_things(tmp_path: Path, data: DataConfig, expected: str) -> None:
    touch(tmp_path, "readme.txt")
    with pytest.raises(InputError, match=f"no cases in .*{expected}"):
        find_raw_cases(tmp_path, data, need_label=True)


def test_an_unknown_layout_is_refused_by_the_registry(tmp_path: Path) -> None:
    from medi3d.preprocess.cases.layouts import LAYOUTS

    with pytest.raises(ConfigError, match="unknown layout 'mds'; did you mean 'msd'"):
        LAYOUTS["mds"]


# --- msd and nnU-Net


def test_msd_by_its_entries(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "imagesTr/b.nii.gz",
        "imagesTr/a.nii.gz",
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
        "imagesTr/x.nii.gz",
    )
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("b", "a", "gone")]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    cases, problems = list_raw_cases(tmp_path, MSD, need_label=True)
    assert [case.case_id for case in cases] == ["a", "b"]
    assert cases[0].images == (tmp_path / "imagesTr/a.nii.gz",)
    assert cases[0].label == tmp_path / "labelsTr/a.nii.gz"
    assert [problem.case_id for problem in problems] == ["gone"]
    assert "gone.nii.gz does not exist" in problems[0].message


def test_msd_entries_with_split_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    cases, _ = list_raw_cases(tmp_path, TWO, need_label=True)
    assert [path.name for path in cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_nnunet_folder_without_entries(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/{case}_000{c}.nii.gz" for case in ("p1", "p2", "p3") for c in (0, 1)))
    touch(tmp_path, "labelsTr/p1.nii.gz", "labelsTr/p2.nii.gz", "labelsTr/lonely.nii.gz", "imagesTr/._p1_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "Flair"}, "numTraining": 3}))
    cases, problems = list_raw_cases(tmp_path, TWO, need_label=True)
    assert [case.case_id for case in cases] == ["p1", "p2"]
    assert [path.name for path in cases[1].images] == ["p2_0000.nii.gz", "p2_0001.nii.gz"]
    assert [problem.case_id for problem in problems] == ["lonely", "p3"]
    assert "has no image in" in problems[0].message
    assert "p3_0000.nii.gz has no label; expected" in problems[1].message
    cases, problems = list_raw_cases(tmp_path, TWO, need_label=False)
    assert [case.case_id for case in cases] == ["p1", "p2", "p3"]
    assert problems == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable JSON"), ('{"training": ["a.nii.gz"]}', '"training" must be a list of entries')],
)
def test_an_unusable_dataset_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=message):
        list_raw_cases(tmp_path, MSD, need_label=True)


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        (["a_0000", "a_0001", "b_0000", "b_0001"], 2, {"a": 2, "b": 2}),
        (["scan_0000", "scan_0001"], 1, {"scan_0000": 1, "scan_0001": 1}),
        (["a_0000", "b"], 1, {"a": 1, "b": 1}),
        (["a_0007"], 2, {"a_0007": 1}),
        (["a_0000", "a_0002"], 2, {"a": 1, "a_0002": 1}),
        (["a_0000", "a_0001", "a_0002"], 2, {"a": 3}),
    ],
)
def test_group_channels(names: list[str], channels: int, expected: dict[str, int]) -> None:
    groups = group_channels([Path(f"{name}.nii.gz") for name in reversed(names)], channels)
    assert {name: len(files) for name, files in groups.items()} == expected
    assert all(list(files) == sorted(files) for files in groups.values())


def test_one_name_in_two_formats() -> None:
    with pytest.raises(InputError, match="2 images are called 'a'"):
        group_channels([Path("a.nii"), Path("a.nrrd"), Path("b.nii")], 1)


# --- csv

CSV = DataConfig(
    layout="csv",
    classes=("benign", "malignant"),
    table="t.csv",
    columns=ColumnsConfig(case="id", patient="who", images=("image",), target="class", center="mask"),
)


def write_table(folder: Path, *rows: str, header: str = "id,who,image,mask,class") -> None:
    touch(folder, "i/1.nii", "i/2.nii", "m/1.nii", "m/2.nii")
    (folder / "t.csv").write_text("\n".join([header, *rows]), encoding="utf-8-sig")


def test_csv_rows(tmp_path: Path) -> None:
    write_table(
        tmp_path,
        "b,P1,i/1.nii,m/1.nii,malignant",
        "a,P1,i/2.nii,m/2.nii,benign",
        "c,P2,i/1.nii,m/1.nii,",
        "d,P2,i/1.nii,m/1.nii,maligant",
        "e,P2,i/9.nii,m/1.nii,benign",
        "f,P2,,m/1.nii,benign",
        "g/h,P2,i/1.nii,m/1.nii,benign",
    )
    found = find_raw_cases(tmp_path, CSV, need_label=True)
    assert [(case.case_id, case.patient_id, case.target) for case in found.cases] == [("a", "P1", 0), ("b", "P1", 1)]
    assert found.cases[0].center == tmp_path / "m/2.nii"
    assert found.left_out == 1
    messages = {problem.case_id: problem.message for problem in found.problems}
    assert "line 5: unknown class 'maligant'; did you mean 'malignant'?" in messages["d"]
    assert "i/9.nii does not exist" in messages["e"]
    assert "line 7: column 'image' is empty" in messages["f"]
    assert "cannot name a folder" in messages["g/h"]


def test_a_table_for_prediction_needs_no_classes(tmp_path: Path) -> None:
    write_table(tmp_path, "a,i/1.nii,m/1.nii", "b,i/2.nii,", header="id,image,mask")
    cases, problems = list_raw_cases(tmp_path / "t.csv", CSV, need_label=False)
    assert [(case.case_id, case.patient_id, case.target) for case in cases] == [("a", "a", None), ("b", "b", None)]
    assert cases[0].images == (tmp_path / "i/1.nii",)
    assert problems == []


def test_doubled_ids_are_both_refused(tmp_path: Path) -> None:
    write_table(tmp_path, "a,P,i/1.nii,m/1.nii,benign", "a,P,i/2.nii,m/2.nii,benign")
    found = find_raw_cases(tmp_path, CSV, need_label=True)
    assert found.cases == []
    assert [problem.message for problem in found.problems] == ["the case id occurs 2 times; ids must be unique"]


def test_a_misspelt_column(tmp_path: Path) -> None:
    write_table(tmp_path, "a,P,i/1.nii,m/1.nii,benign", header="id,who,imag,mask,class")
    with pytest.raises(InputError, match=r"t\.csv: unknown column 'image'; did you mean 'imag'"):
        find_raw_cases(tmp_path, CSV, need_label=True)


def test_a_missing_or_unreadable_table(tmp_path: Path) -> None:
    touch(tmp_path, "other.csv")
    with pytest.raises(InputError, match=r"no such table \(data\.table\); expected .layout csv.: the table t\.csv"):
        find_raw_cases(tmp_path, CSV, need_label=True)
    (tmp_path / "t.csv").write_bytes(b"id,who\xff\xfe,image")
    with pytest.raises(InputError, match="not a readable CSV table"):
        find_raw_cases(tmp_path, CSV, need_label=True)


def test_segmentation_by_table(tmp_path: Path) -> None:
    data = DataConfig(
        layout="csv", labels={1: "n"}, table="t.csv", columns=ColumnsConfig(case="id", patient="who", label="mask")
    )
    write_table(tmp_path, "a,P,i/1.nii,m/1.nii,", "b,P,i/1.nii,,")
    found = find_raw_cases(tmp_path, data, need_label=True)
    assert [case.label for case in found.cases] == [tmp_path / "m/1.nii"]
    assert found.left_out == 1


# --- patterns


def patterns(*images: str, label: str | None = "{case}/seg.nii.gz") -> DataConfig:
    channels = tuple(f"c{n}" for n in range(len(images)))
    return DataConfig(layout="patterns", channels=channels, labels={1: "a"}, patterns=PatternsConfig(images, label))


def test_patterns(tmp_path: Path) -> None:
    for case in ("site1/p1", "site2/p1", "p3", "p4", "p5"):
        touch(tmp_path, f"{case}/flair_x.nii.gz", f"{case}/t1c.nii.gz", f"{case}/seg.nii.gz")
    (tmp_path / "p3/seg.nii.gz").unlink()
    (tmp_path / "p4/t1c.nii.gz").unlink()
    touch(tmp_path, "p5/flair_y.nii.gz", "p6/seg.nii.gz")
    cases, problems = list_raw_cases(tmp_path, patterns("{case}/flair*.nii.gz", "{case}/t1c.nii.gz"), need_label=True)
    assert [case.case_id for case in cases] == ["site1_p1", "site2_p1"]
    assert [path.name for path in cases[0].images] == ["flair_x.nii.gz", "t1c.nii.gz"]
    messages = {problem.case_id: problem.message for problem in problems}
    assert "has no label" in messages["p3"]
    assert "0 files match '{case}/t1c.nii.gz', expected one" in messages["p4"]
    assert "2 files match '{case}/flair*.nii.gz', expected one" in messages["p5"]
    assert "0 files match '{case}/flair*.nii.gz'" in messages["p6"]


def test_case_within_a_file_name(tmp_path: Path) -> None:
    touch(tmp_path, "img/7_ct.nii.gz", "seg/7_seg.nii.gz")
    cases, _ = list_raw_cases(
        tmp_path, patterns("img/{case}_ct.nii.gz", label="seg/{case}_seg.nii.gz"), need_label=True
    )
    assert [case.case_id for case in cases] == ["7"]


def test_a_dicom_folder_is_a_case(tmp_path: Path) -> None:
    touch(tmp_path, "p1/ct/1.dcm")
    (tmp_path / "p1/ct/1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    cases, _ = list_raw_cases(tmp_path, patterns("{case}/ct", label=None), need_label=False)
    assert [(case.case_id, case.images) for case in cases] == [("p1", (tmp_path / "p1/ct",))]


@pytest.mark.parametrize(
    ("data", "message"), [(patterns("a.nii.gz"), r"has no \{case\}"), (patterns(), "data.patterns.images is empty")]
)
def test_unusable_patterns(tmp_path: Path, data: DataConfig, message: str) -> None:
    touch(tmp_path, "a.nii.gz")
    with pytest.raises(InputError, match=message):
        list_raw_cases(tmp_path, data, need_label=True)


def test_files_that_differ_in_format_only_are_one_problem_of_their_case(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii", "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii", "labelsTr/a.nii")
    touch(tmp_path, "imagesTr/b_0000.nii", "imagesTr/b_0001.nii", "labelsTr/b.nii")
    found = find_raw_cases(tmp_path, TWO, need_label=True)
    assert [case.case_id for case in found.cases] == ["b"]
    assert "2 images are called 'a_0000'" in found.problems[0].message
