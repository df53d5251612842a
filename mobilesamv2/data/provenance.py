"""Where data and weights come from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256_of(files: Iterable[str | Path]) -> str:
    """SHA-256 of what files hold, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
