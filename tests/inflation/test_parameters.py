"""The conversion report on networks whose fates are known by hand."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from medi3d.inflation import inflate
from medi3d.inflation.parameters import ParameterFate, compare_parameters, count_fates, name_modules


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def fates_of(source: dict[str, Tensor], inflated: dict[str, Tensor]) -> dict[str, str]:
    return {parameter.name: parameter.fate for parameter in compare_parameters(source, inflated)}


def test_kernels_are_inflated_and_the_rest_is_copied() -> None:
    network = make_network()
    for init in ("mean", "center", "overshoot"):
        found = compare_parameters(network.state_dict(), inflate(network, init=init).state_dict())
        assert found[0] == ParameterFate("0.weight", "inflated", (4, 3, 3, 5), (4, 3, 5, 3, 5))
        assert count_fates(found) == {"inflated": 1, "copied": 8, "adapted": 0, "dropped": 0, "added": 0}
        assert [p.name for p in found] == list(network.state_dict())


def test_what_was_adapted_dropped_and_added_is_named() -> None:
    source = make_network().state_dict()
    inflated = {f"body.{name}": tensor for name, tensor in inflate(make_network()).state_dict().items()}
    source |= {"head.weight": torch.zeros(2, 4), "head.bias": torch.zeros(2), "blocks.6.norm.bias": torch.zeros(1)}
    inflated["body.body.0.weight"] = inflated["body.body.0.weight"][:, :1]  # another number of channels
    inflated["body.body.0.bias"] = inflated["body.body.0.bias"] + 1  # other values
    inflated["body.body.3.weight"] = inflated["body.body.3.weight"][:, :, None].expand(-1, -1, 3, -1, -1)  # sums to 3 w
    inflated["body.body.mixer.depth_profile"] = torch.ones(3)
    inflated["pyramid.weight"] = torch.ones(1)
    found = compare_parameters(source, inflated)
    assert count_fates(found) == {"inflated": 0, "copied": 6, "adapted": 3, "dropped": 3, "added": 2}
    assert {p.name for p in found if p.fate == "adapted"} == {"0.weight", "0.bias", "3.weight"}
    assert name_modules(found, "dropped") == "head (2), blocks.6 (1)"
    assert name_modules(found, "added") == "mixer (1), pyramid (1)"
    assert name_modules(found, "inflated") == ""
    many = [ParameterFate(f"blocks.{n}.gain", "added", None, (1,)) for n in range(9)]
    assert name_modules(many[:3], "added") == "blocks.0 (1), blocks.1 (1), blocks.2 (1)"
    assert name_modules(many, "added") == "blocks (9)"
    dropped = next(p for p in found if p.fate == "dropped")
    assert dropped == ParameterFate("head.weight", "dropped", (2, 4), None)
    assert ParameterFate("pyramid.weight", "added", None, (1,)) in found


def test_the_names_of_feature_extractors_are_found_again() -> None:
    """timm's extractors flatten ``stages.0.blocks`` to ``stages_0.blocks`` and leave the head out."""
    torch.manual_seed(0)
    whole = timm.create_model("convnext_atto")
    features = timm.create_model("convnext_atto", features_only=True)
    assert any(name.startswith("stages_0.") for name in features.state_dict())
    source = whole.state_dict()
    renamed = {name.replace("stages.", "stages_").replace("stem.", "stem_"): t for name, t in source.items()}
    features.load_state_dict(renamed, strict=False)
    inflated = inflate(features).state_dict()
    found = fates_of(source, {f"body.{name}": tensor for name, tensor in inflated.items()})
    assert {name for name, fate in found.items() if fate == "dropped"} == {
        *("head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"),
    }
    assert found["stages.1.blocks.0.conv_dw.weight"] == "inflated"
    assert found["stages.1.downsample.1.weight"] == "inflated"
    assert set(found.values()) == {"inflated", "copied", "dropped"}


def test_networks_without_a_name_in_common() -> None:
    found = fates_of({"a.weight": torch.ones(1)}, {"b.weight": torch.ones(1)})
    assert found == {"a.weight": "dropped", "b.weight": "added"}


def test_a_name_inside_another_is_not_taken_for_it() -> None:
    """``conv1.weight`` is the end of ``layer1.0.conv1.weight`` too."""
    torch.manual_seed(0)
    network = timm.create_model("resnet18")
    found = fates_of(network.state_dict(), inflate(network).state_dict())
    assert set(found.values()) == {"inflated", "copied"}
    found.pop("fc.weight")
    assert len(found) == len(network.state_dict()) - 1
