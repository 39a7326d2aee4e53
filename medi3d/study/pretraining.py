"""A pretraining from its tasks to the encoder that others start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from medi3d.config import PretrainConfig
from medi3d.export import export_pretrained
from medi3d.io import atomic
from medi3d.planning import Plan
from medi3d.runs.pretraining import PretrainingFolder
from medi3d.train.cross_validation import is_main_process
from medi3d.train.events import TrainEvent, TrainResult
from medi3d.train.part import TaskPart
from medi3d.train.pretrain import pretrain


def pretrain_encoder(
    config: PretrainConfig,
    *,
    prepared: Mapping[str, Path],
    run: Path,
    fold: int = 0,
    device: str = "auto",
    resume: bool = False,
    licence: str = "not stated",
    on_event: Callable[[TrainEvent], None] | None = None,
    on_start: Callable[[list[Plan], list[TaskPart]], None] = lambda plans, parts: None,
    on_encoder: Callable[[int, Path], None] = lambda channels, folder: None,
) -> TrainResult:
    """Train one encoder on several tasks, and write it as ``encoder/`` in the run's folder once training has ended.

    Args:
        config: see :func:`medi3d.train.pretrain.pretrain`.
        prepared: likewise.
        run: likewise.
        fold: likewise.
        device: likewise.
        resume: likewise.
        licence: of the weights, for the card.
        on_event: as for :func:`medi3d.train.pretrain.pretrain`.
        on_start: likewise.
        on_encoder: called with the channels and the folder of each encoder that was written.
    """
    result = pretrain(
        config,
        prepared=prepared,
        run=run,
        fold=fold,
        device=device,
        resume=resume,
        on_event=on_event,
        on_start=on_start,
    )
    if not result.stopped and is_main_process():
        for channels, folder in write_encoders(run, licence=licence).items():
            on_encoder(channels, folder)
    return result


def write_encoders(run: Path, *, licence: str = "not stated") -> dict[int, Path]:
    """Write the encoder of a pretraining, with the last weights, and one for each other number of channels.

    Returns:
        Channels → folder: ``encoder/`` for the number that most tasks have, ``encoder-2-channels/`` for another.
    """
    folder = PretrainingFolder(run)
    written: dict[int, Path] = {}
    for number in folder.load_pretraining().order_channels():
        place = folder.encoder if not written else folder.path / f"encoder-{number}-channels"
        with atomic.new_folder(place) as part:
            export_pretrained(run, part, channels=number, licence=licence)
        written[number] = place
    return written
