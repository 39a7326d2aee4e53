"""The flags of ``medi3d train``, in groups, and the key of a task that each one sets."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from medi3d.errors import ConfigError

_TASK, _LENGTH, _STEP, _FOLDS, _MACHINE = (
    "Task and network",
    "Length",
    "Each step",
    "Folds and folders",
    "Machine",
)


class Precision(str, Enum):
    """Number format of the forward pass."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


Task = Annotated[str | None, typer.Option(help="Built-in task or path of a YAML file.", rich_help_panel=_TASK)]
Init = Annotated[
    str | None,
    typer.Option(
        help="imagenet-center, imagenet-inflated, imagenet-overshoot, random; a checkpoint or exported encoder; or a "
        "published 3D network, which is then the backbone: astra, medicalnet:resnet50@FILE.",
        rich_help_panel=_TASK,
    ),
]
Backbone = Annotated[str | None, typer.Option(help="timm's name of the 2D network to inflate.", rich_help_panel=_TASK)]
Weights = Annotated[Path | None, typer.Option(help="File with the backbone's 2D weights.", rich_help_panel=_TASK)]
Assign = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any key: section.key=value; repeatable.", rich_help_panel=_TASK),
]
Plan = Annotated[
    Path | None,
    typer.Option(
        help="File of `medi3d plan`, edited or not. Without one, what the task leaves open is planned now.",
        rich_help_panel=_TASK,
    ),
]

Budget = Annotated[
    str | None,
    typer.Option(help="Wall-clock budget such as 10m; the schedule is fitted to it.", rich_help_panel=_LENGTH),
]
Steps = Annotated[
    int | None, typer.Option(help="Length of the schedule in steps. Default: planned.", rich_help_panel=_LENGTH)
]

PatchSize = Annotated[
    str | None,
    typer.Option(metavar="D,H,W", help="Voxels of a patch: 48,64,48. Default: planned.", rich_help_panel=_STEP),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Patches a step and process. Default: planned.", rich_help_panel=_STEP)
]
Accumulate = Annotated[
    int | None, typer.Option(help="Batches before the optimiser's step, where one does not fit.", rich_help_panel=_STEP)
]
LearningRate = Annotated[
    float | None, typer.Option(help="Peak learning rate. Default: planned.", rich_help_panel=_STEP)
]
EmaDecay = Annotated[
    float | None, typer.Option(help="Decay of the weights' moving average; 0 for none.", rich_help_panel=_STEP)
]
Seed = Annotated[
    int | None, typer.Option(help="Draws folds, patches, augmentation and random weights.", rich_help_panel=_STEP)
]

Fold = Annotated[
    str, typer.Option(help="Fold to validate on, from 0; or all, a run for each fold.", rich_help_panel=_FOLDS)
]
Jobs = Annotated[
    int,
    typer.Option(min=1, help="Folds at a time with --fold all; several GPUs get one each.", rich_help_panel=_FOLDS),
]
Prepared = Annotated[
    Path | None,
    typer.Option(help="Prepared data. Default: data/prepared/<task>, or the resumed run's.", rich_help_panel=_FOLDS),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Raw data, on which --fold all scores the held-out cases at the end. Default: data/raw/<task>.",
        rich_help_panel=_FOLDS,
    ),
]
Output = Annotated[Path, typer.Option(help="Where runs go.", rich_help_panel=_FOLDS)]
Name = Annotated[
    str | None, typer.Option(help="Name of the run. Default: init, fold and time.", rich_help_panel=_FOLDS)
]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Go on with this run, or with a folder of folds, from the last checkpoints.", rich_help_panel=_FOLDS
    ),
]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …", rich_help_panel=_MACHINE)]
Threads = Annotated[
    int | None, typer.Option(help="Threads on a CPU. Default: the idle cores.", rich_help_panel=_MACHINE)
]
PrecisionFlag = Annotated[
    Precision | None,
    typer.Option("--precision", help="Number format of the forward pass. Default: planned.", rich_help_panel=_MACHINE),
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="torch.compile.", rich_help_panel=_MACHINE)
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the run's configuration, and stop.")]

KEYS = {
    "init": "model.init",
    "backbone": "model.backbone",
    "weights": "model.weights",
    "budget": "train.budget",
    "steps": "train.steps",
    "patch_size": "train.patch_size",
    "batch_size": "train.batch_size",
    "accumulate": "train.accumulate",
    "learning_rate": "train.learning_rate",
    "ema_decay": "train.ema_decay",
    "seed": "train.seed",
    "threads": "train.threads",
    "precision": "train.precision",
    "compile": "train.compile",
}
"""Parameter of the command → dotted key that it sets."""

RESUMABLE = {"resume", "prepared", "data", "jobs", "device", "threads", "print_config"}
"""Parameters that go with ``--resume``: where things lie, and the machine's."""


def parse_sizes(text: str) -> list[int]:
    """Read three numbers of voxels, or one for all axes.

    Raises:
        ConfigError: anything else.

    Examples:
        >>> parse_sizes("48,64,48"), parse_sizes("32x40x32"), parse_sizes("64")
        ([48, 64, 48], [32, 40, 32], [64, 64, 64])
    """
    words = text.lower().replace("x", " ").replace(",", " ").split()
    if len(words) not in (1, 3) or not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(f"--patch-size {text}: give voxels along D, H and W, such as 48,64,48, or one number for all")
    return [int(word) for word in words] * (3 if len(words) == 1 else 1)
