"""The benchmarks run; what they measure is for docs, never for a test."""

import runpy
import subprocess
import sys

from hypothesis import given

from tests.conftest import ROOT, SAMPLE_DATA
from tests.strategies import cases


def planning_benchmark(*arguments):
    """The lines below the header, as lists of columns."""
    command = [sys.executable, ROOT / "benchmarks" / "planning.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    header, *lines = done.stdout.splitlines()
    assert header.split()[:5] == ["lengths", "seq_len", "documents", "sequences", "bound"]
    return [line.split() for line in lines]


def test_the_planning_benchmark_runs_on_a_small_input():
    (line,) = planning_benchmark(SAMPLE_DATA / "conversations_en.jsonl", "--seq-len", 1024)
    assert line[:2] == ["input", "1,024"]


def test_the_planning_benchmark_draws_lengths_where_there_is_no_input():
    lines = planning_benchmark(
        *("--kind", "short", "--kind", "equal", "--documents", 2000),
        *("--seq-len", 1024, "--seq-len", 65_536),
    )
    assert [line[:3] for line in lines] == [
        ["short", "1,024", "2,000"],
        ["short", "65,536", "2,000"],
        ["equal", "1,024", "2,000"],
        ["equal", "65,536", "2,000"],
    ]


@given(cases)
def test_best_fit_decreasing_is_counted_as_if_documents_were_placed_one_by_one(case):
    lengths, seq_len = case
    rooms = []
    for length in sorted(lengths.tolist(), reverse=True):
        room = min((room for room in rooms if room >= length), default=None)
        if room is not None:
            rooms.remove(room)
        rooms.append((seq_len if room is None else room) - length)
    counted = runpy.run_path(str(ROOT / "benchmarks" / "planning.py"))["best_fit_decreasing"]
    assert counted(lengths, seq_len) == len(rooms)


def test_the_rendering_benchmark_runs_on_a_small_input():
    command = [sys.executable, ROOT / "benchmarks" / "rendering.py"]
    command += [SAMPLE_DATA / "conversations_en.jsonl", "--dialogues", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ways = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert ways[:4] == ["f-string", "jinja2", "replay", "render"]
