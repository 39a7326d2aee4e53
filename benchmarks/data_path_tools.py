"""One way of getting training patches, timed in a process of its own; benchmarks/data_path.py runs it.

    python benchmarks/data_path_tools.py TOOL FOLDER --patch 96 96 96 [--augment MODE] [--patches 24] [--repeats 5]

TOOL is ``medi3d`` (FOLDER is a prepared store), ``monai`` (a folder of ``<case>_image.npy`` and ``<case>_label.npy``),
``nnunet`` (nnU-Net's preprocessed folder of one configuration; run by the interpreter that has nnU-Net). ``medi3d``,
``monai`` and ``torchio`` with ``--synthetic`` augment one made-up patch over and over. Prints one line of JSON: CPU
seconds of getting ready, median CPU milliseconds a patch, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 2
CONFIGS: dict[str, dict[str, Any]] = {
    # medi3d's defaults, mirrored along all axes
    "default": {},
    # the changes of nnU-Net's trainer, their ranges, and about their probabilities
    "nnunet": {
        "rotate_degrees": 30.0,
        "scale": 0.4,
        "spatial_probability": 0.36,
        "blur": 1.0,
        "brightness": 0.25,
        "gamma": 0.4,
        "low_resolution": 2.0,
        "intensity_probability": 0.2,
    },
}


def medi3d_patches(folder: Path, size: tuple[int, int, int], mode: str | None) -> Iterator[Any]:
    """Yield batches of medi3d's loader, read in this process."""
    from medi3d.config import AugmentConfig
    from medi3d.data.augment import Augmenter
    from medi3d.data.loader import PatchLoader
    from medi3d.data.patches import PatchDataset
    from medi3d.io.prepared import PreparedStore

    config = None if mode is None else AugmentConfig(mirror_axes=("D", "H", "W"), **CONFIGS[mode])
    augmenter = None if config is None else Augmenter(config, patch_size=size, seed=0)
    dataset = PatchDataset(
        PreparedStore(folder).cases(), patch_size=size, seed=0, foreground_fraction=2 / 3, augment=config
    )
    return PatchLoader(dataset, augmenter, batch_size=BATCH, workers=0)


def monai_changes(size: tuple[int, int, int]) -> list[Any]:
    """Return MONAI's transforms with the ranges of medi3d's defaults."""
    from monai import transforms as mt

    keys, angle = ["image", "label"], np.deg2rad(15)
    return [
        mt.RandAffined(
            keys,
            prob=0.5,
            rotate_range=(angle,) * 3,
            scale_range=(0.15,) * 3,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
            spatial_size=size,
            cache_grid=True,
        ),
        *(mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        mt.RandAdjustContrastd("image", prob=0.3, gamma=(0.74, 1.35)),
        mt.RandScaleIntensityd("image", prob=0.3, factors=0.25),
        mt.RandShiftIntensityd("image", prob=0.3, offsets=0.1),
        mt.RandGaussianNoised("image", prob=0.3, std=0.1, sample_std=True),
    ]


def monai_patches(
    folder: Path, size: tuple[int, int, int], mode: str | None, *, copy_cache: bool = False
) -> Iterator[Any]:
    """Yield batches of MONAI's CacheDataset with RandCropByPosNegLabeld, its voxels' indices cached as well.

    By default it copies the cached case, volumes and all, for every patch; that is off here, as its documentation says
    where only crops are taken.
    """
    from monai import transforms as mt
    from monai.data import CacheDataset, list_data_collate

    keys = ["image", "label"]
    files = [
        {"image": path, "label": path.with_name(path.name.replace("_image", "_label"))}
        for path in sorted(folder.glob("*_image.npy"))
    ]
    steps = [
        mt.LoadImaged(keys, reader="NumpyReader"),
        mt.FgBgToIndicesd("label"),
        mt.RandCropByPosNegLabeld(
            keys,
            label_key="label",
            spatial_size=size,
            pos=2,
            neg=1,
            num_samples=1,
            fg_indices_key="label_fg_indices",
            bg_indices_key="label_bg_indices",
        ),
        *([] if mode is None else monai_changes(size)),
        mt.SelectItemsd(keys),
    ]
    cached = CacheDataset(files, mt.Compose(steps), num_workers=1, progress=False, copy_cache=copy_cache)

    def batches() -> Iterator[Any]:
        rng = np.random.default_rng(0)
        while True:
            yield list_data_collate([cached[int(rng.integers(len(cached)))] for _ in range(BATCH)])

    return batches()


def nnunet_patches(folder: Path, size: tuple[int, int, int], mode: str | None) -> Iterator[Any]:
    """Yield batches of nnU-Net's loader, with its trainer's own augmentation."""
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(folder.parent / "nnUNetPlans.json"))
    labels = plans.get_label_manager(json.loads((folder.parent / "dataset.json").read_text(encoding="utf-8")))
    angle = np.deg2rad(30)
    read, changes = size, None
    if mode is not None:
        read = tuple(get_patch_size(size, (-angle, angle), (-angle, angle), (-angle, angle), (0.85, 1.25)))
        changes = nnUNetTrainer.get_training_transforms(size, (-angle, angle), None, (0, 1, 2), False)
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)),
        BATCH,
        read,
        size,
        labels,
        oversample_foreground_percent=2 / 3,
        probabilistic_oversampling=True,
        transforms=changes,
    )
    return iter(SingleThreadedAugmenter(loader, None))


