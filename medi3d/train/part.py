"""A task's part in a run. A run of ``medi3d train`` has one, a pretraining one for each of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medi3d.config import TaskConfig
from medi3d.data.splits import Split
from medi3d.io.prepared import PreparedCase


@dataclass(frozen=True)
class TaskPart:
    """What a run has of a task.

    Args:
        task: its configuration, every planned key set; what concerns the encoder or the run is the same in all parts.
        train: cases that it is trained on.
        validation: cases that are held out.
        share: of the run's batches; only the proportions between the parts count.
        weight: factor of its loss.
    """

    task: TaskConfig
    train: Sequence[PreparedCase]
    validation: Sequence[PreparedCase]
    share: float = 1.0
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def split(self) -> Split:
        """Its cases by their ids."""
        return Split(*(tuple(case.case_id for case in cases) for cases in (self.train, self.validation)))
