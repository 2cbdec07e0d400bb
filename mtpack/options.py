"""Every option of a run, declared once.

Command-line flags, environment variables, defaults, help texts and checks are derived from the
fields of `PackOptions`. The metadata of a field:

    help            the help text
    changes_output  whether the option decides what the shards hold (it is then in the manifest)
    changes_splits  whether it decides what a tokenized split holds, so that `--token-store` can't
                    reuse splits of another value; by default as `changes_output`
    recorded        whether the recipe of an output has it; False for what says only how a run is
                    done
    aliases         other spellings of a value: {spelling: value}
    minimum, maximum, size (its unit), date (an example), short, metavar, show_default
"""

from __future__ import annotations

import os
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from mtpack.errors import SetupError
from mtpack.option_values import check_value, parse_size

# The date that a template gets if it asks for today's. A constant, so that runs can be repeated.
DEFAULT_DATE = "2026-01-01"
# Of a compressed shard, in tokens: a reader decodes no batch that needs more than such a sequence.
LONGEST_COMPRESSED = 7 * 2**20


def _option(
    default: Any,
    help_text: str,
    *,
    changes_output: bool = True,
    changes_splits: bool | None = None,
    recorded: bool = True,
    **more: Any,
) -> Any:
    metadata = {
        "help": help_text,
        "changes_output": changes_output,
        "changes_splits": changes_output if changes_splits is None else changes_splits,
        "recorded": recorded,
    }
    return field(default=default, metadata=metadata | more)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """The options of `mtpack pack`."""

    seq_len: int = _option(
        4096, "Number of tokens in every sequence.", minimum=2, maximum=2**24, changes_splits=False
    )
    output: str = _option(
        "packed",
        "Folder for the shards, or its URL in a store (s3://, gs://).",
        changes_output=False,
        short="-o",
        metavar="DIR",
    )
    tokenizer: str | None = _option(
        None,
        "A folder with tokenizer.json, a tokenizer.json file, or a Hub id. Default: the small "
        "tokenizer that comes with mtpack.",
        changes_output=False,  # the manifest has the sha256 of its contents instead
        metavar="PATH_OR_ID",
    )
    chat_template: str | None = _option(
        None,
        "The chat template to use: a file or a folder, or the name of one of the tokenizer's. "
        "Default: the tokenizer's own.",
        changes_output=False,
        metavar="FILE_OR_NAME",
    )
    template_arg: tuple[str, ...] = _option(
        (),
        "Set a variable of the chat template, for example enable_thinking=false. Repeatable.",
        metavar="KEY=VALUE",
    )
    format: Literal["auto", "messages", "sharegpt", "alpaca", "text"] = _option(
        "auto",
        "Row format. auto: detect it per file, from its first row that fits a format. text: plain "
        "text, for pre-training, which auto never detects.",
        changes_splits=False,  # the hash of the rows has it
    )
    messages_key: str | None = _option(
        None,
        "The key of each row's messages, if it is none of the known ones. Keys joined by dots name "
        "one in an inner object: data.messages.",
        metavar="NAME",
    )
    split: str | None = _option(
        None,
        "The split to read of a folder that datasets saved with several, such as train.",
        changes_output=False,  # the manifest has the sha256 of the files instead
        metavar="NAME",
    )
    merge: Literal["auto", "always", "never"] = _option(
        "auto",
        "Whether to train all turns of a dialogue in one document. auto: the turns for which this "
        "is exact. always: all turns. never: every turn gets its own document.",
    )
    train_turns: Literal["all", "last"] = _option(
        "all",
        "Which turns of a dialogue carry loss. all: every assistant message, unless its row says "
        "otherwise. last: the last of them alone.",
    )
    turn_weights: bool = _option(
        False,
        "Take weights of messages other than 0 and 1: each turn's part in the mean. The shards "
        "get the column turn_weights.",
    )
    overlong: Literal["turns", "split", "truncate", "drop", "error"] = _option(
        "turns",
        "What to do with a document longer than a sequence. turns: keep the leading turns that "
        "fit whole. split: also give each other turn its own document with the messages that fit "
        "before it. truncate: cut the document. drop: leave it out. error: treat the row as bad.",
        changes_splits=False,
    )
    tool_arguments: Literal["auto", "object", "text"] = _option(
        "auto",
        "The form in which the chat template gets the arguments of tool calls. auto: as objects, "
        "or as JSON text where a probe finds that the template needs text. object: as objects. "
        "text: as JSON text; arguments that are text in a row stay as they are.",
    )
    control_tokens: Literal["keep", "literal", "error"] = _option(
        "keep",
        "What to do with control tokens spelled in the text of users, systems and tools, and with "
        "those that open or end a turn in the text of assistants. keep: encode them as control "
        "tokens. literal: encode them as ordinary text. error: treat the row as bad.",
    )
    packing: Literal["dense", "none"] = _option(
        "dense",
        "dense: fill each sequence with several documents. none: put one document into each.",
        aliases={"optimal": "dense"},
        changes_splits=False,
    )
    label_alignment: Literal["aligned", "shifted"] = _option(
        "aligned",
        "aligned: labels[i] is input_ids[i], as Transformers expects. shifted: labels[i] is "
        "input_ids[i+1], as Megatron-LM expects.",
        changes_splits=False,
    )
    pad_documents_to: int = _option(
        1,
        "Pad every document to a multiple of this number. Context parallelism needs 2*cp.",
        minimum=1,
        changes_splits=False,
    )
    on_error: Literal["fail", "skip"] = _option(
        "fail",
        "What to do with a bad row. fail: stop and report it. skip: write it to rejects.jsonl and "
        "continue.",
        changes_output=False,
    )
    seed: int = _option(0, "Seed for shuffling.", minimum=0, changes_splits=False)
    workers: int = _option(
        0,
        "Number of worker processes. Default: the number of CPU cores.",
        changes_output=False,
        recorded=False,
        minimum=0,
        show_default=False,
    )
    executor: Literal["local", "ray"] = _option(
        "local",
        "What runs the worker processes. local: this machine. ray: a Ray cluster, whose nodes see "
        "the same files. The output does not depend on this option.",
        changes_output=False,
        recorded=False,
    )
    ray_address: str | None = _option(
        None,
        "Address of the Ray cluster, such as auto or HOST:PORT. Default: RAY_ADDRESS in the "
        "environment, else a Ray on this machine that starts and ends with the run.",
        changes_output=False,
        recorded=False,
        metavar="ADDRESS",
    )
    tokenizer_engine: Literal["auto", "tokenizers", "fastokens"] = _option(
        "auto",
        "Library that computes the token ids. auto: fastokens where a probe finds that it gives "
        "the same ids as tokenizers. The ids do not depend on this option.",
        changes_output=False,
        recorded=False,
    )
    shard_size: str = _option(
        "256MiB",
        "Maximum size of a shard. Small outputs get smaller shards.",
        size="B",
        changes_splits=False,
    )
    compression: Literal["none", "lz4", "zstd"] = _option(
        "none",
        "Compression of the shards. Only uncompressed shards can be memory-mapped.",
        changes_splits=False,
    )
    ipc_format: Literal["stream", "file"] = _option(
        "stream",
        "Arrow IPC format. stream: the streaming format, which datasets reads. file: the "
        "random-access file format, which polars, duckdb and pyarrow.dataset read.",
        changes_splits=False,
    )
    window: str = _option(
        "256Mi",
        "Number of tokens that are planned and shuffled together.",
        size="",
        changes_splits=False,
    )
    date: str = _option(
        DEFAULT_DATE,
        "The date that a chat template gets if it asks for today's.",
        metavar="YYYY-MM-DD",
        date=DEFAULT_DATE,
    )
    token_store: str | None = _option(
        None,
        "Folder that keeps tokenized data. Later runs on the same input reuse it, also with "
        "another --seq-len, --seed or --overlong.",
        changes_output=False,
        recorded=False,
        metavar="DIR",
    )
    work_dir: str | None = _option(
        None,
        "Folder for tokenized data and what else an unfinished run needs. Default: .mtpack in the "
        "output; a temporary folder for an output in a store.",
        changes_output=False,
        recorded=False,
        metavar="DIR",
    )
    no_cache: bool = _option(
        False,
        "Keep nothing of the tokenizer in the user's cache folder, and take nothing from it. The "
        "output does not depend on this option.",
        changes_output=False,
        recorded=False,
    )
    unit_timeout: int = _option(
        0,
        "Seconds without progress after which a worker process is ended, and its split or shard is "
        "done once more. Default: ten times what the longest has taken, at least 60.",
        changes_output=False,
        recorded=False,
        minimum=0,
        show_default=False,
        metavar="SECONDS",
    )
    render_seconds: int = _option(
        10,
        "Seconds of CPU time that a single render may take. More stops the run.",
        changes_output=False,
        minimum=1,
        metavar="SECONDS",
    )
    render_memory: str = _option(
        "512MiB",
        "Memory that a single render may take in addition to what its worker process holds. More "
        "stops the run.",
        changes_output=False,
        size="B",
    )
    overwrite: bool = _option(
        False,
        "Replace the complete output of another run.",
        changes_output=False,
        recorded=False,
    )

    def __post_init__(self) -> None:
        """Replace aliases and check every value, and values together; raise SetupError."""
        for option in fields(self):
            value = resolve_alias(option.name, getattr(self, option.name))
            check_value(flag(option.name), value, choices(option), option.metadata)
            object.__setattr__(self, option.name, value)
        if self.seq_len % self.pad_documents_to:
            raise SetupError(
                f"--seq-len {self.seq_len} is not a multiple of --pad-documents-to "
                f"{self.pad_documents_to}; choose one that is"
            )
        if self.messages_key is not None and self.format not in ("auto", "messages"):
            raise SetupError(
                f"--messages-key has no meaning with --format {self.format}; leave one of them out"
            )
        if self.ray_address is not None and self.executor != "ray":
            raise SetupError(
                f"--ray-address has no meaning with --executor {self.executor}; add --executor ray"
            )
        if self.compression != "none" and self.seq_len > LONGEST_COMPRESSED:
            raise SetupError(
                f"--compression {self.compression} allows at most --seq-len {LONGEST_COMPRESSED}; "
                "choose a shorter one, or --compression none"
            )

    @property
    def shard_bytes(self) -> int:
        """The shard size in bytes."""
        return parse_size(self.shard_size, "B")

    @property
    def render_bytes(self) -> int:
        """The memory of a single render in bytes."""
        return parse_size(self.render_memory, "B")

    @property
    def window_tokens(self) -> int:
        """The window in tokens."""
        return parse_size(self.window, "")

    @property
    def num_workers(self) -> int:
        """The number of worker processes."""
        if self.workers:
            return self.workers
        if hasattr(os, "sched_getaffinity"):  # not on macOS; respects the limits of a container
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def split_options(self) -> dict[str, Any]:
        """Return the options that decide what a tokenized split holds, as plain JSON values."""
        chosen = self.output_options()
        return {
            option.name: chosen[option.name]
            for option in fields(self)
            if option.metadata["changes_splits"]
        }

    def output_options(self) -> dict[str, Any]:
        """Return the options that decide what the shards hold, as JSON values."""
        chosen = {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.metadata["changes_output"]
        }
        chosen["template_arg"] = list(self.template_arg)
        chosen["shard_size"] = self.shard_bytes
        chosen["window"] = self.window_tokens
        return chosen


_ALIASES: dict[str, dict[str, Any]] = {
    option.name: option.metadata["aliases"]
    for option in fields(PackOptions)
    if "aliases" in option.metadata
}


def resolve_alias(name: str, value: Any) -> Any:
    """Return the value of option `name` that `value` is an alias of, else `value` itself.

    >>> resolve_alias("packing", "optimal"), resolve_alias("packing", "none")
    ('dense', 'none')
    """
    return _ALIASES.get(name, {}).get(value, value) if isinstance(value, str) else value


def flag(name: str) -> str:
    """Return the command-line flag of an option.

    >>> flag("seq_len")
    '--seq-len'
    """
    return "--" + name.replace("_", "-")


def choices(option: Field[Any]) -> tuple[str, ...]:
    """Return the values of an option, without aliases, or () if they are not a fixed set."""
    is_choice = str(option.type).startswith("Literal")
    return get_args(_read_types()[option.name]) if is_choice else ()


@cache
def _read_types() -> dict[str, Any]:
    """Return the types of the options; to evaluate their annotations takes a millisecond."""
    return get_type_hints(PackOptions)
