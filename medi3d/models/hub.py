"""Files of the Hugging Face hub, or of its cache: the only module that talks to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
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
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    raise WeightsError(f"{repository} on the hub: no {file} to be had ({reason})")
