"""What training does to the depth profile: the energy of each depth tap of each layer, before and after.

    python benchmarks/depth_profile.py RUN [RUN ...] --output DIR

The energy of a tap is the sum of its squared weights. A run is compared with the network that it began as, which its
configuration makes anew. Writes ``NAME.csv`` (run, layer, tap, share before, share after) and ``NAME.svg`` (a line a
layer, finest first: the centre tap's share before and after), and prints the mean over layers, weighted by energy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch
from rows import write_rows
from torch import Tensor, nn

from medi3d.infer.predictor import load_model
from medi3d.models import create_model
from medi3d.runs.folder import RunFolder


def measure_taps(module: nn.Module) -> dict[str, Tensor]:
    """Return the energies ``(T,)`` of the taps of every kernel ``(O, I, T, kH, kW)`` with three taps or more."""
    return {
        name: parameter.detach().double().pow(2).sum((0, 1, 3, 4))
        for name, parameter in module.named_parameters()
        if parameter.ndim == 5 and parameter.shape[2] >= 3
    }


def name_run(run: Path) -> str:
    """Return the folder's name, or that of the cell that a run of ``medi3d benchmark init`` lies in."""
    return run.parent.name if run.name == "run" else run.name


def compare(run: Path) -> list[dict[str, object]]:
    folder = RunFolder(run)
    task = folder.load_config()
    torch.manual_seed(task.train.seed)
    before = measure_taps(create_model(task).encoder)
    after = measure_taps(load_model(task, folder.checkpoint("last")).encoder)
    return [
        {
            "run": name_run(run),
            "layer": layer,
            "tap": tap - len(energy) // 2,
            "before": float(energy[tap] / energy.sum()),
            "after": float(after[layer][tap] / after[layer].sum()),
            "energy_before": float(energy[tap]),
            "energy_after": float(after[layer][tap]),
        }
        for layer, energy in before.items()
        for tap in range(len(energy))
    ]


def draw(rows: list[dict[str, object]], path: Path, title: str) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = list(dict.fromkeys(str(row["layer"]) for row in rows))
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for when, marker in (("before", "_"), ("after", "o")):
        centre = [row[when] for layer in layers for row in rows if row["layer"] == layer and row["tap"] == 0]
        axes.plot(range(len(layers)), centre, marker=marker, linestyle="none" if when == "before" else "-", label=when)
    axes.set(xlabel="layer of the encoder, finest first", ylabel="share of the centre slice", ylim=(0, 1), title=title)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    for run in options.runs:
        rows, name = compare(run), name_run(run)
        write_rows(rows, options.output / f"{name}.csv")
        draw(rows, options.output / f"{name}.svg", name)
        taps = sorted({int(str(row["tap"])) for row in rows})
        for when in ("before", "after"):
            energies = [sum(float(str(r[f"energy_{when}"])) for r in rows if r["tap"] == tap) for tap in taps]
            print(name, when, " / ".join(f"{100 * e / sum(energies):.1f}" for e in energies))


if __name__ == "__main__":
    main()
