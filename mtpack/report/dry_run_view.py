"""The report of `pack --dry-run`: what would be trained, and what the run would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from rich.console import Console
from rich.text import Text

from mtpack.counts import Counts
from mtpack.report.decoding import Decoder, make_decoder
from mtpack.report.document_text import read_pieces
from mtpack.report.escaping import escape_line
from mtpack.report.folding import fold
from mtpack.report.notices import notices_of
from mtpack.report.pack_report import build_tally_table
from mtpack.report.pieces import Piece, draw_pieces
from mtpack.report.row_view import DocumentView, RowView, TurnView
from mtpack.report.sequence_view import make_notes, print_legend
from mtpack.report.terminal import format_count, make_rule, make_table, print_heading
from mtpack.report.turn_marks import TurnMark
from mtpack.report.units import format_bytes, format_bytes_of, format_seconds
from mtpack.running.dry_run import DryRunReport
from mtpack.running.sample_task import SampleDocuments, Trouble
from mtpack.token_batch import WEIGHT_UNITS, TurnFlag

_MOST_CONTEXT = 300  # characters of a text between two turns
_MOST_TRAINED = 600  # characters of a turn
_MOST_TURNS = 4  # of a dialogue
_MOST_KEYS = 6
_MOST_FILES = 3
_REASONS = {
    "no_turn": "no message carries loss (no_turn)",
    "no_turn_left": "none of their turns is left (no_turn_left)",
    "overlong": "longer than a sequence (overlong)",
    "no_loss_token": "no token of them carries loss (no_loss_token)",
}
"""What is said of rows and turns that are left out."""


def show_dry_run(report: DryRunReport, console: Console) -> None:
    """Print what the sample is, its first dialogues, its counts and troubles, and the estimate."""
    console.print(Text("Dry run: nothing was written.", style="bold"))
    for line in _describe_sample(report):
        console.print(Text(escape_line(line)), soft_wrap=True)
    if report.shown is not None:
        _show_dialogues(report.shown, make_decoder(report.tokenizer), console)
    print_heading("The input" if report.is_whole else "The sample", console)
    console.print(build_tally_table(report.counts, report.seq_len))
    _show_troubles(report, console)
    print_heading("The whole run", console)
    for line in _describe_run(report):
        console.print(Text(line))
    console.print()
    console.print(Text("Next: the same command without --dry-run"))


def _describe_sample(report: DryRunReport) -> Iterator[str]:
    """Yield what was read."""
    files = format_count(len(report.inputs), "input file")
    if report.is_whole:
        yield f"Read: all of {files}, {format_bytes(report.bytes_read)}."
    elif report.input_bytes is None:
        yield f"Read: the first {format_bytes(report.bytes_read)}; how much follows is not known."
    else:
        sizes = format_bytes_of(report.bytes_read, report.input_bytes)
        yield f"Read: a sample of {files}, {sizes}. --seed draws another one."
    if report.starts:
        names = ", ".join(report.starts[:_MOST_FILES])
        more = ", ..." if len(report.starts) > _MOST_FILES else ""
        yield f"Of files that can't be sought, only the first rows: {names}{more}"


def _show_dialogues(shown: SampleDocuments, decoder: Decoder, console: Console) -> None:
    """Print documents with what is trained in brackets."""
    print_heading("What is trained in the first dialogues", console)
    view = _make_view(shown)
    print_legend(view, console, with_tokens=False)
    notes = make_notes(view, {n: [TurnMark.BENT] for n, turn in enumerate(view.turns) if turn.bent})
    for document, origin in zip(view.documents, shown.origins, strict=True):
        tokens = format_count(document.length, "token")
        console.print()
        console.print(make_rule(f"{escape_line(str(origin))}: {tokens}", console))
        pieces = list(_shorten(read_pieces(view, document, decoder)))
        console.print(fold(draw_pieces(pieces, notes), console.width))


def _make_view(shown: SampleDocuments) -> RowView:
    """Return the documents as a sequence without padding."""
    batch = shown.batch
    starts, lengths = batch.document_offsets.tolist(), batch.document_lengths.tolist()
    documents = tuple(
        DocumentView(row, start, length, length)
        for row, start, length in zip(
            batch.document_rows.tolist(), starts[:-1], lengths, strict=True
        )
    )
    units = batch.turn_units
    weights = [None] * batch.num_turns if units is None else (units / WEIGHT_UNITS).tolist()
    turns = []
    for number, document in enumerate(batch.turn_documents.tolist()):
        spans = np.arange(*batch.span_offsets[number : number + 2])
        positions = np.concatenate(
            [np.arange(batch.span_starts[span], batch.span_ends[span]) for span in spans]
        )
        message = int(batch.turn_messages[number])
        bent = TurnFlag.BENT in TurnFlag(int(batch.turn_flags[number]))
        positions += starts[document]
        turns.append(TurnView(document, message, positions, len(positions), bent, weights[number]))
    return RowView(0, 1, documents, tuple(turns), batch.ids)


def _shorten(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Yield pieces of which the middle is left out where they are long, up to a number of turns."""
    turns = list(dict.fromkeys(piece.turn for piece in pieces if piece.turn is not None))
    last = turns[:_MOST_TURNS][-1]
    end = max(number for number, piece in enumerate(pieces) if piece.turn == last) + 1
    for piece in pieces[:end]:
        most = _MOST_CONTEXT if piece.turn is None else _MOST_TRAINED
        left_out = len(piece.text) - most
        if left_out <= 0:
            yield piece
            continue
        start, stop = most * 2 // 3, len(piece.text) - most // 3
        middle = f" … {left_out:,} characters … "
        yield replace(piece, text=piece.text[:start] + middle + piece.text[stop:])
    if len(turns) > _MOST_TURNS:
        yield Piece(f"\n… {format_count(len(turns) - _MOST_TURNS, 'more turn')} …")


