"""The benchmarks run; what they measure is for docs, never for a test."""

import subprocess
import sys

from tests.conftest import ROOT, SAMPLE_DATA


def test_the_planning_benchmark_runs_on_a_small_input():
    command = [sys.executable, ROOT / "benchmarks" / "planning.py"]
    command += [SAMPLE_DATA / "conversations_en.jsonl", "--seq-len", "1024"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    header, line = done.stdout.splitlines()
    assert "bound" in header
    assert line.split()[0] == "1,024"


def test_the_rendering_benchmark_runs_on_a_small_input():
    command = [sys.executable, ROOT / "benchmarks" / "rendering.py"]
    command += [SAMPLE_DATA / "conversations_en.jsonl", "--dialogues", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ways = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert ways[:4] == ["f-string", "jinja2", "replay", "render"]
