"""Entries in the user's cache folder: whole or missing, whatever happens to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtpack.user_cache import EntryCache, find_cache_folder
from tests.conftest import ROOT

KEY = ("lengths", 1, ["0.1.0"])
CONTENT = bytes(range(256))


def list_files() -> list[Path]:
    return [path for path in find_cache_folder().rglob("*") if path.is_file()]


@pytest.fixture
def cache() -> EntryCache:
    cache = EntryCache("tests")
    cache.write(CONTENT, *KEY)
    return cache


def test_an_entry_is_found_by_all_that_it_depends_on(cache):
    assert cache.read(*KEY) == CONTENT
    assert cache.read("lengths", 2, ["0.1.0"]) is None
    assert cache.read("lengths", 1) is None
    cache.write(b"", "empty")
    assert cache.read("empty") == b""


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda stored: stored[:-1], id="cut"),
        pytest.param(lambda stored: b"", id="empty"),
        pytest.param(lambda stored: stored + b"x", id="longer"),
        pytest.param(lambda stored: bytes([stored[0] ^ 1]) + stored[1:], id="another digest"),
        pytest.param(lambda stored: stored[:-1] + b"\0", id="another last byte"),
    ],
)
def test_a_damaged_entry_is_missing_and_can_be_written_again(cache, damage):
    (file,) = list_files()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.read(*KEY) is None
    cache.write(CONTENT, *KEY)
    assert cache.read(*KEY) == CONTENT


def test_an_entry_under_the_name_of_another_is_missing(cache):
    (file,) = list_files()
    cache.write(b"other", "other")
    (other,) = set(list_files()) - {file}
    os.replace(file, other)
    assert cache.read("other") is None


def test_the_folder_may_be_removed_at_any_time(cache):
    for file in list_files():
        file.unlink()
    find_cache_folder().joinpath("tests").rmdir()
    assert cache.read(*KEY) is None
    cache.write(CONTENT, *KEY)
    assert cache.read(*KEY) == CONTENT


@pytest.mark.parametrize("blocked", ["", "mtpack", "mtpack/tests"])
def test_where_nothing_can_be_written_there_is_no_cache_and_no_error(
    blocked, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "cache" / blocked
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("not a folder")
    cache = EntryCache("tests")
    cache.write(CONTENT, *KEY)
    assert cache.read(*KEY) is None
    assert file.read_text() == "not a folder"


def test_a_cache_without_a_folder_keeps_nothing():
    cache = EntryCache(None)
    cache.write(CONTENT, *KEY)
    assert cache.read(*KEY) is None
    assert not find_cache_folder().exists()


WRITER = """
from mtpack.user_cache import EntryCache
cache = EntryCache("tests")
for number in range(200):
    cache.write(bytes([number]) * 10_000, "shared")
    found = cache.read("shared")
    assert found == found[:1] * 10_000
"""


def test_many_processes_may_write_one_entry():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER], env=environment) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(list_files()) == 1
