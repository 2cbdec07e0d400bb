"""A machine on which commands fail at a chosen call: write, fsync, rename and others.

`Machine` compiles shim.c and starts one Python process, this file as a script, with it. The process
has loaded mtpack, and forks a child for every command, so a command takes a fraction of a second.
The child and its workers are a process group of their own.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from errno import EIO, ENOSPC
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

SHIM = Path(__file__).with_name("shim.c")
COMMAND_SECONDS = 60
"""A command that takes longer hangs."""
HANGS = 999
"""The status of a command that hangs."""
_SECONDS_TO_END = 2.0
_PR_SET_CHILD_SUBREAPER = 36


class Kind(IntFlag):
    """A kind of call; the values are those of shim.c."""

    OPEN = 1  # for writing
    WRITE = 2
    FSYNC = 4
    RENAME = 8
    UNLINK = 16  # of files and folders
    MKDIR = 32


class Action(IntEnum):
    """What happens at the chosen call; the values are those of shim.c."""

    COUNT = 0
    KILL_ALL = 1
    KILL_ONE = 2
    FAIL = 3
    FAIL_ON = 4
    SHORT = 5
    TEAR = 6


EVERY = Kind(63)
TAKES_SPACE = Kind.OPEN | Kind.WRITE | Kind.RENAME | Kind.MKDIR


class Mode(NamedTuple):
    """A kind of fault."""

    action: Action
    kinds: Kind
    error: int = 0
    loses_unsynced: bool = False
    """Whether files lose what was not synced, as when the power fails."""


MODES = {
    "kill": Mode(Action.KILL_ALL, EVERY),  # the command and its workers
    "kill one": Mode(Action.KILL_ONE, EVERY),  # the process that makes the call
    "torn write": Mode(Action.TEAR, Kind.WRITE),  # half of it is written, then all are killed
    "power": Mode(Action.KILL_ALL, EVERY, loses_unsynced=True),
    "no space": Mode(Action.FAIL, Kind.WRITE, ENOSPC),  # once
    "disk full": Mode(Action.FAIL_ON, TAKES_SPACE, ENOSPC),  # from then on
    "I/O error": Mode(Action.FAIL, EVERY, EIO),
    "short write": Mode(Action.SHORT, Kind.WRITE),  # which is no error: the rest must follow
}


_NO_FAULT = Mode(Action.COUNT, EVERY)


class _Call(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("process", ctypes.c_uint32),
        ("path", ctypes.c_char * 248),
    )


class _Unsynced(ctypes.Structure):
    _fields_ = (("inode", ctypes.c_uint64), ("size", ctypes.c_uint64))


class _Shared(ctypes.Structure):
    """The memory that all processes share: `struct shared` of shim.c."""

    _fields_ = (
        ("calls", ctypes.c_uint64),
        ("target", ctypes.c_uint64),
        ("action", ctypes.c_uint32),
        ("kinds", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("hits", ctypes.c_uint32),
        ("track", ctypes.c_uint32),
        ("lock", ctypes.c_uint32),
        ("roots", (ctypes.c_char * 256) * 2),
        ("log", _Call * 8192),
        ("num_files", ctypes.c_uint32),
        ("unsynced", _Unsynced * 1024),
    )


class Call(NamedTuple):
    """A call that changes a file."""

    kind: Kind
    path: Path
    process: int


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did."""

    status: int
    """Its exit status; -9 if it was killed, HANGS if it took too long."""
    stderr: str
    survivors: bool
    """Whether processes of it were still there two seconds after it had ended."""
    calls: list[Call]
    """In their order; those of the kinds of the mode alone."""
    hits: int
    """How many calls failed."""


