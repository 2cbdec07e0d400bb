"""The cache of shards that lie in a store: a shard is fetched whole, and then mapped as a file.

A file in the cache is named by the sha256 of its content, so it is never out of date, and runs and
outputs share it. Nothing removes it but the user.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from uuid import uuid4

from mtpack.storage.objects import open_object, stat_object
from mtpack.user_cache import find_cache_folder

_BLOCK_BYTES = 2**20


class ChangedObjectError(OSError):
    """The content of an object is not what it should be; `found` is its sha256."""

    def __init__(self, found: str) -> None:
        """Keep the sha256 that was found."""
        super().__init__(found)
        self.found = found


def fetch_shard(url: str, num_bytes: int, sha256: str, *, anew: bool = False) -> Path:
    """Return the file of a shard in the cache; fetch it first if it is not there.

    num_bytes, sha256: of its content. anew: fetch it also if it is there. Raises
    ChangedObjectError if the object has another content, and OSError.
    """
    path = find_cache_folder() / f"{sha256}.arrow"
    if anew or not path.is_file() or path.stat().st_size != num_bytes:
        _fetch(url, path, sha256)
    return path


def fetch_single_shard(url: str) -> Path:
    """As `fetch_shard`, for a shard of which nothing is known; raise OSError."""
    status = stat_object(url)
    digest = hashlib.sha256(f"{url} {status}".encode()).hexdigest()
    path = find_cache_folder() / f"{digest}.arrow"
    if not path.is_file() or path.stat().st_size != status.num_bytes:
        _fetch(url, path)
    return path


def _fetch(url: str, path: Path, sha256: str | None = None) -> None:
    """Fetch an object into a file, which gets its name when it is complete, if its hash is right.

    Raises ChangedObjectError, and OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}")
    digest = hashlib.sha256()
    try:
        with open_object(url) as source, open(unfinished, "xb") as file:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if sha256 not in (None, digest.hexdigest()):
            raise ChangedObjectError(digest.hexdigest())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
