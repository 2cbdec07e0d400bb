"""The report of a run, and `manifest.json`, which holds it in a complete output.

The hashed part of the manifest is the same for the same input, options and seed. What differs
between runs (seconds, the engine, the path of the tokenizer) is next to it, under `about`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from mtpack.counts import Counts, RunCounts
from mtpack.errors import InputError
from mtpack.options import resolve_alias
from mtpack.shards.arrow import FORMAT_VERSION, require_format_version
from mtpack.shards.atomic_file import atomic_file
from mtpack.storage.places import Place, join_place, read_start

MANIFEST = "manifest.json"
RECIPE = "recipe.toml"
"""The recipe of an output. It names files, so it is not in the hashed part of the manifest."""
_MANIFEST_LIMIT = 64 * 2**20

_Record = TypeVar("_Record", "RunIdentity", "Counts", "ShardRecord", "RunInfo")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard of an output."""

    path: str
    """The name of its file in the output folder."""
    rows: int
    """The number of its sequences."""
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """What happened to the rows of a source."""

    name: str
    first_dialogue: int
    """The first of its `dialogue_ids`; the others follow it."""
    counts: Counts
    """Those of its rows, without sequences, which hold rows of all sources."""

    def as_dict(self) -> dict[str, Any]:
        """Return the source as JSON values; its `dialogue_ids` are a range without its end."""
        counts = asdict(self.counts)
        del counts["sequences"], counts["sequences_lower_bound"]
        end = self.first_dialogue + self.counts.rows_read
        return {"name": self.name, "dialogue_ids": [self.first_dialogue, end], **counts}


