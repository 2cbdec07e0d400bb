"""What earlier runs have found of a tokenizer, kept in the user's cache folder.

Each result depends on the files of the tokenizer and on versions alone, and a run that computes it
again finds the same. So the cache changes how long a run takes, and nothing else.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
import tokenizers

from mtpack.fast_path import FASTOKENS
from mtpack.tokenizer.byte_level import ByteLevel
from mtpack.tokenizer.loading import (
    LoadedTokenizer,
    TokenizerFiles,
    build_tokenizer,
    describe_tokenizer,
    restore_tokenizer,
)
from mtpack.user_cache import EntryCache
from mtpack.version import __version__

Result = TypeVar("Result")

_FOLDER = "tokenizers"
_FORMAT = 1  # of the entries


class KeptResults:
    """Results for one tokenizer."""

    def __init__(self, files: TokenizerFiles, *, is_kept: bool) -> None:
        """is_kept: False to read and write nothing, so that all is computed."""
        self._files = files
        self._cache = EntryCache(_FOLDER if is_kept else None)

    @cached_property
    def _tokenizer_key(self) -> list[object]:
        return [_FORMAT, __version__, tokenizers.__version__, self._files.sha256]

    @cached_property
    def _probe_key(self) -> list[object]:
        return ["probe", _find_fastokens(), os.uname().machine, *self._tokenizer_key]

    def find_tokenizer(self) -> LoadedTokenizer:
        """Return the tokenizer, whose backend is not loaded yet if all else is kept.

        Raises SetupError if it can't be used; nothing is kept of such a tokenizer.
        """
        return self._find(
            ["tokenizer", *self._tokenizer_key],
            parse=lambda content: restore_tokenizer(self._files, json.loads(content)),
            build=lambda: build_tokenizer(self._files),
            format_result=lambda built: json.dumps(describe_tokenizer(built)).encode(),
        )

    def read_probe(self) -> str | None:
        """Return why the probe refused fastokens, or "" if it passed; None if it is not known."""
        content = self._cache.read(*self._probe_key)
        return None if content is None else content.decode(errors="replace")

    def keep_probe(self, refusal: str) -> None:
        """Keep the result of the probe; refusal: as `read_probe` returns it."""
        self._cache.write(refusal.encode(), *self._probe_key)

    def find_byte_level(self, build: Callable[[], ByteLevel | None]) -> ByteLevel | None:
        """Return the table of byte lengths; build: makes it where it is not kept."""
        return self._find(
            ["byte lengths", unicodedata.unidata_version, *self._tokenizer_key],
            parse=_parse_byte_level,
            build=build,
            format_result=_format_byte_level,
        )

    def _find(
        self,
        key: list[object],
        *,
        parse: Callable[[bytes], Result],
        build: Callable[[], Result],
        format_result: Callable[[Result], bytes],
    ) -> Result:
        """Return a result that is kept; build and keep it if there is none that can be parsed."""
        content = self._cache.read(*key)
        if content is not None:
            with suppress(LookupError, TypeError, ValueError):
                return parse(content)
        built = build()
        self._cache.write(format_result(built), *key)
        return built


def _find_fastokens() -> list[str]:
    """Return what identifies the installed fastokens; empty if it is not installed.

    `importlib.metadata` would take 15 ms to read the version, most of it for imports.
    """
    spec = find_spec(FASTOKENS)
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    version = sorted(path.name for path in folder.parent.glob("fastokens-*.dist-info"))
    return [*version, *sorted(f"{path.name} {path.stat().st_size}" for path in folder.glob("*.so"))]


def _format_byte_level(table: ByteLevel | None) -> bytes:
    """Return a line of JSON, and the lengths if there is a table."""
    if table is None:
        return b"null\n"
    head = json.dumps({"normal_form": table.normal_form}).encode()
    return head + b"\n" + table.lengths.astype("<i4").tobytes()


def _parse_byte_level(content: bytes) -> ByteLevel | None:
    line, _, lengths = content.partition(b"\n")
    head = json.loads(line)
    if head is None:
        return None
    return ByteLevel(np.frombuffer(lengths, "<i4").astype(np.int32), head["normal_form"])
