"""Random augmentation of batches on the training device: drawing parameters apart from applying them."""

from medi3d.data.augment.augmenter import Augmenter

__all__ = ["Augmenter"]
