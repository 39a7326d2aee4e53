"""Files of the Hugging Face hub, or of its cache: the only module that talks to the hub."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from medi3d.errors import WeightsError


def fetch_file(repository: str, file: str, *, revision: str | None = None) -> Path:
    """Return a file of a repository on the hub, from the cache if it is there.

    Args:
        repository: ``user/name``.
        file: its path in the repository.
        revision: branch, tag or commit; ``None`` takes the main branch.

    Raises:
        WeightsError: the hub cannot be reached, or has no such file.
    """
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached, and its cache does not hold it"
    except (HfHubHTTPError, HFValidationError, OSError, httpx.HTTPError) as error:
        reason = _first_line(error)
    raise WeightsError(f"{repository} on the hub: no {file} to be had ({reason})")


def find_cached(repository: str, file: str) -> Path | None:
    """Return a file of the hub's cache; nothing is asked of the hub."""
    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Put the files of a folder into a repository on the hub, which is created if need be.

    Returns:
        The commit.

    Raises:
        WeightsError: the hub cannot be reached, or refuses.
    """
    hub = HfApi()
    try:
        name = hub.create_repo(repository, private=private, exist_ok=True).repo_id
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Encoder of medi3d").oid)
    except (HfHubHTTPError, HFValidationError, OSError, httpx.HTTPError) as error:
        raise WeightsError(
            f"{repository} on the hub: {folder} could not be put there ({_first_line(error)}); `hf auth login` signs in"
        ) from None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
