"""Time and peak memory of inflated networks beside the same networks written with plain nn.Conv3d, and MONAI's.

    python benchmarks/inflation_speed.py [--threads 1] [--repeats 5] [--quick]
    python benchmarks/inflation_speed.py --device cuda --dtype bfloat16 [--compile]

The plain networks are timm's, every layer swapped for its 3D namesake (zero padding, 5-D tensors). One input channel,
stem stride 2 (ConvNeXt: 4), the last feature map. Each variant lives in a process of its own, for its peak memory:
what it holds at most over what it held before its network was made. The variants take turns, and medians are shown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import monai
import timm
import torch
from cost import processor_name
from monai.networks.nets import resnet18, resnet50
from plain_networks import swap_layers
from torch import Tensor, nn

from medi3d.inflation import inflate

MODELS = ("resnet18", "resnet50", "tf_efficientnet_lite0", "convnext_tiny")
MONAI = {"resnet18": resnet18, "resnet50": resnet50}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    """One network on one volume."""

    model: str
    side: int
    batch: int

    def __str__(self) -> str:
        return f"{self.model} | {self.side}³ | {self.batch}"


@dataclass(frozen=True)
class Settings:
    """What holds for all cases."""

    device: str
    dtype: str
    compile: bool
    threads: int


@dataclass(frozen=True)
class Cost:
    """Medians of one variant: seconds and MiB."""

    forward: float
    backward: float
    inference_memory: float
    training_memory: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def make_2d(model: str) -> nn.Module:
    """Make timm's 2D network, which gives a list with its last feature map."""
    last = len(timm.create_model(model, features_only=True, pretrained=False).feature_info.info) - 1
    return timm.create_model(model, features_only=True, pretrained=False, in_chans=1, out_indices=(last,))


