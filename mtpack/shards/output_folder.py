"""The output folder: what is in it, the work area, and how a complete output takes its place.

Everything is written into the work area (`.mtpack/` in the output folder) first. When the run is
complete, an older manifest goes, the new files are renamed into place, and the new manifest comes
last: its presence means that the output is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
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
_PUBLISHING = "placing"  # in a work area: its files are the only ones of the output that are whole
_SHARD_NAME = re.compile(r"shard-\d{5,}\.arrow")
_DATASETS_FILES = ("state.json", "dataset_info.json")


def refuse_foreign(folder: Path) -> None:
    """Raise SetupError where `folder` holds anything that is not an output of mtpack."""
    if folder.exists() and not folder.is_dir():
        raise SetupError(f"{folder}: not a folder; choose another -o")
    if not folder.is_dir() or was_interrupted(folder) or is_manifest(folder / MANIFEST):
        return
    foreign = next(folder.iterdir(), None)
    if foreign is not None:
        raise SetupError(
            f"{folder}: holds files that mtpack did not write, such as {foreign.name}; "
            "choose another -o"
        )


def find_complete(
    folder: Path, run: RunIdentity, *, overwrite: bool, on_error: str
) -> PackReport | None:
    """Return the report of a complete output of the same run, or None if there is work to do.

    Raises SetupError where the folder holds the output of another run, unless `overwrite`, and
    InputError where it left out bad rows, which `on_error` now says must not be.
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
            raise InputError(
                "{file} line {line}: {reason}: {detail}\n".format(**reject)
                + "repair or remove the row, or go on without such rows: --on-error skip"
            )
        if difference is None:
            return found.report
    if overwrite:
        return None
    raise SetupError(
        f"{folder}: holds the complete output of another run ({difference}); "
        "choose another -o, or --overwrite"
    )


def was_interrupted(folder: Path) -> bool:
    """Return whether a run left its work area behind."""
    return (folder / _WORK_AREA).is_dir()


@contextmanager
def work_area(folder: Path) -> Iterator[Path]:
    """Provide an empty work area, of this run alone.

    It leaves neither the area nor an empty output folder behind, except where a failure hit the
    moment at which the files in it took the place of an older output.
    """
    area = folder / _WORK_AREA
    is_new = not folder.exists()
    try:
        area.mkdir(parents=True, exist_ok=True)
        lock = _locked(area / _LOCK)
        for left in area.iterdir():
            if left.name != _LOCK:
                left.unlink()
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


def _locked(path: Path) -> IO[bytes]:
    """Open and lock a file; the lock ends with the process, however that ends."""
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
        except FileNotFoundError:  # the run that held it has just removed its work area
            path.parent.mkdir(exist_ok=True)
        file.close()


def write_rejects(file: TextIO, rejects: Iterable[Reject]) -> None:
    """Write rejected rows to `REJECTS`, one object a row."""
    file.writelines(json.dumps(reject.as_record()) + "\n" for reject in rejects)


def write_datasets_files(area: Path, shards: list[ShardRecord], metadata: ShardMetadata) -> None:
    """Write what lets `datasets.load_from_disk` map the folder into memory.

    `Sequence` is the name of list features that datasets 3, 4 and 5 all read.
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
    """Move a complete output, whose shards are synced, out of its work area."""
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
