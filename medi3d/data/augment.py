"""Random augmentation of one patch: TorchIO moves it in space, a few lines change its intensities.

Everything that is random is drawn from one seed, so a patch depends on nothing but its number.
"""

from __future__ import annotations

import numpy as np
import torch
import torchio as tio
from torch import Tensor

from medi3d.config import AugmentConfig

_AXES = {"D": 0, "H": 1, "W": 2}


class Augmenter:
    """Augment patches as a configuration says.

    Args:
        config: ranges and probabilities.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        moves: list[tio.Transform] = []
        if config.rotate_degrees or config.scale:
            moves.append(
                tio.RandomAffine(
                    scales=config.scale,
                    degrees=config.rotate_degrees,
                    default_pad_value=0.0,
                    p=config.spatial_probability,
                )
            )
        if config.mirror_axes:
            moves.append(tio.RandomFlip(axes=tuple(_AXES[axis] for axis in config.mirror_axes), flip_probability=0.5))
        self.spatial = tio.Compose(moves)

    def __call__(self, image: Tensor, label: Tensor | None, *, seed: int) -> tuple[Tensor, Tensor | None]:
        """Augment one patch.

        Args:
            image: ``(C, D, H, W)`` float32.
            label: ``(1, D, H, W)`` integers, or ``None``; moved with the image, never interpolated.
            seed: draws everything.

        Returns:
            New tensors of the same shapes.
        """
        subject = tio.Subject(image=tio.ScalarImage(tensor=image))
        if label is not None:
            subject.add_image(tio.LabelMap(tensor=label), "label")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            moved = self.spatial(subject)
        changed = self._change_intensities(moved["image"].data, np.random.default_rng(seed))
        return changed, (None if label is None else moved["label"].data)

    def _change_intensities(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        config = self.config

        def chosen() -> bool:
            return bool(rng.random() < config.intensity_probability)

        mean, std = image.mean(), image.std().clamp_min(1e-6)
        if config.gamma and chosen():
            low, span = image.min(), (image.max() - image.min()).clamp_min(1e-6)
            image = ((image - low) / span) ** float(np.exp(rng.uniform(-config.gamma, config.gamma))) * span + low
        if config.contrast and chosen():
            image = (image - mean) * float(rng.uniform(1 - config.contrast, 1 + config.contrast)) + mean
        if config.brightness and chosen():
            image = image + std * float(rng.uniform(-config.brightness, config.brightness))
        if config.noise_std and chosen():
            noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0, config.noise_std)
            image = image + std * torch.from_numpy(noise.astype(np.float32))
        return image