class Machine:
    """Runs commands, and makes the n-th call of one fail."""

    def __init__(self, folder: Path) -> None:
        """Compile the shim and start the process; raise FileNotFoundError without a compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise FileNotFoundError("cc")
        shim, memory = folder / "shim.so", folder / "memory"
        options = ["-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, "-o", shim, SHIM, "-ldl"], check=True)
        memory.write_bytes(bytes(ctypes.sizeof(_Shared)))
        with open(memory, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._shared = _Shared.from_buffer(self._memory)
        environment = {"LD_PRELOAD": str(shim), "MTPACK_FAULTS": str(memory)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.machine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            cwd=Path(__file__).parents[2],
        )

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        del self._shared
        self._memory.close()

    def run(
        self,
        arguments: Sequence[str | Path],
        roots: Sequence[Path],
        mode: Mode = _NO_FAULT,
        number: int = 0,
        *,
        patches: dict[str, Any] | None = None,
        stdin: Path | None = None,
    ) -> Ran:
        """Run a command of mtpack; its call of this number fails, counted from 1.

        roots: calls that change files below these folders count, one or two. patches: values of
        attributes, by "module:name"; a string is the name of a function in broken.py.
        """
        shared = self._shared
        ctypes.memset(ctypes.addressof(shared), 0, ctypes.sizeof(shared))
        for i, root in enumerate(roots):
            shared.roots[i].value = os.fsencode(root)
        shared.action, shared.kinds, shared.error = mode.action, mode.kinds, mode.error
        shared.target, shared.track = number, mode.loses_unsynced
        request = {
            "arguments": [str(argument) for argument in arguments],
            "patches": patches or {},
            "stdin": str(stdin or os.devnull),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        calls = [
            Call(Kind(call.kind), Path(os.fsdecode(call.path)), call.process)
            for call in shared.log[: min(shared.calls, len(shared.log))]
        ]
        if mode.loses_unsynced and shared.hits:
            self._lose_unsynced(roots)
        return Ran(calls=calls, hits=shared.hits, **reply)

    def _lose_unsynced(self, roots: Sequence[Path]) -> None:
        sizes = {file.inode: file.size for file in self._shared.unsynced[: self._shared.num_files]}
        for root in roots:
            for path in root.rglob("*"):
                if path.is_file() and path.stat().st_ino in sizes:
                    os.truncate(path, sizes[path.stat().st_ino])


def _serve() -> None:
    """Fork a child for every command on standard input, and say how it ended."""
    from mtpack.running.thread_limits import SINGLE_THREAD_ENV

    os.environ.update(SINGLE_THREAD_ENV)  # before numpy is imported
    import mtpack.report.progress  # noqa: F401 (as a command does)
    from mtpack.options import PackOptions
    from mtpack.running import pipeline

    loaded = pipeline.load_pipeline(PackOptions())
    pipeline.check_template(loaded)
    pipeline.KeptResults.find_tokenizer = lambda kept: loaded.tokenizer
    pipeline.load_chat_template = lambda *arguments: loaded.template
    # Workers that outlive a command become children of this process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    gc.freeze()  # so that no collection in a child touches, and copies, what is loaded
    stderr = os.path.join(os.path.dirname(os.environ["MTPACK_FAULTS"]), "stderr")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run_command(json.loads(line), stderr)
        status = _wait(child)
        survives = not _wait_for_group(child)
        with open(stderr, errors="replace") as said:
            reply = {"status": status, "stderr": said.read(), "survivors": survives}
        print(json.dumps(reply), flush=True)


def _run_command(request: dict[str, Any], stderr: str) -> NoReturn:
    """Run a command in this process, as the program `mtpack` does."""
    from mtpack.cli import main

    os.setsid()
    os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    for name, value in request["patches"].items():
        module, attribute = name.split(":")
        setattr(importlib.import_module(module), attribute, _value_of(value))
    status: Any = None
    try:
        main(request["arguments"], prog_name="mtpack")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # What the end of the interpreter does; to free all objects would take as long as the command.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status or 0)


def _value_of(value: Any) -> Any:
    """Return a value, or the function of tests.faults.broken that `value` names."""
    if isinstance(value, str):
        return getattr(importlib.import_module("tests.faults.broken"), value)
    return value


def _wait(child: int) -> int:
    """Return the exit status of a child; HANGS if it takes too long."""
    until = time.monotonic() + COMMAND_SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return HANGS


def _wait_for_group(group: int) -> bool:
    """Wait for the other processes of a command; kill them, and return False, after a while."""
    until = time.monotonic() + _SECONDS_TO_END
    while True:
        try:
            found, _ = os.waitpid(-group, os.WNOHANG)
        except ChildProcessError:
            return True
        if not found and time.monotonic() > until:
            os.killpg(group, signal.SIGKILL)
            return False
        time.sleep(0.002)


if __name__ == "__main__":
    _serve()
