"""What a complete output says of itself: the report of a run, and `manifest.json`.

The hashed part of the manifest is the same for the same input, options and seed; what differs
between runs (seconds, the engine, where the tokenizer was) stands beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from mtpack.errors import InputError
from mtpack.shards.arrow import FORMAT_VERSION

MANIFEST = "manifest.json"

_Record = TypeVar("_Record", "RunIdentity", "Tally", "ShardRecord", "RunInfo")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard of an output."""

    path: str
    """File name in the output folder."""
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of every row, turn and token. `rows_read` and `turns_read` always add up."""

    rows_read: int
    rows_packed: int
    """Rows of which at least one turn is in a sequence."""
    rows_dropped: dict[str, int]
    rows_rejected: dict[str, int]
    documents: int
    turns_read: int
    """Trained assistant messages of the accepted rows."""
    turns_packed: int
    turns_dropped: dict[str, int]
    turns_own_document: int
    """Packed turns for which merging is not exact, each in a document of its own."""
    prompt_differs: int
    no_eot: int
    unproven: int
    bent: int
    given_trained: int
    """Loss tokens that start before the model takes over, because the template marks them."""
    straddles: int
    """Tokens left out of the loss because they reach over a turn's edge."""
    content_dropped: dict[str, int]
    """What the template leaves out (`assistant.tool_calls`, say): how many messages, before the
    overlong policy; of `tools`, how many accepted rows."""
    tokens: int
    """Of all documents, without padding."""
    tokens_if_merged: int
    """Of all accepted rows, had every turn been merged, before the overlong policy."""
    loss_tokens: int
    control_tokens: int
    """Accepted rows whose given text spells a control token, which is kept as one."""
    control_tokens_literal: int
    """Accepted rows whose given text spells a control token, which is encoded as text."""
    sequences: int
    sequences_lower_bound: int

    @classmethod
    def of(cls, counts: Counter[str]) -> Tally:
        """Build a tally from flat counts, in which a reason stands behind a dot."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.type == "int":
                values[field.name] = counts[field.name]
            else:
                prefix = f"{field.name}."
                values[field.name] = {
                    key.removeprefix(prefix): count
                    for key, count in sorted(counts.items())
                    if key.startswith(prefix) and count
                }
        return cls(**values)

    def check(self) -> None:
        """Make sure that nothing has disappeared; a failure is a bug in mtpack."""
        rows = self.rows_packed + sum(self.rows_dropped.values()) + sum(self.rows_rejected.values())
        turns = self.turns_packed + sum(self.turns_dropped.values())
        if rows != self.rows_read or turns != self.turns_read:
            raise AssertionError(f"the counts do not add up: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run used and how long it took; it has no part in what the shards hold."""

    mtpack_version: str
    tokenizer: str
    inputs: list[str]
    """The files, as the user named them."""
    seconds: dict[str, float]
    """By stage, summed over workers. `total` is wall time without `start`, in which tokenizer,
    template and engine are loaded and proven, and workers started."""
    warnings: list[str]
    tokenizer_engine: str = "tokenizers"
    rendered: int = 0
    """Dialogues rendered by the template."""
    replayed: int = 0
    """Dialogues filled in without that (mtpack/template/tracing/README.md)."""
    reused: int = 0
    """Dialogues that were taken as tokens from `--token-store`."""
    token_store_bytes: int = 0
    """What `--token-store` holds now, for all runs."""
    audited: int = 0
    """Replayed dialogues that were rendered as well, and texts that both engines encoded."""
    audit_mismatches: int = 0
    """Those that differed; all was done again without the short cut then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """The result of `pack`."""

    output: str
    seq_len: int
    tally: Tally
    shards: list[ShardRecord]
    about: RunInfo

    @property
    def fill(self) -> float:
        """The share of all places in the sequences that hold a document's token."""
        return self.tally.tokens / (self.tally.sequences * self.seq_len)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `pack --json` prints."""
        return {
            "output": self.output,
            **asdict(self.tally),
            "fill": round(self.fill, 6),
            "shards": [asdict(shard) for shard in self.shards],
            **asdict(self.about),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What decides the contents of an output: equal runs give equal shards."""

    options: dict[str, Any]
    inputs: list[dict[str, Any]]
    """`bytes` and `sha256` of every file, in order."""
    tokenizer_sha256: str
    template_sha256: str

    def difference(self, other: RunIdentity) -> str | None:
        """Name what sets another run apart from this one, or return None."""
        for name in sorted(self.options.keys() | other.options.keys()):
            value, wanted = self.options.get(name), other.options.get(name)
            if value != wanted:
                return f"its {name} is {_shown(value)}, not {_shown(wanted)}"
        if self.tokenizer_sha256 != other.tokenizer_sha256:
            return "the tokenizer is another one"
        if self.template_sha256 != other.template_sha256:
            return "the chat template is another one"
        if [file["sha256"] for file in self.inputs] != [file["sha256"] for file in other.inputs]:
            return "the input is another one"
        return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`: its presence means that the output is complete."""

    run: RunIdentity
    report: PackReport

    def write(self, path: Path) -> None:
        """Write canonical JSON."""
        hashed = {
            "format_version": FORMAT_VERSION,
            "run": asdict(self.run),
            "tally": asdict(self.report.tally),
            "shards": [asdict(shard) for shard in self.report.shards],
        }
        sha256 = hashlib.sha256(_canonical(hashed).encode()).hexdigest()
        whole = {**hashed, "sha256": sha256, "about": asdict(self.report.about)}
        path.write_text(json.dumps(whole, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an output folder; raise InputError."""
    path = folder / MANIFEST
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        sha256, about = whole.pop("sha256"), whole.pop("about")
        if whole["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{path}: format version {whole['format_version']}; "
                f"this mtpack reads version {FORMAT_VERSION}"
            )
        if hashlib.sha256(_canonical(whole).encode()).hexdigest() != sha256:
            raise InputError(f"{path}: changed since it was written; pack the data again")
        run = _checked(RunIdentity, whole["run"])
        return Manifest(
            run,
            PackReport(
                output=str(folder),
                seq_len=run.options["seq_len"],
                tally=_checked(Tally, whole["tally"]),
                shards=[_checked(ShardRecord, shard) for shard in whole["shards"]],
                about=_checked(RunInfo, about),
            ),
        )
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged; pack the data again") from error


def is_manifest(path: Path) -> bool:
    """Return whether a file looks like a manifest that mtpack wrote, whole or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return b'"format_version"' in content and b'"tally"' in content


_TYPES = {"int": int, "str": str, "dict": dict, "list": list}


def _checked(kind: type[_Record], values: dict[str, Any]) -> _Record:
    """Build a data class from JSON; raise TypeError where a value is of another type."""
    record = kind(**values)
    for field in fields(record):
        expected = _TYPES[str(field.type).split("[")[0]]
        if type(getattr(record, field.name)) is not expected:
            raise TypeError(field.name)
    return record


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _shown(value: Any) -> str:
    return "unset" if value in (None, []) else str(value)
