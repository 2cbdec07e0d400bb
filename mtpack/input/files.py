"""The input files of a run: their names, kinds and sizes."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from mtpack.errors import InputError, SetupError
from mtpack.input.dataset_folders import (
    is_dataset_folder,
    is_side_file,
    lies_in_split,
    list_data_files,
    may_describe_dataset,
)
from mtpack.storage.objects import forget_inputs, list_inputs, open_object, stat_object
from mtpack.storage.places import is_file, to_place
from mtpack.storage.urls import STANDARD_INPUT, is_url, resolve_name

_BUFFER_BYTES = 4 * 2**20


class FileKind(NamedTuple):
    """What the name of a file says about its content."""

    content: str
    """`lines`, `json`, `parquet` or `arrow`."""
    compression: str = ""
    """`.gz`, `.zst`, or empty. Only text files are compressed as a whole."""


_TEXTS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json"}
_TABLES = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
_COMPRESSIONS = ("", ".gz", ".zst")
_KINDS = {
    text + compression: FileKind(content, compression)
    for text, content in _TEXTS.items()
    for compression in _COMPRESSIONS
} | {table: FileKind(content) for table, content in _TABLES.items()}
SUFFIXES = tuple(_KINDS)
KNOWN_FILES = f"{', '.join(_TEXTS)} (also with .gz or .zst), {', '.join(_TABLES)}"
"""The kinds of files, as error messages name them."""


class InputFile(NamedTuple):
    """An input file as the user named it, with its size. There may be very many of them."""

    name: str
    path: str
    num_bytes: int
    modified_ns: int
    """Time of the last change, to detect a change during the run."""
    source: int = 0
    """The index of its source in the recipe of the run."""

    @property
    def kind(self) -> FileKind:
        """The kind of the file."""
        return find_kind(self.name) or FileKind("lines")


def find_kind(name: str) -> FileKind | None:
    """Return the kind of a file, by its name; None if it is not known.

    >>> find_kind("rows.json.gz"), find_kind("-"), find_kind("rows.csv")
    (FileKind(content='json', compression='.gz'), FileKind(content='lines', compression=''), None)
    """
    if name == STANDARD_INPUT:
        return FileKind("lines")
    suffix = next(filter(name.lower().endswith, SUFFIXES), None)  # none is the end of another
    return _KINDS[suffix] if suffix else None


def find_inputs(
    inputs: Iterable[str],
    output: str | os.PathLike[str] | None = None,
    split: str | None = None,
    *,
    needs_split: bool = True,
) -> list[str]:
    """Expand folders, globs and URLs into file names, sorted within each; raise SetupError.

    A folder that `datasets.save_to_disk` made becomes the files of its data set, in their order.
    `-` (standard input) stays as it is. Files below `output` that a folder or a glob matches are
    left out. split: the one to read of data sets that are saved in several splits. needs_split:
    whether there has to be such a data set then.
    """
    forget_inputs()
    below = None if output is None else os.fspath(output)
    names = [file for name in inputs for file in _expand(resolve_name(name), below, split)]
    for name in names:
        if find_kind(name) is None:
            raise SetupError(
                f"{name}: unknown kind of file; mtpack reads {KNOWN_FILES} "
                "and - (JSONL from standard input)"
            )
    require_one_standard_input(names)
    if needs_split and split is not None:
        require_split(split, names)
    return names


def require_one_standard_input(names: Sequence[str]) -> None:
    """Raise SetupError if the names of all inputs have standard input twice."""
    if names.count(STANDARD_INPUT) > 1:
        raise SetupError("-: standard input can be read only once; give it once")


def require_split(split: str, names: Iterable[str]) -> None:
    """Raise SetupError if none of the names of all inputs is that of a file in a split."""
    if not any(map(lies_in_split, names)):
        raise SetupError(
            f"--split {split}: no input has splits to choose from; leave it out (it is for folders "
            "that datasets saved with several splits)"
        )


def _expand(name: str, output: str | None, split: str | None) -> list[str]:
    if is_url(name):
        return _expand_url(name, output, split)
    if name == STANDARD_INPUT or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        if is_dataset_folder(name) and not _is_below(name, output):
            return list_data_files(name, split)
        inside = _select_inputs(map(str, Path(name).rglob("*")), output, split)
        if not inside:
            raise SetupError(f"{name}: the folder holds no input; mtpack reads {KNOWN_FILES}")
        return inside
    matching = _select_inputs(glob.glob(name, recursive=True), output, split)
    if not matching:
        raise SetupError(f"{name}: no such file; check the name or the pattern")
    return matching


def _expand_url(url: str, output: str | None, split: str | None) -> list[str]:
    """Return an object, or the inputs below a folder or that match a pattern in a store."""
    try:
        found = list_inputs(url)
    except OSError as error:
        raise SetupError(f"{url}: {error.strerror}") from error
    if found == [url]:
        return found
    folders = {os.path.dirname(name) for name in found if may_describe_dataset(name)}
    inside = _select_inputs([*found, *folders], output, split)
    if not inside:
        raise SetupError(
            f"{url}: no input is there; check the name or the pattern; mtpack reads {KNOWN_FILES}"
        )
    return inside


def _is_below(path: str, folder: str | None) -> bool:
    """Return whether a path or a URL is that of a folder, or of something in it."""
    if folder is None or is_url(path) != is_url(folder):
        return False
    if is_url(path):
        return f"{path}/".startswith(f"{folder.rstrip('/')}/")
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _select_inputs(paths: Iterable[str], output: str | None, split: str | None) -> list[str]:
    """Return the input files among some paths, and those of the data sets among them, sorted."""
    datasets: set[str] = set()

    @cache  # there may be very many files in a folder
    def is_below_output(folder: str) -> bool:
        return _is_below(folder, output)

    @cache  # a folder is sorted before what lies in it, so it is known by then
    def is_in_dataset(folder: str) -> bool:
        parent = os.path.dirname(folder)
        return folder in datasets or (parent != folder and is_in_dataset(parent))

    found: list[str] = []
    for path in sorted(paths):
        if is_in_dataset(os.path.dirname(path)):
            continue
        if find_kind(path) is not None and is_file(to_place(path)):
            target = os.path.realpath(path) if os.path.islink(path) else path
            if is_side_file(path) or is_below_output(os.path.dirname(target)):
                continue
            found.append(path)
        elif is_dataset_folder(path) and not is_below_output(path):
            datasets.add(path)
            found += list_data_files(path, split)
    return found


def open_input(path: str) -> BinaryIO:
    """Open an input for reading, without a buffer; it can be sought. Raises OSError."""
    if is_url(path):
        return open_object(path)
    return cast(BinaryIO, open(path, "rb", buffering=0))


def stat_input(path: str) -> tuple[int, int]:
    """Return the size of an input in bytes, and the time of its last change in nanoseconds.

    Of an object in a store, that time is made from its tag too. Raises OSError.
    """
    if is_url(path):
        return stat_object(path)
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def open_table(path: str) -> pa.NativeFile:
    """Open a table for reading: a file is mapped, so that it takes no memory. Raises OSError."""
    if is_url(path):
        return pa.PythonFile(open_object(path), mode="r")
    return pa.memory_map(path)


def choose_buffer_size(path: str) -> int:
    """Return how many bytes of a column of a table are read at once; 0: those of a row group.

    A file is mapped, but what is read from a store takes memory, so it is bounded.
    """
    return _BUFFER_BYTES if is_url(path) else 0


def describe_input(name: str, path: str | os.PathLike[str], source: int = 0) -> InputFile:
    """Return the size of the file at `path`, without reading it; raise InputError.

    Its path is absolute, so that it can be read by a process with another working folder. source:
    as in `InputFile`.
    """
    location = os.fspath(path)
    if not is_url(location):
        location = os.path.abspath(location)
    with wrap_read_errors(name), open_input(location):
        return InputFile(name, location, *stat_input(location), source)


def check_unchanged(name: str, path: str, modified_ns: int) -> None:
    """Raise InputError if the file changed after `describe_input` described it."""
    with wrap_read_errors(name):
        _, modified = stat_input(path)
    if modified != modified_ns:
        raise InputError(f"{name}: changed during the run; run again when the file is complete")


@contextmanager
def wrap_read_errors(name: str) -> Iterator[None]:
    """Convert errors of reading a file into an InputError of one line with its name."""
    try:
        yield
    except MemoryError as error:
        raise InputError(
            f"{name}: needs too much memory to be read; write it with smaller rows, and with fewer "
            "of them in a page, row group or record batch"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{name}: damaged or truncated ({error}); restore the file and run again"
        ) from error
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        detail = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise InputError(f"{name}: can't be read ({detail})") from error
