"""The units of work of a run: tokenize one split, write one shard. Each runs in any process.

What they need beside their task is loaded once a process (`load_pipeline`), from the options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mtpack.activity import Activity
from mtpack.assembling import assemble, padded_lengths
from mtpack.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.encoding import encode_dialogues
from mtpack.errors import SetupError
from mtpack.formats.rows import read_dialogue
from mtpack.manifest import ShardRecord
from mtpack.options import PackOptions
from mtpack.overlong import fit, piece_maker
from mtpack.reading import LINE_LIMIT
from mtpack.rendering import Renderer, load_renderer
from mtpack.shard import ShardMetadata, rows_per_batch, write_shard
from mtpack.splits import Split
from mtpack.stopwatch import Stopwatch
from mtpack.template.chat_template import ChatTemplate, load_chat_template
from mtpack.template.dropped import count_dropped
from mtpack.template.spans import RenderedDialogue, finds_turns
from mtpack.token_store import open_batch, save_batch
from mtpack.tokenizer.loading import LoadedTokenizer, load_tokenizer
from mtpack.turns import Int32, Int64, TokenBatch, TurnFlag, concatenate

# Texts that are rendered before they are encoded: documents of their own repeat what came before,
# so a small split can make many.
_CHARS_AT_A_TIME = 4 * 2**20

_MESSAGES_OF_A_USUAL_ROW = 60

_FLAG_COUNTS = {
    "turns_own_document": TurnFlag.OWN_DOCUMENT,
    "prompt_differs": TurnFlag.PROMPT_DIFFERS,
    "no_eot": TurnFlag.NO_EOT,
    "unproven": TurnFlag.UNPROVEN,
    "bent": TurnFlag.BENT,
}


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What turns rows into documents."""

    options: PackOptions
    tokenizer: LoadedTokenizer
    template: ChatTemplate
    renderer: Renderer
    activity: Activity = field(default_factory=Activity)
    """Where the process says which row it is at."""

    @property
    def template_source(self) -> str:
        """Where the chat template comes from."""
        return self.options.chat_template or self.tokenizer.source

    @property
    def shard_metadata(self) -> ShardMetadata:
        """What the shards of this run say of themselves."""
        return ShardMetadata(
            seq_len=self.options.seq_len,
            label_alignment=self.options.label_alignment,
            pad_documents_to=self.options.pad_documents_to,
            pad_id=self.tokenizer.pad_id,
            tokenizer_sha256=self.tokenizer.sha256,
            template_sha256=self.template.sha256,
        )


def load_pipeline(options: PackOptions) -> Pipeline:
    """Load tokenizer and template; raise SetupError."""
    tokenizer = load_tokenizer(options.tokenizer)
    template = load_chat_template(
        tokenizer, options.chat_template, options.template_arg, options.date
    )
    if not finds_turns(template, tokenizer.added_tokens):
        raise SetupError(
            f"{options.chat_template or tokenizer.source}: where the chat template writes an "
            "assistant message can't be found; use one that writes messages one by one in a loop"
        )
    renderer = load_renderer(template, tokenizer, options)
    return Pipeline(options, tokenizer, template, renderer)


@dataclass(frozen=True, slots=True)
class SplitTask:
    """Read, render and tokenize one split, and keep its documents in a file."""

    split: Split
    file: Path
    replay: bool = True
    """Whether dialogues may be filled in without rendering them."""


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """What became of a split."""

    file: Path
    counts: Counter[str]
    rejects: list[Reject]
    document_lengths: Int32
    """(documents,): tokens, without padding."""
    seconds: Mapping[str, float]
    warnings: frozenset[str] = field(default_factory=frozenset)


