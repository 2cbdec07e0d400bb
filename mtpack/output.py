"""The output folder: what is in it, the work area, and how a complete output takes its place.

Everything is written into the work area (`.mtpack/` in the output folder) first. When the run is
complete, an older manifest goes, the new files are renamed into place, and the new manifest comes
last: its presence means that the output is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtpack.dialogue import Reject
from mtpack.errors import InputError, SetupError
from mtpack.manifest import MANIFEST, Manifest, PackReport, Run, ShardRecord, read_manifest
from mtpack.shard import ENTRY_COLUMNS, TOKEN_COLUMNS, TURN_COLUMNS

REJECTS = "rejects.jsonl"
_WORK_AREA = ".mtpack"
_DATASETS_FILES = ("state.json", "dataset_info.json")


def refuse_foreign(folder: Path) -> None:
    """Raise SetupError where `folder` holds anything that is not an output of mtpack."""
    if folder.exists() and not folder.is_dir():
        raise SetupError(f"{folder}: not a folder; choose another -o")
    if folder.is_dir() and not any((folder / own).exists() for own in (MANIFEST, _WORK_AREA)):
        foreign = next(folder.iterdir(), None)
        if foreign is not None:
            raise SetupError(
                f"{folder}: holds files that mtpack did not write, such as {foreign.name}; "
                "choose another -o"
            )


def find_complete(folder: Path, run: Run, *, overwrite: bool) -> PackReport | None:
    """Return the report of a complete output of the same run, or None if there is work to do.

    Raises SetupError where the folder holds the output of another run, unless `overwrite`.
    """
    if not (folder / MANIFEST).is_file():
        return None
    try:
        found = read_manifest(folder)
        difference = found.run.difference(run)
        if difference is None:
            return found.report
    except InputError as error:
        difference = str(error)
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
    """Provide an empty work area; leave neither it nor an empty output folder behind."""
    area = folder / _WORK_AREA
    is_new = not folder.exists()
    try:
        if area.is_dir():
            shutil.rmtree(area)
        area.mkdir(parents=True)
    except OSError as error:
        raise SetupError(f"{folder}: can't be written to ({error.strerror})") from error
    try:
        yield area
    finally:
        shutil.rmtree(area, ignore_errors=True)
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def write_rejects(area: Path, rejects: Iterable[Reject]) -> None:
    """Write `rejects.jsonl`, one object a rejected row, perhaps none."""
    lines = (json.dumps(reject.as_record(), ensure_ascii=False) + "\n" for reject in rejects)
    (area / REJECTS).write_text("".join(lines), encoding="utf-8")


def write_datasets_files(area: Path, shards: list[ShardRecord], seq_len: int) -> None:
    """Write what lets `datasets.load_from_disk` map the folder into memory.

    `Sequence` is the name of list features that datasets 3, 4 and 5 all read.
    """
    digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode())

    def sequence(dtype: str, length: int) -> dict[str, Any]:
        feature = {"dtype": dtype, "_type": "Value"}
        return {"feature": feature, "length": length, "_type": "Sequence"}

    features: dict[str, Any] = {
        name: sequence("uint8" if name == "loss_mask" else "int32", seq_len)
        for name in TOKEN_COLUMNS
    }
    features["turn_num"] = {"dtype": "int32", "_type": "Value"}
    for name in (*TURN_COLUMNS, *ENTRY_COLUMNS):
        features[name] = sequence("int64" if name == "dialogue_ids" else "int32", -1)
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.path} for shard in shards],
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    for name, content in zip(_DATASETS_FILES, (state, info), strict=True):
        (area / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def put_in_place(folder: Path, area: Path, manifest: Manifest) -> None:
    """Move a complete output out of its work area."""
    manifest.write(area / MANIFEST)
    shard_names = [shard.path for shard in manifest.report.shards]
    names = [*shard_names, REJECTS, *_DATASETS_FILES]
    for name in (*names[len(shard_names) :], MANIFEST):  # shards are synced when written
        if (area / name).exists():
            _sync(area / name)
    (folder / MANIFEST).unlink(missing_ok=True)
    for old in (*folder.glob("shard-*.arrow"), *(folder / name for name in _DATASETS_FILES)):
        old.unlink(missing_ok=True)
    for name in names:
        if (area / name).exists():
            os.replace(area / name, folder / name)
    _sync(folder)
    os.replace(area / MANIFEST, folder / MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
