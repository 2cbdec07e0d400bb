"""Hashes of the files of an input, from the digests of their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any


class InputHashes:
    """Hashes each file of an input: the digests of its rows, split by split, in order.

    The digests are those of `Split.digest`, so their number depends on the cuts.
    """

    def __init__(self) -> None:
        """Begin before the first split."""
        self._hashes: dict[str, Any] = {}

    def add(self, file_sha256s: Iterable[tuple[str, str]]) -> None:
        """Add the next split; file_sha256s: `SplitDigest.files`."""
        for name, sha256 in file_sha256s:
            self._get(name).update(bytes.fromhex(sha256))

    def sha256(self, name: str) -> str:
        """Return the sha256 of a file whose splits have all been added."""
        return str(self._get(name).hexdigest())

    def _get(self, name: str) -> Any:
        return self._hashes.setdefault(name, hashlib.sha256())
