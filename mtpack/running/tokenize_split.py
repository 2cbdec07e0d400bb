"""Turn the rows of a split into documents of any length: read, render and tokenize."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from mtpack.counts import Counts, RunCounts
from mtpack.documents.token_spans import encode_dialogues
from mtpack.fast_path import FASTOKENS, REPLAY
from mtpack.input.dialogue import Reject
from mtpack.input.splits import Split
from mtpack.running.pipeline import Pipeline
from mtpack.running.plain_text_renderer import PlainTextRenderer
from mtpack.running.row_renderer import BYTES_PER_BATCH, RowRenderer
from mtpack.running.stopwatch import Stopwatch
from mtpack.token_batch import Int32, TokenBatch, concatenate


@dataclass(frozen=True, slots=True)
class TokenizedSplit:
    """The rows of a split as documents of any length, before the overlong policy."""

    batch: TokenBatch
    row_turns: Int32
    """(rows,): the number of trained assistant messages of each; -1 for a rejected row."""
    rejects: list[Reject]
    """In ascending order of rows."""
    counts: Counts
    """The counts that are known before the overlong policy only."""
    run_counts: RunCounts
    warnings: frozenset[str]
    fast_paths: frozenset[str]
    """The fast paths that produced some of it: `REPLAY`, `FASTOKENS`."""


def tokenize(
    pipeline: Pipeline, split: Split, watch: Stopwatch, overlong: Collection[int] = ()
) -> TokenizedSplit:
    """Read, render and tokenize the rows of a split.

    overlong: the indices of rows to reject, because they are too long. Raises FastPathFailedError.
    """
    encoder = pipeline.encoders.reference
    before = pipeline.count_fast_paths()
    batches: list[TokenBatch] = []
    is_text = pipeline.sources[split.source].is_text
    rows = (PlainTextRenderer if is_text else RowRenderer)(pipeline, split, overlong)
    counts = Counts()
    for documents in rows.render(watch):
        pipeline.heartbeat.begin(
            f"{rows.describe(documents)}: tokenizing with {pipeline.tokenizer.source}",
            effort=1 + int(documents.lengths.sum()) / BYTES_PER_BATCH,
        )
        if pipeline.options.tokenizer_engine == FASTOKENS:
            merged = documents.merged.tolist()
            encoder = pipeline.encoders.probe_fast(documents.texts[number] for number in merged)
        batch, found = encode_dialogues(encoder, documents, pipeline.options.merge)
        batches.append(batch)
        counts += found
        watch.lap("tokenize")
    pipeline.heartbeat.begin(f"trying the chat template of {pipeline.template_source}")
    counts += replace(rows.count(), nulls_dropped=split.count_dropped_nulls())
    joined = _join_batches(batches)
    if rows.units is not None:
        joined, counts = rows.units.weigh(joined), counts + rows.units.count()
    pipeline.heartbeat.end()
    made = pipeline.count_fast_paths() - before
    is_fast = {REPLAY: made["replayed"] > 0, FASTOKENS: encoder.engine.name == FASTOKENS}
    num_rendered = 0 if is_text else len(rows.row_turns) - len(rows.rejects) - made["replayed"]
    watch.lap("render")
    return TokenizedSplit(
        batch=joined,
        row_turns=rows.row_turns,
        rejects=sorted(rows.rejects, key=lambda reject: reject.row),
        counts=counts,
        run_counts=RunCounts(rendered=num_rendered, splits=1, **made),
        warnings=frozenset(rows.warnings),
        fast_paths=frozenset(name for name, was_used in is_fast.items() if was_used),
    )


def _join_batches(batches: list[TokenBatch]) -> TokenBatch:
    """Return the documents of all batches in the order of their rows."""
    joined = batches[0] if len(batches) == 1 else concatenate(batches)
    if (np.diff(joined.document_rows) >= 0).all():
        return joined
    return joined.take(np.argsort(joined.document_rows, kind="stable"))
