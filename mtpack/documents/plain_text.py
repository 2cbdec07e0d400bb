"""Plain text becomes documents, without a template.

A document is the text of a row and an end-of-text token. It has one turn: all of its tokens but the
first, which no token predicts. A text without anything but white space has no turn.

The control tokens that a text spells are treated by `--control-tokens`, as input text is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from mtpack.documents.control_tokens import Renderer
from mtpack.documents.control_tokens_in_text import TokenPattern
from mtpack.documents.literal_tokens import NotLiteralError
from mtpack.errors import SetupError
from mtpack.input.dialogue import Dialogue, Reason, Reject
from mtpack.template.rendered_dialogue import (
    DocumentText,
    KnownTokens,
    RenderedDialogue,
    Turns,
    TurnText,
)
from mtpack.token_batch import (
    Int32,
    TokenBatch,
    TurnFlag,
    expand_ranges,
    offsets_from_lengths,
)
from mtpack.tokenizer.loading import LoadedTokenizer

# The end-of-text tokens of base models. Chat models keep them, but most name another token, that of
# the end of a turn, as their end of sequence.
_ENDS = (
    *("<|endoftext|>", "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    *("</s>", "<eos>", "[EOS]"),
)


def find_end_of_text(tokenizer: LoadedTokenizer) -> str:
    """Return the token that ends a text; raise SetupError if the tokenizer has none.

    That is the end-of-sequence token if it has the name of an end-of-text token, else a control
    token with such a name, else the end-of-sequence token.
    """
    named = tokenizer.special_tokens.get("eos_token")
    control = {*tokenizer.added_tokens.control.values()}
    if named in control and named in _ENDS:
        return named
    found = next((end for end in _ENDS if end in control), named)
    if not found:
        raise SetupError(
            f"{tokenizer.source}: the tokenizer has no end-of-text token, so plain text can't be "
            'packed (format = "text"); name an eos_token in its tokenizer_config.json'
        )
    return found


@dataclass(frozen=True, slots=True)
class TextRenderer:
    """Makes documents of rows of plain text, under a policy of `--control-tokens`."""

    end: str
    """The token that ends each text."""
    spelled: TokenPattern
    """Finds control tokens in a text."""
    renderer: Renderer
    """That of dialogues: it has the policy."""

    def find_spelled(self, dialogue: Dialogue) -> str:
        """Return the first control token that a text spells; "" if there is none."""
        return self.spelled.find_first(_get_text(dialogue))

    def render(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Return the document of a row, without a turn if its text is blank."""
        text = _get_text(dialogue)
        if not text or text.isspace():
            return RenderedDialogue(dialogue.row, DocumentText("", Turns.of([])), (), 0)
        whole = text + self.end
        known = None
        if self.renderer.policy != "keep" and (token := self.find_spelled(dialogue)):
            literal = self.renderer.literal
            if literal is None:
                return dialogue.reject(
                    Reason.CONTROL_TOKEN,
                    f"the text spells the control token {token}; remove it, or encode it as "
                    "ordinary text with --control-tokens literal",
                )
            starts = self.spelled.find_starts(text)
            try:
                encoded = literal.encode(whole, starts)
            except NotLiteralError:
                return dialogue.reject(
                    Reason.NOT_LITERAL,
                    f"the tokenizer can't treat the control token {token} as ordinary text; "
                    "remove it, or choose --control-tokens keep",
                )
            known = KnownTokens(encoded, partial(literal.encode_part, whole, starts))
        turn = TurnText(0, ((0, len(whole)),), 0, len(whole), TurnFlag(0))
        document = DocumentText(whole, Turns.of([turn]), known)
        return RenderedDialogue(dialogue.row, document, (), len(whole))


def load_text_renderer(renderer: Renderer, tokenizer: LoadedTokenizer) -> TextRenderer:
    """Make what renders plain text next to a renderer of dialogues; raise SetupError."""
    return TextRenderer(
        find_end_of_text(tokenizer), TokenPattern(renderer.control_tokens), renderer
    )


def _get_text(dialogue: Dialogue) -> str:
    text: str = dialogue.messages[0]["content"]
    return text


def cut_texts(batch: TokenBatch, seq_len: int) -> TokenBatch:
    """Cut each text that is longer than `seq_len` tokens into documents of at most so many.

    A document begins with the last token of the one before it. So each token but the first of the
    text carries loss once. Its message is the number of the part, from 0. Returns `batch` itself if
    no text is longer.
    """
    lengths = batch.document_lengths
    if not (lengths > seq_len).any():
        return batch
    stride = seq_len - 1
    num_parts = np.maximum(1, -(-(lengths - 1) // stride))
    documents = np.repeat(np.arange(len(lengths)), num_parts)
    numbers = expand_ranges(np.zeros(len(lengths), np.int64), num_parts)
    starts = numbers * stride
    part_lengths = np.minimum(seq_len, lengths[documents] - starts)
    first_tokens = batch.document_offsets[:-1][documents] + starts
    one_each = np.arange(len(documents) + 1, dtype=np.int64)
    ends: Int32 = part_lengths.astype(np.int32)
    return TokenBatch(
        ids=batch.ids[expand_ranges(first_tokens, part_lengths)],
        document_offsets=offsets_from_lengths(part_lengths),
        document_rows=batch.document_rows[documents],
        turn_offsets=one_each,
        turn_messages=numbers.astype(np.int32),
        turn_flags=batch.turn_flags[documents],
        span_offsets=one_each,
        span_starts=np.ones(len(documents), np.int32),
        span_ends=ends,
        turn_units=None if batch.turn_units is None else batch.turn_units[documents],
    )
