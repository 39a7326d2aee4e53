"""Prediction as one call: an image of whichever library goes in, and a label map of the same library comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from medi3d.errors import InputError
from medi3d.infer.predictor import Predictor
from medi3d.io import from_nibabel, from_sitk, to_nibabel, to_sitk
from medi3d.runs.folds import find_runs
from medi3d.types import FloatTriple
from medi3d.volume import Volume

ImageT = TypeVar("ImageT")

_CONVERTERS: Mapping[str, tuple[str, Callable[[Any], Volume], Callable[[Volume], Any]]] = {
    "medi3d": ("Volume", lambda volume: volume, lambda volume: volume),
    "SimpleITK": ("Image", from_sitk, to_sitk),
    "nibabel": ("SpatialImage", from_nibabel, to_nibabel),
}
"""Library → its class of images, and the ways in and out; a library is not imported before an image of it comes."""


def predict(
    volume: ImageT,
    run: str | PathLike[str] | Sequence[str | PathLike[str]] | Predictor,
    *,
    center_mm: FloatTriple | None = None,
    device: str = "auto",
) -> ImageT | dict[str, float]:
    """Predict one volume with trained runs.

    Args:
        volume: a :class:`medi3d.Volume`, a SimpleITK image or a nibabel image, on its own grid.
        run: a run folder, a folder of folds, several of them (they are averaged), or a :class:`medi3d.Predictor`,
            which keeps its networks from one call to the next.
        center_mm: for tasks that cut a cube: where, RAS millimetres; ``None`` is the middle of the volume.
        device: to predict on, where ``run`` is no predictor, which has its own.

    Returns:
        The label map, of the kind that ``volume`` is and on its grid; for a classification, class → probability.

    Raises:
        InputError: another kind of image or number of channels, a folder without a run, an image that cannot be used.
        ConfigError: the runs are of different tasks.
        WeightsError: a checkpoint is missing or damaged.

    Examples:
        >>> import SimpleITK as sitk  # doctest: +SKIP
        >>> label = medi3d.predict(sitk.ReadImage("ct.nrrd"), "runs/liver/first")  # doctest: +SKIP
    """
    enter, leave = _find_converters(volume)
    native = enter(volume)
    if isinstance(run, Predictor):
        predictor = run
    else:
        several = [run] if isinstance(run, str | PathLike) else run
        predictor = Predictor(find_runs(Path(path) for path in several), device=device)
    prediction = predictor.predict(native, center_mm=center_mm)
    if prediction.label is not None:
        result: ImageT = leave(prediction.label)
        return result
    assert prediction.classes is not None
    return dict(zip(predictor.task.data.classes, map(float, prediction.classes), strict=True))


def _find_converters(image: object) -> tuple[Callable[[Any], Volume], Callable[[Volume], Any]]:
    """Find by the classes that an image is an instance of."""
    for parent in type(image).__mro__:
        name, enter, leave = _CONVERTERS.get(parent.__module__.split(".")[0], ("", None, None))
        if parent.__name__ == name and enter is not None and leave is not None:
            return enter, leave
    raise InputError(
        f"expected a medi3d.Volume, a SimpleITK image or a nibabel image, got {type(image).__module__}."
        f"{type(image).__name__}; `medi3d.io.read_volume` reads files"
    )