def tokenize_split(pipeline: Pipeline, task: SplitTask) -> SplitRecord:
    """Run one `SplitTask`."""
    watch = Stopwatch()
    if not task.replay:
        pipeline = replace(pipeline, renderer=pipeline.renderer.without_replay())
    replays_before = _replay_counts(pipeline)
    dialogues, rejects = _read(task.split)
    watch.lap("read")
    done = _tokenize(pipeline, dialogues, watch)
    if done.rejected_rows:  # they leave no trace in any count
        kept = [dialogue for dialogue in dialogues if dialogue.row not in done.rejected_rows]
        overlong = [dialogue for dialogue in dialogues if dialogue.row in done.rejected_rows]
        rejects += [_overlong(dialogue, pipeline.options.seq_len) for dialogue in overlong]
        done = _tokenize(pipeline, kept, watch)
    rejects += done.rejects
    save_batch(task.file, done.batch)
    watch.lap("tokenize")
    for part, number in count_dropped(pipeline.template, done.accepted).items():
        done.counts[f"content_dropped.{part}"] = number
    watch.lap("render")
    done.counts.update(_replay_counts(pipeline) - replays_before)
    done.counts["rendered"] = len(done.accepted) - done.counts["replayed"]
    return SplitRecord(
        file=task.file,
        counts=_count(task.split, done.accepted, rejects, done.batch, done.counts),
        rejects=sorted(rejects, key=lambda reject: reject.row),
        document_lengths=done.batch.document_lengths.astype(np.int32),
        seconds=watch.seconds,
        warnings=_warnings(pipeline.template, done.accepted),
    )


def _replay_counts(pipeline: Pipeline) -> Counter[str]:
    replayer = pipeline.renderer.replayer
    if replayer is None:
        return Counter()
    names = ("replayed", "audited", "audit_mismatches")
    return Counter({name: getattr(replayer, name) for name in names})


@dataclass(frozen=True, slots=True)
class _Tokenized:
    """Dialogues as documents that fit."""

    batch: TokenBatch
    accepted: list[Dialogue]
    rejects: list[Reject]
    counts: Counter[str]
    rejected_rows: set[int]
    """Accepted so far, but too long under `--overlong error`."""


def _tokenize(pipeline: Pipeline, dialogues: list[Dialogue], watch: Stopwatch) -> _Tokenized:
    options = pipeline.options
    accepted: list[Dialogue] = []
    rejects: list[Reject] = []
    counts: Counter[str] = Counter()
    batches: list[TokenBatch] = []
    for rendered in _rendered(pipeline, dialogues, rejects):
        watch.lap("render")
        _say_tokenizing(pipeline, rendered)
        batch, found = encode_dialogues(pipeline.tokenizer, rendered, options.merge)
        batches.append(batch)
        accepted += [item.dialogue for item in rendered]
        counts += found
        watch.lap("tokenize")
    by_row = {dialogue.row: dialogue for dialogue in accepted}
    make_piece = piece_maker(pipeline.renderer, pipeline.tokenizer, by_row, options.seq_len)

    def make_piece_and_say_so(row: int, message: int) -> TokenBatch | None:
        _say_rendering(pipeline, by_row[row])
        return make_piece(row, message)

    fitted = fit(concatenate(batches), options.seq_len, options.overlong, make_piece_and_say_so)
    pipeline.activity.end()
    counts += fitted.counts + pipeline.renderer.count_spelling(accepted)
    return _Tokenized(fitted.batch, accepted, rejects, counts, fitted.rejected_rows)


def _rendered(
    pipeline: Pipeline, dialogues: list[Dialogue], rejects: list[Reject]
) -> Iterator[list[RenderedDialogue]]:
    """Yield rendered dialogues, some at a time; add those that can't be rendered to `rejects`."""
    rendered: list[RenderedDialogue] = []
    num_chars = 0
    for dialogue in dialogues:
        _say_rendering(pipeline, dialogue)
        result = pipeline.renderer.render(dialogue, pipeline.options.merge)
        if isinstance(result, Reject):
            rejects.append(result)
            continue
        rendered.append(result)
        num_chars += _num_chars(result)
        if num_chars >= _CHARS_AT_A_TIME:
            yield rendered
            rendered, num_chars = [], 0
    yield rendered


def _say_rendering(pipeline: Pipeline, dialogue: Dialogue) -> None:
    pipeline.activity.begin(
        f"{dialogue.origin}: rendering with the chat template of {pipeline.template_source}",
        effort=1 + len(dialogue.messages) / _MESSAGES_OF_A_USUAL_ROW,
    )


def _say_tokenizing(pipeline: Pipeline, rendered: list[RenderedDialogue]) -> None:
    if rendered:
        first, last = rendered[0].dialogue.origin, rendered[-1].dialogue.origin
        rows = str(first) if first == last else f"{first} to {last}"
        pipeline.activity.begin(
            f"{rows}: tokenizing with {pipeline.tokenizer.source}",
            effort=1 + sum(map(_num_chars, rendered)) / _CHARS_AT_A_TIME,
        )


