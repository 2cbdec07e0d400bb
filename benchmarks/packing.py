"""The commands of a user: `mtpack pack` end to end, packing again, the sample data, `--help`.

If a setting has another version of mtpack, it runs right after this one, and the names of its
figures begin with `old.`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.setting import Figures, Setting
from mtpack.running.thread_limits import SINGLE_THREAD_ENV

_SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"
_HELP_RUNS = 10
_FEW_ROWS = 200
_ALLOWED = 1.3  # times the run without start

# What `mtpack pack` imports, and then a tokenizer.
_IMPORT = "import mtpack.running.pack, mtpack.report.pack_report"
_LOAD = "; from {library} import Tokenizer; Tokenizer.from_file({file!r})"


def build_pack_command(
    setting: Setting,
    output: Path,
    *options: str,
    inputs: Sequence[str | Path] | None = None,
    python: str = sys.executable,
) -> list[str]:
    """Return the command that packs the rows of a setting, or other inputs."""
    template = ["--chat-template", str(setting.chat_template)] if setting.chat_template else []
    return [
        *(python, "-m", "mtpack", "pack"),
        *map(str, inputs or [setting.rows]),
        *("--tokenizer", str(setting.tokenizer), *template),
        *("--seq-len", str(setting.seq_len), "--workers", str(setting.workers)),
        *("--output", str(output), "--json", "--quiet", *options),
    ]


@dataclass(frozen=True)
class Packed:
    """The seconds that a run of `mtpack pack` reports, and the seconds of the whole command."""

    seconds: dict[str, float]
    """By stage, summed over workers; `total` is wall time after `start`."""
    command_seconds: float

    @property
    def seconds_with_start(self) -> float:
        """Wall time, including the start."""
        return self.seconds["start"] + self.seconds["total"]


def run_pack(command: list[str], folder: Path | None = None) -> Packed:
    """Run a command in a folder, by default the current one."""
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=folder)
    return Packed(json.loads(done.stdout)["seconds"], time.perf_counter() - started)


@dataclass(frozen=True)
class Installation:
    """A version of mtpack that is installed."""

    setting: Setting
    python: str
    """The interpreter that imports it."""
    folder: Path | None
    """Where it runs; None: in the current folder."""

    def pack(
        self, output: Path, *options: str, inputs: Sequence[str | Path] | None = None
    ) -> Packed:
        """Pack the rows of the setting, or other inputs."""
        command = build_pack_command(
            self.setting, output, *options, inputs=inputs, python=self.python
        )
        return run_pack(command, self.folder)

    def time_python(self, code: str) -> float:
        """Return the seconds of a Python program, with the environment of `mtpack pack`."""
        started = time.perf_counter()
        environment = {**os.environ, **SINGLE_THREAD_ENV}
        subprocess.run([self.python, "-c", code], check=True, cwd=self.folder, env=environment)
        return time.perf_counter() - started


def measure_each_version(setting: Setting, measure: Callable[[Installation], Figures]) -> Figures:
    """Measure this version, and the other one of the setting if there is one."""
    figures = measure(Installation(setting, sys.executable, None))
    if setting.old is not None:
        # In the current folder, Python could import this version.
        old = Installation(setting, str(setting.old.absolute()), setting.folder)
        figures |= {f"old.{name}": value for name, value in measure(old).items()}
    return figures


def ensure_output(setting: Setting) -> Path:
    """Return an output folder of the setting's rows, packed at the first call."""
    output = setting.folder / "packed"
    if not output.exists():
        run_pack(build_pack_command(setting, output))
    return output


def pack_end_to_end(setting: Setting) -> Figures:
    """Pack with the engine that mtpack chooses."""
    return _pack_end_to_end(setting, "mtpack", "auto")


def pack_with_tokenizers(setting: Setting) -> Figures:
    """Pack with the reference engine."""
    return _pack_end_to_end(setting, "mtpack_tokenizers", "tokenizers")


def _pack_end_to_end(setting: Setting, name: str, engine: str) -> Figures:
    def measure(version: Installation) -> Figures:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            packed = version.pack(Path(folder, "packed"), "--tokenizer-engine", engine)
        return {
            name: setting.megabytes / packed.seconds_with_start,
            f"{name}.after_start": setting.megabytes / packed.seconds["total"],
            f"{name}.whole": setting.megabytes / packed.command_seconds,
            f"{name}.command": packed.command_seconds,
            **{f"{name}.seconds.{stage}": amount for stage, amount in packed.seconds.items()},
        }

    return measure_each_version(setting, measure)


def repack(setting: Setting) -> Figures:
    """Pack with a token store, and pack again into sequences of half the length."""

    def measure(version: Installation) -> Figures:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            store = ("--token-store", str(Path(folder, "store")))
            first = version.pack(Path(folder, "first"), *store)
            shorter = ("--seq-len", str(setting.seq_len // 2))
            second = version.pack(Path(folder, "second"), *store, *shorter)
        return {"pack.first": first.seconds["total"], "pack.again": second.seconds["total"]}

    return measure_each_version(setting, measure)


def measure_start(setting: Setting) -> Figures:
    """Compare whole commands with what their start can't do without.

    A small input: with Python, the imports and loading the tokenizer with `tokenizers`. The whole
    input: with Python, the imports, loading it with `fastokens`, and 1.3 times the rest of the run.
    """
    few_rows = setting.write_rows("few-rows.jsonl", setting.row_texts[:_FEW_ROWS])
    file = str(setting.tokenizer / "tokenizer.json")

    def measure(version: Installation) -> Figures:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            few = version.pack(Path(folder, "few"), inputs=[few_rows])
            whole = version.pack(Path(folder, "whole"))
        imports = version.time_python(_IMPORT)
        loads = {
            library: version.time_python(_IMPORT + _LOAD.format(library=library, file=file))
            for library in ("tokenizers", "fastokens")
        }
        return {
            "start.imports": imports,
            "start.tokenizers": loads["tokenizers"],
            "start.fastokens": loads["fastokens"],
            "start.few": few.command_seconds,
            "start.whole": whole.command_seconds,
            "start.allowed": loads["fastokens"] + _ALLOWED * whole.seconds["total"],
        }

    return measure_each_version(setting, measure)


def time_help(setting: Setting) -> Figures:
    """Time `mtpack --help` and an empty Python program in turns; the fastest run of each counts."""
    commands = {"help": ["-m", "mtpack", "--help"], "empty": ["-c", "pass"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(_HELP_RUNS):
        for name, arguments in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, check=True)
            taken[name].append(time.perf_counter() - started)
    return {"help.more": min(taken["help"]) - min(taken["empty"])}


def pack_sample_data(setting: Setting) -> Figures:
    """Pack the sample data with the tokenizer of mtpack; the whole command counts."""
    inputs = map(str, sorted(_SAMPLE_DATA.glob("*.jsonl")))
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        command = [sys.executable, "-m", "mtpack", "pack", *inputs, "--json", "--quiet"]
        packed = run_pack([*command, "--output", str(Path(folder, "packed"))])
    return {"sample": packed.command_seconds}
