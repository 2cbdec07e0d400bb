"""Files that are changed at random are read, or refused by name: no crash, no hang, little memory.

Each file is a small one of the kind that mtpack writes or reads. Each mutation is read in a process
of its own, forked from this one: a signal there is a failure here.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import os
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

import mtpack
from mtpack.errors import MtpackError
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import read_splits
from mtpack.report.extreme_turns import find_extreme_turns
from mtpack.report.figures import count_figures
from mtpack.report.inspect_view import show_figures
from mtpack.report.overview import show_overview
from mtpack.report.row_view import view_row
from mtpack.report.sequence_view import show_row
from mtpack.running.table_process import table_process
from mtpack.shards.dataset import map_shards, open_shards
from mtpack.shards.manifest import MANIFEST, _format, _hash, read_manifest
from mtpack.verify.files import find_changed_file
from mtpack.verify.structure import check_structure
from tests.conftest import SAMPLE_DATA

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")

MUTATIONS, SAMPLE = 1000, 40  # of each file: with --full, and by default
AT_ONCE = 20  # mutations in one process
SECONDS = 30  # of CPU time, for one mutation
MEMORY = 2**30
ROLES = ("system", "user", "assistant")
Reader = Callable[[Path], object]


def read_shard(path: Path) -> None:
    """Read a shard as `inspect`, `inspect --row`, a data set and `verify` do."""
    shards = open_shards(path)
    for row in shards:
        assert len(row["input_ids"]) == shards.metadata.seq_len
    check_structure(map_shards(path))
    count_figures(shards)
    find_extreme_turns(shards, 2)
    for row in range(len(shards)):
        show_row(view_row(shards, row), None, Console(file=io.StringIO()))


def read_output(path: Path) -> None:
    """Read an output as `inspect` and `verify` do, and show it."""
    read_shard(path.parent)
    figures = count_figures(open_shards(path.parent))
    for show in (show_figures, show_overview):
        show(figures, Console(file=io.StringIO()))
    json.dumps(figures.as_dict())
    find_changed_file(path.parent, read_manifest(path.parent))


def read_input(path: Path) -> None:
    files = [describe_input(path.name, path)]
    with table_process(files) as call_table:
        for split in read_splits(files, call_table=call_table):
            assert sum(1 for _ in split.rows()) == split.digest().num_rows


def read_dataset(path: Path) -> None:
    for name in find_inputs([str(path.parent)]):
        read_input(Path(name))


def write_shards(folder: Path) -> None:
    """Write a shard in each IPC format, with each compression."""
    for ipc_format in ("stream", "file"):
        for compression in ("none", "lz4", "zstd"):
            output = folder / f"{ipc_format}-{compression}"
            mtpack.pack(
                SAMPLE_DATA / "bad" / "unknown_role.bot.jsonl",
                output=output,
                seq_len=64,
                overlong="truncate",
                workers=1,
                on_error="skip",
                ipc_format=ipc_format,
                compression=compression,
            )


def write_inputs(folder: Path) -> None:
    rows = [
        [{"role": role, "content": f"{role} {number} " * (number % 5)} for role in ROLES]
        for number in range(20)
    ]
    text = b"".join(json.dumps({"messages": row}).encode() + b"\n" for row in rows)
    table = pa.table({"messages": rows, "id": list(range(len(rows)))})
    listed = json.dumps([{"messages": messages} for messages in rows], indent=1).encode()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(text))
    (folder / "a.json.gz").write_bytes(gzip.compress(listed))
    (folder / "a.json").write_bytes(listed)
    for name, content in (("a.jsonl.zst", text), ("a.json.zst", listed)):
        with pa.CompressedOutputStream(str(folder / name), "zstd") as stream:
            stream.write(content)
    for compression in ("none", "snappy", "zstd"):
        path = folder / f"{compression}.parquet"
        pa.parquet.write_table(table, path, compression=compression, row_group_size=7)
    for name, new_writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        for compression in (None, "zstd"):
            options = pa.ipc.IpcWriteOptions(compression=compression)
            path = folder / f"{name}-{compression}.arrow"
            with new_writer(path, table.schema, options=options) as writer:
                writer.write_table(table, max_chunksize=7)


def write_dataset(folder: Path) -> None:
    folder = folder / "dataset"
    folder.mkdir()
    with pa.ipc.new_stream(folder / "data.arrow", pa.schema([("messages", pa.string())])) as writer:
        writer.write_table(pa.table({"messages": ["[]"]}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[tuple[Path, Reader]]:
    """Return the files to change, each with the function that reads it."""
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(folder)
    write_inputs(folder)
    write_dataset(folder)
    shards = [(path, read_shard) for path in sorted(folder.glob("*-*/shard-00000.arrow"))]
    manifest = [(folder / "stream-none" / "manifest.json", read_output)]
    side_files = [(folder / "dataset" / "state.json", read_dataset)]
    inputs = [(path, read_input) for path in sorted(folder.iterdir()) if path.is_file()]
    return [*shards, *manifest, *side_files, *inputs]


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Change bytes, cut a part out, repeat one, end early, or write an extreme number."""
    changed = bytearray(content)
    start, end = sorted(random.integers(0, len(changed), 2).tolist())
    match random.integers(6):
        case 0:
            for place in random.integers(0, len(changed), random.integers(1, 9)):
                changed[place] = random.integers(256)
        case 1:
            del changed[start : min(end, start + 64)]
        case 2:
            changed[start:start] = changed[start : min(end, start + 256)]
        case 3:
            del changed[start:]
        case 4:
            size = int(random.choice([1, 2, 4, 8]))
            numbers = [0, 1, 2**7 - 1, 2**8 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
            number = int(random.choice(len(numbers)))
            changed[start : start + size] = (numbers[number] % 2 ** (8 * size)).to_bytes(
                size, "little"
            )
        case _:
            changed[start] ^= 1 << int(random.integers(8))
    return bytes(changed)


def change_values(content: bytes, random: np.random.Generator) -> bytes:
    """Change values of a manifest, and its hash with them."""
    whole = json.loads(content)
    about, _ = whole.pop("about"), whole.pop("sha256")
    top = {"whole": whole, "about": about}
    for _ in range(random.integers(1, 4)):
        place: Any = top
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            holder, key = place, keys[random.integers(len(keys))]
            place = holder[key]
            if random.integers(6) == 0 and holder is not top:
                break
        holder[key] = VALUES[random.integers(len(VALUES))]
    whole |= {"sha256": _hash(whole), "about": about}
    return _format(whole)


def run_in_fork(path: Path, read: Reader, mutations: list[bytes]) -> list[str]:
    """Read mutations of a file in a process of its own; return the outcome of each.

    An outcome is `read`, `refused`, or what went wrong. If the process ends, the last one says how.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        faulthandler.disable()
        limit_this_process()
        for mutation in mutations:
            path.write_bytes(mutation)
            signal.alarm(4 * SECONDS)  # of wall time, on a busy machine
            os.write(sending, f"{outcome_of(read, path)}\n".encode())
        os._exit(0)
    os.close(sending)
    with open(receiving) as stream:
        outcomes = stream.read().splitlines()
    _, status = os.waitpid(child, 0)
    if status:
        outcomes.append(f"status {os.waitstatus_to_exitcode(status)}")
    return outcomes


def limit_this_process() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, hard))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS * AT_ONCE, resource.RLIM_INFINITY))


def outcome_of(read: Reader, path: Path) -> str:
    try:
        read(path)
    except MtpackError as error:
        lines = str(error).splitlines()
        if len(lines) > 2:
            return f"a message of {len(lines)} lines"
        return "ended its own process" if "ended with SIG" in lines[0] else "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    return "read"


def test_mutated_files_are_read_or_refused_by_name(corpus, tmp_path, pytestconfig):
    count = MUTATIONS if pytestconfig.getoption("--full") else SAMPLE
    random = np.random.default_rng(18)
    found: dict[str, Counter[str]] = {}
    for original, read in corpus:
        folder = shutil.copytree(original.parent, tmp_path / "copy") if read in WHOLE else tmp_path
        path = folder / original.name
        content = original.read_bytes()
        assert run_in_fork(path, read, [content]) == ["read"]
        outcomes: Counter[str] = Counter()
        while outcomes.total() < count:
            mutations = [mutate(content, random) for _ in range(AT_ONCE)]
            if original.name == MANIFEST:
                mutations += [change_values(content, random) for _ in range(AT_ONCE)]
            outcomes.update(run_in_fork(path, read, mutations))
        found[str(original.relative_to(original.parents[1]))] = outcomes
        path.unlink()
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    for name, outcomes in found.items():
        print(name, dict(outcomes))
    allowed = {"read", "refused", "ended its own process"}
    wrong = {name: outcomes for name, outcomes in found.items() if outcomes.keys() - allowed}
    assert not wrong, wrong
    assert sum(map(Counter.total, found.values())) >= count * len(corpus)
    assert all(outcomes["refused"] for outcomes in found.values())


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**400,
    0.5,
    "",
    "\x1b[2J",
    "../x",
    [],
    {},
    [[]],
]
WHOLE = (read_output, read_dataset)
"""The readers that need the other files of the folder."""


def test_a_mutation_that_crashes_hangs_or_fills_the_memory_is_noticed(tmp_path):
    def crash(_: Path) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def fill(_: Path) -> None:
        np.ones(2 * MEMORY, np.uint8)

    def fail(_: Path) -> None:
        raise KeyError

    outcomes = [run_in_fork(tmp_path / "a", read, [b""])[-1] for read in (crash, fill, fail)]
    assert outcomes[0] == "status -11"
    assert "MemoryError" in outcomes[1]
    assert outcomes[2].startswith("KeyError")
