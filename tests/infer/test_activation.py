from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from torch import Tensor, nn

from medi3d.config import TaskConfig
from medi3d.errors import ConfigError
from medi3d.infer.activation import activation_map, stage_maps, sum_of_maps
from medi3d.models.build import create_model
from medi3d.models.classifier import Classifier, pool_features


@pytest.fixture
def model(classification_task: TaskConfig) -> Classifier:
    """A classifier of two stages whose norms have statistics and weights of their own."""
    torch.manual_seed(3)
    built = create_model(classification_task)
    assert isinstance(built, Classifier)
    norm = built.head[0]
    assert isinstance(norm, nn.BatchNorm1d)
    for values in (norm.running_mean, norm.running_var, norm.weight):
        assert isinstance(values, Tensor)
        values.data.uniform_(0.5, 1.5)
    return built.eval()


@pytest.fixture
def image(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.normal(size=(1, 9, 12, 10)).astype(np.float32))


class _LastStage(nn.Module):
    """The classifier with a layer at its last map, which MONAI hooks itself to."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.last = model, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        *features, last = self.model.encoder(x)
        logits: Tensor = self.model.head(pool_features([*features, self.last(last)]))
        return logits


def test_a_stage_agrees_with_monai(model: Classifier, image: Tensor) -> None:
    monai = GradCAM(_LastStage(model).eval(), "last", upsampler=lambda size: nn.Identity(), postprocessing=lambda x: x)
    highest = []
    for target in (0, 1):
        own, theirs = stage_maps(model, image, target)[-1], monai(image[None], class_idx=target)[0, 0].detach()
        assert own.shape == theirs.shape
        torch.testing.assert_close(own.clamp(min=0) / own.numel(), theirs.float(), rtol=1e-4, atol=1e-6)
        highest.append(float(theirs.max()))
    assert max(highest) > 0, "maps of zeros agree always"


def test_the_maps_add_up_to_the_logit(model: Classifier, image: Tensor) -> None:
    """The head is affine in the maps' means: the logit less what it is for no features is the sum of them."""
    with torch.no_grad():
        none = model.head(torch.zeros(1, sum(model.encoder.channels)))[0]
        logits = model(image[None])[0]
    for target in (0, 1):
        total = sum(float(part.mean()) for part in stage_maps(model, image, target))
        assert total == pytest.approx(float(logits[target] - none[target]), abs=1e-4)


class _Bright(nn.Module):
    """An encoder whose one map is how bright the voxels are, at half the resolution."""

    channels = (1,)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool3d(x, 2)]


class _Runs:
    """What a predictor holds, without its files."""

    def __init__(self, model: nn.Module, task: TaskConfig) -> None:
        self.members = (type("Member", (), {"model": model, "task": task})(),)


def test_the_map_is_high_where_the_class_is(classification_task: TaskConfig) -> None:
    model = Classifier(_Bright(), num_classes=2).eval()  # type: ignore[arg-type]
    linear = model.head[2]
    assert isinstance(linear, nn.Linear)
    linear.weight.data = torch.tensor([[-1.0], [1.0]])
    image = torch.zeros(1, 8, 12, 10)
    image[:, 2:4, 8:10, 4:6] = 3
    for_bright, for_dark = (activation_map(_Runs(model, classification_task), image, target) for target in (1, 0))  # type: ignore[arg-type]
    assert for_bright.shape == (8, 12, 10)
    assert for_bright.max() == 1
    places = np.argwhere(for_bright > 0.5)
    assert (places.min(0) >= (2, 8, 4)).all()
    assert (places.max(0) <= (3, 9, 5)).all()
    assert not for_dark.any(), "nothing speaks for dark"
    assert sum_of_maps(model, image, 0).min() < 0


def test_another_network_is_refused(segmentation_task: TaskConfig) -> None:
    runs = _Runs(create_model(segmentation_task), segmentation_task)
    with pytest.raises(ConfigError, match="class activation needs a network of medi3d's classifier; task tiny_seg"):
        activation_map(runs, torch.zeros(1, 8, 10, 9), 0)  # type: ignore[arg-type]
