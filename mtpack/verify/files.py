"""Compare the files of an output with its manifest, before anything in them is read as Arrow."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mtpack.shards.dataset import wrap_fetch_errors
from mtpack.shards.manifest import MANIFEST, Manifest, ShardRecord, hash_file
from mtpack.shards.output_folder import is_shard_name
from mtpack.shards.side_files import SIDE_FILES
from mtpack.storage.cache import ChangedObjectError, fetch_shard
from mtpack.storage.places import Place, join_place, list_sizes, read_start

_SIDE_FILE_LIMIT = 2**40
_REMEDY = "restore the file from a copy, or pack the data again with --overwrite"


@dataclass(frozen=True, slots=True)
class Violation:
    """The violation of a law in a shard or in the manifest, as `verify` reports it."""

    shard: str
    """The path of the shard; of the manifest, if its figures are not those of the shards."""
    row: int | None
    """The index of the sequence over all shards, from 0; None if the law is about a whole file."""
    position: int | None
    """In the sequence; None if the law is about the whole sequence."""
    law: str
    detail: str
    """What was found and what was expected, without any content of dialogues."""


def find_changed_file(folder: Place, manifest: Manifest) -> Violation | None:
    """Return the first file of an output that is not the one in its manifest, or None.

    A file is another one if it is missing, or if its sha256 differs. A shard or a side file that
    the manifest does not list is a violation too, since other tools read every file of a folder.
    All shards of an output in a store are fetched into the cache, also those that are there. Raises
    InputError if a store fails.
    """
    with wrap_fetch_errors(folder):
        return _find_changed_file(folder, manifest)


def _find_changed_file(folder: Place, manifest: Manifest) -> Violation | None:
    there = list_sizes(folder)
    shards = {shard.path: shard for shard in manifest.report.shards}
    recorded = manifest.list_files()
    for name, sha256 in recorded.items():
        file = join_place(folder, name)
        if name not in there:
            detail = f"the manifest lists it, but there is no such file; {_REMEDY}"
            return Violation(str(file), None, None, "files", detail)
        found = _hash(file, shards.get(name))
        if found != sha256:
            detail = f"the sha256 of the file is {found}; the manifest records {sha256}; {_REMEDY}"
            return Violation(str(file), None, None, "sha256", detail)
    others = SIDE_FILES if manifest.files else ()  # older manifests list no other files
    for name in sorted(there):
        if name not in recorded and (is_shard_name(name) or name in others):
            detail = (
                f"{MANIFEST} does not list it, so no run packed it into this output; move it away: "
                "a tool that reads every file of the folder would train on it"
            )
            return Violation(str(join_place(folder, name)), None, None, "files", detail)
    return None


def _hash(file: Place, shard: ShardRecord | None) -> str:
    """Return the sha256 of a file of an output; shard: what the manifest says of it, if it is one.

    So a shard in a store is in the cache when the other checks read it.
    """
    if not isinstance(file, str):
        return hash_file(file)
    if shard is None:
        return hashlib.sha256(read_start(file, _SIDE_FILE_LIMIT)).hexdigest()
    try:
        fetch_shard(file, shard.bytes, shard.sha256, anew=True)
    except ChangedObjectError as error:
        return error.found
    return shard.sha256
