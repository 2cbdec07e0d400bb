"""Time and memory of `mtpack pack` for ten times the input.

The larger input has ten copies of the rows. Every content of a copy ends with the number of the
copy: so no text occurs twice, while lengths and words stay similar. Windows are small, so that even
the smaller input fills one.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from benchmarks.memory import run_watched
from benchmarks.packing import build_pack_command
from benchmarks.setting import Figures, Setting, format_json_line
from mtpack.input.dialogue import Dialogue

_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_WINDOW = "4Mi"


def measure_scaling(setting: Setting) -> Figures:
    """Pack one copy, then ten copies."""
    return {**_pack_copies(setting, 1), **_pack_copies(setting, len(_NUMBERS))}


def _pack_copies(setting: Setting, copies: int) -> Figures:
    source = _ensure_copies(setting, copies)
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        output = Path(folder, "packed")
        command = build_pack_command(setting, output, "--window", _WINDOW, inputs=[source])
        watched = run_watched(command)
    return {
        f"copies.{copies}": json.loads(watched.stdout)["seconds"]["total"],
        f"copies.{copies}.memory": watched.peak_bytes / 2**20,
    }


@functools.cache
def _ensure_copies(setting: Setting, copies: int) -> Path:
    path = setting.folder / f"copies-{copies}.jsonl"
    write_copies(setting.dialogues, copies, path)
    return path


def write_copies(dialogues: list[Dialogue], copies: int, path: Path) -> None:
    """Write up to ten copies of all dialogues, with different texts."""
    with open(path, "w", encoding="utf-8") as file:
        for number in _NUMBERS[:copies]:
            for dialogue in dialogues:
                file.write(format_json_line(dialogue, suffix=f" {number}"))
