"""Models of the Hugging Face Hub: what a repository holds, and its weight file, from the local cache or downloaded."""

from __future__ import annotations

import sys
from pathlib import Path

from mobilesamv2.model_zoo import MODEL_FILES, PublishedFile, download_setting, shipped_models

HUB_FILE = "model.safetensors"
"""Name of a model's file in a folder or in a repository of the Hugging Face Hub."""

TIMEOUT_S = 10.0
"""Seconds that the Hub may take to say what a repository holds."""


def is_repository(name: str) -> bool:
    """Return whether a model's name is ``OWNER/REPOSITORY`` of the Hub, and no model, file or folder here."""
    path = Path(name)
    is_here = name in MODEL_FILES or path.is_dir() or path.parent.is_dir()
    is_file = path.suffix in (".safetensors", ".pt", ".pth")
    return name.count("/") == 1 and not name.startswith("timm/") and not is_here and not is_file


def cached_file(repo_id: str) -> Path | None:
    """Return a repository's weight file in the local cache of the Hub's client; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, HUB_FILE)
    return Path(found) if isinstance(found, str) else None


def published_on_hub(repo_id: str) -> PublishedFile:
    """Ask the Hub for the size and the licence of a repository's weight file.

    Raises:
        ConnectionError: if the Hub can't be reached, or has no such repository or no such file in it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = HfApi().model_info(repo_id, files_metadata=True, timeout=TIMEOUT_S)
    except RepositoryNotFoundError as error:
        raise ConnectionError(_not_found(repo_id)) from error
    except ValueError:  # a name that no repository can have
        raise
    except Exception as error:  # of requests or httpx, by the version of the Hub's client
        raise ConnectionError(_unreachable(repo_id)) from error
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    if HUB_FILE not in sizes:
        raise ConnectionError(_not_found(repo_id))
    licence = None if info.card_data is None else info.card_data.get("license")
    page = f"https://huggingface.co/{repo_id}"
    return PublishedFile(page, licence=None if licence is None else str(licence), nbytes=sizes[HUB_FILE])


def find_on_hub(repo_id: str, download: bool | None = None) -> Path:
    """Return the path of a repository's weight file, downloaded into the cache of the Hub's client where it is missing.

    It is printed before it is downloaded, with its size and licence.

    Args:
        repo_id: ``OWNER/REPOSITORY``.
        download: False takes what the cache has; None does what ``download_setting`` returns, or downloads where that
            is None.

    Raises:
        FileNotFoundError: if the cache does not have it, and it may not be downloaded.
        ConnectionError: if the Hub can't be reached, or has no such repository or no such file in it.
        ValueError: if no repository can have that name.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    cached = cached_file(repo_id)
    if cached is not None:
        return cached
    if (download_setting() if download is None else download) is False:
        raise FileNotFoundError(
            f"There is no folder {repo_id}, and {repo_id} of the Hugging Face Hub is not in the local cache. It "
            "is not downloaded, as an argument, MOBILESAMV2_DOWNLOAD, CI or HF_HUB_OFFLINE says; --download or "
            f"download=True allows it.{_offline_hint()}"
        )
    print(f"downloading {HUB_FILE} of {repo_id} ({published_on_hub(repo_id)})", file=sys.stderr)
    try:
        return Path(hf_hub_download(repo_id, HUB_FILE))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(_unreachable(repo_id)) from error
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise ConnectionError(_not_found(repo_id)) from error


def _unreachable(repo_id: str) -> str:
    return (
        f"There is no folder {repo_id}; {repo_id} is not in the local Hugging Face cache either, and the Hub can't be "
        f"reached.{_offline_hint()}"
    )


def _not_found(repo_id: str) -> str:
    return (
        f"There is no folder {repo_id}, and the Hugging Face Hub has no {HUB_FILE} in {repo_id}, or no repository of "
        "that name that you may read."
    )


def _offline_hint() -> str:
    return f" Without a network: {', '.join(shipped_models())}, whose weights ship with this package."
