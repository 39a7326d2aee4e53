"""``environment.json``: versions, machine, seed, commit and data of a run, at its start and at each resumption."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from collections import ChainMap
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from medi3d.io import atomic
from medi3d.io.prepared import PreparedStore

logger = logging.getLogger(__name__)

_PACKAGES = ("medi3d", "torch", "timm", "monai", "torchio", "SimpleITK", "numpy", "accelerate")

_DECIDING = ("versions", "python", "machine", "data_fingerprint")
"""Facts on which the last bits of the weights may depend."""


def write_environment(path: Path, *, seed: int, prepared: Path) -> None:
    """Write what a run starts from."""
    _write(path, _describe(prepared) | {"seed": seed, "resumptions": []})


def add_resumption(path: Path, *, step: int, prepared: Path) -> None:
    """Note that a run goes on from ``step``, and warn of what has changed since it was last started."""
    facts = read_environment(path)
    before, now = latest(facts), _describe(prepared)
    changes = [change for key in _DECIDING for change in _compare(key, before[key], now[key])]
    if changes:
        logger.warning(
            "%s: goes on with %s; it may end with other weights than without the interruption",
            path.parent,
            ", ".join(changes),
        )
    facts["resumptions"].append({"step": step} | now)
    _write(path, facts)


def note_device(path: Path, device: str) -> None:
    """Note which device a run is trained on since it was last started, and warn where it was another one before."""
    facts = read_environment(path)
    entries = [facts, *facts["resumptions"]]
    before = latest(facts).get("device", device)
    if before != device:
        logger.warning(
            "%s: goes on with device %s (was %s); it may end with other weights than without the interruption",
            *(path.parent, device, before),
        )
    entries[-1]["device"] = device
    _write(path, facts)


def read_environment(path: Path) -> dict[str, Any]:
    """Read what :func:`write_environment` and :func:`add_resumption` wrote."""
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {"resumptions": []} | facts


def latest(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of the last start or resumption; what that does not tell is as before."""
    return dict(ChainMap(*reversed(facts["resumptions"]), facts))


def _describe(prepared: Path) -> dict[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "git_commit": _git_commit(),
        "prepared": str(prepared.resolve()),
        "data_fingerprint": PreparedStore(prepared).fingerprint_hash,
    }


def _compare(key: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict):
        return [
            change for name in before.keys() | now.keys() for change in _compare(name, before.get(name), now.get(name))
        ]
    return [] if before == now else [f"{key} {now} (was {before})"]


def _write(path: Path, facts: dict[str, Any]) -> None:
    atomic.write_bytes(path, json.dumps(facts, indent=1).encode())


def _git_commit() -> str | None:
    """Return the commit of the checkout that medi3d runs from, if it does."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
