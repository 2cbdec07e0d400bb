"""The work area: the folder `.mtpack/` in an output folder, where a run writes at first.

With `--work-dir`, what is not part of the output lies there instead. The work area of an output in
a store is a folder of `--work-dir`, or else of a temporary folder.

One run at a time uses it: it holds a lock, which ends with the process. A run that ends before its
output is complete may leave it, and the next run continues with what it holds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from mtpack.errors import SetupError
from mtpack.shards.atomic_file import atomic_file
from mtpack.storage.urls import is_url

_WORK_AREA = ".mtpack"
_LOCK = "lock"
UNSYNCED = "unsynced"
_RUN_RECORD = "run.json"
PUBLISHED = "published.json"
"""The manifest of an output in a store, once it is there."""
_MARK = "mtpack_run"
"""The key of a run record that no other file has."""
_MAX_RECORD_BYTES = 2**20
_SECONDS_TO_LOCK = 2.0
_SECONDS_BETWEEN_TRIES = 0.02


@dataclass(slots=True)
class WorkArea:
    """The work area of this run, which is locked."""

    path: Path
    """Holds finished shards and all records; on the file system of an output folder."""
    scratch: Path
    """Holds what is not finished: tokenized splits, plans, shards that are being written."""
    is_kept: bool
    """Whether it stays when the block of `work_area` ends."""
    _run: str = field(default_factory=lambda: uuid4().hex)

    @property
    def unsynced(self) -> Path:
        """The folder of this run alone for what is not finished, and may not be on the disk yet.

        After a main process is killed, its workers on other machines may write for some seconds.
        """
        return self.scratch / UNSYNCED / self._run

    def read_run_record(self) -> dict[str, Any] | None:
        """Return what the last run wrote by `write_run_record`; None if there is nothing."""
        return _read_run_record(self.path)

    def write_run_record(self, values: Mapping[str, Any]) -> None:
        """Describe this run, for the next one, which may have to continue it."""
        with atomic_file(self.path / _RUN_RECORD, durable=True) as file:
            file.write(json.dumps({_MARK: values}, sort_keys=True, indent=1).encode())


def has_work_area(folder: Path) -> bool:
    """Return whether a run left its work area in an output folder.

    Raises SetupError if something else has its name. An area of mtpack is a folder that is empty or
    holds a run record; only a lock and an unfinished record can be there before that record.
    """
    area = folder / _WORK_AREA
    try:
        kind = os.lstat(area).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISDIR(kind):
        try:
            names = os.listdir(area)
        except OSError as error:
            raise SetupError(f"{area}: can't be read ({error.strerror})") from error
        if _read_run_record(area) is not None or all(map(_is_first_file, names)):
            return True
    raise SetupError(f"{area}: not a work area of mtpack; move it away, or choose another -o")


def _is_first_file(name: str) -> bool:
    return name == _LOCK or name.startswith(f"{_RUN_RECORD}.")


def _read_run_record(area: Path) -> dict[str, Any] | None:
    path = area / _RUN_RECORD
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_RECORD_BYTES:
            return None
        values = json.loads(path.read_bytes())[_MARK]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


@contextmanager
def work_area(folder: Path, work_dir: Path | None = None) -> Iterator[WorkArea]:
    """Provide the work area of an output folder, locked for this run; both are made if missing.

    work_dir: where `scratch` is made; by default, it is the work area itself. At the end of the
    block it is removed unless `is_kept`, and an empty new output folder too. Raises SetupError if
    another run uses it, if something else has its name, or if it can't be made.
    """
    is_new = not folder.exists()
    was_left = has_work_area(folder)
    path = scratch = (folder / _WORK_AREA).absolute()
    if work_dir is not None:
        scratch = _make_folder(work_dir, _name_area(str(folder.resolve())))
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _open_locked(path / _LOCK, str(folder))
    except OSError as error:
        raise SetupError(f"{folder}: can't be written to ({error.strerror})") from error
    area = WorkArea(path, scratch, is_kept=was_left)
    with lock:
        try:
            yield area
        finally:
            if not area.is_kept:
                _remove(path)
                if scratch != path:
                    shutil.rmtree(scratch, ignore_errors=True)
            if is_new and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def stored_work_area(url: str, work_dir: Path | None) -> Iterator[WorkArea]:
    """Provide the work area of an output in a store, locked for this run; made if missing.

    The lock holds among the runs that share it, not for the store. At the end of the block it is
    removed unless `is_kept`. Raises SetupError as `work_area` does.
    """
    path = find_stored_area(url, work_dir).absolute()
    was_left = path.exists()
    if work_dir is None:
        _make_own_folder(path.parent)
    _make_folder(path.parent, path.name)
    try:
        lock = _open_locked(path / _LOCK, url)
    except OSError as error:
        raise SetupError(f"{path}: can't be written to ({error.strerror})") from error
    area = WorkArea(path, path, is_kept=was_left)
    with lock:
        try:
            yield area
        finally:
            if not area.is_kept:
                _remove(path)


def find_stored_area(url: str, work_dir: Path | None) -> Path:
    """Return the folder of the work area of an output in a store."""
    temporary = Path(tempfile.gettempdir()) / f"mtpack-{os.getuid()}"
    return (work_dir or temporary) / _name_area(url)


def find_last_file(output: str, work_dir: str | None) -> Path:
    """Return the file on this machine whose presence means that an output is complete.

    output: a folder, or a URL.
    """
    if not is_url(output):
        return Path(output) / "manifest.json"
    area = find_stored_area(output.rstrip("/"), None if work_dir is None else Path(work_dir))
    return area.absolute() / PUBLISHED


def _name_area(output: str) -> str:
    """Return the name of the area of an output, so that several outputs can share a folder."""
    return f"mtpack-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


def _make_folder(folder: Path, name: str) -> Path:
    try:
        (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{folder}: can't be written to ({error.strerror})") from error
    return (folder / name).absolute()


def _make_own_folder(folder: Path) -> None:
    """Make a folder that only this user can write to; others may have made it before."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise SetupError(f"{folder}: can't be written to ({error.strerror})") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise SetupError(f"{folder}: others can write to it; choose another --work-dir")


def _open_locked(path: Path, output: str) -> IO[bytes]:
    """Open and lock a file. The lock ends when the process ends, even if that is killed.

    Its workers have the lock too, and end a moment after it.
    """
    end = time.monotonic() + _SECONDS_TO_LOCK
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except BlockingIOError:
            if time.monotonic() > end:
                file.close()
                raise SetupError(
                    f"{output}: another run is writing to it; wait for it or choose another -o"
                ) from None
            time.sleep(_SECONDS_BETWEEN_TRIES)
        except FileNotFoundError:  # another run has just removed its work area
            path.parent.mkdir(exist_ok=True)
        file.close()


def empty_area(area: Path, kept: Collection[str] = ()) -> None:
    """Remove all that a work area, or a folder in it, holds, but its lock and its run record.

    kept: names of what else stays. Raises OSError.
    """
    for path in area.iterdir():
        if path.name in (_LOCK, _RUN_RECORD, *kept):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(area: Path) -> None:
    """Remove a work area; what can't be removed stays, and still is a work area."""
    try:
        empty_area(area)
        (area / _RUN_RECORD).unlink(missing_ok=True)
        (area / _LOCK).unlink()
        area.rmdir()
    except OSError:
        return
