"""What a U-Net gives in training beside its prediction: coarser logits, and those of a second head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from medi3d.config import TaskConfig, load_task
from medi3d.errors import ConfigError
from medi3d.models import create_encoder, create_model
from medi3d.models.classifier import pool_features
from medi3d.models.outputs import Outputs
from medi3d.models.segmentation import SegmentationNetwork
from medi3d.train.losses import create_loss

SHAPE = (9, 22, 14)


def make_task(data: dict[str, Any] | None = None, **model: Any) -> TaskConfig:
    task = load_task("hippocampus")
    model = {"init": "random", "stages": 3, "decoder_channels": (4, 6), **model}
    return replace(task, data=replace(task.data, **(data or {})), model=replace(task.model, **model))


def make_unet(**options: Any) -> SegmentationNetwork:
    torch.manual_seed(0)
    encoder = create_encoder("tf_efficientnet_lite0", init="random", stages=3)
    return SegmentationNetwork(encoder, num_classes=3, decoder_channels=(4, 6, 8), **options)


def test_coarser_logits_come_in_training_alone() -> None:
    model = create_model(make_task(deep_supervision=2))
    outputs = model(torch.randn(2, 1, *SHAPE))
    assert isinstance(outputs, Outputs)
    assert [tuple(logits.shape[2:]) for logits in outputs.logits] == [SHAPE, (5, 11, 7), (3, 6, 4)]
    assert {logits.shape[1] for logits in outputs.logits} == {3}
    assert outputs.classes is None
    assert model.eval()(torch.randn(2, 1, *SHAPE)).shape == (2, 3, *SHAPE)


def test_the_options_change_neither_names_nor_weights_of_the_network_without_them() -> None:
    plain, supervised = make_unet(), make_unet(deep_supervision=2, num_target_classes=4)
    own = plain.state_dict()
    assert {name.partition(".")[0] for name in own} == {"encoder", "blocks", "head"}
    assert {name.partition(".")[0] for name in supervised.state_dict().keys() - own.keys()} == {
        "coarse_heads",
        "class_head",
    }
    volume = torch.randn(1, 1, *SHAPE)
    torch.testing.assert_close(plain.eval()(volume), supervised.eval()(volume))


def test_more_levels_than_there_are_is_refused() -> None:
    make_unet(deep_supervision=2)
    with pytest.raises(ConfigError, match=r"deep_supervision: the decoder has 2 levels .* got 3"):
        make_unet(deep_supervision=3)


def test_the_last_entry_of_decoder_channels_serves_coarser_levels() -> None:
    model = create_model(make_task(stages=None))
    assert [block.convs[1].conv.out_channels for block in model.blocks.values()] == [6, 6, 6, 6, 4]


def test_a_second_head_classifies_by_the_encoders_features() -> None:
    model = create_model(make_task({"classes": ("a", "b", "c", "d")}))
    volume = torch.randn(2, 1, *SHAPE)
    outputs = model(volume)
    assert isinstance(outputs, Outputs)
    assert outputs.classes is not None
    assert (len(outputs.logits), outputs.classes.shape) == (1, (2, 4))
    model.eval()
    with torch.inference_mode():
        pooled = pool_features(model.encoder(volume))
        torch.testing.assert_close(model.classify(volume), model.class_head(pooled))
        one = model.classify(volume[:1])
        torch.testing.assert_close(one, model.classify(volume)[:1])


def test_every_head_is_trained() -> None:
    task = make_task({"classes": ("a", "b")}, deep_supervision=2)
    model = create_model(task)
    batch = {"label": torch.randint(0, 3, (2, *SHAPE)), "target": torch.tensor([0, 1])}
    create_loss(task)(model(torch.randn(2, 1, *SHAPE)), batch, progress=0.0).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_regions_have_an_output_each() -> None:
    model = create_model(make_task({"regions": {"whole": (1, 2)}})).eval()
    assert model(torch.randn(1, 1, *SHAPE)).shape == (1, 1, *SHAPE)
