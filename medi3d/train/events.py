"""What a run tells while it goes on, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrainEvent:
    """What the loop tells a progress bar after each step.

    Attributes:
        step: steps of the optimiser so far.
        progress: share of the schedule that is done, in [0, 1].
        seconds: wall clock of the run so far, that before a resumption included.
        loss: of this step.
        score: of the last validation.
        best: the best of all validations.
        patches_per_second: of all processes, over the last step.
        waiting: share of the time in which no patch was ready.
        memory_gb: of the process on a CPU, the most that tensors took on a GPU.
        steps: how many there are to be; ``None`` where a budget ends the run.
        budget_s: wall clock that ends the run.
        eta_s: seconds until the end, by what the run has taken so far.
        learning_rate: of the decoder, in this step.
    """

    step: int
    progress: float
    seconds: float
    loss: float
    score: float | None
    best: float | None
    patches_per_second: float = 0.0
    waiting: float = 0.0
    memory_gb: float = 0.0
    steps: int | None = None
    budget_s: float | None = None
    eta_s: float | None = None
    learning_rate: float = 0.0


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: its folder.
        steps: steps of the optimiser that it took.
        seconds: wall clock, that before resumptions included.
        last_score: of the last validation.
        best_score: the best of all validations.
        stopped: whether a signal ended it before its schedule did; ``medi3d train --resume`` goes on.
        exit_code: what a shell gives for a process that the signal ended.
        scores: of the last validation, by task.
    """

    run: Path
    steps: int
    seconds: float
    last_score: float
    best_score: float
    stopped: bool = False
    exit_code: int = 0
    scores: dict[str, float] = field(default_factory=dict)
