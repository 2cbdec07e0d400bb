"""Read tables in a process of their own, which may take only so much memory, and may die.

A Parquet or Arrow file of some kilobytes can decode to gigabytes, and libraries that read one end
their process in places. The limits follow from what is asked for, the longest row that is read, and
never from what a file says of itself.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import pyarrow as pa

from mtpack.errors import InputError, MtpackError
from mtpack.input.files import InputFile
from mtpack.input.reading import LINE_LIMIT, TableCall, call_here
from mtpack.input.tables import is_table
from mtpack.running.processes import WorkerContext, WorkerProcess, defer_interrupts, may_fork
from mtpack.running.worker import end_with_parent

# Of what is decoded, in units of the longest row: it is there in Arrow, in Python and as JSON.
_ROWS_IN_MEMORY = 12
_STANDARD_ERROR = 2
_SECONDS = 60  # of CPU time for a batch of rows, or for one row that is longer
_LIBRARY_BYTES = 64 * 2**20  # what libraries take for themselves, as thread stacks and caches


@contextmanager
def table_process(files: Iterable[InputFile], line_limit: int = LINE_LIMIT) -> Iterator[TableCall]:
    """Provide a function that reads tables in another process, which ends with the block.

    It is started now if there is a table among the files: forked if that is safe, so before this
    process starts threads. Raises MtpackError if it can't be started.
    """
    if not any(map(is_table, files)):
        yield call_here
        return
    here, there = Pipe()
    process: Any = WorkerContext(forked=may_fork()).Process(target=_serve, args=(there, line_limit))
    try:
        with defer_interrupts():
            process.start()
    except OSError as error:
        raise MtpackError(
            f"a process that reads tables can't be started ({error.strerror})"
        ) from error
    there.close()

    def call(function: Any, /, *arguments: Any, **named: Any) -> Iterator[Any]:
        return _ask(here, process, partial(function, *arguments, **named))

    try:
        yield call
    finally:
        here.close()
        process.terminate()
        process.join()


def _ask(
    connection: Connection[Any, Any], process: WorkerProcess, call: partial[Iterator[Any]]
) -> Iterator[Any]:
    """Yield what the other process finds in a table; raise the error that it raises."""
    try:
        connection.send(call)
        while (found := connection.recv()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
    except (EOFError, ConnectionError) as error:
        process.join()
        status = process.exitcode or 0
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        raise InputError(
            f"{call.args[0].name}: damaged, or it needs too much memory or time to be read (the "
            f"process that read it ended with {how}); write it again, with smaller rows and row "
            "groups"
        ) from error


def _serve(connection: Connection[Any, Any], line_limit: int) -> None:
    """Read tables for the parent until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    with open(os.devnull, "wb") as nowhere:  # libraries write there why they end the process
        os.dup2(nowhere.fileno(), _STANDARD_ERROR)
    pa.set_cpu_count(1)  # the time goes into making rows; each thread would take memory
    pa.set_io_thread_count(1)
    while True:
        try:
            call = connection.recv()
        except EOFError:
            return
        _limit_memory(_ROWS_IN_MEMORY * line_limit + _LIBRARY_BYTES)
        try:
            _limit_time(_SECONDS)
            for found in call():
                connection.send(found)
                _limit_time(_SECONDS)
            connection.send(None)
        except MtpackError as error:
            connection.send(error)


def _limit_memory(amount: int) -> None:
    """Let this process take `amount` more bytes than it has, where Linux counts them.

    Mapped files do not count.
    """
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return
    held = next(int(line.split()[1]) for line in status if line.startswith("VmData:")) * 1024
    _lower(resource.RLIMIT_DATA, held + amount)


def _limit_time(seconds: int) -> None:
    """Let this process use this much more CPU time; after that, the system ends it (SIGXCPU)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)


def _lower(kind: int, soft: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(kind, (soft, hard))
