"""The measures of the two laws, on hand-written 3D networks that obey or break them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medi3d.errors import InflationError, InputError
from medi3d.inflation.verify import (
    MIXING_FLOOR,
    Exactness,
    measure_error,
    measure_exactness,
    measure_mixing,
    measure_response,
    randomize_statistics,
)

SHAPE = (36, 6, 5)


class Plane(nn.Module):
    """A 2D network without parameters: features that look at pixels alone."""

    def forward(self, image: Tensor) -> Tensor:
        return (1.3 * image).tanh()


class Volume(nn.Module):
    """`Plane` in 3D; before it, ``mix`` averages slices in its own way."""

    def __init__(self, mix: Callable[[Tensor], Tensor] = lambda volume: volume) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, volume: Tensor) -> Tensor:
        return (1.3 * self.mix(volume)).tanh()


def smooth(volume: Tensor) -> Tensor:
    """Mean of a slice and its neighbours; the ends are repeated."""
    padded = torch.cat([volume[:, :, :1], volume, volume[:, :, -1:]], 2)
    return (padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]) / 3


def in_slabs(size: int) -> Callable[[Tensor], Tensor]:
    """Each slab of ``size`` slices by itself, whatever happens within."""
    return lambda volume: torch.cat([slab.mean(2, keepdim=True).expand_as(slab) for slab in volume.split(size, 2)], 2)


def strided_twice(volume: Tensor) -> Tensor:
    """Overlapping windows of 3 with stride 2, four times: a field of 31 slices at steps of 16."""
    for _ in range(4):
        volume = smooth(volume)[:, :, ::2].sin()
    return volume


def over_all(volume: Tensor) -> Tensor:
    return volume + volume.mean(2, keepdim=True).sin() - volume.sin().mean(2, keepdim=True)


def measure(network: nn.Module, plane: nn.Module | None = None, *, shape: tuple[int, int, int] = SHAPE) -> Exactness:
    return measure_exactness(plane or Plane(), network, in_channels=2, shape=shape)


def test_a_network_over_the_whole_volume_obeys_both_laws() -> None:
    law = measure(Volume(over_all))
    assert law.is_exact
    assert law.mixes
    assert law.mixing == min(law.neighbour_mixing, law.patch_mixing) > 1e-3


def test_slices_that_never_meet_do_not_mix() -> None:
    law = measure(Volume())
    assert law.relative_error == 0
    assert law.neighbour_mixing == law.patch_mixing == 0
    assert not law.mixes


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_slabs_that_never_meet_do_not_mix(size: int) -> None:
    law = measure(Volume(in_slabs(size)))
    assert law.is_exact
    assert max(law.neighbour_mixing, law.patch_mixing) < MIXING_FLOOR


@pytest.mark.parametrize("size", [7, 12, 14, 24])
def test_the_slabs_of_any_patch_embedding_are_told_apart(size: int) -> None:
    patches = nn.Sequential(nn.Conv2d(2, 3, size, size), nn.Tanh())

    class Slabs(nn.Module):
        def forward(self, volume: Tensor) -> Tensor:
            slabs = [slab.mean(2) for slab in volume.split(size, 2)]
            return torch.stack([patches(slab) for slab in slabs], 2).double()

    law = Exactness(0, *measure_mixing(patches.double(), Slabs(), in_channels=2, shape=(36, 24, 24)))
    assert max(law.neighbour_mixing, law.patch_mixing) < MIXING_FLOOR


def test_neighbours_may_meet_where_patches_do_not() -> None:
    law = measure(Volume(smooth))
    assert law.is_exact
    assert law.neighbour_mixing > 0.01
    assert law.patch_mixing == 0
    assert not law.mixes


def test_patches_may_meet_where_neighbours_do_not() -> None:
    def comb(volume: Tensor) -> Tensor:  # slice d meets d ± 32 only
        return (volume + volume.roll(32, 2)) / 2

    law = measure(Volume(comb), shape=(64, 6, 5))
    assert law.patch_mixing > 0.01
    assert law.neighbour_mixing == 0
    assert not law.mixes


def test_a_linear_network_has_no_effect_of_two_slices_together() -> None:
    class Linear(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return smooth(image) if image.ndim == 5 else image

    law = measure(Linear(), Linear())
    assert law.is_exact
    assert law.mixing < MIXING_FLOOR


class Classifier(nn.Module):
    """Pool over all positions, then a head; ``features`` makes it return its feature map too."""

    def __init__(self, head: Callable[[Tensor], Tensor], features: bool = False) -> None:
        super().__init__()
        self.head, self.features = head, features

    def forward(self, image: Tensor) -> Any:
        features = (1.3 * image).tanh()
        logits = self.head(features.flatten(2).mean(2))
        return (logits, features) if self.features else logits


def test_pooling_at_the_end_is_no_mixing() -> None:
    pooled = Classifier(lambda x: x @ torch.ones(2, 3).to(x))
    law = measure(pooled, pooled)
    assert law.is_exact
    assert law.mixing < MIXING_FLOOR


def test_features_show_what_a_head_after_the_pool_hides() -> None:
    assert measure(Classifier(torch.sin), Classifier(torch.sin)).mixes
    both = Classifier(torch.sin, features=True)
    assert not measure(both, both).mixes


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e9])
def test_rounding_of_a_large_output_is_no_mixing(offset: float) -> None:
    def shift(logits: Tensor) -> Tensor:
        return offset + logits

    law = measure(Classifier(shift), Classifier(shift))
    assert law.mixing < MIXING_FLOOR


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_scale_of_an_output_does_not_matter(size: float) -> None:
    class Scaled(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return size * (over_all(image) if image.ndim == 5 else image).tanh()

    assert measure(Scaled(), Scaled()).mixing > 1e-3


def test_a_deep_network_that_treats_slices_singly_does_not_mix() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(60) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())]
    plane = nn.Sequential(nn.Conv2d(2, 8, 3), *layers)

    class Slicewise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plane = plane

        def forward(self, volume: Tensor) -> Tensor:
            return self.plane(volume.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, volume.shape[2])).mean(1)

    class Pooled(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            maps: Tensor = plane(image)
            return maps.flatten(2)

    class PooledSlicewise(Slicewise):
        def forward(self, volume: Tensor) -> Tensor:
            return super().forward(volume).flatten(2)

    law = measure_exactness(Pooled(), PooledSlicewise(), in_channels=2, shape=(9, 12, 11))
    assert law.is_exact
    assert law.mixing < MIXING_FLOOR / 100


def test_zeros_at_the_ends_are_not_exact() -> None:
    def zero_padded(volume: Tensor) -> Tensor:
        return F.avg_pool3d(volume, (3, 1, 1), 1, (1, 0, 0))

    law = measure(Volume(zero_padded))
    assert 0.1 < law.relative_error < 0.4
    assert not law.is_exact


def test_volumes_of_a_batch_that_meet_are_not_exact() -> None:
    assert not measure(Volume(lambda volume: volume.flip(0))).is_exact


def test_an_error_in_one_output_of_many_counts() -> None:
    class Many(nn.Module):
        def forward(self, image: Tensor) -> dict[str, Any]:
            wrong = image * 1.01 if image.ndim == 5 else image
            return {"maps": [image.tanh(), (wrong, None)], "mask": image > 0, "count": 3, "last": image.tanh()}

    assert measure_error(Many(), Many(), in_channels=2, shape=SHAPE) == pytest.approx(0.01, rel=1e-3)


def test_not_a_number_is_not_exact() -> None:
    class Broken(nn.Module):
        def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
            maps = volume.tanh()
            return maps / maps.ne(maps).float(), maps

    class Sound(nn.Module):
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            return image.tanh(), image.tanh()

    assert not measure(Broken(), Sound()).is_exact


@pytest.mark.parametrize(("scale", "low", "high"), [(1.0, 0.5, 2.0), (1e-6, 1e-7, 1e-5)])
def test_a_network_that_answers_all_slices_alike_is_seen(scale: float, low: float, high: float) -> None:
    class Faint(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [image.tanh(), 1 + scale * image.double().tanh()]

    assert low < measure_response(Faint(), in_channels=2, shape=SHAPE) < high


@pytest.mark.parametrize(
    ("shape2d", "shape3d"),
    [((2, 3), (2, 3)), ((2, 3, 4, 4), (2, 3, 5, 4, 4)), ((2, 9, 3), (2, 5, 9, 3)), ((2, 4, 4, 3), (2, 5, 4, 4, 3))],
)
def test_depth_is_found_in_maps_and_tokens(shape2d: tuple[int, ...], shape3d: tuple[int, ...]) -> None:
    class Ones(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.ones(shape2d if image.ndim == 4 else shape3d)

    assert measure_error(Ones(), Ones(), in_channels=2, shape=SHAPE) == 0


@pytest.mark.parametrize("shape3d", [(2, 3, 4, 4), (10, 3, 4, 4), (2, 3, 4, 4, 5), (5, 2, 3, 4, 4)])
def test_outputs_without_depth_are_told(shape3d: tuple[int, ...]) -> None:
    class Ones(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.ones((2, 3, 4, 4) if image.ndim == 4 else shape3d)

    with pytest.raises(InflationError, match=r"gives .* where the 2D network gives \(2, 3, 4, 4\), and no axis"):
        measure_error(Ones(), Ones(), in_channels=2, shape=SHAPE)


def test_another_number_of_outputs_is_told() -> None:
    class More(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [image.tanh()] * (image.ndim - 3)

    with pytest.raises(InflationError, match="3D network gives 2 tensors, the 2D network 1"):
        measure(More(), More())


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_a_network_that_answers_nothing_is_told(value: float) -> None:
    class Constant(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.full_like(image, value)

    with pytest.raises(InputError, match=r"largest magnitude of the 2D network's output .* is (0|inf|nan)"):
        measure(Constant(), Constant())


def test_no_tensor_is_told() -> None:
    class Nothing(nn.Module):
        def forward(self, image: Tensor) -> dict[str, Any]:
            return {"mask": image > 0, "none": None}

    with pytest.raises(InputError, match="gives no tensor of floating-point numbers"):
        measure(Nothing(), Nothing())


def test_modes_and_types_stay() -> None:
    class Switched(nn.Sequential):
        pass

    plane, network = Switched(nn.Dropout(), nn.BatchNorm2d(2)), Volume(over_all)
    plane.train()
    plane[0].eval()
    network.train()
    measure_mixing(plane, network, in_channels=2, shape=SHAPE)
    measure_error(Plane(), network, in_channels=2, shape=SHAPE)
    assert plane.training
    assert not plane[0].training
    assert network.training
    assert plane[1].weight.dtype == torch.float32


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_any_depth_can_be_measured(depth: int) -> None:
    law = measure(Volume(over_all), shape=(depth, 6, 5))
    assert law.is_exact
    assert law.mixes == (depth > 1)


class Untrained(nn.Module):
    """Everything that an initialisation silences."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(5)
        nn.init.zeros_(self.norm.weight)
        self.gamma = nn.Parameter(1e-6 * torch.ones(5))
        self.token = nn.Parameter(torch.zeros(1, 1, 5))
        self.table = nn.Parameter(torch.zeros(1, 9, 5))
        self.gain = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(5, 4)
        nn.init.zeros_(self.head.weight)
        self.gate = nn.Linear(9, 9)
        nn.init.normal_(self.gate.weight, std=1e-6)
        self.drawn = nn.Linear(5, 5)
        self.last_norm = nn.BatchNorm1d(4)
        self.unused = nn.BatchNorm1d(4, affine=False)
        self.register_buffer("index", torch.arange(5))

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.last_norm(self.head(self.norm(image).flatten(2).mean(2)))
        return features


