"""Encoders as folders to share: the same outputs back, from here and from a hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hub_server import TOKEN, Hub, run_hub
from typer.testing import CliRunner

from medi3d.cli.main import app
from medi3d.config import TaskConfig, load_task
from medi3d.errors import ConfigError, InputError, WeightsError
from medi3d.export import export_encoder, export_run_encoder, push_encoder
from medi3d.inflation import anisotropic
from medi3d.models import Encoder, create_encoder, create_model
from medi3d.models.shared import is_shared
from medi3d.train import train_task

LITE0 = "tf_efficientnet_lite0"


def change_weights(encoder: Encoder) -> Encoder:
    """Move every tensor a little, as training does."""
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
    return encoder.eval()


def assert_same_answers(one: Encoder, other: Encoder, channels: int = 1) -> None:
    volume = torch.rand(1, channels, 7, 40, 36)
    with torch.inference_mode():
        for first, second in zip(one.eval()(volume), other.eval()(volume), strict=True):
            torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_encoder(create_encoder(LITE0, init="random", stages=2), tmp_path / "exported", init="random")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            LITE0,
            {"stages": 3, "plan": anisotropic((5.0, 1.25, 1.25)), "input_scale": ("unit", "zscore"), "in_channels": 2},
        ),
        (LITE0, {"stages": 2, "stem_stride": 1, "plan": "i3d", "depth_padding": "zeros", "init": "imagenet-center"}),
        ("resnet18", {"stages": 3, "init": "random"}),  # its means differ between colours
        ("medicalnet:resnet10", {"stages": 2, "init": "random", "input_scale": "zscore"}),
        ("test_vit", {"init": "random", "image_size": (40, 36)}),
    ],
)
def test_an_exported_encoder_comes_back_the_same(name: str, options: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = change_weights(create_encoder(name, **options))  # type: ignore[arg-type]
    folder = export_encoder(encoder, tmp_path / "exported", init="random")
    again = create_encoder(str(folder))
    assert again.recipe == encoder.recipe
    assert (again.channels, again.strides) == (encoder.channels, encoder.strides)
    assert_same_answers(encoder, again, encoder.in_channels)


def test_scaling_is_the_cards_whatever_the_library_says_now(exported: Path) -> None:
    card = json.loads((exported / "card.json").read_text())
    card["input"]["scaling"] = {"factor": [3.0], "offset": [-0.25]}
    (exported / "card.json").write_text(json.dumps(card))
    scaled = create_encoder(str(exported)).scaling(torch.ones(1, 1, 1, 1, 1))
    torch.testing.assert_close(scaled.flatten(), torch.tensor([2.75]))


def test_the_card_tells_what_a_user_must_know(tmp_path: Path) -> None:
    encoder = create_encoder(LITE0, init="imagenet-overshoot", stages=2, plan="i3d")
    folder = export_encoder(
        encoder, tmp_path / "exported", init="imagenet-overshoot", training_data={"task": "liver", "cases": 30},
        spacing_mm=(3.0, 1.5, 1.5), normalize=("ct",), licence="Apache-2.0",
    )  # fmt: skip
    card = json.loads((folder / "card.json").read_text())
    assert card["architecture"]["name"] == LITE0
    assert card["depth_plan"]["depth_stride"] == [None, 1, 1, None]
    assert (card["init"], card["licence"]) == ("imagenet-overshoot", "Apache-2.0")
    assert card["training_data"] == {"task": "liver", "cases": 30}
    assert (card["input"]["spacing_mm"], card["input"]["normalize"]) == ([3.0, 1.5, 1.5], ["ct"])
    assert set(safetensors.torch.load_file(folder / "encoder.safetensors")) == {
        f"encoder.{name}" for name in encoder.state_dict()
    }
    page = (folder / "README.md").read_text()
    assert "license: apache-2.0\n" in page
    assert "trained on: task: liver, cases: 30" in page


def test_what_cannot_be_shared_or_read_is_refused(exported: Path, tmp_path: Path) -> None:
    encoder = create_encoder(str(exported))
    with pytest.raises(InputError, match="not empty; give a new folder"):
        export_encoder(encoder, exported, init="random")
    encoder.recipe = None
    with pytest.raises(ConfigError, match="made of a network at hand"):
        export_encoder(encoder, tmp_path / "new", init="random")
    with pytest.raises(ConfigError, match="its card says all the rest: give no other option"):
        create_encoder(str(exported), in_channels=2)
    with pytest.raises(WeightsError, match=r"no exported encoder here \(card.json is missing\)"):
        create_encoder(str(tmp_path))
    weights = exported / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(WeightsError, match="damaged, or not the weights that its card describes"):
        create_encoder(str(exported))
    card = json.loads((exported / "card.json").read_text())
    for change, message in (({"format": "medi3d-encoder/9"}, "got 'medi3d-encoder/9'"),):
        (exported / "card.json").write_text(json.dumps(card | change))
        with pytest.raises(WeightsError, match=message):
            create_encoder(str(exported))
    (exported / "card.json").write_text("{")
    with pytest.raises(WeightsError, match="not a readable card"):
        create_encoder(str(exported))


def test_names_of_backbones_stay_those_of_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("resnet18", "torchvision/resnet18", "mine/encoder"):
        Path(folder).mkdir(parents=True)
    assert [is_shared(name) for name in ("resnet18", "torchvision/resnet18", "mine/encoder", "user/x@v1")] == [
        False, False, True, True,
    ]  # fmt: skip


def test_an_exported_encoder_is_an_init(exported: Path) -> None:
    source = create_encoder(str(exported))
    overrides = {"model.init": str(exported), "model.stages": 2}
    model = create_model(load_task("hippocampus", overrides=overrides))
    own = model.encoder.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in source.state_dict().items())
    with pytest.raises(WeightsError, match="its encoder is of another architecture"):
        create_model(load_task("hippocampus", overrides={**overrides, "model.stages": 3}))


# --- a run's encoder


@pytest.fixture(scope="module")
def run(tiny: Path, segmentation_task: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "run"
    task = replace(segmentation_task, train=replace(segmentation_task.train, steps=2, validations=1))
    train_task(task, prepared=tiny / "prepared" / task.name, run=folder, device="cpu")
    return folder


def test_the_command_exports_the_encoder_of_a_run(run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(run), "--encoder", "--licence", "CC-BY-4.0", "--output", str(tmp_path / "exported")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    encoder = create_encoder(str(tmp_path / "exported"))
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"]
    assert all(torch.equal(state[f"encoder.{name}"], tensor) for name, tensor in encoder.state_dict().items())
    assert encoder.recipe is not None
    assert (encoder.recipe.input_scale, encoder.recipe.stages, encoder.recipe.stem_stride) == (("zscore",), 2, 1)
    card = json.loads((tmp_path / "exported" / "card.json").read_text())
    assert card["training_data"]["task"] == "tiny_segmentation"
    assert card["training_data"]["cases"] == 4
    assert (card["input"]["spacing_mm"], card["input"]["normalize"]) == ([2.0, 2.0, 2.0], ["mr"])
    assert "case_" not in json.dumps(card)


def test_a_run_without_an_encoder_is_refused(run: Path, tmp_path: Path) -> None:
    import yaml

    other = tmp_path / "basic"
    (other / "checkpoints").mkdir(parents=True)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["model"] |= {"network": "monai/basic_unet"}
    (other / "config.yaml").write_text(yaml.safe_dump(values))
    (other / "checkpoints" / "best.pt").write_bytes((run / "checkpoints" / "best.pt").read_bytes())
    with pytest.raises(ConfigError, match=r"model\.network monai/basic_unet has no encoder to export"):
        export_run_encoder(other, tmp_path / "exported")


def test_pushing_goes_with_an_encoder(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), "--push", "me/x", "--output", str(tmp_path / "exported")])
    assert result.exit_code != 0
    assert not (tmp_path / "exported").exists()


# --- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with run_hub(tmp_path / "hub") as server:
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_an_encoder_is_pushed_and_pulled(hub: Hub, tmp_path: Path) -> None:
    encoder = change_weights(create_encoder("lcnet_035", init="random", stages=2))
    folder = export_encoder(encoder, tmp_path / "exported", init="random", licence="mit")
    commit = push_encoder(folder, "me/tiny-encoder")
    pushed = hub.root / "me" / "tiny-encoder"
    for name in ("card.json", "encoder.safetensors", "README.md"):
        assert (pushed / name).read_bytes() == (folder / name).read_bytes()
    assert_same_answers(encoder, create_encoder("me/tiny-encoder"))
    assert_same_answers(encoder, create_encoder(f"me/tiny-encoder@{commit}"))
    other = create_encoder("lcnet_035", init="me/tiny-encoder", stages=2)
    assert_same_answers(encoder, other)


def test_what_the_hub_has_not_or_refuses_is_an_error(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"me/absent on the hub: no encoder\.safetensors to be had"):
        create_encoder("me/absent")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(WeightsError, match=r"me/tiny on the hub: .* could not be put there .*`hf auth login` signs in"):
        push_encoder(exported, "me/tiny")
    assert not (hub.root / "me" / "tiny").exists()
    (exported / "card.json").unlink()
    with pytest.raises(WeightsError, match="not a readable card"):
        push_encoder(exported, "me/tiny")
