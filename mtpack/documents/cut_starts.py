"""Encode the texts of documents, cut where a token would straddle the start of a turn.

An inference server encodes the prompt alone, and the model continues its tokens. If a prompt ends
in a space, or an answer begins with white space, a text that is encoded as a whole may have one
token for characters of both. No server shows the model such a token, and the model never writes it.
So the text is cut at the start of such a turn (`TurnText.start`, the end of the prompt), and its
parts are encoded apart. A text that several turns share may be cut at the start of each.

This needs a vocabulary in which every text is exactly its tokens: a byte-level one (`ByteLevel`).
Others may add a space to each part, or drop white space; their texts stay whole.

Two texts are compared with the starts of their turns cut alike. In its own text, a turn has the
earlier turns as context, so that text has no cuts there. To compare it with the merged text, it is
encoded once more with the cuts of the merged text.

Few texts have a straddled start, so all are encoded as a whole first. Those to cut come after them,
as further texts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from mtpack.template.rendered_dialogue import DocumentText, RenderedDialogue, place_turns
from mtpack.token_batch import Int64
from mtpack.tokenizer.encode import EncodedText, EncodedTexts, Positions, TextEncoder


@dataclass(slots=True)
class DocumentTexts:
    """Collects the texts that are encoded together. A text is referred to by its number."""

    documents: list[DocumentText] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """The input row of each text."""
    merged: dict[int, int] = field(default_factory=dict)
    """By the number of a turn's own text: the merged text that it is compared with."""

    def add(self, row: int, document: DocumentText) -> int:
        """Add the text of a document and return its number."""
        self.documents.append(document)
        self.rows.append(row)
        return len(self.rows) - 1

    def add_dialogue(self, dialogue: RenderedDialogue) -> tuple[int, list[int], list[int]]:
        """Add the texts of a dialogue.

        Return the number of the merged text, and the numbers of `to_compare` and of `own`.
        """
        row = dialogue.row
        merged = self.add(row, dialogue.merged)
        compared = [self.add(row, document) for _, document in dialogue.to_compare]
        self.merged.update(dict.fromkeys(compared, merged))
        return merged, compared, [self.add(row, document) for document in dialogue.own]


@dataclass(frozen=True, slots=True)
class CutTexts:
    """Encoded texts, and those of them that are cut."""

    encoded: EncodedTexts
    """All texts as a whole, by their numbers; then texts that are cut."""
    cut: dict[int, int] = field(default_factory=dict)
    """By the number of a text with a straddled start: the text with its cuts."""
    compared: dict[int, int] = field(default_factory=dict)
    """By the number of a turn's own text: the same with the cuts of its merged text as well."""
    straddles: dict[tuple[int, int], int] = field(default_factory=dict)
    """By the number of a text that is cut and the start of a turn: how many tokens straddled it."""

    def find(self, text: int) -> int:
        """Return the number of a text as it is written: cut, if a start in it is straddled."""
        return self.cut.get(text, text)

    def find_compared(self, text: int) -> int:
        """Return the number of a turn's own text as it is compared with the merged text."""
        return self.compared.get(text, self.find(text))

    def count_straddles(self, texts: Int64, starts: Int64) -> int:
        """Return how many tokens straddled the starts of turns at which texts are cut.

        texts: (turns,), the text of each turn, as returned by `find`; starts: (turns,).
        """
        if not self.straddles:
            return 0
        turns = zip(texts.tolist(), starts.tolist(), strict=True)
        return sum(self.straddles.get(turn, 0) for turn in turns)


def encode_documents(encoder: TextEncoder, texts: DocumentTexts) -> CutTexts:
    """Encode all texts, and cut those with a straddled start.

    Raises what `TextEncoder.encode` raises.
    """
    documents = texts.documents
    known = {
        number: document.encoded.whole
        for number, document in enumerate(documents)
        if document.encoded is not None
    }
    whole = encoder.encode([document.text for document in documents], texts.rows, known)
    if encoder.byte_level is None:
        return CutTexts(whole)
    cuts = _find_straddled_starts(whole, texts)
    if not cuts:
        return CutTexts(whole)
    versions = [(text, sorted(starts)) for text, starts in cuts.items()]
    first = len(texts.rows)
    cut = {text: number for number, (text, _) in enumerate(versions, first)}
    compared: dict[int, int] = {}
    for text, merged in texts.merged.items():
        (turn,) = documents[text].turns.to_list()
        earlier = {start for start in cuts.get(merged, ()) if start < turn.start}
        if earlier:
            compared[text] = first + len(versions)
            versions.append((text, sorted(earlier | cuts.get(text, {}).keys())))
    straddles = {
        (cut[text], start): number
        for text, starts in cuts.items()
        for start, number in starts.items()
    }
    return CutTexts(_append_cut_texts(encoder, whole, texts, versions), cut, compared, straddles)


def _find_straddled_starts(whole: EncodedTexts, texts: DocumentTexts) -> dict[int, dict[int, int]]:
    """Return by text the starts of turns inside a token: {start: the number of such tokens}.

    A turn without anything to train is left out: it is no reason to cut a text.
    """
    found = place_turns([document.turns for document in texts.documents])
    turn_texts = np.repeat(np.arange(len(texts.rows)), found.num_turns)
    positions = whole.positions.at(turn_texts, found.starts)
    straddling = whole.first_token_starting_at(turn_texts, positions)
    straddling -= whole.first_token_ending_after(turn_texts, positions)
    is_trained = (found.num_spans > 0) & (found.starts < found.ends)
    cuts: dict[int, dict[int, int]] = defaultdict(dict)
    for turn in np.flatnonzero(is_trained & (straddling > 0)).tolist():
        cuts[int(turn_texts[turn])][int(found.starts[turn])] = int(straddling[turn])
    return cuts


def _append_cut_texts(
    encoder: TextEncoder,
    whole: EncodedTexts,
    texts: DocumentTexts,
    versions: list[tuple[int, list[int]]],
) -> EncodedTexts:
    """Return the texts as a whole, followed by the versions: (text, where it is cut)."""
    parts: list[str] = []
    rows: list[int] = []
    known: dict[int, EncodedText] = {}
    num_parts = [0]
    for number, starts in versions:
        document = texts.documents[number]
        for start, end in pairwise([0, *starts, len(document.text)]):
            if document.encoded is not None:
                known[len(parts)] = document.encoded.encode_part(start, end)
            parts.append(document.text[start:end])
            rows.append(texts.rows[number])
        num_parts.append(len(parts))
    # The parts of a text follow each other, so their positions are those in the joined texts.
    encoded = encoder.encode(parts, rows, known)
    numbers = [*range(len(texts.rows)), *(number for number, _ in versions)]
    end = whole.positions.texts[-1]
    return EncodedTexts(
        ids=np.concatenate([whole.ids, encoded.ids]),
        offsets=np.append(whole.offsets, whole.offsets[-1] + encoded.offsets[num_parts[1:]]),
        starts=np.append(whole.starts, end + encoded.starts),
        ends=np.append(whole.ends, end + encoded.ends),
        positions=Positions.of([texts.documents[number].text for number in numbers]),
    )
