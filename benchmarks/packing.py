"""The commands of a user: `mtpack pack` end to end, packing again, the sample data, `--help`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.setting import Figures, Setting

_SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"
_HELP_RUNS = 10


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


def run_pack(command: list[str]) -> Packed:
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return Packed(json.loads(done.stdout)["seconds"], time.perf_counter() - started)


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
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        output = Path(folder, "packed")
        packed = run_pack(build_pack_command(setting, output, "--tokenizer-engine", engine))
    return {
        name: setting.megabytes / packed.seconds_with_start,
        f"{name}.after_start": setting.megabytes / packed.seconds["total"],
        f"{name}.command": packed.command_seconds,
        **{f"{name}.seconds.{stage}": amount for stage, amount in packed.seconds.items()},
    }


def repack(setting: Setting) -> Figures:
    """Pack with a token store, and pack again into sequences of half the length."""
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        store = ("--token-store", str(Path(folder, "store")))
        first = run_pack(build_pack_command(setting, Path(folder, "first"), *store))
        shorter = ("--seq-len", str(setting.seq_len // 2))
        second = run_pack(build_pack_command(setting, Path(folder, "second"), *store, *shorter))
    return {"pack.first": first.seconds["total"], "pack.again": second.seconds["total"]}


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
