"""`mtpack.pack` works from any program: no guard, no file, threads; workers do not run it again."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest

import mtpack
from mtpack.errors import SetupError
from tests.conftest import ROOT, SAMPLE_DATA

SOURCE = SAMPLE_DATA / "conversations_en.jsonl"

# No `if __name__ == "__main__":`. There are several splits, so that three workers get one.
PROGRAM = f"""
import sys
import threading

import mtpack
from mtpack.input import reading
from mtpack.running import runner

print("the program runs")
reading.SPLIT_BYTES = 40_000
if "threads" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("forked" if runner.may_fork() else "spawned")
for workers in (1, 3):  # the second run finds what the first has left
    report = mtpack.pack({str(SOURCE)!r}, output=f"packed-{{workers}}", workers=workers)
    print(report.tally.rows_packed)
"""
AS_IN_A_NOTEBOOK = "import sys; exec(sys.stdin.read(), sys.modules['__main__'].__dict__)"


@pytest.mark.parametrize("threads", ["threads", ""])
@pytest.mark.parametrize("kind", ["script", "standard input", "notebook"])
def test_a_program_may_call_pack_with_any_number_of_workers(kind, threads, tmp_path):
    if not (threads or sys.platform == "linux"):
        pytest.skip("workers are forked on Linux only")
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    program = {"script": [script], "standard input": ["-"], "notebook": ["-c", AS_IN_A_NOTEBOOK]}
    done = subprocess.run(
        [sys.executable, *program[kind], threads],
        input=PROGRAM,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.stderr == ""
    how = "spawned" if threads else "forked"
    assert done.stdout.split("\n") == ["the program runs", how, "89", "89", ""]
    one, three = (contents(tmp_path / f"packed-{workers}") for workers in (1, 3))
    assert one == three


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.arrow")}


def test_a_thread_of_a_program_may_call_pack(tmp_path):
    program = f"""
from concurrent.futures import ThreadPoolExecutor
import mtpack
def pack(number):
    source, output = {str(SOURCE)!r}, f"packed-{{number}}"
    return mtpack.pack(source, output=output, workers=number).tally.rows_packed
print(*ThreadPoolExecutor(2).map(pack, [1, 2]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", "89 89\n")


def pack_in_this_process(output: Path, errors: SimpleQueue) -> None:
    try:
        mtpack.pack(SOURCE, output=output)
    except SetupError as error:
        errors.put(str(error))


def test_a_process_that_can_not_start_workers_gets_one_line_that_says_why(tmp_path):
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    daemon = context.Process(
        target=pack_in_this_process, args=(tmp_path / "packed", errors), daemon=True
    )
    daemon.start()
    daemon.join()
    line = errors.get()
    assert line.startswith("worker processes can't be started from a daemonic process")
    assert "\n" not in line
    assert not (tmp_path / "packed").exists()