def _show_troubles(report: DryRunReport, console: Console) -> None:
    """Print what a user should know, each with the first row that it concerns."""
    print_heading("What to know, and the first row of each", console)
    table = make_table("left", "right", "left")
    troubles = report.counts.list_troubles()
    for name, group in groupby(troubles.items(), key=lambda each: each[0][0]):
        counts = sorted(group, key=lambda each: -each[1])
        for number, (trouble, count) in enumerate(counts[:_MOST_KEYS]):
            is_last = number + 1 == min(len(counts), _MOST_KEYS)
            label, text, remedy = _explain(trouble, count)
            if trouble[0] == "rows_rejected":
                text = f"first: {escape_line(str(report.rejects[trouble[1]]))}"
            lines = [text, *_describe_example(report, trouble), *([remedy] if is_last else [])]
            table.add_row(label, f"{count:,}", Text("\n".join(filter(None, lines))))
        if len(counts) > _MOST_KEYS:
            more = len(counts) - _MOST_KEYS
            table.add_row(name.replace("_", " "), f"{more:,}", "further ones (--json has all)")
    if not troubles:
        table.add_row("nothing", "", "all rows and turns are packed, and merged exactly")
    console.print(table)


def _explain(trouble: Trouble, count: int) -> tuple[str, str, str]:
    """Return the name of a trouble, what is counted, and what helps."""
    name, reason = trouble
    values: Mapping[str, object] = {name: {reason: count} if reason else count}
    notices = notices_of(Counts(**values))  # type: ignore[arg-type]  # the value of a field
    if not notices:
        noun, text = name.partition("_")[0], _REASONS.get(reason, reason)
        return name.replace("_", " "), f"{noun}: {escape_line(text)}", ""
    text, _, remedy = notices[0].text.partition("\n")
    return notices[0].name, text, remedy


def _describe_example(report: DryRunReport, trouble: Trouble) -> Iterator[str]:
    if trouble in report.examples:
        yield f"first: {escape_line(str(report.examples[trouble]))}"


def _describe_run(report: DryRunReport) -> Iterator[str]:
    """Yield what the whole run would do and take."""
    estimate = report.estimate
    if report.rejects and report.stops_at_bad_row:
        yield "It would stop at the first bad row; --on-error skip leaves bad rows out."
    if not report.counts.documents:
        yield "Nothing of what was read would be packed."
        return
    if estimate is None:
        yield "It can't be estimated, since the size of the input is not known."
        return
    about = "" if report.is_whole else "about "
    amounts = ("rows", "documents", "turns", "tokens")
    counts = (format_count(getattr(estimate, name), name[:-1]) for name in amounts)
    yield f"{about}{', '.join(counts)},"
    size = format_bytes(estimate.output_bytes)
    if report.compression != "none":
        size += f" before {report.compression}"
    sequences = format_count(estimate.sequences, "sequence")
    yield f"{about}{sequences} of {report.seq_len:,} tokens: {size}"
    seconds = format_seconds(max(1.0, estimate.seconds))
    yield (
        f"about {seconds} min with {format_count(estimate.workers, 'worker')} on this machine, "
        "if its disk keeps up"
    )
