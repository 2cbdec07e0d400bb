"""The output folder: check it, and publish a complete output in it.

Everything is written into the work area first. When a manifest is there, the output is complete.
Then its files move to the output folder, and the manifest moves last: its presence there means that
the output can be read. A run that is interrupted while they move leaves the rest to the next run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpack.errors import InputError, SetupError
from mtpack.input.files import InputFile
from mtpack.options import PackOptions
from mtpack.shards.fsync import sync
from mtpack.shards.manifest import (
    MANIFEST,
    RECIPE,
    Manifest,
    PackReport,
    RunIdentity,
    RunInfo,
    hash_file,
    is_manifest,
    read_manifest,
)
from mtpack.shards.side_files import REJECTS, SIDE_FILES
from mtpack.shards.work_area import has_work_area
from mtpack.storage.places import Place, is_file, join_place, read_start

_SHARD_NAME = re.compile(r"shard-\d{5,}\.arrow")
_REJECT_LIMIT = 2**20
_REPLACED = "replaced.json"  # the manifest of the output that a complete one in the area replaces


def holds_output(folder: Path) -> bool:
    """Return whether a folder holds an output of mtpack, complete or not.

    Raises SetupError if something else has the name of the work area.
    """
    return has_work_area(folder) or is_manifest(folder / MANIFEST)


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
    folder: Place,
    run: RunIdentity,
    files: list[InputFile],
    hash_inputs: Callable[[], list[str]],
    options: PackOptions,
) -> PackReport | None:
    """Return the report of a complete output of the same run; None if there is work to do.

    folder: may be in a store. run: without the contents of `files`. hash_inputs: reads them and
    returns their sha256; it is called only if their names, sizes and times do not decide. Raises
    SetupError if the folder holds the output of another run, unless `--overwrite`; InputError if
    that output skipped bad rows, and `--on-error` is `fail` now.
    """
    if not is_file(join_place(folder, MANIFEST)):
        return None
    found: Manifest | None = None
    difference: str | None
    try:
        found = read_manifest(folder)
    except InputError as error:
        difference = str(error)
    else:
        difference = found.run.difference(run)
        if difference is None and not _are_untouched(files, found.report.about):
            difference = found.run.difference(replace(run, inputs=_hash(run, hash_inputs)))
    if found is not None and difference is None:
        if options.on_error == "fail" and found.report.tally.rows_rejected:
            rejects = read_start(join_place(folder, REJECTS), _REJECT_LIMIT)
            reject = json.loads(rejects.split(b"\n")[0])
            raise make_bad_row_error("{file} line {line}: {reason}: {detail}".format(**reject))
        return found.report
    if options.overwrite:
        return None
    raise SetupError(
        f"{folder}: holds the complete output of another run ({difference}); "
        "choose another -o, or --overwrite"
    )


def _hash(run: RunIdentity, hash_inputs: Callable[[], list[str]]) -> list[dict[str, Any]]:
    inputs = zip(run.inputs, hash_inputs(), strict=True)
    return [{**file, "sha256": sha256} for file, sha256 in inputs]


def _are_untouched(files: list[InputFile], about: RunInfo) -> bool:
    """Return whether the files, whose sizes are the same, are those that were packed."""
    names, times = [file.name for file in files], [file.modified_ns for file in files]
    return names == about.inputs and times == about.inputs_modified_ns


def make_bad_row_error(reject: str) -> InputError:
    """Return the error that stops a run at a bad row; reject: `str` of the `Reject`."""
    remedy = "repair or remove the row, or skip such rows with --on-error skip"
    return InputError(reject, remedy)


def is_shard_name(name: str) -> bool:
    """Return whether a file has the name of a shard."""
    return _SHARD_NAME.fullmatch(name) is not None


def publish(folder: Path, area: Path, run: RunIdentity, report: PackReport) -> None:
    """Complete an output, whose shards are already synced, and move it to `folder`."""
    others = [name for name in SIDE_FILES if (area / name).exists()]
    for name in (*others, RECIPE):
        sync(area / name)
    files = {name: hash_file(area / name) for name in others}
    Manifest(run, report, files).write(area / MANIFEST)
    finish_publishing(folder, area)


def finish_publishing(folder: Path, area: Path) -> bool:
    """Move a complete output to `folder`; return whether there is one in the work area.

    May be called again after it was interrupted. An older output is readable until the first file
    moves. Of the older files, only those that its manifest lists are removed.
    """
    if not (area / MANIFEST).exists():
        return False
    try:
        names = _list_files(read_manifest(area))
        if not all((area / name).exists() or (folder / name).exists() for name in names):
            raise InputError(f"{area}: incomplete")
    except InputError:  # not the work of a run that was merely interrupted
        (area / MANIFEST).unlink()
        return False
    if (folder / MANIFEST).exists():
        os.replace(folder / MANIFEST, area / _REPLACED)
    for old in _list_replaced(area):
        if old not in names:
            (folder / old).unlink(missing_ok=True)
    for name in names:
        if (area / name).exists():
            os.replace(area / name, folder / name)
    sync(folder)
    os.replace(area / MANIFEST, folder / MANIFEST)
    sync(folder)
    return True


def _list_files(manifest: Manifest) -> list[str]:
    """Return the names of the files of an output, without its manifest."""
    return [name for name in manifest.list_files() if os.path.basename(name) == name]


def _list_replaced(area: Path) -> list[str]:
    """Return the files of the output that is replaced; none if its manifest is damaged."""
    try:
        manifest = read_manifest(area, _REPLACED)
    except InputError:
        return []
    return [*_list_files(manifest), *([] if manifest.files else SIDE_FILES)]
