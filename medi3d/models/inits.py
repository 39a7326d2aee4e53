"""What an ``--init`` can name: a depth profile of ImageNet's weights, random ones, a 3D network's own, a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medi3d.config.schema import FAMILIES_3D, ModelConfig
from medi3d.errors import ConfigError
from medi3d.models.volumetric.networks import NETWORKS_3D
from medi3d.registry import unknown_name_message

INITS: dict[str, str | None] = {
    "imagenet-inflated": "mean",
    "imagenet-center": "center",
    "imagenet-overshoot": "overshoot",
    "random": None,
}
"""Initialisation → depth profile of the ImageNet weights; ``None`` draws random ones."""

DEFAULT_INIT = ModelConfig.init
"""Measured, see docs/comparisons.md."""


@dataclass(frozen=True)
class Init:
    """What the weights start from; all ``None`` for random ones.

    Args:
        profile: depth profile of a 2D network's weights.
        network: name of the 3D network whose published weights are taken.
        file: where its weights lie, or, without ``network``, a checkpoint of medi3d.
    """

    profile: str | None = None
    network: str | None = None
    file: Path | None = None

    @property
    def is_random(self) -> bool:
        """Whether nothing is loaded."""
        return self == Init()


def parse_init(text: str) -> Init:
    """Read what ``--init`` says.

    Raises:
        ConfigError: no such initialisation.

    Examples:
        >>> parse_init("imagenet-center")
        Init(profile='center', network=None, file=None)
        >>> parse_init("medicalnet:resnet50@resnet_50.pth").network
        'medicalnet:resnet50'
    """
    if text in INITS:
        return Init(profile=INITS[text])
    name, at, file = text.partition("@")
    if name in NETWORKS_3D:
        if at and not file:
            raise ConfigError(f"init {text!r}: no file after @; leave @ out to look for installed weights")
        return Init(network=name, file=Path(file) if file else None)
    if re.search(r"[/.]", text) and name.partition(":")[0] not in FAMILIES_3D:
        return Init(file=Path(text))
    raise ConfigError(unknown_name_message("init", name, [*INITS, *NETWORKS_3D]) + ", or the path of a checkpoint")


def name_init(text: str) -> str:
    """Say what weights started from without saying where files lie.

    Examples:
        >>> name_init("imagenet-center"), name_init("medicalnet:resnet50@/home/me/resnet_50.pth"), name_init("a/b.pt")
        ('imagenet-center', 'medicalnet:resnet50', 'checkpoint')
    """
    start = parse_init(text)
    return start.network or ("checkpoint" if start.file is not None else text)
