"""The flags that ``medi3d pretrain`` has beside those of ``medi3d train``, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medi3d.cli.options import PREPARED
from medi3d.errors import ConfigError

_MIX, _LENGTH, _FOLDERS = "Tasks", "Length", "Folds and folders"

Tasks = Annotated[
    str | None,
    typer.Option(help="Built-in tasks or paths of YAML files, comma-separated.", rich_help_panel=_MIX),
]
Sampling = Annotated[
    str,
    typer.Option(
        help="How often a batch is of each task: balanced, proportional to its cases, or weights: a=2,b=1.",
        rich_help_panel=_MIX,
    ),
]
LossWeights = Annotated[
    str | None,
    typer.Option(metavar="TASK=NUMBER,…", help="Factors of tasks' losses. Default: 1.", rich_help_panel=_MIX),
]
Prepared = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR or TASK=DIR",
        help="Folder of prepared stores, one a task, or one task's; repeatable. Default: data/prepared.",
        rich_help_panel=_MIX,
    ),
]
Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any key, for all tasks: section.key=value; for one: TASK.section.key=value; repeatable.",
        rich_help_panel=_MIX,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Steps of all tasks together. Default: the sum of the tasks' plans.", rich_help_panel=_LENGTH),
]
Fold = Annotated[int, typer.Option(help="Fold of every task that is held out, from 0.", rich_help_panel=_FOLDERS)]
Name = Annotated[str | None, typer.Option(help="Name of the run. Default: the time.", rich_help_panel=_FOLDERS)]
Resume = Annotated[Path | None, typer.Option(help="Go on with this pretraining.", rich_help_panel=_FOLDERS)]
Licence = Annotated[str, typer.Option(help="Licence of the encoder's weights, for its card.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")]

RESUMABLE = {"resume", "prepared", "device", "threads", "print_config", "dry_run", "licence"}
"""Parameters that go with ``--resume``: where things lie, the machine's, and what is only written at the end."""


def select_keys(task: str, names: list[str], overrides: dict[str, object]) -> dict[str, object]:
    """Return what goes for a task: keys that name none go for all, and a task's own go over them.

    Examples:
        >>> keys = {"train.steps": 9, "liver.train.cases": 4, "lung.train.cases": 5}
        >>> select_keys("liver", ["liver", "lung"], keys)
        {'train.steps': 9, 'train.cases': 4}
    """
    common = {key: value for key, value in overrides.items() if not any(key.startswith(f"{name}.") for name in names)}
    prefix = f"{task}."
    return common | {key.removeprefix(prefix): value for key, value in overrides.items() if key.startswith(prefix)}


def find_stores(names: list[str], prepared: list[str]) -> dict[str, Path]:
    """Find the store of each task.

    Args:
        names: of the tasks.
        prepared: ``DIR``, a folder of stores, and ``TASK=DIR``.

    Raises:
        ConfigError: several folders, or a store of none of the tasks.

    Examples:
        >>> stores = find_stores(["liver", "lung"], ["all", "lung=/data/lung"])
        >>> str(stores["liver"]), str(stores["lung"])
        ('all/liver', '/data/lung')
    """
    pairs = [text.partition("=") for text in prepared]
    folders = [Path(first) for first, sign, _ in pairs if not sign]
    if len(folders) > 1:
        raise ConfigError(f"--prepared: one folder of stores, beside it TASK=DIR; got {', '.join(map(str, folders))}")
    own = {first: Path(place) for first, sign, place in pairs if sign}
    unknown = next((name for name in own if name not in names), None)
    if unknown is not None:
        raise ConfigError(f"--prepared {unknown}=…: {unknown} is none of --tasks ({', '.join(names)})")
    return {name: own.get(name, (folders[0] if folders else PREPARED) / name) for name in names}


def read_numbers(flag: str, text: str) -> dict[str, float]:
    """Read ``TASK=NUMBER,TASK=NUMBER``; ``flag`` is named in messages.

    Raises:
        ConfigError: it is written otherwise.
    """
    pairs = [word.partition("=") for word in text.split(",") if word.strip()]
    try:
        return {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        raise ConfigError(f"{flag} {text}: write TASK=NUMBER,TASK=NUMBER") from None
