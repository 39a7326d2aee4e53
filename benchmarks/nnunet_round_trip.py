"""Label → nnU-Net's prepared grid → back, by nnU-Net's own code; started by ``round_trip.py`` in nnU-Net's interpreter.

    python benchmarks/nnunet_round_trip.py SPACING < jobs.json

``jobs.json`` is a list of ``[image, label, output]``, NIfTI files. The preprocessor and the export are nnU-Net's
defaults, with the resampling functions that its planner writes into every plan; labels go back as one-hot logits.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


def make_plans(
    spacing: float | list[float], *, patch_size: list[int] | None = None, normalization: str = "ZScoreNormalization"
) -> PlansManager:
    """Return what preprocessing, prediction and export read of a plan, as the default planner writes it."""
    resampling: dict[str, object] = {}
    for name, order, is_seg in (("data", 3, False), ("seg", 1, True), ("probabilities", 1, False)):
        resampling[f"resampling_fn_{name}"] = "resample_data_or_seg_to_shape"
        options = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        resampling[f"resampling_fn_{name}_kwargs"] = options
    configuration = {
        "spacing": [spacing] * 3 if isinstance(spacing, float) else list(spacing),
        "normalization_schemes": [normalization],
        "patch_size": patch_size,
        "use_mask_for_norm": [False],
        "architecture": {},
        **resampling,
    }
    return PlansManager(
        {
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {"3d_fullres": configuration},
        }
    )


def round_trip(image: str, label: str, output: str, plans: PlansManager) -> None:
    """Prepare one case, take its prepared label back and write it."""
    configuration = plans.get_configuration("3d_fullres")
    count = int(SimpleITKIO().read_seg(label)[0].max()) + 1
    description = {"labels": {"background": 0, **{f"label {value}": value for value in range(1, count)}}}
    preprocessor = DefaultPreprocessor(verbose=False)
    _, prepared, properties = preprocessor.run_case([image], label, plans, configuration, description)
    logits = (prepared[0] == np.arange(count)[:, None, None, None]).astype(np.float32)
    logits[0] += prepared[0] < 0  # outside the image's non-zero part, which is background
    label_manager = plans.get_label_manager(description)
    restored = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, label_manager, properties, num_threads_torch=1
    )
    SimpleITKIO().write_seg(restored, output, properties)


def main(spacing: str) -> None:
    """Do all jobs that come on the standard input."""
    plans = make_plans(float(spacing))
    for image, label, output in json.load(sys.stdin):
        round_trip(image, label, output, plans)


if __name__ == "__main__":
    main(sys.argv[1])
