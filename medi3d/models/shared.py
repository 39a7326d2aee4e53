"""Exported encoders: a folder, here or on the Hugging Face hub, of weights and a card that says what they are.

``encoder.safetensors`` holds the tensors, named ``encoder.…`` as in a run's checkpoint; ``card.json`` what it takes to
create the encoder once more, and what its user must know. `medi3d.export` writes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from medi3d.errors import WeightsError
from medi3d.inflation import DepthPlan
from medi3d.models.encoder import Encoder
from medi3d.models.hub import fetch_file
from medi3d.models.recipe import EncoderRecipe

FORMAT = "medi3d-encoder/1"
WEIGHTS_FILE = "encoder.safetensors"
CARD_FILE = "card.json"

_HUB_ID = re.compile(r"(?!torchvision/)[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar")


def is_shared(name: str) -> bool:
    """Whether a name is that of a folder or of a repository on the hub, and not of a backbone or a file.

    Examples:
        >>> [is_shared(name) for name in ("resnet50", "torchvision/resnet18", "user/encoder", "./here", "runs/best.pt")]
        [False, False, True, True, False]
    """
    if name.startswith(("/", "./", "../", "~")) or is_hub_id(name):
        return True
    return "/" in name and not name.startswith("torchvision/") and Path(name).is_dir()


def is_hub_id(name: str) -> bool:
    """Whether a name is ``user/name``, with ``@revision`` or not, and nothing of that path is here."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith(_FILES) and not Path(name).exists()


def find_folder(name: str) -> Path:
    """Return the folder of an exported encoder; its files are fetched where it is on the hub.

    Raises:
        WeightsError: there is no such folder, or it cannot be fetched.
    """
    folder = Path(name).expanduser()
    if is_hub_id(name):
        repository, _, revision = name.partition("@")
        fetch_file(repository, WEIGHTS_FILE, revision=revision or None)
        return fetch_file(repository, CARD_FILE, revision=revision or None).parent
    if not (folder / CARD_FILE).is_file():
        raise WeightsError(f"{folder}: no exported encoder here ({CARD_FILE} is missing); `medi3d export --encoder`")
    return folder


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of an exported encoder, and check that the weights beside it are those that it describes.

    Raises:
        WeightsError: it is no card of this version, or the weights are others.
    """
    path = folder / CARD_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable card ({type(error).__name__})") from None
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise WeightsError(f"{path}: expected the format {FORMAT}, got {found!r}; export the encoder with this version")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise WeightsError(f"{weights}: missing beside its card")
    with weights.open("rb") as stream:
        digest = _hash(stream)
    if digest != card.get("sha256"):
        raise WeightsError(f"{weights}: damaged, or not the weights that its card describes; get both once more")
    checked: dict[str, Any] = card
    return checked


def read_held_out(init: str) -> dict[str, dict[str, int]]:
    """Return which cases the encoder that an init names was not trained on.

    Args:
        init: any ``--init``; of others than exported encoders that lie here, and that say it, nothing is known.

    Returns:
        Task → ``fold``, ``seed`` and ``folds``, by which its held-out cases are found.
    """
    folder = Path(init).expanduser()
    if not (folder / CARD_FILE).is_file():
        return {}
    return dict(read_card(folder).get("held_out", {}))


def _hash(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_recipe(recipe: EncoderRecipe) -> dict[str, Any]:
    """Return the parts of a card that `read_recipe` reads."""
    architecture = asdict(recipe)
    return {"depth_plan": architecture.pop("plan"), "architecture": architecture}


def read_recipe(card: Mapping[str, Any], where: Path) -> EncoderRecipe:
    """Return how to create the encoder of a card.

    Raises:
        WeightsError: entries are missing or unknown.
    """
    try:
        plan, own = _with_tuples(card["depth_plan"]), _with_tuples(card["architecture"])
        return EncoderRecipe(**own, plan=DepthPlan(**plan))
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{where / CARD_FILE}: its architecture cannot be read ({error})") from None


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def set_scaling(encoder: Encoder, card: Mapping[str, Any], where: Path) -> None:
    """Scale inputs as the exported encoder did, whatever statistics the backbone's library knows now."""
    with torch.no_grad():
        for name in ("factor", "offset"):
            own = getattr(encoder.scaling, name)
            stored = torch.tensor(card["input"]["scaling"][name])
            if stored.numel() != own.numel():
                raise WeightsError(f"{where / CARD_FILE}: scales {stored.numel()} channels, and takes {own.numel()}")
            own.copy_(stored.reshape(own.shape))
