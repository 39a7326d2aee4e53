"""Signals that ask a run to end: it finishes its step, saves, and can be resumed without a lost step.

SIGTERM is what batch systems, containers and ``kill`` send, SIGUSR1 what SLURM is told to send some time before it
takes a node away (``sbatch --signal=USR1@120``), SIGINT is Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

logger = logging.getLogger(__name__)

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""SIGUSR1 is not there on Windows."""


class StopRequest:
    """Hears the signals of :data:`STOP_SIGNALS` while its block runs, and then restores what they did before.

    A second SIGINT interrupts at once, as Ctrl-C does elsewhere. Processes that are forked meanwhile, such as those
    that read patches, leave a stop to this one, which still needs them until its step is done.

    Attributes:
        signal: the one that asked; ``None`` while none has.

    Examples:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.requested, stop.exit_code
        (True, 143)
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come to this process."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended: 128 and the signal's number."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "training runs outside the main thread: signals do not reach it, and a kill loses the steps since the "
                "last checkpoint"
            )
            return self
        self._process = os.getpid()
        self._before = {number: signal.signal(number, self._hear) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def agreed(self, accelerator: Accelerator) -> bool:
        """Return whether a signal has come to any process of the run: all get the same answer at the same step."""
        if accelerator.num_processes == 1:
            return self.requested
        number = torch.tensor(0 if self.signal is None else int(self.signal), device=accelerator.device)
        highest = int(accelerator.gather(number).max())
        if highest and self.signal is None:
            self.signal = signal.Signals(highest)
        return highest > 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
