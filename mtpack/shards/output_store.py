"""An output in a store: shards are uploaded when they are finished, and the manifest comes last.

A store has no rename and no lock. So a shard has its final name at once, and its record lies in the
metadata of its object. Each run puts a random id there when it begins to write. It looks whether
that is still there before it puts the manifest: if another run has begun meanwhile, it stops.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtpack.errors import MtpackError, SetupError
from mtpack.shards.manifest import (
    MANIFEST,
    RECIPE,
    Manifest,
    PackReport,
    RunIdentity,
    ShardRecord,
    hash_file,
    is_manifest,
    read_manifest,
)
from mtpack.shards.output_folder import is_shard_name
from mtpack.shards.side_files import SIDE_FILES
from mtpack.shards.work_area import PUBLISHED
from mtpack.storage.objects import (
    abort_uploads,
    delete_object,
    find_objects,
    is_object,
    list_folder,
    read_metadata,
    read_object,
    upload_file,
    write_object,
)
from mtpack.storage.urls import join_url

_RUN = ".mtpack/run.json"
_MARK = "mtpack_run"
_RECORD = "mtpack"  # the key of the metadata of a shard
_RECORD_LIMIT = 2**16
_REQUESTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A shard in a store, and what the run that uploaded it knows of it."""

    record: ShardRecord
    more: Mapping[str, Any]
    """What was given to `upload_shard`, as JSON values."""


def refuse_foreign_objects(url: str) -> None:
    """Raise SetupError if there are objects below `url`, but no output of mtpack, or OSError."""
    found = find_objects(f"{url}/")
    if not found or join_url(url, _RUN) in found or is_manifest(join_url(url, MANIFEST)):
        return
    name = found[0].removeprefix(f"{url}/")
    raise SetupError(
        f"{url}: holds objects that mtpack did not write, such as {name}; choose another -o"
    )


def begin_output(url: str) -> str:
    """Begin to write to a store, and return the id of this run; raise OSError.

    An older manifest is deleted: from here on, the older output is gone.
    """
    run_id = secrets.token_hex(16)
    write_object(join_url(url, _RUN), json.dumps({_MARK: run_id}).encode())
    delete_object(join_url(url, MANIFEST))
    abort_uploads(url)
    return run_id


def upload_shard(file: Path, url: str, record: ShardRecord, more: Mapping[str, Any]) -> None:
    """Upload a shard with its record, which `find_stored_shards` returns; raise OSError."""
    text = json.dumps({"record": asdict(record), **more}, sort_keys=True)
    upload_file(file, join_url(url, record.path), {_RECORD: text})


def find_stored_shards(url: str) -> list[StoredShard]:
    """Return the shards below a URL that runs of mtpack have uploaded; raise OSError.

    The metadata belongs to the object: whoever replaces that, replaces both. So no shard is read.
    """
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE, "find") as threads:
        found = threads.map(_read_shard, _list_shards(url))
        return [shard for shard in found if shard is not None]


def _list_shards(url: str) -> list[str]:
    return [join_url(url, name) for name in list_folder(url) if is_shard_name(name)]


def _read_shard(url: str) -> StoredShard | None:
    size, metadata = read_metadata(url)
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        values = json.loads(metadata[_RECORD])
        record = ShardRecord(**values.pop("record"))
        if record.bytes == size and url.endswith(f"/{record.path}"):
            return StoredShard(record, values)
    return None


def publish_to_store(
    url: str, area: Path, run: RunIdentity, report: PackReport, run_id: str
) -> None:
    """Complete an output whose shards are uploaded: its other files, and the manifest at last.

    Then what is there of older outputs is deleted. Raises MtpackError if another run has begun to
    write here, and OSError.
    """
    others = [name for name in SIDE_FILES if (area / name).exists()]
    for name in (*others, RECIPE):
        upload_file(area / name, join_url(url, name), {})
    files = {name: hash_file(area / name) for name in others}
    manifest = Manifest(run, report, files)
    manifest.write(area / MANIFEST)
    if not _is_own_run(url, run_id):
        raise MtpackError(
            f"{url}: another run has begun to write to it, so this one stops before its manifest; "
            "run again when no other run writes there, or choose another -o"
        )
    write_object(join_url(url, MANIFEST), (area / MANIFEST).read_bytes())
    os.replace(area / MANIFEST, area / PUBLISHED)
    _delete_others(url, manifest.list_files())


def finish_publishing_to_store(url: str, report: PackReport) -> None:
    """Delete what is there of older outputs, if a run was killed before it did; raise OSError."""
    if is_object(join_url(url, _RUN)):
        _delete_others(url, read_manifest(url).list_files())


def withdraw(url: str, run_id: str) -> None:
    """Delete the id of a run that ends without an output, unless the store fails."""
    with suppress(OSError):
        if _is_own_run(url, run_id):
            delete_object(join_url(url, _RUN))


def _is_own_run(url: str, run_id: str) -> bool:
    try:
        found = json.loads(read_object(join_url(url, _RUN), _RECORD_LIMIT))
    except (FileNotFoundError, ValueError):
        return False
    return bool(found == {_MARK: run_id})


def _delete_others(url: str, kept: Iterable[str]) -> None:
    """Delete what has the name of a file of an output, but is none of this one."""
    wanted = {join_url(url, name) for name in kept}
    ours = [*_list_shards(url), *(join_url(url, name) for name in (*SIDE_FILES, RECIPE, _RUN))]
    for name in ours:
        if name not in wanted:
            delete_object(name)
