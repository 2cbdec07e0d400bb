"""What a run that did not complete has left in the work area, and how a run leaves it there.

The work area holds, next to the files of the output to come:

    run.json                    what the run was: options, tokenizer, template, version
    splits/NAME/KEY-SHA256      tokenized splits, as a token store (`token_store.py`)
    unsynced/RUN/               of one run: plans, splits that the overlong policy has changed, and
                                shards that are complete, but may not be on the disk yet
    shard-NUMBER.arrow, .json   finished shards and their records
    window-NUMBER.json          windows whose shards are all finished: the splits of such a window
                                have left `splits`, and their records are here

A shard is known by the digest of its window, which covers all that its bytes depend on: all splits
up to the last one of the window. It is taken if its sha256 is that of its record.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from mtpack.running.shard_task import WrittenShard
from mtpack.running.stopwatch import Stopwatch
from mtpack.shards.atomic_file import atomic_file, move_to_disk
from mtpack.shards.manifest import ShardRecord, hash_file
from mtpack.shards.work_area import empty_area

SPLITS = "splits"
_SHARD = re.compile(r"shard-(\d+)\.json")
_WINDOW = re.compile(r"window-(\d+)\.json")
_SHARD_FILE = re.compile(r"shard-(\d+)\.(?:arrow|json)")
_FINISHED = re.compile(r"shard-\d+\.(arrow|json)|window-\d+\.json")
_SPLIT = re.compile(r"(\d+\.\d+)-([0-9a-f]{64})(\.json)?")

_WINDOWS_IN_MEMORY = 2

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard of an earlier run: intact, and on the disk."""

    window_sha256: str
    record: ShardRecord
    fast_paths: frozenset[str]
    """Those that were used for something that it depends on."""


@dataclass(frozen=True, slots=True)
class FinishedWindow:
    """A window whose shards are all finished."""

    number: int
    sha256: str
    """Covers all that its shards depend on."""
    sequences: int
    sequences_lower_bound: int
    first_shard: int
    num_shards: int
    first_split: str
    last_split: str
    """The keys of its first and last split, which may be without documents."""


@dataclass(slots=True)
class EarlierWork:
    """The work of an earlier run that this run can take."""

    area: Path = Path()
    shards: dict[int, FinishedShard] = field(default_factory=dict)
    windows: dict[int, FinishedWindow] = field(default_factory=dict)
    """By number, ascending."""
    split_files: dict[str, set[Path]] = field(default_factory=dict)
    """By key: the document files and records of splits that are in none of `windows`."""
    _splits: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """The splits of the windows that were needed last, by window and key."""
    _starts: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    """The first split of each window, and the number of the window."""

    def find_written(self, split: str) -> dict[str, Any] | None:
        """Return what `SplitRecord.as_dict` returned for a split, if it is in one of `windows`."""
        window = self._find_window(_parse_key(split))
        return None if window is None else self._read_splits(window.number).get(split)

    def find_written_in(self, section: int) -> dict[str, dict[str, Any]]:
        """Return what `find_written` returns for all splits of a section, by key."""
        windows = self._list_windows((section, 0), (section + 1, 0))
        return {
            key: split
            for window in windows
            for key, split in self._read_splits(window.number).items()
            if _parse_key(key)[0] == section
        }

    def _find_window(self, key: tuple[int, ...]) -> FinishedWindow | None:
        """Return the window with a split."""
        return next(self._list_windows(key, (*key, 0)), None)

    def _list_windows(
        self, first: tuple[int, ...], end: tuple[int, ...]
    ) -> Iterator[FinishedWindow]:
        """Yield the windows with splits from `first` up to but not including `end`."""
        if not self._starts:
            self._starts = [(_parse_key(w.first_split), n) for n, w in self.windows.items()]
        place = max(0, bisect_right(self._starts, first, key=itemgetter(0)) - 1)
        while place < len(self._starts) and self._starts[place][0] < end:
            window = self.windows[self._starts[place][1]]
            if first <= _parse_key(window.last_split):
                yield window
            place += 1

    def _read_splits(self, window: int) -> dict[str, dict[str, Any]]:
        """Return the splits of a window.

        Those of two windows are in memory at a time: those that tasks are made of, and those whose
        results come.
        """
        if window not in self._splits:
            while len(self._splits) >= _WINDOWS_IN_MEMORY:
                del self._splits[min(self._splits)]
            _, splits = _read_record(_window_path(self.area, window))
            self._splits[window] = {split["key"]: split for split in splits}
        return self._splits[window]

    def list_contents(self, split: str) -> set[str]:
        """Return the digests of the rows of a split in earlier runs; empty if none is known."""
        names = map(_SPLIT.fullmatch, (path.name for path in self.split_files.get(split, ())))
        contents = {match[2] for match in names if match}
        written = self.find_written(split)
        return contents if written is None else contents | {written["sha256"]}


def clean_area(area: Path, run_folder: str, *, keeps_shards: bool) -> bool:
    """Remove what is of no use for this run; return whether something is left.

    run_folder: the folder of `SPLITS` with splits that are tokenized as in this run.
    """
    kept = [path for path in area.iterdir() if keeps_shards and _FINISHED.fullmatch(path.name)]
    empty_area(area, [*(path.name for path in kept), SPLITS])
    splits = area / SPLITS
    if splits.is_dir():
        empty_area(splits, [run_folder])
        for path in _list(splits / run_folder):
            if _SPLIT.fullmatch(path.name):
                kept.append(path)
            else:
                path.unlink()
    return bool(kept)


