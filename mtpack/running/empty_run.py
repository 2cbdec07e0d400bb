"""Explain a run that has nothing to pack: for which reasons, and what would help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from mtpack.counts import Counts
from mtpack.input.dialogue import Dialogue, Reason, Reject
from mtpack.input.files import InputFile
from mtpack.input.plain_text import KEY as TEXT_ROLE
from mtpack.options import PackOptions, flag
from mtpack.token_batch import Int32


@dataclass(frozen=True, slots=True)
class EmptySplit:
    """What is known of a split, or of several, of which no turn is packed."""

    rows_without_answer: int = 0
    """Accepted rows without an assistant message."""
    rows_switched_off: int = 0
    """Accepted rows whose assistant messages all carry no loss."""
    needed_seq_len: int | None = None
    """The smallest sequence length with which a turn would be packed; None if none would be."""
    blank_texts: int = 0
    """Accepted rows of plain text that hold nothing but white space."""

    def __add__(self, other: EmptySplit) -> EmptySplit:
        needed = (self.needed_seq_len, other.needed_seq_len)
        return EmptySplit(
            self.rows_without_answer + other.rows_without_answer,
            self.rows_switched_off + other.rows_switched_off,
            min((length for length in needed if length is not None), default=None),
            self.blank_texts + other.blank_texts,
        )


def describe_empty_split(
    rows: Iterable[Dialogue | Reject], row_turns: Int32, needed_seq_len: int | None
) -> EmptySplit:
    """Say why no turn of a split is packed.

    rows: the rows of the split. row_turns: the number of turns of each, -1 for a rejected row,
    (rows,). needed_seq_len: as in `EmptySplit`.
    """
    num_without_turn = int((row_turns == 0).sum())
    num_without_answer = num_blank = 0
    if num_without_turn:
        roles = [
            row.roles
            for row, turns in zip(rows, row_turns.tolist(), strict=True)
            if turns == 0 and isinstance(row, Dialogue)
        ]
        num_blank = roles.count((TEXT_ROLE,))
        num_without_answer = sum("assistant" not in each for each in roles) - num_blank
    num_switched_off = num_without_turn - num_without_answer - num_blank
    return EmptySplit(num_without_answer, num_switched_off, needed_seq_len, num_blank)


class _Cause(NamedTuple):
    """A reason why nothing is packed."""

    rows: int
    """The number of rows that it concerns."""
    text: str
    remedy: str


_BLANK_TEXTS = "all texts are blank", "give files with text"


def explain_empty_run(
    files: Sequence[InputFile],
    options: PackOptions,
    counts: Counts,
    found: EmptySplit,
    first_reject: Reject | None,
) -> list[str]:
    """Return why a run has nothing to pack, and what would help against the most frequent reason.

    counts, found: those of all splits. Returns one or two lines.
    """
    names = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
    if not counts.rows_read:
        return [f"{names}: no rows, so nothing to pack"]
    causes = [
        cause
        for cause in (
            _explain_rejects(options, counts, found, first_reject),
            _explain_missing_answers(counts, found),
            _Cause(found.blank_texts, *_BLANK_TEXTS),
            _explain_switches(counts, found),
            _explain_dropped_turns(options, counts, found),
        )
        if cause.rows
    ]
    reasons = "; ".join(cause.text for cause in causes)
    return [f"{names}: nothing to pack: {reasons}", max(causes, key=_get_rows).remedy]


def _get_rows(cause: _Cause) -> int:
    return cause.rows


def _explain_rejects(
    options: PackOptions, counts: Counts, found: EmptySplit, first_reject: Reject | None
) -> _Cause:
    rejected = counts.rows_rejected
    number = sum(rejected.values())
    which = "every row is" if number == counts.rows_read else _format_are(number, "row")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejected.items())
    text = f"{which} rejected ({reasons})"
    if Reason.OVERLONG in rejected and found.needed_seq_len is not None:
        needed = _round_up(found.needed_seq_len, options)
        text += f"; the shortest row needs --seq-len {needed}"
    return _Cause(number, text, str(first_reject))


def _explain_missing_answers(counts: Counts, found: EmptySplit) -> _Cause:
    number = found.rows_without_answer
    if number == counts.rows_read:
        text = "no row has an assistant message"
    else:
        text = f"{_format_has(number, 'row')} no assistant message"
    return _Cause(number, text, "add the answers that the model should learn")


def _explain_switches(counts: Counts, found: EmptySplit) -> _Cause:
    number = found.rows_switched_off
    where = "" if number == counts.rows_read else f"in {_format_count(number, 'row')}, "
    remedy = 'remove the switches ("train": false, "weight": 0), or switch messages on'
    return _Cause(number, f"{where}no assistant message carries loss", f'{remedy} ("train": true)')


_KEEPS_MORE = {
    "turns": "--overlong split, which leaves out earlier messages",
    "split": "shorten the dialogues",
    "truncate": "--overlong split, which leaves out earlier messages",
    "drop": "--overlong turns, which keeps the turns that fit",
}


def _explain_dropped_turns(options: PackOptions, counts: Counts, found: EmptySplit) -> _Cause:
    """Explain the rows whose turns were all dropped: as too long, or as without a loss token."""
    rows = counts.rows_dropped.get("no_turn_left", 0)
    overlong = counts.turns_dropped.get(Reason.OVERLONG, 0)
    others = sum(counts.turns_dropped.values()) - overlong
    texts = []
    remedy = (
        "the chat template writes nothing that the model could generate there; "
        f"choose another {flag('chat_template')}"
    )
    if others:
        which = f"{_format_has(others, 'turn')} no" if overlong else "no turn has a"
        texts.append(f"{which} token that carries loss")
    if overlong and found.needed_seq_len is not None:
        which = _format_are(overlong, "turn") if others else "every turn is"
        is_drop = options.overlong == "drop"
        where = "in a document longer than" if is_drop else "beyond"
        needed = _round_up(found.needed_seq_len, options)
        texts.append(f"{which} {where} --seq-len {options.seq_len}; the shortest needs {needed:,}")
        remedy = _KEEPS_MORE[options.overlong]
        if needed <= _MAX_SEQ_LEN:
            remedy = f"choose --seq-len {needed} or larger, or {remedy}"
    return _Cause(rows, "; ".join(texts), remedy)


_MAX_SEQ_LEN: int = next(
    option.metadata["maximum"] for option in fields(PackOptions) if option.name == "seq_len"
)


def _round_up(length: int, options: PackOptions) -> int:
    """Return the smallest value of `--seq-len` that is at least `length`."""
    multiple = options.pad_documents_to
    return -(-length // multiple) * multiple


def _format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _format_are(number: int, noun: str) -> str:
    return f"{_format_count(number, noun)} {'is' if number == 1 else 'are'}"


def _format_has(number: int, noun: str) -> str:
    return f"{_format_count(number, noun)} {'has' if number == 1 else 'have'}"
