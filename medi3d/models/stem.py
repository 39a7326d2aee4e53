"""The layers that see the image: they get the volume's channels, on the scale that their weights were trained on.

Which layers those are is found by a trial run on an image that has its own number at every pixel: a layer whose input
holds such numbers sees pixels, however they were rearranged on the way (space-to-depth, patches, parallel branches).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from medi3d.errors import ConfigError
from medi3d.inflation.running import evaluating
from medi3d.models.backbone import Backbone, try_run
from medi3d.registry import unknown_name_message

InputScale: TypeAlias = Literal["unit", "zscore"]

_PIXEL_OF_SCALE: dict[str, tuple[float, float]] = {"unit": (1.0, 0.0), "zscore": (0.226, 0.449)}
"""Input scale → (factor, offset) to pixels in [0, 1]. A z-score is spread like ImageNet's grey pixels: mean 0.449,
standard deviation 0.226 (the averages of the usual RGB statistics)."""

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Stem:
    """A layer that sees the image.

    Args:
        layer: its weight is (O, I, kH, kW) or (O, I).
        colour_first: whether the I inputs are ordered (colour, pixel of a block), else (pixel of a block, colour).
    """

    layer: nn.Conv2d | nn.Linear
    colour_first: bool

    @property
    def pixels(self) -> int:
        """How many pixels of a block come to the layer as one place: 1, or more behind a space-to-depth."""
        return self.layer.weight.shape[1] // 3


class InputScaling(nn.Module):
    """Bring each input channel to the backbone's own scale.

    ``(B, C, D, H, W)`` → the same with ``x · factor + offset`` per channel; then, where the backbone's RGB statistics
    differ between the colours, either a channel of ones that carries the difference exactly through zero padding, or,
    for a backbone that must have its three colours, a trainable 1×1×1 mixture that starts as RGB copies of the mean.
    """

    factor: Tensor
    offset: Tensor

    def __init__(
        self, factor: Tensor, offset: Tensor, *, append_ones: bool = False, mixture: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("factor", factor.reshape(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("offset", offset.reshape(1, -1, 1, 1, 1), persistent=False)
        self.append_ones = append_ones
        self.mixture = mixture

    @property
    def out_channels(self) -> int:
        """Channels that the backbone gets."""
        return 3 if self.mixture is not None else self.factor.shape[1] + self.append_ones

    def scale(self, x: Tensor) -> Tensor:
        """Scale a volume, (B, C, D, H, W) → the same shape."""
        return x * self.factor + self.offset

    def forward(self, x: Tensor) -> Tensor:
        """Return what the backbone gets, (B, out_channels, D, H, W)."""
        scaled = self.scale(x)
        if self.mixture is not None:
            mixed: Tensor = self.mixture(scaled)
            return mixed
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], dim=1) if self.append_ones else scaled


def scale_input(
    mean: Sequence[float], std: Sequence[float], scales: tuple[str, ...]
) -> tuple[InputScaling, Tensor | None]:
    """Return the scaling in front of a network that was trained on other channels, and what its stem must take.

    With weights w_c, mean m_c and deviation s_c of the channels that it was trained on, the grey response
    Σ_c w_c (p − m_c) / s_c of a pixel p equals W z + R · 1, where z = (p − m) / s for the averages m, s;
    W = Σ_c w_c s / s_c; R = Σ_c w_c (m − m_c) / s_c.

    Args:
        mean: m_c, of pixels in [0, 1].
        std: s_c.
        scales: input scale of each channel of the volumes.

    Returns:
        The scaling; and the matrix (trained channels, new channels) to fold into the stem's kernels, ``None`` where
        the channels are as many as those that the network was trained on, and are taken as those.
    """
    unknown = next((scale for scale in scales if scale not in _PIXEL_OF_SCALE), None)
    if unknown is not None:
        raise ConfigError(unknown_name_message("input scale", unknown, _PIXEL_OF_SCALE))
    means, stds = torch.tensor(mean), torch.tensor(std)
    gain, bias = torch.tensor([_PIXEL_OF_SCALE[scale] for scale in scales]).unbind(1)
    count = len(scales)
    if count == len(means):
        return InputScaling(gain / stds, (bias - means) / stds), None
    average, spread = means.mean(), stds.mean()
    ratio, residual = spread / stds, (average - means) / stds  # (trained channels,)
    append_ones = bool(residual.abs().max() > 1e-6)
    columns = [ratio / count] * count + [residual] * append_ones
    scaling = InputScaling(gain / spread, (bias - average) / spread, append_ones=append_ones)
    return scaling, torch.stack(columns, dim=1)


def fit_input(backbone: Backbone, scales: tuple[str, ...]) -> InputScaling:
    """Give the network as many input channels as there are ``scales``, and return the scaling in front of it."""
    scaling, colours = scale_input(backbone.mean, backbone.std, scales)
    if colours is None or _adapt_stems(backbone, colours):
        return scaling
    count = len(scales)
    mixture = nn.Conv3d(count, 3, kernel_size=1)
    with torch.no_grad():
        mixture.weight.copy_(colours[:, :count].reshape(3, count, 1, 1, 1))
        mixture.bias.copy_(colours[:, count:].sum(1))  # type: ignore[union-attr]
    return InputScaling(scaling.factor.flatten(), scaling.offset.flatten(), mixture=mixture)


def _adapt_stems(backbone: Backbone, colours: Tensor) -> bool:
    """Fold ``colours`` (3, channels) into the stems' weights; ``False``, and nothing done, where that is not exact.

    It is not where a layer normalises its weights over the inputs, where it has filters for one colour each, or where
    the network itself works on the colours.
    """
    stems = find_stems(backbone)
    weights = [nn.Parameter(stem.layer.weight.detach()) for stem in stems]
    # Tried with more channels than any network has, so that a layer that sees the image in an altered form stands out.
    trial = pad(colours, (0, 3))
    exact = bool(stems) and all(_fold_colours(stem, trial) for stem in stems)
    exact = exact and try_run(backbone.module, (1, trial.shape[1], *backbone.input_size)) is not None
    for stem, weight in zip(stems, weights, strict=True):
        _set_weight(stem.layer, weight)
        if exact:
            _fold_colours(stem, colours)
    return exact


def _fold_colours(stem: Stem, colours: Tensor) -> bool:
    """Let the layer take channels u in place of the colours ``colours @ u``; ``False`` if it answers differently."""
    layer = stem.layer
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        return False
    size = [2 * taps for taps in layer.weight.shape[2:]]
    channels = torch.randn(2, stem.pixels * colours.shape[1], *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(_recolour(channels, stem, colours.T))
        _set_weight(layer, nn.Parameter(_recolour(layer.weight.detach(), stem, colours)))
        found = layer(channels)
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _recolour(features: Tensor, stem: Stem, matrix: Tensor) -> Tensor:
    """Map the colours in axis 1 of ``features`` by ``matrix`` (old, new), for each pixel of a block by itself."""
    axis = 1 if stem.colour_first else 2
    split = (len(matrix), -1) if stem.colour_first else (-1, len(matrix))
    apart = features.reshape(len(features), *split, *features.shape[2:])
    # (N, pixels, old, …) → (N, pixels, …, new) → (N, pixels · new, …)
    mixed: Tensor = torch.tensordot(apart, matrix, dims=([axis], [0]))
    return mixed.movedim(-1, axis).flatten(1, 2).contiguous()


def _set_weight(layer: nn.Conv2d | nn.Linear, weight: nn.Parameter) -> None:
    layer.weight = weight
    setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", weight.shape[1])


class _PastTheImage(Exception):
    """A layer sees features: the trial run may end."""


def find_stems(backbone: Backbone) -> list[Stem]:
    """Return the layers that see the image's pixels, in the order in which they do; none if it is altered before."""
    pixels = backbone.input_size[0] * backbone.input_size[1]
    numbers = torch.arange(1.0, 3 * pixels + 1)
    image = torch.where(numbers % 2 == 0, numbers, -numbers).reshape(1, 3, *backbone.input_size)
    found: list[Stem] = []

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        features = inputs[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else inputs[0]
        order = _find_colour_order(features.flatten(0, -2), pixels)
        if order is None:
            raise _PastTheImage
        found.append(Stem(layer, order == "colour first"))

    layers = [layer for layer in backbone.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with evaluating(backbone.module), torch.no_grad():
            backbone.module(image)
    except _PastTheImage:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _find_colour_order(features: Tensor, pixels: int) -> str | None:
    """Tell in which order (places, I) features hold colours of numbered pixels; ``None`` where they hold others."""
    numbers = features.abs()
    if features.shape[1] % 3 or not torch.equal(numbers, numbers.round()) or numbers.max() > 3 * pixels:
        return None
    colour = ((numbers - 1) / pixels).floor()  # −1 where a place lies in the padding
    first, last = colour.where(numbers > 0, torch.inf).amin(0), colour.amax(0)
    order = torch.arange(features.shape[1])
    orders = {"colour last": order % 3, "colour first": order * 3 // features.shape[1]}
    return next((name for name, c in orders.items() if bool(((first == c) & (last == c)).all())), None)


def set_stem_stride(backbone: Backbone, name: str, stem_stride: int | None) -> int:
    """Set the stride of the layers that see the image; return by how much every stage's stride shrinks.

    Raises:
        ConfigError: they are no convolutions of pixels with one stride, or their kernels would not overlap.
    """
    if stem_stride is None:
        return 1
    layers = [stem.layer for stem in find_stems(backbone) if stem.pixels == 1]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    strides = {layer.stride[0] for layer in convolutions}
    if len(strides) != 1:
        raise ConfigError(
            f"{name}: no single convolution of pixels begins it, so it cannot take stride {stem_stride}; leave "
            "model.stem_stride out"
        )
    own, kernel = strides.pop(), max(layer.kernel_size[0] for layer in convolutions)
    if stem_stride == own:
        return 1
    if stem_stride > own or kernel <= own:
        raise ConfigError(
            f"{name}: its first convolution (kernel {kernel}, stride {own}) cannot take stride {stem_stride}; leave "
            "model.stem_stride out"
        )
    for layer in convolutions:
        layer.stride = (stem_stride, stem_stride)
    return own // stem_stride
