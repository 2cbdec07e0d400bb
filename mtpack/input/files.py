"""The input files of a run: their names, sizes and digests."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mtpack.errors import InputError, SetupError

STANDARD_INPUT = "-"
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet")
_LONGEST_FIRST = tuple(sorted(SUFFIXES, key=len, reverse=True))


class InputFile(NamedTuple):
    """An input file as the user named it, with size and digest. There may be very many of them."""

    name: str
    path: str
    num_bytes: int
    sha256: str
    modified_ns: int
    """Time of the last change, to detect content that is not the content of `sha256`."""


def find_inputs(inputs: Iterable[str], output: Path | None = None) -> list[str]:
    """Expand folders and globs into file names, sorted within each; raise SetupError.

    `-` (standard input) stays as it is. Files below `output` that a folder or a glob matches are
    left out.
    """
    names = [file for name in inputs for file in _expand(name, output)]
    for name in names:
        if name != STANDARD_INPUT and not find_suffix(name):
            raise SetupError(
                f"{name}: unknown kind of file; mtpack reads {', '.join(SUFFIXES)} "
                "and - (JSONL from standard input)"
            )
    if names.count(STANDARD_INPUT) > 1:
        raise SetupError("-: standard input can be read only once; give it once")
    return names


def _expand(name: str, output: Path | None) -> list[str]:
    @cache  # there may be very many files in a folder
    def is_below_output(folder: str) -> bool:
        return output is not None and Path(folder).resolve().is_relative_to(output.resolve())

    def is_input(found: str) -> bool:
        if find_suffix(found) is None or not os.path.isfile(found):
            return False
        target = os.path.realpath(found) if os.path.islink(found) else found
        return not is_below_output(os.path.dirname(target))

    if name == STANDARD_INPUT or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        inside = sorted(filter(is_input, map(str, Path(name).rglob("*"))))
        if not inside:
            kinds = ", ".join(SUFFIXES)
            raise SetupError(f"{name}: the folder holds no input; mtpack reads {kinds}")
        return inside
    matching = sorted(filter(is_input, glob.glob(name, recursive=True)))
    if not matching:
        raise SetupError(f"{name}: no such file; check the name or the pattern")
    return matching


def find_suffix(name: str) -> str | None:
    """Return the longest of `SUFFIXES` that a name ends in, None if it ends in none."""
    return next(filter(name.lower().endswith, _LONGEST_FIRST), None)


def describe_input(name: str, path: str | os.PathLike[str]) -> InputFile:
    """Return the size and sha256 of the file at `path`; raise InputError."""
    with wrap_read_errors(name), open(path, "rb", buffering=0) as file:
        modified = os.fstat(file.fileno()).st_mtime_ns
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return InputFile(name, os.fspath(path), file.tell(), digest, modified)


def check_unchanged(name: str, path: str, modified_ns: int) -> None:
    """Raise InputError if the file changed after `describe_input` described it."""
    with wrap_read_errors(name):
        modified = os.stat(path).st_mtime_ns
    if modified != modified_ns:
        raise InputError(f"{name}: changed during the run; run again when the file is complete")


@contextmanager
def wrap_read_errors(name: str) -> Iterator[None]:
    """Convert errors of reading a file into an InputError of one line with its name."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{name}: damaged or truncated ({error}); restore the file and run again"
        ) from error
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        detail = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise InputError(f"{name}: can't be read ({detail})") from error
