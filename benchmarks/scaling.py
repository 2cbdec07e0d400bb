"""Ten times the input: how much more time, and how much more memory, does `mtpack pack` take?

The larger input is the rows ten times over, every content of a copy with that copy's number behind
it: no text comes twice, lengths stay alike, and so does the mix of words. Windows are small, so
that even the smaller input fills one.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from benchmarks.memory import run_watched
from benchmarks.packing import pack_command
from benchmarks.setting import Figures, Setting, as_json_line
from mtpack.input.dialogue import Dialogue

_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_WINDOW = "4Mi"


def scale(setting: Setting) -> Figures:
    """Pack one copy, then ten."""
    return {**_pack_copies(setting, 1), **_pack_copies(setting, len(_NUMBERS))}


def _pack_copies(setting: Setting, copies: int) -> Figures:
    source = _copies(setting, copies)
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        output = Path(folder, "packed")
        command = pack_command(setting, output, "--window", _WINDOW, inputs=[source])
        watched = run_watched(command)
    return {
        f"copies.{copies}": json.loads(watched.stdout)["seconds"]["total"],
        f"copies.{copies}.memory": watched.peak_bytes / 2**20,
    }


@functools.cache
def _copies(setting: Setting, copies: int) -> Path:
    path = setting.folder / f"copies-{copies}.jsonl"
    write_copies(setting.dialogues, copies, path)
    return path


def write_copies(dialogues: list[Dialogue], copies: int, path: Path) -> None:
    """Write all dialogues up to ten times over, no text twice."""
    with open(path, "w", encoding="utf-8") as file:
        for number in _NUMBERS[:copies]:
            for dialogue in dialogues:
                file.write(as_json_line(dialogue, behind_contents=f" {number}"))
