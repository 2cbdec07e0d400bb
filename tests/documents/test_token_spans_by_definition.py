"""For any text and any spans, the tokens of turns follow the definition.

The definition is written here in the simplest way, token by token, from the offsets of
`tokenizers`. mtpack finds all turns at once, and computes positions from bytes where possible.
"""

import random
import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from mtpack.counts import Counts
from mtpack.documents.token_spans import encode_dialogues
from mtpack.template.rendered_dialogue import (
    DocumentText,
    RenderedDialogue,
    TurnLayout,
    Turns,
    TurnText,
)
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.encode import EncodedText, Positions, encode_with_offsets
from mtpack.tokenizer.loading import LoadedTokenizer, load_tokenizer
from tests.conftest import shared
from tests.support.encoders import encoder_of
from tests.support.strategies import Document, Turn, as_documents

TOKENIZERS = ["embedded", "qwen3", "gpt2", "minimind", "phi-3-mini", "t5-small-unigram"]
TOKENIZERS += ["bert-base-uncased-wordpiece"]
FLAGS = (TurnFlag(0), TurnFlag.NO_EOT)
PIECES = [
    *("Yes", " yes", "no", " would", "uld", " wo", "'s", "1234", "x" * 40),
    *("\n", "\n\n", "  ", " ", "\t", "\ufeff", "\u00a0"),
    *("你好", "，", "é", "e\u0301", "\u212b", "\u1100\u1161", "가", "\u0301", "ß"),
    *("🙂", "\U0001f469\u200d\U0001f469\u200d\U0001f467"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<|end|>"),
]


def dialogue_of(choose: random.Random, row: int) -> RenderedDialogue:
    """Return a dialogue with a merged document of several turns, and own documents."""
    merged = choose.choice((document_of, slotted_document_of))(choose, 0, most_turns=3)
    own = [document_of(choose, 10 + n, most_turns=1) for n in range(row % 3)]
    end = choose.randrange(len(merged.text) + 1)
    to_compare = []
    for number, turn in enumerate(merged.turns.to_list()):
        text = choose.choice(
            (None, None, merged.text[: turn.end] + choose.choice(PIECES), merged.text)
        )
        if text is not None:
            flags = turn.flags | TurnFlag.OWN_DOCUMENT
            turns = Turns.of([turn._replace(flags=flags)])
            to_compare.append((number, DocumentText(text, turns)))
    return RenderedDialogue(row, merged, tuple(own), end, tuple(to_compare))


def document_of(choose: random.Random, first_message: int, most_turns: int) -> DocumentText:
    """Return a text with turns of up to two spans; some are empty, some adjacent."""
    text = "".join(choose.choices(PIECES, k=choose.randrange(12)))
    edges = sorted(choose.choices(range(len(text) + 1), k=12))
    turns = []
    for number in range(choose.randrange(most_turns + 1)):
        start, first, between, last = edges[4 * number : 4 * number + 4]
        middle = choose.choice((between, (between + last) // 2))
        spans = choose.choice((((first, between), (middle, last)), ((start, last),), ()))
        turns.append(TurnText(first_message + number, spans, first, last, TurnFlag(0)))
    return DocumentText(text, Turns.of(turns))


def slotted_document_of(choose: random.Random, first_message: int, most_turns: int) -> DocumentText:
    """Return a text with filled slots, and turns of one span each; some are empty."""
    filled, around = (choose.choices(PIECES, k=4) for _ in range(2))
    text = "".join(around[n] + filled[n] for n in range(4)) + around[0]
    slots = [sum(map(len, around[: n + 1])) + n for n in range(4)]
    # One character after the start of the text that follows a slot, or of the whole text.
    positions = [choose.choice((1, *(slot + 2 for slot in slots))) for _ in range(2 * most_turns)]
    positions.sort()
    turns = [
        TurnText(first_message + n, ((start, end),), start, end, choose.choice(FLAGS))
        for n, (start, end) in enumerate(zip(positions[::2], positions[1::2], strict=True))
    ]
    layout = TurnLayout.of(turns[: choose.randrange(1, most_turns + 1)], slots)
    return DocumentText(text, Turns(layout, list(map(len, filled))))


class Definition:
    """Documents, turns and counts by definition, one token after another."""

    def __init__(self, tokenizer: LoadedTokenizer, merge: str) -> None:
        self.tokenizer = tokenizer
        self.is_byte_level = "ByteLevel" in repr(tokenizer.backend.pre_tokenizer)
        self.merge = merge
        self.encoded: dict[str, EncodedText] = {}
        self.documents: list[Document] = []
        self.counts = Counts()
        self.flags: list[int] = []

    def add_dialogue(self, dialogue: RenderedDialogue) -> None:
        text, turns = dialogue.merged.text, dialogue.merged.turns.to_list()
        cuts = self.find_cuts(text, turns)
        merged = self.encode(text, cuts)
        if_merged = sum(int(end) <= dialogue.merged_end for end in merged.ends)
        self.counts += Counts(tokens_if_merged=if_merged)
        kept, moved = [], []
        own_texts = {number: document.text for number, document in dialogue.to_compare}
        for number, turn in enumerate(turns):
            if number not in own_texts or self.is_exact(merged, cuts, own_texts[number], turn):
                kept.append(turn)
            elif self.merge == "always":
                kept.append(turn._replace(flags=turn.flags | TurnFlag.BENT))
            else:
                own_turn = turn._replace(flags=turn.flags | TurnFlag.OWN_DOCUMENT)
                moved.append((own_texts[number], [own_turn]))
        self.add_document(dialogue.row, text, cuts, kept)
        own = [(document.text, document.turns.to_list()) for document in dialogue.own]
        for text, turns in (*moved, *own):
            self.add_document(dialogue.row, text, self.find_cuts(text, turns), turns)

    def is_exact(self, merged: EncodedText, cuts: list[int], own_text: str, turn) -> bool:
        """Return whether the ids up to the end of the turn are equal, with earlier cuts alike."""
        earlier = {cut for cut in cuts if cut < turn.start}
        own = self.encode(own_text, sorted(earlier.union(self.find_cuts(own_text, [turn]))))
        return self.before(merged, turn.end) == self.before(own, turn.end)

    def find_cuts(self, text: str, turns) -> list[int]:
        """Return the starts of turns that lie inside a token of the whole text."""
        if not self.is_byte_level:
            return []
        starts = {turn.start for turn in turns if turn.spans and turn.start < turn.end}
        return sorted(start for start in starts if self.count_around(text, start))

    def count_around(self, text: str, position: int) -> int:
        """Return the number of tokens of the whole text that start before and end after it."""
        whole = self.encode_whole(text)
        return int(np.sum((whole.starts < position) & (position < whole.ends)))

    def encode_whole(self, text: str) -> EncodedText:
        if text not in self.encoded:
            (self.encoded[text],) = encode_with_offsets(self.tokenizer, [text])
        return self.encoded[text]

    def encode(self, text: str, cuts: list[int]) -> EncodedText:
        """Encode the parts of the text between the cuts, each apart from the others."""
        edges = [0, *cuts, len(text)]
        parts = [(first, self.encode_whole(text[first:last])) for first, last in pairwise(edges)]
        return EncodedText(
            np.concatenate([part.ids for _, part in parts]),
            np.concatenate([first + part.starts for first, part in parts]),
            np.concatenate([first + part.ends for first, part in parts]),
        )

    def before(self, encoded: EncodedText, end: int) -> list[tuple[int, bool]]:
        """Return the tokens that start before `end`, and whether they also end at or before it."""
        return [
            (int(token), bool(stop <= end))
            for token, start, stop in zip(encoded.ids, encoded.starts, encoded.ends, strict=True)
            if start < end
        ]

    def add_document(self, row: int, text: str, cuts: list[int], turns) -> None:
        encoded = self.encode(text, cuts)
        found, length = [], 0
        for turn in turns:
            if turn.start in self.find_cuts(text, [turn]):
                self.counts += Counts(straddles=self.count_around(text, turn.start))
            trained = set()
            for start, end in turn.spans:
                for token, (first, last) in enumerate(
                    zip(encoded.starts.tolist(), encoded.ends.tolist(), strict=True)
                ):
                    if start <= first < end and last <= end and token > 0:
                        trained.add(token)
                    straddles = (first < start < last) + (first < end < last)
                    self.counts += Counts(straddles=straddles)
            if not trained:
                self.counts += Counts(turns_dropped={"no_loss_token": 1})
                continue
            given = sum(bool(encoded.starts[t] < turn.start) for t in trained)
            self.counts += Counts(given_trained=given)
            spans = [
                (start, next(end for end in range(start, max(trained) + 2) if end not in trained))
                for start in sorted(trained)
                if start - 1 not in trained
            ]
            found.append(Turn(turn.message, int(turn.flags), spans))
            length = max(trained) + 1
        if found:
            self.documents.append(Document(row, encoded.ids[:length].tolist(), found))


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    if request.param == "embedded":
        return load_tokenizer(None)
    return load_tokenizer(str(shared(f"tokenizers/{request.param}")))


@pytest.mark.parametrize("merge", ["auto", "always"])
def test_loss_tokens_are_those_that_lie_wholly_inside_a_span(tokenizer, merge):
    choose = random.Random(f"{tokenizer.sha256}{merge}")
    for first in range(0, 300, 10):
        rendered = [dialogue_of(choose, row) for row in range(first, first + 10)]
        definition = Definition(tokenizer, merge)
        for dialogue in rendered:
            definition.add_dialogue(dialogue)
        batch, counts = encode_dialogues(
            encoder_of(tokenizer), RenderedDocuments.of(rendered), merge
        )
        assert as_documents(batch) == definition.documents
        assert counts == definition.counts


def test_tokens_keep_their_positions_in_texts_that_the_tokenizer_normalizes(tokenizer):
    texts = ["e\u0301" * 3 + "Yes", "\u212b", "Yes", "\u1100\u1161 no", "", "가"]
    assert any(not unicodedata.is_normalized("NFC", text) for text in texts)
    encoded = encoder_of(tokenizer).encode(texts, np.arange(len(texts)), {})
    positions = Positions.of(texts)
    for number, expected in enumerate(encode_with_offsets(tokenizer, texts)):
        first, last = encoded.offsets[number : number + 2]
        assert encoded.ids[first:last].tolist() == expected.ids.tolist()
        for character in range(len(texts[number]) + 1):
            text = np.array([number])
            position = positions.at(text, np.array([character]))
            started_before = sum(expected.starts < character)
            assert encoded.first_token_starting_at(text, position) == first + started_before
            assert encoded.first_token_ending_after(text, position) == first + sum(
                expected.ends <= character
            )


def test_turns_move_with_the_lengths_of_the_slots_before_them():
    def turns_at(*edges: int) -> list[TurnText]:
        first, second, third, fourth = edges
        spans = ((third, third + 1), (third + 1, fourth))
        return [
            TurnText(1, ((first, second),), first, second, TurnFlag(0)),
            TurnText(3, spans, third, fourth, TurnFlag.NO_EOT),
        ]

    # In this text, "_" is a slot: ab_cd_e_fg_h
    layout = TurnLayout.of(turns_at(4, 6, 8, 12), slots=[2, 5, 7, 10])
    turns = Turns(layout, [2, 3, 9, 9])
    assert turns.to_list() == turns_at(5, 9, 19, 31)
    assert turns == Turns.of(turns_at(5, 9, 19, 31))
    assert turns != Turns.of(turns_at(5, 9, 19, 30))