def make_network(kind: str, model: str) -> nn.Module:
    """Make one variant of a network."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "plain": lambda: swap_layers(make_2d(model)),
        "inflated": lambda: inflate(make_2d(model)),
        "MONAI": lambda: MONAI[model](n_input_channels=1, feed_forward=False, spatial_dims=3, conv1_t_stride=2),
    }
    return makers[kind]().train()


class Meter:
    """One variant of a network, its input, and what runs of it cost.

    On a CPU with one thread, time is the process's CPU time, which other jobs on the machine do not change; else it is
    wall time.
    """

    def __init__(self, case: Case, kind: str, layout: str, settings: Settings) -> None:
        self.on_gpu = settings.device != "cpu"
        torch.set_num_threads(settings.threads)
        torch.manual_seed(0)
        self.clock = time.process_time if settings.threads == 1 and not self.on_gpu else time.perf_counter
        self.dtype = getattr(torch, settings.dtype)
        self.device = settings.device
        self.baseline = self.peak()
        memory_format = LAYOUTS[layout]
        network = make_network(kind, case.model).to(self.device)
        for parameter in network.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=memory_format)
        self.network = torch.compile(network) if settings.compile else network
        volume = torch.rand(case.batch, 1, *(case.side,) * 3, device=self.device)
        self.volume = volume.contiguous(memory_format=memory_format)
        self.forget_peak()

    def forget_peak(self) -> None:
        """Forget what was held while the network was made."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: sets the peak to what is held now

    def peak(self) -> float:
        """Return the most memory held so far, MiB."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB

    def run(self) -> Tensor:
        """Return a loss of the last feature map (of the pooled map in MONAI's networks)."""
        context: AbstractContextManager[object] = nullcontext()
        if self.dtype != torch.float32:
            context = torch.autocast(self.device, dtype=self.dtype)
        with context:
            outputs = self.network(self.volume)
        output: Tensor = outputs[-1] if isinstance(outputs, (list, tuple)) else outputs
        return output.float().square().mean()

    def infer(self) -> float:
        """Run forward alone, with nothing kept for a backward pass, and return the peak of memory."""
        with torch.no_grad():
            self.run()
        return self.peak() - self.baseline

    def step(self) -> tuple[float, float]:
        """Return the seconds of forward and backward."""
        self.network.zero_grad()
        start = self.now()
        loss = self.run()
        middle = self.now()
        loss.backward()
        end = self.now()
        if self.on_gpu:
            torch.cuda.empty_cache()  # the other variants, which wait, share the card
        return middle - start, end - middle

    def now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return self.clock()


def serve(connection: Connection, case: Case, kind: str, layout: str, settings: Settings) -> None:
    """Measure in a process of its own: one step a message, until ``None`` comes; then the peaks of memory."""
    meter = Meter(case, kind, layout, settings)
    inference = meter.infer()
    meter.step()  # warm-up
    connection.send("ready")
    while connection.recv():
        connection.send(meter.step())
    connection.send((inference, meter.peak() - meter.baseline))


def measure(case: Case, settings: Settings, repeats: int) -> dict[tuple[str, str], Cost]:
    """Measure all variants of one case in turns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "monai.networks.nets", "medi3d.inflation"])
    workers = {}
    kinds = ("inflated", "plain", "MONAI") if case.model in MONAI else ("inflated", "plain")
    for kind in kinds:
        for layout in LAYOUTS:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, case, kind, layout, settings), daemon=True)
            process.start()
            theirs.close()
            ours.recv()  # one at a time: no other runs meanwhile
            workers[kind, layout] = ours, process
    steps: dict[tuple[str, str], list[tuple[float, float]]] = {variant: [] for variant in workers}
    for _ in range(repeats):
        for variant, (connection, _) in workers.items():
            connection.send(True)
            steps[variant].append(connection.recv())
    costs = {}
    for variant, (connection, process) in workers.items():
        connection.send(None)
        forward, backward = (statistics.median(times) for times in zip(*steps[variant], strict=True))
        costs[variant] = Cost(forward, backward, *connection.recv())
        process.join()
    return costs


def rows(case: Case, costs: dict[tuple[str, str], Cost]) -> Iterator[str]:
    """Yield a line of the table for each variant: its costs and their ratios to the best layout of the others."""
    for (kind, layout), cost in costs.items():
        numbers = f"{cost.forward:.3f} | {cost.backward:.3f} | {cost.inference_memory:.0f} | {cost.training_memory:.0f}"
        ratios = " | ".join(ratio(cost, costs, other) for other in ("plain", "MONAI"))
        yield f"| {case} | {kind}, {layout} | {numbers} | {ratios} |"


def ratio(cost: Cost, costs: dict[tuple[str, str], Cost], other: str) -> str:
    """Return time of a step and memory of training over the best that any layout of another kind needs."""
    others = [found for (kind, _), found in costs.items() if kind == other]
    if not others:
        return "– | –"
    fastest, leanest = min(c.total for c in others), min(c.training_memory for c in others)
    return f"{cost.total / fastest:.2f} | {cost.training_memory / leanest:.2f}"


def device_name(device: str) -> str:
    """Return the name of the processor or the card."""
    return processor_name() if device == "cpu" else torch.cuda.get_device_name()


def main() -> None:
    """Measure all cases and print a Markdown table, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--sides", nargs="+", type=int, default=[64, 96], help="of the cubes, in voxels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile every variant")
    parser.add_argument("--quick", action="store_true", help="only 48³, batch 1, one repeat: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.sides, options.batches, options.repeats = [48], [1], 1
    settings = Settings(options.device, options.dtype, options.compile, options.threads)
    versions = f"torch {torch.__version__}, timm {timm.__version__}, monai {monai.__version__}"
    print(f"{device_name(options.device)}, {settings}, {options.repeats} repeats, {versions}\n")
    print("| network | volume | batch | variant | forward, s | backward, s | inference, MiB | training, MiB ", end="")
    print("| time / plain | memory / plain | time / MONAI | memory / MONAI |")
    print("|---" * 12 + "|", flush=True)
    for model in options.models:
        for side in options.sides:
            for batch in options.batches:
                case = Case(model, side, batch)
                print("\n".join(rows(case, measure(case, settings, options.repeats))), flush=True)


if __name__ == "__main__":
    main()
