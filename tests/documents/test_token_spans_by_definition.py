"""For any text and any spans, the tokens of turns follow the definition.

The definition is written here in the simplest way, token by token, from the offsets of
`tokenizers`. mtpack finds all turns at once, and computes positions from bytes where possible.
"""

import random
import unicodedata

import numpy as np
import pytest

from mtpack.counts import Counts
from mtpack.documents.token_spans import encode_dialogues
from mtpack.template.turn_columns import SlottedTurns, TurnLayout
from mtpack.template.turn_spans import DocumentText, RenderedDialogue, TurnText
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.encode import EncodedText, encode_with_offsets
from mtpack.tokenizer.loading import LoadedTokenizer, load_tokenizer
from tests.conftest import shared
from tests.support.encoders import encoder_of
from tests.support.strategies import Document, Turn, as_documents

TOKENIZERS = ["embedded", "qwen3", "gpt2", "minimind", "phi-3-mini", "t5-small-unigram"]
TOKENIZERS += ["bert-base-uncased-wordpiece"]
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
    return RenderedDialogue(row, merged, tuple(own), end)


def document_of(choose: random.Random, first_message: int, most_turns: int) -> DocumentText:
    """Return a text with turns of up to two spans; some are empty, some adjacent."""
    text = "".join(choose.choices(PIECES, k=choose.randrange(12)))
    edges = sorted(choose.choices(range(len(text) + 1), k=12))
    turns = []
    for number in range(choose.randrange(most_turns + 1)):
        start, first, between, last = edges[4 * number : 4 * number + 4]
        middle = choose.choice((between, (between + last) // 2))
        spans = choose.choice((((first, between), (middle, last)), ((start, last),), ()))
        own_text = choose.choice((None, None, text[:last] + choose.choice(PIECES), text))
        message = first_message + number
        turns.append(TurnText(message, spans, first, last, TurnFlag(0), own_text))
    return DocumentText(text, tuple(turns))


def slotted_document_of(choose: random.Random, first_message: int, most_turns: int) -> DocumentText:
    """Return a text with slots, and turns of one span each; some are empty."""
    slots, around = (choose.choices(PIECES, k=4) for _ in range(2))
    text = "".join(around[n] + slots[n] for n in range(4)) + around[0]
    num_turns = choose.randrange(1, most_turns + 1)
    # After this many slots, and one character of the text that follows.
    positions = [
        (num_slots, sum(map(len, around[:num_slots])) + 1)
        for num_slots in sorted(choose.choices(range(5), k=2 * num_turns))
    ]
    messages = range(first_message, first_message + num_turns)
    flags = choose.choices((TurnFlag(0), TurnFlag.NO_EOT), k=num_turns)
    layout = TurnLayout.from_columns(messages, flags, positions[::2], positions[1::2])
    return DocumentText(text, SlottedTurns(layout, list(map(len, slots))))


class Definition:
    """Documents, turns and counts by definition, one token after another."""

    def __init__(self, tokenizer: LoadedTokenizer, merge: str) -> None:
        self.tokenizer = tokenizer
        self.merge = merge
        self.documents: list[Document] = []
        self.counts = Counts()
        self.flags: list[int] = []

    def add_dialogue(self, dialogue: RenderedDialogue) -> None:
        merged = self.encode(dialogue.merged.text)
        if_merged = sum(int(end) <= dialogue.merged_end for end in merged.ends)
        self.counts += Counts(tokens_if_merged=if_merged)
        kept, moved = [], []
        for turn in dialogue.merged.turns:
            own = None if turn.own_text is None else self.encode(turn.own_text)
            if own is None or self.before(merged, turn.end) == self.before(own, turn.end):
                kept.append(turn)
            elif self.merge == "always":
                kept.append(turn._replace(flags=turn.flags | TurnFlag.BENT))
            else:
                moved.append((own, turn._replace(flags=turn.flags | TurnFlag.OWN_DOCUMENT)))
        self.add_document(dialogue.row, merged, kept)
        for own, turn in moved:
            self.add_document(dialogue.row, own, [turn])
        for document in dialogue.own:
            self.add_document(dialogue.row, self.encode(document.text), document.turns)

    def encode(self, text: str) -> EncodedText:
        return encode_with_offsets(self.tokenizer, [text])[0]

    def before(self, encoded: EncodedText, end: int) -> list[tuple[int, bool]]:
        """Return the tokens that start before `end`, and whether they also end at or before it."""
        return [
            (int(token), bool(stop <= end))
            for token, start, stop in zip(encoded.ids, encoded.starts, encoded.ends, strict=True)
            if start < end
        ]

    def add_document(self, row: int, encoded: EncodedText, turns) -> None:
        found, length = [], 0
        for turn in turns:
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
        batch, counts = encode_dialogues(encoder_of(tokenizer), rendered, merge)
        assert as_documents(batch) == definition.documents
        assert counts == definition.counts


def test_tokens_keep_their_positions_in_texts_that_the_tokenizer_normalizes(tokenizer):
    texts = ["e\u0301" * 3 + "Yes", "\u212b", "Yes", "\u1100\u1161 no", "", "가"]
    assert any(not unicodedata.is_normalized("NFC", text) for text in texts)
    encoded = encoder_of(tokenizer).encode(texts, range(len(texts)), {})
    for number, expected in enumerate(encode_with_offsets(tokenizer, texts)):
        first, last = encoded.offsets[number : number + 2]
        assert encoded.ids[first:last].tolist() == expected.ids.tolist()
        for character in range(len(texts[number]) + 1):
            text = np.array([number])
            position = encoded.positions.at(text, np.array([character]))
            started_before = sum(expected.starts < character)
            assert encoded.first_token_starting_at(text, position) == first + started_before
            assert encoded.first_token_ending_after(text, position) == first + sum(
                expected.ends <= character
            )


def test_slotted_turns_equal_turns_with_positions():
    layout = TurnLayout.from_columns(
        (1, 3), (TurnFlag(0), TurnFlag.NO_EOT), [(1, 3), (3, 6)], [(2, 4), (4, 7)]
    )
    turns = SlottedTurns(layout, [2, 3, 9, 9])
    expected = (
        TurnText(1, ((5, 9),), 5, 9, TurnFlag(0)),
        TurnText(3, ((20, 30),), 20, 30, TurnFlag.NO_EOT),
    )
    assert tuple(turns) == expected
    assert turns == expected == turns[:]
    assert turns != expected[:1]
    assert DocumentText("", turns) == DocumentText("", expected)
