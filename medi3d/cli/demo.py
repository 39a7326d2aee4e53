"""``medi3d demo``: the main job, end to end, on a synthetic chest; every step is a command that one can type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medi3d.cli.evaluate import evaluate
from medi3d.cli.predict import predict
from medi3d.cli.preprocess import preprocess
from medi3d.cli.train import resolve_task, train_fold
from medi3d.config import ModelConfig, load_task
from medi3d.errors import InputError


def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    cases: Annotated[int, typer.Option(min=5, help="Training cases.")] = 16,
    budget: Annotated[str, typer.Option(help="Wall-clock budget of the training.")] = "2m",
    init: Annotated[str, typer.Option(help="Initialisation of the encoder.")] = ModelConfig.init,
    seed: Annotated[int, typer.Option(help="Draws the phantoms and the training.")] = 0,
) -> None:
    """Run everything on a small synthetic chest phantom, in minutes on a CPU."""
    from medi3d.data.synthetic import write_phantom_dataset
    from medi3d.report.figures import draw_curves

    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: not empty; give another --output, or remove it")
    raw, prepared, runs, predicted = (output / name for name in ("raw", "prepared", "runs", "predictions"))
    console = Console(soft_wrap=True, highlight=False)

    console.rule("a synthetic chest CT data set")
    write_phantom_dataset(raw, cases=cases, test_cases=2, seed=seed)
    console.print(f"{cases} labelled cases and 2 unseen ones: {raw}")

    console.rule("prepare")
    console.print(f"medi3d preprocess --task demo --data {raw} --output {prepared}")
    preprocess(task=["demo"], data=raw, output=prepared)

    console.rule("train")
    options = f"--init {init} --budget {budget} --seed {seed}"
    console.print(f"medi3d train --task demo {options} --prepared {prepared} --output {runs} --name demo")
    flags = {"model.init": init, "train.budget": budget, "train.seed": seed}
    run = runs / "demo" / "demo"
    train_fold(resolve_task("demo", flags, prepared, None), prepared, run, False, "auto", 0)

    console.rule("predict")
    console.print(f"medi3d predict {run} --input {raw / 'imagesTs'} --output {predicted}")
    predict(runs=[run], source=raw / "imagesTs", output=predicted)

    console.rule("evaluate")
    console.print(f"medi3d evaluate --task demo --predictions {predicted} --references {raw / 'labelsTs'}")
    evaluate(predictions=predicted, references=raw / "labelsTs", task="demo")

    picture = _draw(raw, predicted, output / "prediction.png")
    curves = draw_curves(run / "metrics.csv", output / "curves.png")
    console.rule("where everything lies")
    for title, path in (
        ("raw data", raw),
        ("prepared data", prepared),
        ("run", run),
        ("label maps", predicted),
        ("a prediction, drawn", picture),
        ("learning curves", curves),
    ):
        console.print(f"{title:20} {path}")


def _draw(raw: Path, predicted: Path, path: Path) -> Path:
    from medi3d import io
    from medi3d.report.figures import draw_prediction

    name = io.case_name(io.image_files(predicted)[0])
    image, truth = (raw / folder / f"{name}.nii.gz" for folder in ("imagesTs", "labelsTs"))
    return draw_prediction(
        io.read_volume(image),
        io.read_label_map(predicted / f"{name}.nii.gz"),
        io.read_label_map(truth),
        path,
        labels=load_task("demo").data.labels,
    )
