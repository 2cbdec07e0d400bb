"""The order of the system calls that put an output on the disk, from a trace of a whole run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import SAMPLE_DATA

PACK_SMALL_SPLITS = """
from mtpack.input import reading
reading.SPLIT_BYTES = 20_000
from mtpack.cli import main
main()
"""
PATH = r'"((?:[^"\\]|\\.)*)"'
OPEN = re.compile(rf"openat\([^,]*, {PATH}, ([A-Z_|]+)")
WRITE = re.compile(r"(?:write|pwrite64|writev)\(\d+<([^>]*)>")
SYNC = re.compile(r"f(?:data)?sync\(\d+<([^>]*)>")
RENAME = re.compile(rf'(?:rename(?:at2?)?|linkat)\([^"]*{PATH}, (?:AT_FDCWD[^,]*, )?{PATH}')
UNFINISHED = re.compile(r"^(\d+) +(.*) <unfinished \.\.\.>$")
RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>")


class Call(NamedTuple):
    """A system call on a file of the output; paths are relative to the output folder.

    A link that gives a file its first name counts as a rename from an empty path.
    """

    kind: str
    path: str
    target: str = ""
    flags: str = ""


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> list[Call]:
    if shutil.which("strace") is None:
        pytest.skip("needs strace to trace system calls")
    folder = tmp_path_factory.mktemp("traced").resolve()
    output, trace = folder / "packed", folder / "trace"
    names = "openat,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,linkat"
    strace = ["strace", "-f", "-y", "-s", "0", "-e", f"trace={names}", "-o", str(trace)]
    command = [
        sys.executable,
        "-c",
        PACK_SMALL_SPLITS,
        "pack",
        SAMPLE_DATA / "conversations_en.jsonl",
    ]
    options = ["-o", output, "--workers", "2", "--seq-len", "512", "--window", "8Ki", "--quiet"]
    done = subprocess.run([*strace, *command, *options], capture_output=True, text=True)
    if done.returncode and "ptrace" in done.stderr.lower():
        pytest.skip("this machine does not permit strace")
    assert not done.returncode, done.stderr
    return parse_trace(trace.read_text(errors="replace"), output)


def parse_trace(text: str, output: Path) -> list[Call]:
    """Return the calls on files below `output`, each at the time when it ended."""

    def relative(path: str) -> str | None:
        inside = Path(path).is_relative_to(output)
        return str(Path(path).relative_to(output)) if inside else None

    begun: dict[str, str] = {}
    calls = []
    for line in text.splitlines():
        if unfinished := UNFINISHED.match(line):
            begun[unfinished[1]] = unfinished[2]
            continue
        if again := RESUMED.match(line):
            line = begun.pop(again[1], "") + line[again.end() :]
        if " = -1 " in line:
            continue
        if (found := OPEN.search(line)) and (path := relative(found[1])):
            calls.append(Call("open", path, flags=found[2]))
        elif (found := WRITE.search(line)) and (path := relative(found[1])):
            calls.append(Call("write", path))
        elif (found := SYNC.search(line)) and (path := relative(found[1])):
            calls.append(Call("sync", path))
        elif (found := RENAME.search(line)) and (target := relative(found[2])):
            calls.append(Call("rename", relative(found[1]) or "", target))
    return calls


def renames(calls: list[Call], target: str) -> list[int]:
    """Return the positions of the renames whose new name matches a pattern; at least one."""
    found = [
        position
        for position, call in enumerate(calls)
        if call.kind == "rename" and re.fullmatch(target, call.target)
    ]
    assert found, target
    return found


def last(calls: list[Call], kind: str, path: str, before: int) -> int:
    """Return the position of the last such call before a position; -1 if there is none."""
    found = [n for n, c in enumerate(calls[:before]) if (c.kind, c.path) == (kind, path)]
    return max(found, default=-1)


def following(calls: list[Call], kind: str, path: str, after: int) -> int:
    """Return the position of the first such call after a position; fail if there is none."""
    return next(n for n, c in enumerate(calls) if n > after and (c.kind, c.path) == (kind, path))


@pytest.mark.parametrize(
    "name",
    [
        r"\.mtpack/run\.json",
        r"\.mtpack/shard-\d+\.json",
        r"\.mtpack/window-\d+\.json",
        r"\.mtpack/manifest\.json",
    ],
)
def test_a_record_is_written_to_a_new_file_synced_renamed_and_its_folder_synced(calls, name):
    for rename in renames(calls, name):
        path = calls[rename].path
        opened = next(call for call in calls if (call.kind, call.path) == ("open", path))
        assert "O_EXCL" in opened.flags
        written, synced = last(calls, "write", path, rename), last(calls, "sync", path, rename)
        assert -1 < written < synced < rename
        following(calls, "sync", ".mtpack", rename)


def test_a_shard_is_synced_before_it_gets_its_name_and_its_record_comes_after_both(calls):
    for rename in renames(calls, r"\.mtpack/shard-\d+\.arrow"):
        path, target = calls[rename].path, calls[rename].target
        (complete,) = renames(calls, re.escape(path))  # from a file that is not complete
        unfinished = calls[complete].path
        opened = next(call for call in calls if (call.kind, call.path) == ("open", unfinished))
        assert "O_EXCL" in opened.flags
        written, synced = (
            last(calls, "write", unfinished, rename),
            last(calls, "sync", path, rename),
        )
        assert -1 < written < complete < synced < rename
        (record,) = renames(calls, re.escape(target.replace(".arrow", ".json")))
        assert following(calls, "sync", ".mtpack", rename) < record


def test_a_split_gets_its_name_and_is_not_synced_and_its_record_comes_after_it(calls):
    assert not any(c.kind == "sync" and c.path.startswith(".mtpack/splits") for c in calls)
    for record in renames(calls, r"\.mtpack/splits/.*\.json"):
        documents = calls[record].target.removesuffix(".json")
        assert max(renames(calls, re.escape(documents))) < record


def test_the_files_of_an_output_are_published_when_all_are_synced_and_the_manifest_is_last(calls):
    (complete,) = renames(calls, r"\.mtpack/manifest\.json")
    moves = renames(calls, r"[^/]+")
    *files, manifest = (calls[move].target for move in moves)
    assert manifest == "manifest.json"
    assert {"rejects.jsonl", "state.json", "dataset_info.json"} < {*files}
    assert len(files) > 5
    for name in ("rejects.jsonl", "state.json", "dataset_info.json"):
        path = f".mtpack/{name}"
        assert last(calls, "write", path, moves[0]) < last(calls, "sync", path, complete) != -1
    assert following(calls, "sync", ".mtpack", complete) < moves[0]
    assert moves[-2] < last(calls, "sync", ".", moves[-1])
    following(calls, "sync", ".", moves[-1])
