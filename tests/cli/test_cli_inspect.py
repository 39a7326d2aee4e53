"""``medi3d inspect``: what it measures, prints and draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from matplotlib.image import imread
from typer.testing import CliRunner, Result

from medi3d.cli.inspect import inspect
from medi3d.errors import ConfigError, WeightsError
from medi3d.models import zoo
from medi3d.models.inspection import inspect_encoder
from medi3d.models.volumetric.networks import NETWORKS_3D

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(inspect)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_real_weights_are_inspected(tmp_path: Path) -> None:
    result = run("tf_efficientnet_lite0", "--init", "overshoot")
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    # Fields by hand from lite0's kernels: 3 (stride 2), 3, then 3 and 3 at stride 4, 5 and 5 at 8, and so on.
    assert rows[0] == ["0", "16", "2 × 2 × 2", "2.4 k", "7 slices"]
    assert [row[4] for row in rows] == ["7 slices", "19 slices", "67 slices", "339 slices", "851 slices"]
    assert [row[1] for row in rows] == ["16", "24", "40", "112", "320"]
    assert "equal slices: exact; off the 2D network by" in result.output
    assert "tensors: 16 inflated, 271 copied, 1 adapted, 8 dropped" in result.output
    assert "adapted: conv_stem (1)" in result.output
    assert "dropped: conv_head (1), bn2 (5), classifier (2)" in result.output
    assert "random" not in result.output
    assert imread(tmp_path / "tf_efficientnet_lite0-imagenet-overshoot-filters.png").ndim == 3


def test_random_weights_are_said_to_be_random_and_every_parameter_belongs_to_a_stage(tmp_path: Path) -> None:
    figure = tmp_path / "new" / "stem.png"
    result = run("resnet10t", "--init", "imagenet-center", "--random-weights", "--in-channels", 3, "--figure", figure)
    assert result.exit_code == 0, result.output
    assert "resnet10t, imagenet-center of random 2D weights, plan symmetric, input channels: 3" in result.output
    assert "equal slices: exact" in result.output
    assert "two slices together add nothing" in result.output
    assert "dropped: fc (2)" in result.output
    assert "adapted" not in result.output
    colours = imread(figure)[..., :3]
    assert (np.ptp(colours, axis=-1) > 0.1).any()


def test_stages_share_out_the_encoders_parameters() -> None:
    found = inspect_encoder("resnet10t", init="imagenet-overshoot", in_channels=2, random_weights=True)
    network = zoo.create_backbone("resnet10t").module
    counted = sum(stage.parameters for stage in found.stages)
    # Kernels of k × k have k times the numbers; the stem has two channels and one of ones where it had three.
    sizes = {name: p.numel() * (p.shape[-1] if p.ndim == 4 else 1) for name, p in network.named_parameters()}
    assert counted == sum(sizes.values())
    assert found.stages[0].parameters == sum(sizes[name] for name in sizes if name.startswith(("conv1", "bn1")))
    assert found.filters.shape == (24, 2, 3, 3, 3)
    assert {parameter.fate for parameter in found.fates} == {"inflated", "copied", "adapted", "dropped"}


def test_attention_sees_the_whole_volume() -> None:
    found = inspect_encoder("vit_tiny_patch16_224", random_weights=True)
    assert all(stage.depth_field.is_whole for stage in found.stages)
    assert found.filters.shape == (192, 1, 16, 16, 16)
    assert found.exactness is not None
    assert found.exactness.is_exact


def test_kernels_drawn_in_3d_have_no_2d_network_to_be_compared_with(tmp_path: Path) -> None:
    result = run("lcnet_035", "--init", "random")
    assert result.exit_code == 0, result.output
    assert "its kernels were not inflated from a 2D network" in result.output
    assert "exact" not in result.output
    assert (tmp_path / "lcnet_035-random-filters.png").is_file()


def test_a_plan_shows_in_strides_and_fields() -> None:
    found = inspect_encoder("resnet10t", random_weights=True, plan="slicewise")
    assert {stage.depth_field.slices for stage in found.stages} == {1}
    assert not any(stage.depth_field.is_whole for stage in found.stages)
    assert {stage.stride[0] for stage in found.stages} == {1}
    result = run("resnet10t", "--random-weights", "--plan", "i3d")
    assert "plan i3d" in result.output
    assert "2 × 2 × 2" in result.output
    assert "2 × 4 × 4" in result.output


def test_weights_of_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = zoo.create_network("lcnet_035").state_dict()
    torch.save(state, tmp_path / "lcnet.pth")
    found = inspect_encoder("lcnet_035", weights=tmp_path / "lcnet.pth", in_channels=3)
    torch.testing.assert_close(found.filters.sum(2), state["conv_stem.weight"])


def test_what_cannot_be_inspected_says_why() -> None:
    with pytest.raises(ConfigError, match="unknown depth plan 'i4d'; did you mean 'i3d'"):
        inspect_encoder("resnet10t", plan="i4d", random_weights=True)
    with pytest.raises(ConfigError, match=r"unknown init 'overshot'.* Known: astra, .*imagenet-center"):
        inspect_encoder("resnet18", init="overshot")
    result = run("resnet18", "--random-weights", "--weights", "a.pth")
    assert isinstance(result.exception, ConfigError)
    assert "exclude each other" in str(result.exception)
    result = run("lcnet_035")  # timm knows of no weights of it
    assert isinstance(result.exception, WeightsError)
    assert "--random-weights shows the architecture without them" in str(result.exception)


def test_a_network_in_3d_is_inspected_with_what_became_of_its_tensors(tmp_path: Path) -> None:
    network = NETWORKS_3D["medicalnet:resnet10"].build()
    torch.save({**network.state_dict(), "conv_seg.0.weight": torch.zeros(2)}, tmp_path / "resnet_10.pth")
    result = run(f"medicalnet:resnet10@{tmp_path}/resnet_10.pth", "--tensors", "--figure", tmp_path / "stem.png")
    assert result.exit_code == 0, result.output
    tensors = len(network.state_dict())
    summary = f"{tensors + 1} tensors: {tensors} mapped, 1 dropped; dropped: the head that segments (1)"
    assert f"tensors of {tmp_path}/resnet_10.pth: {summary}" in result.output
    assert "mapped: layer1.0.conv1.weight → layer1.0.conv1.weight (64×64×3×3×3): as it is" in result.output
    assert "dropped: conv_seg.0.weight → – (2): the head that segments" in result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    # 7 + 4 + 16: a pool at stride 2, two kernels at 4; then 8 + 16 at 4 and 8, 2 · 32 and 2 · 64 by dilation.
    assert [row[2] for row in rows] == ["2 × 2 × 2", "4 × 4 × 4", "8 × 8 × 8"]
    assert [row[4] for row in rows] == ["7 slices", "27 slices", "243 slices"]
