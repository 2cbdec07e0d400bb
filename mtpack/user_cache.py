"""The folder of mtpack in the user's cache folder, and small entries in it.

An entry is a file that holds what can be computed again. So it may be missing, removed at any time,
or damaged, and then it counts as missing; where it can't be written, there is none. Any number of
processes may read and write the same entry. An entry holds plain bytes, which nothing executes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from uuid import uuid4

_DIGEST_BYTES = hashlib.sha256().digest_size


def find_cache_folder() -> Path:
    """Return the folder of mtpack's cache: in the user's cache folder on this platform.

    Raises RuntimeError if the user has no home folder.
    """
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "mtpack"
    where = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / where / "mtpack"


class EntryCache:
    """Entries in one folder of mtpack's cache. Each is found by all that its content depends on."""

    def __init__(self, folder: str | None) -> None:
        """folder: its name in mtpack's cache; None: keep nothing."""
        self._folder = folder

    def read(self, *depends_on: object) -> bytes | None:
        """Return the content of an entry; None if it is missing, damaged or can't be read.

        depends_on: JSON values.
        """
        key = _encode_key(depends_on)
        try:
            stored = self._name_file(key).read_bytes()
        except (OSError, RuntimeError):
            return None
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        return content if digest == hashlib.sha256(key + content).digest() else None

    def write(self, content: bytes, *depends_on: object) -> None:
        """Write an entry, if that is possible; depends_on: as for `read`."""
        key = _encode_key(depends_on)
        try:
            file = self._name_file(key)
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f"{file.name}.{uuid4().hex}")
            try:
                unfinished.write_bytes(hashlib.sha256(key + content).digest() + content)
                os.replace(unfinished, file)
            finally:
                unfinished.unlink(missing_ok=True)
        except (OSError, RuntimeError):
            return

    def _name_file(self, key: bytes) -> Path:
        """Return the file of an entry; raise FileNotFoundError if this cache keeps nothing."""
        if self._folder is None:
            raise FileNotFoundError
        return find_cache_folder() / self._folder / hashlib.sha256(key).hexdigest()


def _encode_key(depends_on: tuple[object, ...]) -> bytes:
    return json.dumps(depends_on, sort_keys=True).encode()
