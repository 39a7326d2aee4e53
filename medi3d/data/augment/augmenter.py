"""Augmenting a batch of patches on the device they are trained on.

Patches are worked on one by one: each was read as a block of its own size, half of them need no resampling, and a patch
comes out the same to the last bit whatever batch it is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medi3d.config import AugmentConfig
from medi3d.data.augment.draw import draw_intensity, draw_share, draw_spatial
from medi3d.data.augment.intensity import change_intensities
from medi3d.data.augment.spatial import warp_patch
from medi3d.errors import ConfigError
from medi3d.types import FloatTriple, IntTriple

Batch = dict[str, Any]


class Augmenter:
    """Augment batches as a configuration says.

    Args:
        config: ranges and probabilities.
        patch_size: ``(D, H, W)`` of what comes out.
        seed: with a patch's number it draws everything.
    """

    def __init__(self, config: AugmentConfig, *, patch_size: IntTriple, seed: int) -> None:
        self.config, self.patch_size, self.seed = config, patch_size, seed

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Augment a batch; it is left as it is.

        Args:
            batch: ``number`` ``(B,)``; ``image`` B blocks ``(C, d, h, w)`` float32; ``label`` B blocks ``(d, h, w)`` of
                integers up to 255, where there are label maps; ``offset`` and ``spacing_mm``, a triple a patch, as
                :class:`~medi3d.data.patches.PatchDataset` gives them (without: blocks are patches of cubic voxels);
                anything else.

        Returns:
            ``image`` ``(B, C, D, H, W)`` float32, ``label`` ``(B, D, H, W)`` int64, and the rest. With mixup the
            image is ``share`` of itself and the rest its partner, whose truth is ``mixed_label`` or ``mixed_target``.

        Raises:
            ConfigError: mixup is asked for, and the batch is a single patch.
        """
        numbers = batch["number"].tolist()
        labels = batch.get("label", [None] * len(numbers))
        offsets = batch.get("offset", [(0, 0, 0)] * len(numbers))
        spacings = batch.get("spacing_mm", [(1.0, 1.0, 1.0)] * len(numbers))
        augmented = {key: value for key, value in batch.items() if key not in ("offset", "spacing_mm")}
        first = batch["image"][0]
        images = first.new_empty((len(numbers), first.shape[0], *self.patch_size))
        maps = first.new_empty((len(numbers), *self.patch_size), dtype=torch.int64) if "label" in batch else None
        for row, patch in enumerate(zip(numbers, batch["image"], labels, offsets, spacings, strict=True)):
            images[row], label = self._augment_patch(*patch)
            if maps is not None:
                maps[row] = label
        augmented["image"] = images
        if maps is not None:
            augmented["label"] = maps
        return self._mix(augmented) if self.config.mixup else augmented

    def _augment_patch(
        self,
        number: int,
        image: Tensor,
        label: Tensor | None,
        offset: IntTriple,
        spacing_mm: FloatTriple,
    ) -> tuple[Tensor, Tensor | None]:
        """Return image ``(C, D, H, W)`` and label ``(D, H, W)`` of one patch."""
        drawn = {"seed": self.seed, "number": number}
        spatial = draw_spatial(self.config, **drawn, size=self.patch_size, spacing_mm=spacing_mm)
        if spatial.warp is not None:
            small = None if label is None else label.to(torch.uint8)
            image, label = warp_patch(image, small, spatial.warp, offset=offset, size=self.patch_size)
        elif spatial.flips:
            image = image.flip([axis + 1 for axis in spatial.flips])
            label = None if label is None else label.flip(spatial.flips)
        change = draw_intensity(self.config, **drawn, channels=image.shape[0], spacing_mm=spacing_mm)
        return change_intensities(image, change, torch.Generator(image.device)), label

    def _mix(self, batch: Batch) -> Batch:
        """Mix every patch with the one before it."""
        if len(batch["number"]) < 2:
            raise ConfigError("train.augment.mixup mixes the patches of a batch; give train.batch_size at least 2")
        share = draw_share(self.config, seed=self.seed, number=int(batch["number"][0]))
        image = batch["image"]
        mixed = {"image": torch.lerp(image.roll(1, 0), image, share), "share": share}
        for key in ("label", "target"):
            if key in batch:
                mixed[f"mixed_{key}"] = batch[key].roll(1, 0)
        return batch | mixed
