"""Encode the texts of documents, cut where a token would straddle the start of a turn.

An inference server encodes the prompt alone, and the model continues its tokens. If a prompt ends
in a space, or an answer begins with white space, a text that is encoded as a whole may have one
token for characters of both. No server shows the model such a token, and the model never writes it.
So the text is cut at the start of such a turn (`TurnText.start`, the end of the prompt), and its
parts are encoded apart. A text that several turns share may be cut at the start of each.

This needs a vocabulary in which every text is exactly its tokens: a byte-level one (`ByteLevel`).
Others may add a space to each part, or drop white space; their texts stay whole.

Two texts are compared with the starts of their turns cut alike. In its `served`, a turn has the
earlier turns as context, so that text has no cuts there. To compare it with the merged text, it is
encoded once more with the cuts of the merged text.

Few texts have a straddled start, so all are encoded as a whole first. Those that are cut come after
them, as further texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from mtpack.template.rendered_dialogue import PlacedTurns
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.token_batch import Bools, Int64, offsets_from_lengths
from mtpack.tokenizer.encode import EncodedText, EncodedTexts, TextEncoder


@dataclass(frozen=True, slots=True)
class EncodedDocuments:
    """The texts of documents as tokens, and the turns in them."""

    encoded: EncodedTexts
    """All texts as a whole, by their numbers; then those that are cut."""
    written: Int64
    """(texts,): the number of each text as it is written. It is another one if the text is cut."""
    turns: PlacedTurns
    """The turns of all texts."""
    turn_texts: Int64
    """(turns,): the number of each turn's text."""
    first_tokens: Int64
    """(turns,): the first token of the text, as it is written, from the start of each turn on."""
    straddles: Int64
    """(turns,): how many tokens of the whole text straddle the start at which it is cut."""
    compared: dict[int, int] = field(default_factory=dict)
    """By the number of a turn's `served`: the same with the cuts of the merged text as well."""

    def find_compared(self, text: int) -> int:
        """Return the number of a turn's `served` as it is compared with the merged text."""
        return self.compared.get(text, int(self.written[text]))

    def keep_turns(self, kept: Bools, flags: Int64) -> EncodedDocuments:
        """Return the same texts with only the turns that are `kept`; kept, flags: (turns,)."""
        return replace(
            self,
            turns=self.turns.keep(kept, flags),
            turn_texts=self.turn_texts[kept],
            first_tokens=self.first_tokens[kept],
            straddles=self.straddles[kept],
        )


def encode_documents(encoder: TextEncoder, documents: RenderedDocuments) -> EncodedDocuments:
    """Encode all texts, and cut those with a straddled start.

    Raises what `TextEncoder.encode` raises.
    """
    known = {number: tokens.whole for number, tokens in documents.encoded.items()}
    whole = encoder.encode(documents.texts, documents.rows, known, documents.lengths)
    turns = documents.turns
    numbers: Int64 = np.arange(len(documents.texts))
    turn_texts = np.repeat(numbers, turns.num_turns)
    positions = whole.text_offsets[turn_texts] + turns.starts
    first, after = whole.find_tokens_at(turn_texts, positions)
    is_cut = (first > after) & (turns.starts < turns.ends) & (turns.num_spans > 0)
    straddles = np.where(is_cut, first - after, 0)
    encoded = EncodedDocuments(whole, numbers, turns, turn_texts, first, straddles)
    if encoder.byte_level is None or not is_cut.any():
        return replace(encoded, straddles=np.zeros_like(straddles))
    return _cut_texts(encoder, encoded, documents)


def _cut_texts(
    encoder: TextEncoder, whole: EncodedDocuments, documents: RenderedDocuments
) -> EncodedDocuments:
    """Cut the texts at the starts with `straddles`, and encode their parts."""
    cuts: dict[int, list[int]] = {}
    for turn in np.flatnonzero(whole.straddles).tolist():
        starts = cuts.setdefault(int(whole.turn_texts[turn]), [])
        starts.append(int(whole.turns.starts[turn]))
    versions = list(cuts.items())
    written = whole.written.copy()
    written[list(cuts)] = len(written) + np.arange(len(cuts))
    compared: dict[int, int] = {}
    first_turns = offsets_from_lengths(whole.turns.num_turns)
    for merged, _, served in documents.compared.tolist():
        served_start = whole.turns.starts[first_turns[served]]  # it has one turn
        earlier = [start for start in cuts.get(merged, ()) if start < served_start]
        if earlier:
            compared[served] = len(written) + len(versions)
            versions.append((served, earlier + cuts.get(served, [])))
    encoded = _append_versions(encoder, whole.encoded, documents, versions)
    turn_texts = written[whole.turn_texts]
    positions = encoded.text_offsets[turn_texts] + whole.turns.starts
    first_tokens = encoded.first_token_starting_at(turn_texts, positions)
    return replace(
        whole, encoded=encoded, written=written, first_tokens=first_tokens, compared=compared
    )


def _append_versions(
    encoder: TextEncoder,
    whole: EncodedTexts,
    documents: RenderedDocuments,
    versions: list[tuple[int, list[int]]],
) -> EncodedTexts:
    """Return the texts as a whole, followed by versions of some: (document, where it is cut)."""
    parts: list[str] = []
    rows: list[int] = []
    known: dict[int, EncodedText] = {}
    num_parts = [0]
    for number, starts in versions:
        content, tokens = documents.texts[number].encode(), documents.encoded.get(number)
        character = 0
        for start, end in pairwise([0, *sorted(set(starts)), len(content)]):
            part = content[start:end].decode()
            if tokens is not None:
                known[len(parts)] = tokens.encode_part(character, character + len(part))
            character += len(part)
            parts.append(part)
        num_parts.append(len(parts))
        rows += [int(documents.rows[number])] * (num_parts[-1] - num_parts[-2])
    # The parts of a text follow each other, so their positions are those in the joined texts.
    encoded = encoder.encode(parts, np.array(rows, np.int64), known)
    end = whole.text_offsets[-1]
    return EncodedTexts(
        ids=np.concatenate([whole.ids, encoded.ids]),
        offsets=np.append(whole.offsets, whole.offsets[-1] + encoded.offsets[num_parts[1:]]),
        starts=np.append(whole.starts, end + encoded.starts),
        ends=np.append(whole.ends, end + encoded.ends),
        text_offsets=np.append(whole.text_offsets, end + encoded.text_offsets[num_parts[1:]]),
    )
