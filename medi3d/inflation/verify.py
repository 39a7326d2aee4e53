"""The two laws that an inflated network obeys, measured: exact on equal slices, and depth mixes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medi3d.errors import InflationError, InputError
from medi3d.inflation.running import evaluating, iterate_tensors
from medi3d.types import IntTriple

TOLERANCE = 1e-4
"""Largest relative error of an exact network, in float32."""

MIXING_FLOOR = 1e-9
"""Least mixing that is more than rounding: 4500 float64 roundings of the output, see `_LEAST_EFFECT`."""

DEEPEST_PATCH = 32
"""Slices in the deepest patch that a patch embedding cuts; two slices so far apart lie in different patches."""

_BATCH_NORM_BIAS, _LEAST_VARIANCE = 1.0, 0.3
"""Biases of batch norms, so that most units are where ReLU is linear, and the part of their mean input power that
`randomize_statistics` adds to running variances. With less of either, deep networks are chaotic (Yang et al. 2019,
arXiv:1902.08129): with 0 and 0, rounding grows to 7e-1 of the output of halonet_h1; with more, a signal fades."""

_LEAST_EFFECT = 1e-3
"""First differences below this part of the output count as this much, so that their rounding is no mixing."""


@dataclass(frozen=True)
class Exactness:
    """How well a network obeys the laws of inflation.

    Mixing is the part of two slices' effect that only both together have: the largest entry of the second mixed
    difference f(x+a+b) - f(x+a) - f(x+b) + f(x), a in one slice and b in another, over that of the first differences,
    in float64, at the last output (the deepest, where they are stages). It is zero, to rounding, where slices do not
    meet, and in a network that is linear.

    Args:
        relative_error: on a volume of equal slices, the largest difference between the 3D network at any output depth
            and the 2D network on the slice, over the largest magnitude of that output; float32.
        neighbour_mixing: of two neighbouring slices with a border of patches between them.
        patch_mixing: of two slices in different patches, up to 32 slices apart.
    """

    relative_error: float
    neighbour_mixing: float
    patch_mixing: float

    @property
    def mixing(self) -> float:
        """The smaller of the two mixings."""
        return min(self.neighbour_mixing, self.patch_mixing)

    @property
    def is_exact(self) -> bool:
        """Whether the error is within 1e-4."""
        return self.relative_error <= TOLERANCE

    @property
    def mixes(self) -> bool:
        """Whether neighbouring slices and slices of different patches have an effect together, beyond rounding."""
        return self.mixing > MIXING_FLOOR


def measure_exactness(
    model2d: nn.Module, model3d: nn.Module, *, in_channels: int = 3, shape: IntTriple = (36, 64, 48), seed: int = 0
) -> Exactness:
    """Compare an inflated network with the 2D network that it came from, both in evaluation mode.

    A layer that pools the whole volume lets slices meet as well. Where something nonlinear follows the last pool, a
    classifier mixes by that alone; a network whose last output is its feature map shows what mixes before.

    Args:
        model2d: the network that takes (B, C, H, W).
        model3d: its inflated form.
        in_channels: C.
        shape: (D, H, W) of the volumes to try. Patches of P slices can be told apart where D > P.
        seed: of the random intensities.

    Raises:
        InflationError: the outputs of the 3D network are not those of the 2D network with or without depth.
        InputError: the 2D network answers nothing that could be compared: no tensor, zeros, or infinite values.

    Example:
        >>> from medi3d.inflation import inflate
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        >>> measure_exactness(net, inflate(net), shape=(5, 6, 7)).is_exact
        True
    """
    error = measure_error(model2d, model3d, in_channels=in_channels, shape=shape, seed=seed)
    return Exactness(error, *measure_mixing(model2d, model3d, in_channels=in_channels, shape=shape, seed=seed))


def measure_error(
    model2d: nn.Module, model3d: nn.Module, *, in_channels: int = 3, shape: IntTriple = (36, 64, 48), seed: int = 0
) -> float:
    """Measure `Exactness.relative_error` alone, on two volumes; see `measure_exactness`."""
    generator = torch.Generator().manual_seed(seed)
    slices = _intensities(generator, 2, in_channels, *shape[1:]).to(_device(model2d))
    volume = slices[:, :, None].expand(-1, -1, shape[0], -1, -1)
    with torch.no_grad(), evaluating(model2d), evaluating(model3d):
        return _relative_error(list(_tensors(model3d(volume))), list(_tensors(model2d(slices))))


def measure_response(
    model2d: nn.Module, *, in_channels: int = 3, shape: IntTriple = (36, 64, 48), seed: int = 0
) -> float:
    """Measure how much the 2D network's answers to the two slices of `measure_error` differ, over their magnitude.

    It is the least of all outputs. Where it is as small as a relative error of interest, exactness says nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    slices = _intensities(generator, 2, in_channels, *shape[1:]).to(_device(model2d))
    with torch.no_grad(), evaluating(model2d):
        outputs = list(_tensors(model2d(slices)))
    return min(float((output[0] - output[1]).abs().max() / output.abs().max()) for output in outputs)