def synthetic_patch(size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image ``(1, D, H, W)`` and a label map ``(1, D, H, W)`` with two labels, side by side in a ball."""
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    away = np.linalg.norm(index - np.array(size) / 2, axis=-1)
    label = (away < min(size) / 4) * (1 + (index[..., 0] > size[0] / 2))
    image = np.random.default_rng(0).standard_normal(size, dtype=np.float32) + label
    return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(label.astype(np.uint8))[None]


def medi3d_augmented(size: tuple[int, int, int], mode: str) -> Iterator[Any]:
    """Augment a batch of the patch over and over; blocks have the margin that each patch takes."""
    from medi3d.config import AugmentConfig
    from medi3d.data.augment import Augmenter
    from medi3d.data.augment.draw import draw_spatial

    config = AugmentConfig(mirror_axes=("D", "H", "W"), **CONFIGS[mode])
    augmenter = Augmenter(config, patch_size=size, seed=0)
    blocks = []
    for number in range(48):
        warp = draw_spatial(config, seed=0, number=number, size=size, spacing_mm=(1.0, 1.0, 1.0)).warp
        low, high = ((0, 0, 0), tuple(n - 1 for n in size)) if warp is None else warp.source_box(size)
        block = tuple(int(b - a + 1) for a, b in zip(low, high, strict=True))
        blocks.append((*synthetic_patch(block), tuple(map(int, low))))

    def batches() -> Iterator[Any]:
        first = 0
        while True:
            numbers = [(first + k) % len(blocks) for k in range(BATCH)]
            image, label, offset = zip(*(blocks[number] for number in numbers), strict=True)
            yield augmenter(
                {
                    "number": torch.tensor(numbers),
                    "image": list(image),
                    "label": [one[0] for one in label],
                    "offset": list(offset),
                }
            )
            first += BATCH

    return batches()


def monai_augmented(size: tuple[int, int, int], mode: str) -> Iterator[Any]:
    """Augment copies of the patch over and over."""
    from monai.transforms import Compose

    image, label = synthetic_patch(size)
    changes = Compose(monai_changes(size))
    while True:
        yield [changes({"image": image.clone(), "label": label.clone()}) for _ in range(BATCH)]


def torchio_augmented(size: tuple[int, int, int], mode: str) -> Iterator[Any]:
    """Augment the patch over and over; contrast and brightness, which TorchIO has not, are left out."""
    import torchio as tio

    image, label = synthetic_patch(size)
    changes = tio.Compose(
        [
            tio.RandomAffine(scales=0.15, degrees=15, default_pad_value=0.0, p=0.5),
            tio.RandomFlip(axes=(0, 1, 2), flip_probability=0.5),
            # its gamma wants values from 0 to 1
            tio.Compose([tio.RescaleIntensity((0, 1)), tio.RandomGamma(log_gamma=0.3)], p=0.3),
            tio.RandomNoise(std=(0, 0.1), p=0.3),
        ]
    )
    while True:
        yield [
            changes(tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label)))
            for _ in range(BATCH)
        ]


READERS: dict[str, Callable[..., Iterator[Any]]] = {
    "medi3d": medi3d_patches,
    "monai": monai_patches,
    "monai_copying": partial(monai_patches, copy_cache=True),
    "nnunet": nnunet_patches,
}
AUGMENTERS: dict[str, Callable[..., Iterator[Any]]] = {
    "medi3d": medi3d_augmented,
    "monai": monai_augmented,
    "torchio": torchio_augmented,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=sorted({*READERS, *AUGMENTERS}))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--patch", type=int, nargs=3, required=True)
    parser.add_argument("--augment", choices=sorted(CONFIGS))
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--patches", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = tuple(options.patch)
    begun = time.process_time()
    if options.synthetic:
        batches = AUGMENTERS[options.tool](size, options.augment or "default")
    else:
        batches = READERS[options.tool](options.folder, size, options.augment)
    list(islice(batches, 2))
    ready = time.process_time()
    times = []
    for _ in range(options.repeats):
        start = time.process_time()
        list(islice(batches, options.patches // BATCH))
        times.append((time.process_time() - start) / options.patches)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert peak is not None
    print(
        json.dumps(
            {
                "setup_s": round(ready - begun, 2),
                "ms": round(1e3 * statistics.median(times), 2),
                # getrusage's peak begins with what the caller held
                "peak_mib": round(int(peak.group(1)) / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
