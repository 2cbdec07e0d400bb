"""Handle documents that are longer than a sequence: the five policies of `--overlong`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mtpack.documents.control_tokens import Renderer
from mtpack.documents.token_spans import encode_document
from mtpack.input.dialogue import Dialogue, Reason, Reject
from mtpack.token_batch import (
    Bools,
    Int32,
    TokenBatch,
    concatenate,
    keep_loss_tokens_before,
    keep_turns,
)
from mtpack.tokenizer.encode import TextEncoder
from mtpack.tokenizer.encoders import Encoders

RenderSuffix = Callable[[int, int], TokenBatch | None]
"""(row, message) -> a batch with one document that ends with that turn and fits, or None."""


def apply_overlong_policy(
    batch: TokenBatch, seq_len: int, policy: str, render_suffix: RenderSuffix
) -> TokenBatch:
    """Apply an `--overlong` policy: return only documents of at most `seq_len` tokens.

    Turns that are missing in the result are dropped; under `error`, the rows that are missing in it
    are rejected. Returns `batch` itself if no document of it is longer.
    """
    too_long = batch.turn_ends > seq_len
    if not too_long.any():
        return batch
    return _POLICIES[policy](batch, seq_len, too_long, render_suffix)


def _keep_leading_turns(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: RenderSuffix
) -> TokenBatch:
    return keep_turns(batch, ~too_long)


def _truncate_documents(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: RenderSuffix
) -> TokenBatch:
    return keep_loss_tokens_before(batch, seq_len)


def _drop_documents(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: RenderSuffix
) -> TokenBatch:
    in_long_document = np.isin(batch.turn_documents, batch.turn_documents[too_long])
    return keep_turns(batch, ~in_long_document)


def _reject_rows(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: RenderSuffix
) -> TokenBatch:
    rows = batch.document_rows[batch.turn_documents]
    return keep_turns(batch, ~np.isin(rows, rows[too_long]))


def _split_documents(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: RenderSuffix
) -> TokenBatch:
    turns = np.flatnonzero(too_long)
    rows = batch.document_rows[batch.turn_documents[turns]]
    suffixes = list(map(render_suffix, rows.tolist(), batch.turn_messages[turns].tolist()))
    units = batch.turn_units
    kept = [
        suffix if units is None else replace(suffix, turn_units=units[turn : turn + 1])
        for turn, suffix in zip(turns, suffixes, strict=True)
        if suffix is not None
    ]
    return concatenate([keep_turns(batch, ~too_long), *kept])


_POLICIES = {
    "turns": _keep_leading_turns,
    "split": _split_documents,
    "truncate": _truncate_documents,
    "drop": _drop_documents,
    "error": _reject_rows,
}


def refuse_overlong(dialogue: Dialogue, seq_len: int) -> Reject:
    """Return the rejection of a row that is too long (`--overlong error`)."""
    return dialogue.reject(
        Reason.OVERLONG,
        f"longer than {seq_len:,} tokens; choose a larger --seq-len or another --overlong",
    )


def find_needed_seq_len(
    batch: TokenBatch, policy: str, shortest_suffix: int | None = None
) -> int | None:
    """Return the smallest sequence length with which the policy keeps a turn; None without turns.

    batch: the documents before the policy. shortest_suffix: that of the `SuffixRenderer`, after the
    policy has dropped all turns.
    """
    if not batch.num_turns:
        return None
    needed = int(_NEEDED_LENGTHS[policy](batch).min())
    return needed if shortest_suffix is None else min(needed, shortest_suffix)


def _find_longest_of_rows(batch: TokenBatch) -> Int32:
    """Return the end of the last turn in any document of each row, (rows,)."""
    _, rows = np.unique(batch.document_rows[batch.turn_documents], return_inverse=True)
    longest: Int32 = np.zeros(rows.max() + 1, dtype=np.int32)
    np.maximum.at(longest, rows, batch.turn_ends)
    return longest


_NEEDED_LENGTHS: dict[str, Callable[[TokenBatch], Int32]] = {
    "turns": lambda batch: batch.turn_ends,
    "split": lambda batch: batch.turn_ends,
    "truncate": lambda batch: batch.span_starts + 1,
    "drop": lambda batch: batch.turn_ends[batch.turn_offsets[1:] - 1],
    "error": _find_longest_of_rows,
}


class SuffixRenderer:
    """Renders the additional documents of `--overlong split`.

    A suffix is the system message (if any) and the longest run of messages that starts at a user
    message, ends with the turn, and fits. It is rendered like a dialogue, and only this turn of it
    is trained.
    """

    def __init__(
        self,
        renderer: Renderer,
        encoders: Encoders,
        dialogue_of: Callable[[int], Dialogue],
        seq_len: int,
    ) -> None:
        """Take what renders and encodes, and the function that returns the dialogue of a row."""
        self._renderer = renderer
        self._encoders = encoders
        self._dialogue_of = dialogue_of
        self._seq_len = seq_len
        self.shortest: int | None = None
        """The number of tokens of the shortest run that was rendered and does not fit."""

    def render(self, row: int, message: int) -> TokenBatch | None:
        """Return a batch with one document, which ends with that turn; None if no run fits."""
        dialogue = self._dialogue_of(row)
        first = 1 if dialogue.roles[0] in ("system", "developer") else 0
        users = [index for index in range(first, message) if dialogue.roles[index] == "user"]
        # A run that starts later is shorter. So search backwards from the latest start, with steps
        # that double until a run is too long, and then halve. This renders no run much longer than
        # a sequence, however long the dialogue is.
        best: TokenBatch | None = None
        fitting, step, growing = len(users), 1, True
        while fitting > 0 and step > 0:
            candidate = max(fitting - step, 0)
            kept = [*range(first), *range(users[candidate], message + 1)]
            suffix = _render_one_suffix(self._renderer, self._encoders.reference, dialogue, kept)
            if suffix is None:  # the template refuses this run, but may accept a longer one
                fitting = candidate
            elif suffix.document_lengths[0] <= self._seq_len:
                best, fitting = suffix, candidate
            else:
                growing = False
                length = int(suffix.document_lengths[0])
                self.shortest = min(length, self.shortest or length)
            step = step * 2 if growing else step // 2
        return best


def _render_one_suffix(
    renderer: Renderer, encoder: TextEncoder, dialogue: Dialogue, kept: list[int]
) -> TokenBatch | None:
    """Render the messages with the indices `kept`; only the last one of them is trained.

    Returns None if that fails or no loss token is left.
    """
    messages = [dialogue.messages[index] for index in kept]
    suffix = dialogue.with_messages(messages, untrained=range(len(kept) - 1))
    rendered = renderer.of(suffix).render(suffix, "never")
    if isinstance(rendered, Reject):
        return None
    (document,) = rendered.own or (rendered.merged,)
    batch = encode_document(encoder, dialogue.row, document)
    if not batch.num_turns:
        return None
    turn_messages: Int32 = np.array(kept[-1:], dtype=np.int32)
    return replace(batch, turn_messages=turn_messages)
