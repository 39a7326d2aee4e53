"""Where the CPU time of a medi3d command goes, by sampling its stack: calls cost nothing extra, as they do in cProfile.

    python benchmarks/where_time_goes.py preprocess --task hippocampus --workers 1

Prints the functions of medi3d by what they and all that they call take, and those of all libraries by what they take
themselves. Work in other processes is not seen.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_INTERVAL_S = 0.001


class Sampler:
    """Counts, at every tick of the process's CPU clock, which functions are on the stack."""

    def __init__(self) -> None:
        self.samples = 0
        self.inclusive: Counter[str] = Counter()
        self.own: Counter[str] = Counter()

    def tick(self, _signal: int, frame: FrameType | None) -> None:
        """Count one sample."""
        self.samples += 1
        if frame is not None:
            self.own[place_of(frame)] += 1
        seen = set()
        while frame is not None:
            if "/medi3d/" in frame.f_code.co_filename:
                seen.add(place_of(frame))
            frame = frame.f_back
        self.inclusive.update(seen)


def place_of(frame: FrameType) -> str:
    """Return file (the last three parts of its path) and function of a frame."""
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-3:])}:{code.co_name}"


def main(count: int = 40) -> None:
    """Run a command of medi3d and print a table."""
    sampler = Sampler()
    signal.signal(signal.SIGPROF, sampler.tick)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL_S, _INTERVAL_S)
    try:
        from medi3d.cli.main import run

        run()
    except SystemExit:
        pass
    signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time()
    print(f"{seconds:.2f} CPU-s: {' '.join(sys.argv[1:3])}")
    for title, counter in (("with all that it calls", sampler.inclusive), ("by itself", sampler.own)):
        print(f"\n| {title} | CPU, s |\n|---|---|")
        for name, hits in counter.most_common(count):
            print(f"| {name} | {hits / sampler.samples * seconds:.2f} |")


if __name__ == "__main__":
    main()
