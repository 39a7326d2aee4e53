"""The U-Net, the classifier, and from a task's configuration to its network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medi3d.config import TaskConfig, list_tasks, load_task
from medi3d.models import Encoder, create_encoder, create_model
from medi3d.models.classifier import Classifier
from medi3d.models.segmentation import SegmentationNetwork


@pytest.mark.parametrize("shape", [(8, 24, 16), (9, 17, 11), (1, 8, 13)])
@pytest.mark.parametrize(
    ("backbone", "stem_stride", "stages"),
    [
        ("tf_efficientnet_lite0", 1, 1),
        ("tf_efficientnet_lite0", 1, 3),
        ("tf_efficientnet_lite0", None, 3),
        ("convnext_atto", None, 2),
    ],
)
def test_a_unet_answers_at_the_inputs_size(
    backbone: str, stem_stride: int | None, stages: int, shape: tuple[int, int, int]
) -> None:
    encoder = create_encoder(backbone, in_channels=2, init="random", stages=stages, stem_stride=stem_stride)
    model = SegmentationNetwork(encoder, num_classes=3, decoder_channels=(4, 6, 8)).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 2, *shape)).shape == (2, 3, *shape)


def test_every_parameter_of_a_unet_is_trained() -> None:
    encoder = create_encoder("tf_efficientnet_lite0", init="random", stages=3)
    model = SegmentationNetwork(encoder, num_classes=2, decoder_channels=(4, 6, 8), dropout=0.1)
    model(torch.randn(2, 1, 9, 16, 12)).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


def test_the_skip_at_full_resolution_is_the_scaled_volume() -> None:
    """With a strided stem a fine detail can only come through that skip."""
    torch.manual_seed(0)
    encoder = create_encoder("tf_efficientnet_lite0", init="random", stages=1)
    model = SegmentationNetwork(encoder, num_classes=1, decoder_channels=(4, 6)).eval()
    assert model.blocks["1"].convs[0].conv.in_channels == 4 + 1


def test_a_classifier_pools_every_stage() -> None:
    encoder = create_encoder("tf_efficientnet_lite0", init="random", stages=3)
    model = Classifier(encoder, num_classes=4).eval()
    volume = torch.randn(3, 1, 7, 18, 11)
    with torch.inference_mode():
        logits = model(volume)
        pooled = torch.cat([feature.flatten(2).mean(2) for feature in encoder(volume)], 1)
        torch.testing.assert_close(logits, model.head(pooled))
    assert logits.shape == (3, 4)


def random_start(task: TaskConfig) -> TaskConfig:
    return replace(task, model=replace(task.model, init="random"))


@pytest.mark.parametrize("name", sorted(list_tasks()))
def test_every_built_in_task_has_a_network(name: str) -> None:
    task = load_task(name)
    model = create_model(random_start(task)).eval()
    assert isinstance(model.encoder, Encoder)
    assert len(model.encoder.strides) == 5  # all that the backbone has
    with torch.inference_mode():
        logits = model(torch.randn(1, task.in_channels, 16, 24, 32))
    spatial = (16, 24, 32) if task.kind == "segmentation" else ()
    assert logits.shape == (1, task.out_channels, *spatial)


def test_a_tasks_name_is_enough() -> None:
    assert create_model("hippocampus").encoder.in_channels == 1


def test_normalisation_decides_the_scale_that_the_encoder_sees() -> None:
    """CT comes in [0, 1], MR as z-scores; the backbone was trained on (pixel - 0.5) / 0.5."""
    ct = create_model(random_start(load_task("lung_nodule_seg"))).encoder.scaling
    mr = create_model(random_start(load_task("hippocampus"))).encoder.scaling
    values = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 1, 2)
    torch.testing.assert_close(ct(values).flatten(), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(mr(values).flatten(), (torch.tensor([0.449, 0.675]) - 0.5) / 0.5)


@pytest.mark.parametrize(("spacing", "strides"), [((1.0, 1.0, 1.0), (2, 4)), ((4.0, 1.0, 1.0), (1, 1))])
def test_depth_plan_of_a_task_follows_the_prepared_spacing(
    spacing: tuple[float, ...], strides: tuple[int, ...]
) -> None:
    values = {"name": "part", "kind": "segmentation", "data": {"labels": {1: "structure"}}}
    model = {"init": "random", "stages": 2, "depth_plan": "anisotropic"}
    task = load_task("part.yaml", values={**values, "model": model, "preprocess": {"spacing_mm": spacing}})
    network = create_model(task)
    assert tuple(stride[0] for stride in network.encoder.strides) == strides
    assert network(torch.zeros(1, 1, 6, 32, 48)).shape == (1, 2, 6, 32, 48)