def _parse_source(values: dict[str, Any]) -> SourceRecord:
    """Return the source from its JSON values; raise TypeError and others."""
    counts = dict(values)
    name, (first, end) = counts.pop("name"), counts.pop("dialogue_ids")
    record = SourceRecord(name=name, first_dialogue=first, counts=_build_checked(Counts, counts))
    if not isinstance(name, str) or record.as_dict()["dialogue_ids"] != [first, end]:
        raise TypeError("dialogue_ids")
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo(RunCounts):
    """What a run used and how long it took. The shards do not depend on it."""

    mtpack_version: str
    tokenizer: str
    """The path or name of the tokenizer."""
    inputs: list[str]
    """The names of the input files, as the user gave them."""
    seconds: dict[str, float]
    """By stage, summed over workers. `start`: to load tokenizer, template and engine, to probe the
    engine, and to start workers. `store`, `commit` and `record`: to keep splits, shards and windows
    for a run that continues this one; shards are committed by threads. `total`: wall time without
    `start`."""
    warnings: list[str]
    tokenizer_engine: str = "tokenizers"
    inputs_modified_ns: list[int] = field(default_factory=list)
    """The times of the last changes of the input files, in nanoseconds since 1970."""
    token_store_bytes: int = 0
    """The size of `--token-store` after this run, for all runs."""
    recipe_sha256: str = ""
    """That of `recipe.toml`, which names files; older outputs have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """The result of `pack`."""

    output: str
    """The output folder."""
    seq_len: int
    tally: Counts
    """The counts of the whole run."""
    shards: list[ShardRecord]
    about: RunInfo
    sources: list[SourceRecord] = field(default_factory=list)
    """In order; empty if there is only one, and it has no name."""

    @property
    def fill(self) -> float:
        """The share of all positions in the sequences that hold a token of a document."""
        return self.tally.tokens / (self.tally.sequences * self.seq_len)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `pack --json` prints."""
        return {
            "output": self.output,
            **asdict(self.tally),
            "fill": round(self.fill, 6),
            "shards": [asdict(shard) for shard in self.shards],
            "sources": [source.as_dict() for source in self.sources],
            **asdict(self.about),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """All that the contents of an output depend on: equal runs give equal shards."""

    options: dict[str, Any]
    inputs: list[dict[str, Any]]
    """`bytes` and `sha256` of every file, in order; before it was read, `bytes` alone."""
    tokenizer_sha256: str
    template_sha256: str
    sources: list[dict[str, Any]] = field(default_factory=list)
    """What is read of each source, and how; empty if there is one without anything to say. With
    several, each of `inputs` has the index of its `source`."""

    def difference(self, other: RunIdentity) -> str | None:
        """Return how this run differs from `other`, as text for the user; None if it does not."""
        for name in sorted(self.options.keys() | other.options.keys()):
            value, wanted = (resolve_alias(name, run.options.get(name)) for run in (self, other))
            if value != wanted:
                return f"its {name} is {_format_value(value)}, not {_format_value(wanted)}"
        if self.tokenizer_sha256 != other.tokenizer_sha256:
            return "the tokenizer is different"
        if self.template_sha256 != other.template_sha256:
            return "the chat template is different"
        if self.sources != other.sources:
            return "its sources are different"
        for name in ("bytes", "sha256", "source"):
            ours, theirs = ([f.get(name) for f in run.inputs] for run in (self, other))
            if ours != theirs and None not in theirs:
                return "the input is different"
        return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of `manifest.json`, whose presence means that the output is complete."""

    run: RunIdentity
    report: PackReport
    files: dict[str, str] = field(default_factory=dict)
    """The sha256 of each other file of the output, by name; older manifests list none."""

    def list_files(self) -> dict[str, str]:
        """Return the sha256 of every file of the output but the manifest, by name."""
        shards = {shard.path: shard.sha256 for shard in self.report.shards}
        recipe = self.report.about.recipe_sha256
        return shards | self.files | ({RECIPE: recipe} if recipe else {})

    def write(self, path: Path) -> None:
        """Write the manifest as canonical JSON, with the sha256 of its hashed part."""
        run = asdict(self.run)
        hashed = {
            "format_version": FORMAT_VERSION,
            "run": run,
            "tally": asdict(self.report.tally),
            "shards": [asdict(shard) for shard in self.report.shards],
            "files": self.files,
        }
        if self.report.sources:
            hashed["sources"] = [source.as_dict() for source in self.report.sources]
        if not self.run.sources:  # so a run without a recipe has the manifest that it always had
            del run["sources"]
        whole = {**hashed, "sha256": _hash(hashed), "about": asdict(self.report.about)}
        with atomic_file(path, durable=True) as file:
            file.write(_format(whole))


def read_manifest(folder: Place, name: str = MANIFEST) -> Manifest:
    """Read the manifest of an output; raise InputError if it is missing or damaged.

    Its text has to be the one that mtpack writes, so that any change outside of `about` is found.
    Names have to be those of files in the folder.
    """
    path = join_place(folder, name)
    try:
        text = read_start(path, _MANIFEST_LIMIT)
        whole = json.loads(text)
        is_original = _format(whole) == text
        sha256, about = whole.pop("sha256"), whole.pop("about")
        require_format_version(path, whole["format_version"], [FORMAT_VERSION])
        if not is_original or _hash(whole) != sha256:
            raise InputError(f"{path}: changed since it was written; pack the data again")
        for name in (*(shard["path"] for shard in whole["shards"]), *whole.get("files", {})):
            if Path(name).name != name or "\0" in name:
                raise InputError(f"{path}: damaged; {name!r} is not a file name")
        run = _build_checked(RunIdentity, whole["run"])
        return Manifest(
            run,
            PackReport(
                output=str(folder),
                seq_len=run.options["seq_len"],
                tally=_build_checked(Counts, whole["tally"]),
                shards=[_build_checked(ShardRecord, shard) for shard in whole["shards"]],
                about=_build_checked(RunInfo, about),
                sources=[_parse_source(source) for source in whole.get("sources", [])],
            ),
            dict(whole.get("files", {})),
        )
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged; pack the data again") from error


def is_manifest(place: Place) -> bool:
    """Return whether a file or an object looks like a manifest of mtpack, intact or damaged."""
    try:
        content = read_start(place, _MANIFEST_LIMIT)
    except OSError:
        return False
    return b'"format_version"' in content and b'"tally"' in content


_TYPES = {"int": int, "str": str, "dict": dict, "list": list}


def _build_checked(kind: type[_Record], values: dict[str, Any]) -> _Record:
    """Build a data class from JSON; raise TypeError for a value of the wrong type."""
    record = kind(**values)
    for each in fields(record):
        expected = _TYPES[str(each.type).split("[")[0]]
        if type(getattr(record, each.name)) is not expected:
            raise TypeError(each.name)
    return record


def hash_file(path: Path) -> str:
    """Return the sha256 of a file; raise OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(hashed: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical_json(hashed).encode()).hexdigest()


def _canonical_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _format(whole: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(whole, sort_keys=True, indent=1)}\n".encode()


def _format_value(value: Any) -> str:
    return "unset" if value in (None, []) else str(value)
