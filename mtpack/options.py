"""Every choice of a run, declared once.

Command-line flags, defaults, help texts, the checks and the fingerprint derive from the fields of
`PackOptions`. A field with `changes_output` decides what the shards hold.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from mtpack.errors import SetupError

# What a template that asks for the date is told. A constant, so that runs repeat.
DEFAULT_DATE = "2026-01-01"

_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _option(default: Any, help_text: str, *, changes_output: bool = True, **more: Any) -> Any:
    return field(
        default=default, metadata={"help": help_text, "changes_output": changes_output, **more}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """The options of `mtpack pack`."""

    seq_len: int = _option(4096, "Tokens in every sequence.", minimum=2, maximum=2**24)
    output: str = _option(
        "packed", "Folder for the shards.", changes_output=False, short="-o", metavar="DIR"
    )
    tokenizer: str | None = _option(
        None,
        "A folder with tokenizer.json, that file, or a Hub id. Without it, the small tokenizer "
        "that ships with mtpack.",
        changes_output=False,  # the fingerprint has the contents' sha256 instead
        metavar="PATH_OR_ID",
    )
    chat_template: str | None = _option(
        None,
        "A Jinja chat template to use instead of the tokenizer's own.",
        changes_output=False,
        metavar="FILE",
    )
    template_arg: tuple[str, ...] = _option(
        (), "Set a variable of the template, as in enable_thinking=false.", metavar="KEY=VALUE"
    )
    format: Literal["auto", "messages", "sharegpt", "alpaca"] = _option(
        "auto",
        "How dialogues are written: told from the first row of each file that is one (auto), or "
        "as named.",
    )
    merge: Literal["auto", "always", "never"] = _option(
        "auto",
        "Train all turns of a dialogue in one document: where that is exact (auto), always, or "
        "never (every turn in a document of its own).",
    )
    overlong: Literal["turns", "split", "truncate", "drop", "error"] = _option(
        "turns",
        "A document longer than the sequence: keep the leading whole turns (turns), continue in "
        "further documents (split), cut it (truncate), leave it out (drop), or call the row bad "
        "(error).",
    )
    control_tokens: Literal["keep", "literal", "error"] = _option(
        "keep",
        "Control tokens that the text of users, systems and tools spells: keep them, encode them "
        "as ordinary text (literal), or call the row bad (error).",
    )
    packing: Literal["optimal", "none"] = _option(
        "optimal", "Fill sequences with several documents, or put one into each (none)."
    )
    label_alignment: Literal["aligned", "shifted"] = _option(
        "aligned",
        "labels[i] is input_ids[i] (aligned, as Transformers expects) or input_ids[i+1] (shifted, "
        "as Megatron-LM expects).",
    )
    pad_documents_to: int = _option(
        1, "Pad every document to a multiple of this (context parallelism wants 2*cp).", minimum=1
    )
    on_error: Literal["fail", "skip"] = _option(
        "fail",
        "A bad row: stop and name it, or put it into rejects.jsonl and go on.",
        changes_output=False,
    )
    seed: int = _option(0, "Seed of the shuffles.", minimum=0)
    workers: int = _option(
        0,
        "Worker processes; by default as many as there are cores.",
        changes_output=False,
        minimum=0,
        show_default=False,
    )
    tokenizer_engine: Literal["auto", "tokenizers", "fastokens"] = _option(
        "auto",
        "What makes the ids: fastokens where it is proven to give those of tokenizers (auto), or "
        "as named. The ids are the same.",
        changes_output=False,
    )
    shard_size: str = _option(
        "256MiB", "Size of a shard, at most; smaller outputs have smaller ones.", size="B"
    )
    compression: Literal["none", "lz4", "zstd"] = _option(
        "none", "Compress shards; only uncompressed ones can be mapped into memory."
    )
    ipc_format: Literal["stream", "file"] = _option(
        "stream",
        "Arrow IPC streaming format (what datasets reads) or random-access file format (what "
        "polars, duckdb and pyarrow.dataset read).",
    )
    window: str = _option("256Mi", "Tokens that are planned and shuffled together.", size="")
    date: str = _option(
        DEFAULT_DATE, "What a template that asks for the date is told.", metavar="YYYY-MM-DD"
    )
    token_store: str | None = _option(
        None,
        "Keep tokenized splits here: the same data packs again at another --seq-len, --seed or "
        "policy without tokenizing, into any number of outputs.",
        changes_output=False,
        metavar="DIR",
    )
    overwrite: bool = _option(
        False, "Replace a complete output of another run.", changes_output=False
    )

    def __post_init__(self) -> None:
        """Check every value, and that values go together; raise SetupError."""
        for option in fields(self):
            _check(option, getattr(self, option.name))
        if self.seq_len % self.pad_documents_to:
            raise SetupError(
                f"--seq-len {self.seq_len} is not a multiple of --pad-documents-to "
                f"{self.pad_documents_to}; choose one that is"
            )

    @property
    def shard_bytes(self) -> int:
        """The shard size in bytes."""
        return parse_size(self.shard_size, "B")

    @property
    def window_tokens(self) -> int:
        """The window in tokens."""
        return parse_size(self.window, "")

    @property
    def num_workers(self) -> int:
        """The number of worker processes."""
        if self.workers:
            return self.workers
        if hasattr(os, "sched_getaffinity"):  # not on macOS; where it is, it knows of containers
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def output_options(self) -> dict[str, Any]:
        """Return the options that decide what the shards hold, as plain JSON values."""
        chosen = {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.metadata["changes_output"]
        }
        chosen["template_arg"] = list(self.template_arg)
        chosen["shard_size"] = self.shard_bytes
        chosen["window"] = self.window_tokens
        return chosen


def options_from(values: Mapping[str, Any]) -> PackOptions:
    """Build options from what a Python caller naturally passes; raise SetupError.

    Paths are taken for file names, whole numbers for sizes, and a mapping or one text for template
    arguments.
    """
    known = {option.name: option for option in fields(PackOptions)}
    taken: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise SetupError(f"{name}: no such option; see mtpack pack --help")
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif "size" in known[name].metadata and type(value) is int:
            value = str(value)
        elif name == "template_arg":
            value = _template_arguments(value)
        taken[name] = value
    return PackOptions(**taken)


def _template_arguments(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(f"{key}={json.dumps(item)}" for key, item in value.items())
    return tuple(value)


def flag(name: str) -> str:
    """Return the command-line flag of an option.

    >>> flag("seq_len")
    '--seq-len'
    """
    return "--" + name.replace("_", "-")


def choices(option: Field[Any]) -> tuple[str, ...]:
    """Return the values that an option can take, or () where they are not a fixed set."""
    return get_args(get_type_hints(PackOptions)[option.name]) if _is_choice(option) else ()


def parse_size(text: str, unit: str) -> int:
    """Read a size such as 256MiB (unit `B`) or 256Mi (no unit); raise ValueError.

    >>> parse_size("256MiB", "B"), parse_size("4Mi", ""), parse_size("1000", "B")
    (268435456, 4194304, 1000)
    """
    match = re.fullmatch(r"(\d+)\s*((?:[KMGT]i)?)" + (f"{unit}?" if unit else ""), text.strip())
    if not match or not int(match[1]):
        raise ValueError(text)
    return int(match[1]) * _UNITS[match[2]]


def _is_choice(option: Field[Any]) -> bool:
    return str(option.type).startswith("Literal")


def _check(option: Field[Any], value: Any) -> None:
    name = flag(option.name)
    if _is_choice(option) and value not in choices(option):
        raise SetupError(f"{name} {value}: not one of {', '.join(choices(option))}")
    if "minimum" in option.metadata:
        minimum, maximum = option.metadata["minimum"], option.metadata.get("maximum", 2**63)
        if type(value) is not int or value < minimum:
            raise SetupError(f"{name} {value}: must be a whole number, at least {minimum}")
        if value > maximum:
            raise SetupError(f"{name} {value}: must be {maximum:,} at most")
    if "size" in option.metadata:
        unit = option.metadata["size"]
        try:
            parse_size(value, unit)
        except ValueError:
            raise SetupError(
                f"{name} {value}: not a size; write it as 256Mi{unit} or 1Gi{unit}"
            ) from None
    if option.name == "date":
        try:
            datetime.date.fromisoformat(value)
        except ValueError:
            raise SetupError(f"{name} {value}: not a date; write it as {DEFAULT_DATE}") from None
