"""Handle documents that are longer than a sequence: the five policies of `--overlong`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mtpack.documents.control_tokens import Renderer
from mtpack.documents.token_spans import encode_document
from mtpack.input.dialogue import Dialogue, Reason, Reject, make_dialogue
from mtpack.token_batch import (
    Bools,
    Int32,
    TokenBatch,
    concatenate,
    keep_loss_tokens_before,
    keep_turns,
)
from mtpack.tokenizer.encode import TextEncoder


@dataclass(frozen=True, slots=True)
class OverlongResult:
    """The result of applying an `--overlong` policy to a batch."""

    batch: TokenBatch
    """Documents of at most `seq_len` tokens."""
    counts: Counter[str]
    """The number of dropped turns, as `turns_dropped.overlong`."""
    rejected_rows: set[int]
    """Indices of the input rows that the policy `error` rejects."""


SuffixRenderer = Callable[[int, int], TokenBatch | None]
"""(row, message) -> a batch with one document that ends with that turn and fits, or None."""


def apply_overlong_policy(
    batch: TokenBatch, seq_len: int, policy: str, render_suffix: SuffixRenderer
) -> OverlongResult:
    """Apply an `--overlong` policy: return only documents of at most `seq_len` tokens."""
    too_long = batch.turn_ends > seq_len
    if not too_long.any():
        return OverlongResult(batch, Counter(), set())
    return _POLICIES[policy](batch, seq_len, too_long, render_suffix)


def _keep_leading_turns(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: SuffixRenderer
) -> OverlongResult:
    return OverlongResult(
        keep_turns(batch, ~too_long), _count_dropped(np.count_nonzero(too_long)), set()
    )


def _truncate_documents(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: SuffixRenderer
) -> OverlongResult:
    cut = keep_loss_tokens_before(batch, seq_len)
    return OverlongResult(cut, _count_dropped(batch.num_turns - cut.num_turns), set())


def _drop_documents(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: SuffixRenderer
) -> OverlongResult:
    in_long_document = np.isin(batch.turn_documents, batch.turn_documents[too_long])
    kept = keep_turns(batch, ~in_long_document)
    return OverlongResult(kept, _count_dropped(batch.num_turns - kept.num_turns), set())


def _reject_rows(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: SuffixRenderer
) -> OverlongResult:
    rows = batch.document_rows[batch.turn_documents]
    bad = np.unique(rows[too_long])
    return OverlongResult(keep_turns(batch, ~np.isin(rows, bad)), Counter(), set(bad.tolist()))


def _split_documents(
    batch: TokenBatch, seq_len: int, too_long: Bools, render_suffix: SuffixRenderer
) -> OverlongResult:
    turns = np.flatnonzero(too_long)
    rows = batch.document_rows[batch.turn_documents[turns]]
    rendered = [
        render_suffix(row, message)
        for row, message in zip(rows.tolist(), batch.turn_messages[turns].tolist(), strict=True)
    ]
    suffixes = [suffix for suffix in rendered if suffix is not None]
    return OverlongResult(
        concatenate([keep_turns(batch, ~too_long), *suffixes]),
        _count_dropped(len(rendered) - len(suffixes)),
        set(),
    )


_POLICIES = {
    "turns": _keep_leading_turns,
    "split": _split_documents,
    "truncate": _truncate_documents,
    "drop": _drop_documents,
    "error": _reject_rows,
}


def _count_dropped(num_turns: int | np.intp) -> Counter[str]:
    return Counter({f"turns_dropped.{Reason.OVERLONG}": int(num_turns)})


def suffix_renderer(
    renderer: Renderer,
    encoder: TextEncoder,
    dialogue_of: Callable[[int], Dialogue],
    seq_len: int,
) -> SuffixRenderer:
    """Return the function that renders the additional documents of `--overlong split`.

    A suffix is the system message (if any) and the longest run of messages that starts at a user
    message, ends with the turn, and fits. It is rendered like a dialogue, and only this turn of it
    is trained.
    """

    def render_suffix(row: int, message: int) -> TokenBatch | None:
        dialogue = dialogue_of(row)
        first = 1 if dialogue.roles[0] in ("system", "developer") else 0
        users = [index for index in range(first, message) if dialogue.roles[index] == "user"]
        # A run that starts later is shorter. So search backwards from the latest start, with steps
        # that double until a run is too long, and then halve. This renders no run much longer than
        # a sequence, however long the dialogue is.
        best: TokenBatch | None = None
        fitting, step, growing = len(users), 1, True
        while fitting > 0 and step > 0:
            candidate = max(fitting - step, 0)
            suffix = _render_one_suffix(
                renderer, encoder, dialogue, first, users[candidate], message
            )
            if suffix is None:  # the template refuses this run, but may accept a longer one
                fitting = candidate
            elif suffix.document_lengths[0] <= seq_len:
                best, fitting = suffix, candidate
            else:
                growing = False
            step = step * 2 if growing else step // 2
        return best

    return render_suffix


def _render_one_suffix(
    renderer: Renderer,
    encoder: TextEncoder,
    dialogue: Dialogue,
    num_system: int,
    start: int,
    message: int,
) -> TokenBatch | None:
    """Render one run of messages; return None if that fails or no loss token is left.

    num_system: 1 if the dialogue opens with a system message, else 0. start, message: the first and
    the last message of the run.
    """
    kept = [*dialogue.messages[:num_system], *dialogue.messages[start : message + 1]]
    suffix = make_dialogue(
        dialogue.row, dialogue.origin, kept, dialogue.tools, untrained=range(len(kept) - 1)
    )
    rendered = renderer.render(suffix, "never")
    if isinstance(rendered, Reject):
        return None
    (document,) = rendered.own or (rendered.merged,)
    batch = encode_document(encoder, dialogue.row, document)
    if not batch.num_turns:
        return None
    messages: Int32 = np.array([message], dtype=np.int32)
    return replace(batch, turn_messages=messages)