def find_shards(area: Path, disabled: Collection[str]) -> dict[int, FinishedShard]:
    """Find shards in a work area, and remove those that a `disabled` fast path made, or damaged."""
    found = {}
    shards = _read_records(area, _SHARD, lambda values: parse_shard(values)[1])
    with ThreadPoolExecutor(thread_name_prefix="hash") as threads:
        intact = threads.map(lambda shard: _is_intact(area, shard), shards.values())
        for (number, shard), is_intact in zip(shards.items(), intact, strict=True):
            if is_intact and not shard.fast_paths & set(disabled):
                found[number] = shard
    for path in _list(area):
        if (match := _SHARD_FILE.fullmatch(path.name)) and int(match[1]) not in found:
            path.unlink()
    return found


def find_earlier_work(area: Path, store: Path, shards: dict[int, FinishedShard]) -> EarlierWork:
    """Find the work of earlier runs, and remove what is damaged.

    store: the folder of tokenized splits. shards: those that can be taken, by number.
    """
    found = EarlierWork(area, shards)
    for number, window in _read_records(area, _WINDOW, _parse_window).items():
        numbers = range(window.first_shard, window.first_shard + window.num_shards)
        shards_of = [found.shards.get(shard) for shard in numbers]
        if all(shard and shard.window_sha256 == window.sha256 for shard in shards_of):
            found.windows[number] = window
        else:
            _window_path(area, number).unlink()
    for path in _list(store):
        if match := _SPLIT.fullmatch(path.name):
            found.split_files.setdefault(match[1], set()).add(path)
    return found


def _is_intact(area: Path, shard: FinishedShard) -> bool:
    path = area / shard.record.path
    try:
        is_whole = path.stat().st_size == shard.record.bytes
        return is_whole and hash_file(path) == shard.record.sha256
    except OSError:
        return False


def commit_shard(
    area: Path,
    unsynced: Path,
    written: WrittenShard,
    window_sha256: str,
    fast_paths: Collection[str],
) -> Mapping[str, float]:
    """Put a shard that a worker has written on the disk under its name, and then its record.

    unsynced: the folder that it was written to, which may be on another file system. Returns the
    seconds that it took, by stage.
    """
    watch = Stopwatch()
    name = written.record.path
    move_to_disk(unsynced / name, area / name)
    values = {
        "window_sha256": window_sha256,
        "record": asdict(written.record),
        "fast_paths": sorted(fast_paths),
    }
    _write_record(area / name.replace(".arrow", ".json"), values)
    watch.lap("commit")
    return watch.seconds


def commit_window(area: Path, window: FinishedWindow, splits: list[dict[str, Any]]) -> None:
    """Record a window whose shards are all on the disk, and what `as_dict` returns for its splits.

    Then the files of its splits are not needed any more.
    """
    _write_record(_window_path(area, window.number), asdict(window), splits)


def forget_windows(area: Path, first: int) -> None:
    """Remove the records of a window and those after it, so that their splits are made again."""
    for number in _read_records(area, _WINDOW, _parse_window):
        if number >= first:
            _window_path(area, number).unlink()


def _parse_key(split: str) -> tuple[int, ...]:
    """Return the key of a split in a form that sorts in the order of the input."""
    return tuple(map(int, split.split(".")))


def _window_path(area: Path, number: int) -> Path:
    return area / f"window-{number:05d}.json"


def _write_record(path: Path, values: dict[str, Any], more: Any = None) -> None:
    """Write a record of two JSON values, and its own sha256 before them."""
    content = "".join(json.dumps(part, sort_keys=True) + "\n" for part in (values, more))
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    with atomic_file(path, durable=True) as file:
        file.write(f"{sha256}\n{content}".encode())


def _read_record(path: Path) -> tuple[dict[str, Any], Any]:
    """Return both values of a record; raise ValueError if it is damaged, and OSError."""
    sha256, _, content = path.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != sha256:
        raise ValueError("damaged")
    values, more = map(json.loads, content.splitlines())
    return values, more


def _read_records(
    area: Path, name: re.Pattern[str], parse: Callable[[dict[str, Any]], _Parsed]
) -> dict[int, _Parsed]:
    """Return the records of one kind by number, and remove those that are damaged."""
    found = {}
    for path in sorted(_list(area)):
        if match := name.fullmatch(path.name):
            try:
                found[int(match[1])] = parse(_read_record(path)[0])
            except (OSError, ValueError, TypeError, KeyError):
                path.unlink()
    return found


def parse_shard(values: dict[str, Any]) -> tuple[int, FinishedShard]:
    """Return the number of a shard, and the shard, from its record; raise ValueError and others."""
    record = ShardRecord(**values["record"])
    match = _SHARD_FILE.fullmatch(record.path)
    if not match:
        raise ValueError(record.path)
    return int(match[1]), FinishedShard(
        values["window_sha256"], record, frozenset(values["fast_paths"])
    )


def _parse_window(values: dict[str, Any]) -> FinishedWindow:
    window = FinishedWindow(**values)
    _parse_key(window.first_split), _parse_key(window.last_split)
    return window


def _list(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
