"""Compare the files of an output with its manifest, before anything in them is read as Arrow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mtpack.shards.manifest import MANIFEST, Manifest, hash_file
from mtpack.shards.output_folder import find_shards
from mtpack.shards.side_files import SIDE_FILES

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


def find_changed_file(folder: Path, manifest: Manifest) -> Violation | None:
    """Return the first file of an output that is not the one in its manifest, or None.

    A file is another one if it is missing, or if its sha256 differs. A shard or a side file that
    the manifest does not list is a violation too, since other tools read every file of a folder.
    """
    recorded = {shard.path: shard.sha256 for shard in manifest.report.shards} | manifest.files
    for name, sha256 in recorded.items():
        file = folder / name
        if not file.is_file():
            detail = f"the manifest lists it, but there is no such file; {_REMEDY}"
            return Violation(str(file), None, None, "files", detail)
        found = hash_file(file)
        if found != sha256:
            detail = f"the sha256 of the file is {found}; the manifest records {sha256}; {_REMEDY}"
            return Violation(str(file), None, None, "sha256", detail)
    others = SIDE_FILES if manifest.files else ()  # older manifests list no other files
    there = (*find_shards(folder), *(folder / name for name in others))
    for file in there:
        if file.name not in recorded and file.exists():
            detail = (
                f"{MANIFEST} does not list it, so no run packed it into this output; move it away: "
                "a tool that reads every file of the folder would train on it"
            )
            return Violation(str(file), None, None, "files", detail)
    return None
