"""The output folder: check it, provide its work area, and publish a complete output.

Everything is written into the work area (`.mtpack/` in the output folder) first. When the run is
complete, an older manifest is removed, the new files are moved to the output folder, and the new
manifest is moved last: its presence means that the output is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

import pyarrow as pa

from mtpack.errors import InputError, SetupError
from mtpack.input.dialogue import Reject
from mtpack.shards.arrow import ShardMetadata, shard_schema
from mtpack.shards.fsync import sync
from mtpack.shards.manifest import (
    MANIFEST,
    Manifest,
    PackReport,
    RunIdentity,
    ShardRecord,
    is_manifest,
    read_manifest,
)

REJECTS = "rejects.jsonl"
_WORK_AREA = ".mtpack"
_LOCK = "lock"
_PUBLISHING = "placing"  # marks a work area that has the only complete copy of the output's files
_SHARD_NAME = re.compile(r"shard-\d{5,}\.arrow")
_DATASETS_FILES = ("state.json", "dataset_info.json")


def holds_output(folder: Path) -> bool:
    """Return whether a folder holds an output of mtpack, complete or not."""
    return was_interrupted(folder) or is_manifest(folder / MANIFEST)


def refuse_foreign_files(folder: Path, is_known: Callable[[Path], bool], option: str) -> None:
    """Raise SetupError if `folder` is not a folder, or holds files but not those of mtpack.

    is_known: returns whether a folder holds what mtpack wrote there before. option: the flag that
    names the folder.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SetupError(f"{folder}: not a folder; choose another {option}")
    foreign = next(folder.iterdir(), None)
    if foreign is not None and not is_known(folder):
        raise SetupError(
            f"{folder}: holds files that mtpack did not write, such as {foreign.name}; "
            f"choose another {option}"
        )


def find_complete_output(
    folder: Path, run: RunIdentity, *, overwrite: bool, on_error: str
) -> PackReport | None:
    """Return the report of a complete output of the same run; None if there is work to do.

    Raises SetupError if the folder holds the output of another run, unless `overwrite`; InputError
    if that output skipped bad rows, and `on_error` is `fail` now.
    """
    if not (folder / MANIFEST).is_file():
        return None
    try:
        found = read_manifest(folder)
        difference = found.run.difference(run)
    except InputError as error:
        difference = str(error)
    else:
        if difference is None and on_error == "fail" and found.report.tally.rows_rejected:
            reject = json.loads((folder / REJECTS).read_text(encoding="utf-8").split("\n")[0])
            raise make_bad_row_error("{file} line {line}: {reason}: {detail}".format(**reject))
        if difference is None:
            return found.report
    if overwrite:
        return None
    raise SetupError(
        f"{folder}: holds the complete output of another run ({difference}); "
        "choose another -o, or --overwrite"
    )


def was_interrupted(folder: Path) -> bool:
    """Return whether an earlier run left its work area in the folder."""
    return (folder / _WORK_AREA).is_dir()


@contextmanager
def work_area(folder: Path) -> Iterator[Path]:
    """Provide an empty work area, which is locked for this run.

    At the end of the block, the work area is removed, and an empty new output folder too. Only a
    failure while the output is published leaves the work area.
    """
    area = folder / _WORK_AREA
    is_new = not folder.exists()
    try:
        area.mkdir(parents=True, exist_ok=True)
        lock = _open_locked(area / _LOCK)
        for old in area.iterdir():
            if old.name != _LOCK:
                old.unlink()
    except OSError as error:
        raise SetupError(f"{folder}: can't be written to ({error.strerror})") from error
    with lock:
        try:
            yield area
        finally:
            if not (area / _PUBLISHING).exists():
                shutil.rmtree(area, ignore_errors=True)
            if is_new and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _open_locked(path: Path) -> IO[bytes]:
    """Open and lock a file. The lock ends when the process ends, even if that is killed."""
    while True:
        file = open(path, "wb")  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except BlockingIOError:
            file.close()
            raise SetupError(
                f"{path.parent.parent}: another run is writing to it; wait for it or choose "
                "another -o"
            ) from None
        except FileNotFoundError:  # another run has just removed its work area
            path.parent.mkdir(exist_ok=True)
        file.close()


def make_bad_row_error(reject: str) -> InputError:
    """Return the error that stops a run at a bad row; reject: `str` of the `Reject`."""
    remedy = "repair or remove the row, or skip such rows with --on-error skip"
    return InputError(reject, remedy)


def write_rejects(file: TextIO, rejects: Iterable[Reject]) -> None:
    """Write rejected rows to `REJECTS`, one JSON object per line."""
    file.writelines(json.dumps(reject.as_record()) + "\n" for reject in rejects)


def write_datasets_files(area: Path, shards: list[ShardRecord], metadata: ShardMetadata) -> None:
    """Write the files that `datasets.load_from_disk` needs to map the folder into memory.

    `Sequence` is the name of a list feature that datasets 3, 4 and 5 can all read.
    """
    digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode())
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.path} for shard in shards],
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    features = {field.name: _feature(field.type) for field in shard_schema(metadata)}
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    for name, content in zip(_DATASETS_FILES, (state, info), strict=True):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (area / name).write_text(text, encoding="utf-8")


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
        return {"feature": _feature(kind.value_type), "length": length, "_type": "Sequence"}
    return {"dtype": str(kind), "_type": "Value"}


def publish(folder: Path, area: Path, manifest: Manifest) -> None:
    """Move a complete output, whose shards are already synced, from its work area to `folder`."""
    manifest.write(area / MANIFEST)
    shard_names = [shard.path for shard in manifest.report.shards]
    others = [name for name in (REJECTS, *_DATASETS_FILES) if (area / name).exists()]
    for name in (*others, MANIFEST):  # shards are synced already
        sync(area / name)
    (area / _PUBLISHING).touch()
    (folder / MANIFEST).unlink(missing_ok=True)
    for old in folder.iterdir():
        if _SHARD_NAME.fullmatch(old.name) or old.name in _DATASETS_FILES:
            old.unlink()
    for name in (*shard_names, *others):
        os.replace(area / name, folder / name)
    sync(folder)
    os.replace(area / MANIFEST, folder / MANIFEST)
    sync(folder)
    (area / _PUBLISHING).unlink()
