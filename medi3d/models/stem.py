"""The first convolution: it gets the volume's channels, and sees what its weights were trained on."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from medi3d.errors import ConfigError
from medi3d.models.zoo import Backbone
from medi3d.registry import unknown_name_message

InputScale: TypeAlias = Literal["unit", "zscore"]

_PIXEL_OF_SCALE: dict[str, tuple[float, float]] = {"unit": (1.0, 0.0), "zscore": (0.226, 0.449)}
"""Input scale → (factor, offset) to pixels in [0, 1]. A z-score is spread like ImageNet's grey pixels: mean 0.449,
standard deviation 0.226 (the averages of the usual RGB statistics)."""


class InputScaling(nn.Module):
    """Bring each input channel to the backbone's own scale.

    ``(B, C, D, H, W)`` → the same with ``x · factor + offset`` per channel and, where the backbone's RGB statistics
    differ between the colours, a channel of ones that carries the difference exactly through zero padding.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, factor: Tensor, offset: Tensor, *, append_ones: bool) -> None:
        super().__init__()
        self.register_buffer("factor", factor.reshape(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("offset", offset.reshape(1, -1, 1, 1, 1), persistent=False)
        self.append_ones = append_ones

    def forward(self, x: Tensor) -> Tensor:
        """Scale a volume, ``(B, C, D, H, W)``."""
        scaled = x * self.factor + self.offset
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], dim=1) if self.append_ones else scaled


def fit_input(backbone: Backbone, scales: tuple[str, ...]) -> InputScaling:
    """Give the stem as many input channels as there are ``scales``, and return the scaling in front of it.

    With RGB weights w_c, mean m_c and deviation s_c, the grey response Σ_c w_c (p − m_c) / s_c of a pixel p equals
    W z + R · 1, where z = (p − m) / s for the averages m, s; W = Σ_c w_c s / s_c; R = Σ_c w_c (m − m_c) / s_c.
    """
    unknown = next((scale for scale in scales if scale not in _PIXEL_OF_SCALE), None)
    if unknown is not None:
        raise ConfigError(unknown_name_message("input scale", unknown, _PIXEL_OF_SCALE))
    means, stds = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    gain, bias = torch.tensor([_PIXEL_OF_SCALE[scale] for scale in scales]).unbind(1)
    count = len(scales)
    if count == 3:
        return InputScaling(gain / stds, (bias - means) / stds, append_ones=False)
    mean, std = means.mean(), stds.mean()
    residual = (mean - means) / stds
    append_ones = bool(residual.abs().max() > 1e-6)
    stem = find_stem(backbone.module)
    weight = stem.weight.detach()  # (O, 3, kH, kW)
    grey = (weight * (std / stds).reshape(1, 3, 1, 1)).sum(1, keepdim=True) / count
    parts = [grey.expand(-1, count, -1, -1)]
    parts += [(weight * residual.reshape(1, 3, 1, 1)).sum(1, keepdim=True)] if append_ones else []
    stem.weight = nn.Parameter(torch.cat(parts, dim=1).contiguous())  # (O, C [+ 1], kH, kW)
    stem.in_channels = stem.weight.shape[1]
    return InputScaling(gain / std, (bias - mean) / std, append_ones=append_ones)


def find_stem(module: nn.Module) -> nn.Conv2d:
    """Return the first convolution, by order of registration; every backbone here sees the image through it."""
    return next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))


def set_stem_stride(module: nn.Module, name: str, stem_stride: int | None) -> int:
    """Set the first convolution's stride and return by how much every stage's stride shrinks."""
    stem = find_stem(module)
    own = stem.stride[0]
    if stem_stride is None or stem_stride == own:
        return 1
    if stem_stride > own or stem.kernel_size[0] <= own:
        raise ConfigError(
            f"{name}: its first convolution (kernel {stem.kernel_size[0]}, stride {own}) cannot take stride "
            f"{stem_stride}; leave model.stem_stride out"
        )
    stem.stride = (stem_stride, stem_stride)
    return own // stem_stride
