"""Stochastic depth under hidden depth: whole volumes are dropped, at all depths alike, in training alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medi3d.errors import ConfigError
from medi3d.models import Encoder, create_encoder


def make_encoder(drop_path: float, backbone: str = "tf_efficientnet_lite0") -> Encoder:
    torch.manual_seed(0)
    return create_encoder(backbone, init="random", stages=3, drop_path=drop_path)


def find_drops(encoder: nn.Module) -> list[nn.Module]:
    return [part for part in encoder.modules() if getattr(part, "drop_prob", 0)]


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "convnext_atto"])
def test_a_volume_is_dropped_or_kept_as_a_whole(backbone: str) -> None:
    encoder = make_encoder(0.9, backbone).train()
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        reveal = encoder.body.depth.reveal
        seen.append((reveal(args[0], 2).detach(), reveal(output, 2).detach()))

    drops = find_drops(encoder)
    handles = [part.register_forward_hook(watch) for part in drops]
    encoder(torch.randn(12, 1, 32, 24, 16))
    for handle in handles:
        handle.remove()
    kinds = set()
    for before, after in seen:  # (B, C, D, H, W)
        assert before.shape[2] > 1
        kept = after.flatten(1).abs().sum(1) > 0
        kinds |= set(kept.tolist())
        # What is kept is scaled by one number at all places and depths.
        ratio = after[kept] / before[kept]
        scale = float(ratio[torch.isfinite(ratio)].median()) if kept.any() else 1.0
        assert scale >= 1
        torch.testing.assert_close(after[kept], before[kept] * scale)
    assert kinds == {True, False}


def test_it_is_drawn_anew_for_each_volume_and_step_and_off_in_evaluation() -> None:
    encoder = make_encoder(0.9)
    for part in encoder.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()  # else equal volumes differ by nothing, and others' answers by the batch
    volume = torch.randn(1, 1, 8, 24, 16)
    batch = encoder(volume.expand(8, -1, -1, -1, -1))[-1]
    assert len({float(one.sum()) for one in batch.detach()}) > 1
    assert not torch.equal(batch, encoder(volume.expand(8, -1, -1, -1, -1))[-1])
    encoder.eval()
    torch.testing.assert_close(encoder(volume)[-1], encoder(volume)[-1], rtol=0, atol=0)


def test_it_grows_from_block_to_block_and_leaves_the_weights_as_they_are() -> None:
    dropping, plain = make_encoder(0.4), make_encoder(0.0)
    rates = [part.drop_prob for part in find_drops(dropping)]
    assert rates == sorted(rates)
    assert len(set(rates)) == len(rates) > 1
    assert not find_drops(plain)
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    volume = torch.randn(1, 1, 8, 24, 16)
    torch.testing.assert_close(dropping.eval()(volume)[-1], plain.eval()(volume)[-1])


@pytest.mark.parametrize("backbone", ["vgg11", "torchvision/resnet18"])
def test_a_backbone_without_is_named(backbone: str) -> None:
    with pytest.raises(ConfigError, match=f"model.drop_path: .*{backbone}"):
        make_encoder(0.1, backbone)