IMAGES = 3 + 2 * torch.randn(64, 5, 6, 7, generator=torch.Generator().manual_seed(0))


def test_nothing_stays_as_it_was_before_training() -> None:
    model = Untrained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = randomize_statistics(model, IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    kept = {name for name, tensor in drawn.state_dict().items() if torch.equal(tensor, before[name])}
    assert {name for name in kept if not name.startswith("unused") and "batches" not in name} == {
        *("index", "drawn.weight", "drawn.bias", "head.bias", "gate.bias"),
    }
    for name in ("norm.weight", "gamma", "token", "gain"):
        assert (drawn.state_dict()[name] >= 0.5).all()
    for name in ("table", "head.weight", "gate.weight"):
        assert 0.03 < float(drawn.state_dict()[name].std()) < 0.2


def test_statistics_are_those_of_the_images_but_not_quite() -> None:
    drawn = randomize_statistics(Untrained().train(), IMAGES)
    assert drawn.training
    assert not any(module._forward_pre_hooks for module in drawn.modules())
    means, variances = drawn.norm.running_mean, drawn.norm.running_var
    assert ((means - 3).abs() < 1).all()
    assert ((variances > 3.5) & (variances < 12.5)).all()  # (4 + 0.3 · (4 + 3²)) · [0.5, 1.5]
    assert float(means.std()) > 0.01
    assert float(variances.std()) > 0.1
    output = drawn.eval()(IMAGES)  # a signal that neither vanishes nor explodes
    assert 0.2 < float(output.detach().std(0).mean()) < 3


def test_a_draw_is_repeatable() -> None:
    first, second, other = (randomize_statistics(Untrained(), IMAGES, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.gamma, second.gamma)
    assert torch.equal(first.norm.running_var, second.norm.running_var)
    assert not torch.equal(first.gamma, other.gamma)