def measure_mixing(
    model2d: nn.Module, model3d: nn.Module, *, in_channels: int = 3, shape: IntTriple = (36, 64, 48), seed: int = 0
) -> tuple[float, float]:
    """Measure `Exactness.neighbour_mixing` and `Exactness.patch_mixing` alone; see `measure_exactness`.

    A 3D network in float64 is used as it is; of any other, a copy is made.
    """
    border = _first_of_a_patch(model2d, shape[0])
    if border == 0:  # a single slice
        return 0.0, 0.0
    generator = torch.Generator().manual_seed(seed)
    volume, change = _intensities(generator, 2, 1, in_channels, *shape).to(_device(model2d), torch.float64)
    kinds = {tensor.dtype for tensor in (*model3d.parameters(), *model3d.buffers()) if tensor.is_floating_point()}
    double = model3d if kinds == {torch.float64} else copy.deepcopy(model3d).double()

    def answer(*slices: int) -> Tensor:
        changed = volume.clone()
        for depth in slices:
            changed[:, :, depth] += change[:, :, depth]
        return list(_tensors(double(changed)))[-1]

    with torch.no_grad(), evaluating(double):
        base, second = answer(), answer(border)
        neighbour, far = (_mixing(base, answer(d), second, answer(d, border)) for d in (border - 1, 0))
    return neighbour, far


def randomize_statistics(model: nn.Module, images: Tensor, *, seed: int = 0) -> nn.Module:
    """Return a copy with parameters and statistics like a trained network's, so that no broken law stays hidden.

    Before training, layer scales of 1e-6, gains of 0, and heads, tokens and position tables of zeros silence what they
    stand for, and norms whose statistics are not those of their input let a signal vanish or explode with depth.

    Args:
        model: any network; every parameter whose entries are all but equal is drawn afresh: gains in [0.5, 1.5], biases
            and tables around 0, biases of batch norms around 1, with a standard deviation of 0.1. Running means and
            variances become those of ``images``, the means off by 0.1 standard deviations, the variances larger.
        images: (B, C, H, W); with few of them, statistics fit no others.
        seed: of the draw.

    Example:
        >>> norm = randomize_statistics(nn.BatchNorm2d(3), 7 + torch.randn(2, 3, 9, 9))
        >>> bool((norm.running_mean > 6).all() and norm.weight.std() > 0)
        True
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)

    def fit(norm: Any, args: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(args[0].transpose(0, 1).flatten(1), 1, correction=0)
        # A small variation on a large mean, scaled up to one, is rounding scaled up too.
        variance = variance + _LEAST_VARIANCE * (variance + mean.square()).mean()
        norm.running_mean.copy_(mean + 0.1 * variance.sqrt() * torch.randn(mean.shape, generator=generator))
        norm.running_var.copy_(variance * (0.5 + torch.rand(mean.shape, generator=generator)))

    norms = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    biases = {id(getattr(norm, "bias", None)) for norm in norms}
    with torch.no_grad(), evaluating(model):
        for name, parameter in model.named_parameters():
            if float(parameter.std(correction=0)) < 1e-3:
                parameter.copy_(_draw(name, parameter, generator) + (id(parameter) in biases) * _BATCH_NORM_BIAS)
        hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
        model(images)
    for hook in hooks:
        hook.remove()
    return model


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if parameter.numel() == max(parameter.shape, default=1) and not name.endswith("bias"):  # a gain a channel
        return 0.5 + torch.rand(parameter.shape, generator=generator)
    return 0.1 * torch.randn(parameter.shape, generator=generator)


def _intensities(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw noise (..., H, W) on a level that differs from slice to slice, as pooling averages noise away."""
    level = torch.randn(*shape[:-2], 1, 1, generator=generator)
    return level + torch.randn(shape, generator=generator)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters(), torch.empty(0)).device


def _tensors(output: Any) -> Iterator[Tensor]:
    return (tensor for tensor in iterate_tensors(output) if tensor.is_floating_point())


def _relative_error(outputs3d: list[Tensor], outputs2d: list[Tensor]) -> float:
    if len(outputs3d) != len(outputs2d):
        raise InflationError(f"the 3D network gives {len(outputs3d)} tensors, the 2D network {len(outputs2d)}")
    if not outputs2d:
        raise InputError("the 2D network gives no tensor of floating-point numbers: there is nothing to compare")
    errors = []
    for volume, plane in zip(outputs3d, outputs2d, strict=True):
        largest = plane.abs().max()
        if not 0 < largest < torch.inf:
            raise InputError(
                f"the largest magnitude of the 2D network's output of shape {tuple(plane.shape)} is {float(largest)}: "
                "there is nothing to compare; give it weights that let an image through, as `randomize_statistics` does"
            )
        errors.append((volume - _with_depth(plane, volume)).abs().max() / largest)
    return float(torch.stack(errors).max())  # NaN stays NaN, which is not exact


def _with_depth(plane: Tensor, volume: Tensor) -> Tensor:
    """Give a 2D network's output an axis of one where the 3D network's has depth."""
    if volume.shape == plane.shape and plane.ndim != 4:
        return plane
    for axis in (2, 1) if plane.ndim == 4 else range(1, volume.ndim):
        if volume.shape[:axis] + volume.shape[axis + 1 :] == plane.shape:
            return plane.unsqueeze(axis)
    raise InflationError(
        f"the 3D network gives {tuple(volume.shape)} where the 2D network gives {tuple(plane.shape)}, "
        "and no axis of it is depth"
    )


def patch_length(model2d: nn.Module) -> int:
    """Return the length of a network's patches in pixels: the largest stride of its convolutions."""
    return max((max(conv.stride) for conv in model2d.modules() if isinstance(conv, nn.Conv2d)), default=1)


def _first_of_a_patch(model2d: nn.Module, depth: int) -> int:
    """Return a slice with which a new patch begins."""
    patch = patch_length(model2d)
    return min(DEEPEST_PATCH, depth - 1) // patch * patch or depth // 2


def _mixing(base: Tensor, with_a: Tensor, with_b: Tensor, with_both: Tensor) -> float:
    first = torch.stack([(with_a - base).abs().max(), (with_b - base).abs().max(), _LEAST_EFFECT * base.abs().max()])
    second = ((with_both - with_a) - (with_b - base)).abs().max()
    return float(second / first.max())