def _num_chars(rendered: RenderedDialogue) -> int:
    return sum(len(document.text) for document in (rendered.merged, *rendered.own))


def _read(split: Split) -> tuple[list[Dialogue], list[Reject]]:
    dialogues: list[Dialogue] = []
    rejects: list[Reject] = []
    for row, raw in enumerate(split.rows(), split.first_row):
        result = read_dialogue(row, Origin(raw.file, raw.line), raw.text, LINE_LIMIT, raw.format)
        if isinstance(result, Reject):
            rejects.append(result)
        else:
            dialogues.append(result)
    return dialogues, rejects


def _overlong(dialogue: Dialogue, seq_len: int) -> Reject:
    return Reject(
        dialogue.row,
        dialogue.origin,
        Reason.OVERLONG,
        f"longer than {seq_len:,} tokens; choose a larger --seq-len or another --overlong",
    )


def _count(
    split: Split,
    accepted: list[Dialogue],
    rejects: list[Reject],
    batch: TokenBatch,
    counts: Counter[str],
) -> Counter[str]:
    """Account for every row and turn of a split."""
    packed_rows = set(batch.document_rows.tolist())
    for dialogue in accepted:
        if dialogue.row not in packed_rows:
            reason = "no_turn" if not dialogue.trained_messages() else "no_turn_left"
            counts[f"rows_dropped.{reason}"] += 1
    for reject in rejects:
        counts[f"rows_rejected.{reject.reason}"] += 1
    counts["rows_read"] = split.num_rows
    counts["rows_packed"] = len(packed_rows)
    counts["documents"] = batch.num_documents
    counts["turns_read"] = sum(len(dialogue.trained_messages()) for dialogue in accepted)
    counts["turns_packed"] = batch.num_turns
    counts["tokens"] = len(batch.ids)
    counts["loss_tokens"] = int(batch.loss_token_num.sum())
    for name, flag in _FLAG_COUNTS.items():
        counts[name] = int(np.count_nonzero(batch.turn_flags & flag))
    return counts


def _warnings(template: ChatTemplate, dialogues: list[Dialogue]) -> frozenset[str]:
    if not any(_has_text_arguments(dialogue) for dialogue in dialogues):
        return frozenset()
    if not template.encodes_text_twice:
        return frozenset()
    return frozenset(
        {
            "the chat template encodes tool-call arguments as JSON, and in some rows they are JSON "
            "text already, so they come out quoted twice; give them as objects"
        }
    )


def _has_text_arguments(dialogue: Dialogue) -> bool:
    return any(
        isinstance(call.get("function", call).get("arguments"), str)
        for message in dialogue.messages
        for call in message.fields.get("tool_calls", ())
    )


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Assemble and write one shard."""

    number: int
    folder: Path
    pieces: list[tuple[Path, Int64]]
    """Split files, and which of their documents to take."""
    order: Int64
    """(documents,): which of the taken documents comes first, second, ..."""
    sequence_offsets: Int64
    """(sequences + 1,)"""


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard in the work area, and the seconds that it took."""

    record: ShardRecord
    seconds: Mapping[str, float]


def write_one_shard(pipeline: Pipeline, task: ShardTask) -> WrittenShard:
    """Run one `ShardTask`."""
    watch = Stopwatch()
    options = pipeline.options
    batch = concatenate([open_batch(file).take(documents) for file, documents in task.pieces])
    metadata = pipeline.shard_metadata
    columns = assemble(batch.take(task.order), task.sequence_offsets, metadata.layout)
    watch.lap("assemble")
    name = f"shard-{task.number:05d}.arrow"
    sha256 = write_shard(
        task.folder / name,
        columns,
        metadata,
        ipc_format=options.ipc_format,
        compression=options.compression,
        batch_rows=rows_per_batch(options.seq_len, options.shard_bytes, options.compression),
    )
    watch.lap("write")
    size = (task.folder / name).stat().st_size
    return WrittenShard(
        ShardRecord(name, len(task.sequence_offsets) - 1, size, sha256), watch.seconds
    )


def places_taken(record: SplitRecord, options: PackOptions) -> Int64:
    """Return how many places of a sequence each document of a split takes, (documents,)."""
    return padded_lengths(record.document_lengths.astype(np.int64), options.pad_documents_to)
