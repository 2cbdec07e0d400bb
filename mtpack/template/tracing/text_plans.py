"""Plans to write the documents of dialogues of texts: for whole columns of rows at a time.

If the documents of a shape with slots depend on nothing but the contents of messages
(`slotted_dialogue.py`), a text is pieces: literal text and contents, one after the other. So the
texts of all rows are one gather of pieces, and the positions of turns follow from the sizes of the
pieces. No Python object is made for a message, and one for a document: its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtpack.input.text_rows import TextRows, Texts
from mtpack.template.rendered_dialogue import RenderedDialogue, TurnLayout, place_layouts
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.template.tracing.slotted_dialogue import SlottedText
from mtpack.token_batch import Int64, gather_ranges, offsets_from_lengths
from mtpack.tokenizer.encode import Positions


@dataclass(frozen=True, slots=True)
class TextPlan:
    """The documents of all dialogues of a shape, as pieces.

    A piece is the index of a literal text, or -1 - m for the content of message m.
    """

    literals: pa.StringArray
    pieces: Int64
    """(pieces,): of all documents."""
    num_pieces: Int64
    """(documents,)"""
    turns: Int64
    """(turns, 7): as in `TurnLayout`, with bytes for characters."""
    spans: Int64
    """(spans, 4): likewise."""
    num_turns: Int64
    """(documents,)"""
    merged_end: Int64
    """(1, 2): `RenderedDialogue.merged_end`, as in `TurnLayout`, with bytes for characters."""
    compared: Int64
    """(turns to compare, 3): as in `RenderedDocuments`; the merged document has the number 0."""
    row_turns: int
    """`RenderedDialogue.num_turns`."""
    _literal_bytes: int
    """Those of the merged text."""
    _most_uses: int
    """How often the merged text has the content of the same message, at most."""

    @classmethod
    def of(cls, rendered: RenderedDialogue, messages: Sequence[int]) -> TextPlan:
        """Make a plan of documents with slots; messages: whose content each slot stands for."""
        served = [document for _, document in rendered.to_compare]
        documents = [rendered.merged, *served, *rendered.own]
        texts = [SlottedText.of(document.text, messages) for document in documents]
        literals = dict.fromkeys(literal for text in texts for literal in text.literals)
        codes = {literal: code for code, literal in enumerate(literals)}
        pieces = [_divide(text, codes) for text in texts]
        layouts = [
            TurnLayout.of(document.turns.to_list(), text.slots)
            for document, text in zip(documents, texts, strict=True)
        ]
        turns = [
            _count_bytes(text, layout.turns, (3, 5))
            for text, layout in zip(texts, layouts, strict=True)
        ]
        spans = [
            _count_bytes(text, layout.spans, (1, 3))
            for text, layout in zip(texts, layouts, strict=True)
        ]
        end = np.array([texts[0].divide(rendered.merged_end)])
        return cls(
            literals=Texts.of(list(literals)).array,
            pieces=np.concatenate(pieces),
            num_pieces=np.array(list(map(len, pieces)), np.int64),
            turns=np.concatenate(turns),
            spans=np.concatenate(spans),
            num_turns=np.array(list(map(len, turns)), np.int64),
            merged_end=_count_bytes(texts[0], end, (1,)),
            compared=np.array(
                [(0, turn, 1 + number) for number, (turn, _) in enumerate(rendered.to_compare)],
                np.int64,
            ).reshape(-1, 3),
            row_turns=rendered.num_turns,
            _literal_bytes=len("".join(texts[0].literals).encode()),
            _most_uses=int(np.unique(texts[0].value_indices, return_counts=True)[1].max(initial=0)),
        )

    def limit_bytes(self, num_bytes: int) -> int:
        """Return how many bytes the contents of a row may have for a merged text of `num_bytes`."""
        return (num_bytes - self._literal_bytes) // max(1, self._most_uses)


def _divide(text: SlottedText, codes: dict[str, int]) -> Int64:
    """Return the pieces of a text; codes: the index of each literal text."""
    pieces: Int64 = np.empty(len(text.literals) + len(text.value_indices), np.int64)
    pieces[::2] = [codes[literal] for literal in text.literals]
    pieces[1::2] = [-1 - message for message in text.value_indices]
    return pieces


def _count_bytes(text: SlottedText, layout: Int64, columns: tuple[int, ...]) -> Int64:
    """Return a layout in which these columns count bytes; they count characters of literal text."""
    positions = Positions.of(["".join(text.literals)])
    layout = layout.copy()
    for column in columns:
        layout[:, column] = positions.at(np.zeros(len(layout), np.int64), layout[:, column])
    return layout


def fill_plans(plans: Sequence[TextPlan], chosen: Int64, rows: TextRows) -> RenderedDocuments:
    """Write the documents of rows; chosen: the index of the plan of each row, (rows,)."""
    literals = offsets_from_lengths(np.array([len(plan.literals) for plan in plans]))
    pieces = np.concatenate(
        [
            np.where(plan.pieces < 0, plan.pieces, plan.pieces + first)
            for plan, first in zip(plans, literals.tolist(), strict=False)
        ]
    )
    # The documents of all rows, by their index in those of all plans.
    num_documents = _concatenate([[len(plan.num_pieces)] for plan in plans])
    documents = gather_ranges(offsets_from_lengths(num_documents), chosen)
    document_rows = np.repeat(np.arange(len(rows)), num_documents[chosen])
    first_documents = offsets_from_lengths(num_documents[chosen])[:-1]

    num_pieces = _concatenate([plan.num_pieces for plan in plans])
    codes = pieces[gather_ranges(offsets_from_lengths(num_pieces), documents)]
    first_pieces = offsets_from_lengths(num_pieces[documents])
    is_content = codes < 0
    first_messages = np.repeat(rows.starts[document_rows], num_pieces[documents])
    codes = np.where(is_content, literals[-1] + first_messages - 1 - codes, codes)
    texts = pa.concat_arrays([*(plan.literals for plan in plans), rows.contents.array])
    indices = pa.Array.from_buffers(pa.int64(), len(codes), [None, pa.py_buffer(codes)])
    filled = pc.take(texts, indices, boundscheck=False)
    offsets = np.frombuffer(filled.buffers()[1], np.int32)[: len(codes) + 1].astype(np.int64)
    before = offsets_from_lengths(np.diff(offsets)[is_content])
    first_slots = offsets_from_lengths(is_content.astype(np.int64))[first_pieces[:-1]]

    num_turns = _concatenate([plan.num_turns for plan in plans])
    turns = gather_ranges(offsets_from_lengths(num_turns), documents)
    turn_rows = np.concatenate([plan.turns for plan in plans])
    spans = gather_ranges(offsets_from_lengths(turn_rows[:, 6]), turns)
    span_rows = np.concatenate([plan.spans for plan in plans])
    ends = np.concatenate([plan.merged_end for plan in plans])[chosen]
    merged_slots = first_slots[first_documents]
    bounds = offsets[first_pieces]
    return RenderedDocuments(
        texts=_cut_texts(filled.buffers()[2], bounds),
        lengths=np.diff(bounds),
        rows=rows.rows[document_rows],
        turns=place_layouts(
            turn_rows[turns], span_rows[spans], num_turns[documents], first_slots, before
        ),
        merged=first_documents,
        merged_ends=before[merged_slots + ends[:, 0]] - before[merged_slots] + ends[:, 1],
        compared=_gather_compared(plans, chosen, first_documents),
    )


def _gather_compared(plans: Sequence[TextPlan], chosen: Int64, first_documents: Int64) -> Int64:
    """Return the turns to compare of all rows; first_documents: the first of each row, (rows,)."""
    num_compared = _concatenate([[len(plan.compared)] for plan in plans])
    compared = np.concatenate([plan.compared for plan in plans])
    compared = compared[gather_ranges(offsets_from_lengths(num_compared), chosen)]
    compared[:, [0, 2]] += np.repeat(first_documents, num_compared[chosen])[:, np.newaxis]
    return compared


def _cut_texts(buffer: pa.Buffer | None, bounds: Int64) -> list[str]:
    """Return the texts that lie between the bounds in a buffer."""
    content = b"" if buffer is None else buffer.to_pybytes()
    edges = bounds.tolist()
    if content.isascii():
        text = content.decode("ascii")
        return [text[start:end] for start, end in pairwise(edges)]
    view = memoryview(content)
    return [str(view[start:end], "utf-8") for start, end in pairwise(edges)]


def _concatenate(parts: Sequence[Sequence[int] | Int64]) -> Int64:
    return np.concatenate([np.asarray(part, np.int64) for part in parts])
