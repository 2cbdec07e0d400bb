"""Write files that get their names only when they are complete."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from mtpack.shards.fsync import sync

_COPY_BYTES = 2**20
# What `open` says where files without a name are not supported; the last one is of old kernels.
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR)


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Provide a file that gets the name `path` at the end of the block; it replaces an older file.

    durable: whether content and name are on the disk after the block, so that a loss of power can't
    take them back. A process that is killed during the block leaves a file of another name, so
    another process can simply do the work again. If two processes write the same file, the later
    one wins.
    """
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        with open(unfinished, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def move_to_disk(file: Path, path: Path) -> None:
    """Sync a complete file and give it the name `path`, which may be on another file system.

    Content and name are on the disk then. Raises OSError.
    """
    try:
        sync(file)
        os.replace(file, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with open(file, "rb") as source, atomic_file(path, durable=True) as copy:
            shutil.copyfileobj(source, copy, _COPY_BYTES)
        file.unlink()
        return
    sync(path.parent)


@contextmanager
def nameless_file(path: Path) -> Iterator[BinaryIO]:
    """As `atomic_file`, but a process that is killed leaves no file where Linux can avoid it.

    For folders that no run empties. The file has no name during the block, so the file system
    removes it with the process; see O_TMPFILE in open(2). Where that is not supported (NFS, other
    systems), this is `atomic_file`.
    """
    descriptor = _open_nameless(path.parent)
    if descriptor is None:
        with atomic_file(path) as file:
            yield file
        return
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        _give_name(descriptor, path)


def _open_nameless(folder: Path) -> int | None:
    """Return the descriptor of a new file without a name; None where that is not supported."""
    if sys.platform != "linux" or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return None
        raise


def _give_name(descriptor: int, path: Path) -> None:
    """Give a complete file its name; replace an older file.

    A link can't replace a file, so the new one is then renamed from a second name. This name is the
    same for all processes: if one is killed before it renames, the next one does it instead.
    """
    second = path.with_name(f"{path.name}.new")
    while not _link(descriptor, path):
        is_own = _link(descriptor, second)
        with suppress(FileNotFoundError):  # another process has renamed it
            os.replace(second, path)
        if is_own:
            return


def _link(descriptor: int, path: Path) -> bool:
    """Link an open file to a new name; return whether the name was free."""
    try:
        # With a descriptor of a folder (an absolute path ignores it), Python follows the link.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
    except FileExistsError:
        return False
    return True
