"""A dialogue to its documents, and what becomes of control tokens that its given text spells.

The three policies of `--control-tokens`. Under `literal`, a dialogue that spells one is rendered a
second time with marks in these tokens (tokenizer/spelled_tokens.py). Where the template writes the
same but for the marks, they tell which control tokens of the text are ordinary text, and it is
encoded here. All other dialogues are rendered as if there were no policy.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from mtpack.documents.control_tokens_in_text import (
    SpelledToken,
    SpelledTokens,
    place_without_marks,
    without_marks,
)
from mtpack.documents.literal_tokens import LiteralTokenizer, NotLiteralError, literal_tokenizer
from mtpack.input.dialogue import Dialogue, Reason, Reject
from mtpack.options import PackOptions
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.markers import Range
from mtpack.template.tracing.replayer import Replayer
from mtpack.template.turn_spans import DocumentText, RenderedDialogue, TurnText, render_dialogue
from mtpack.tokenizer.added_tokens import AddedTokens
from mtpack.tokenizer.encode import EncodedText
from mtpack.tokenizer.loading import LoadedTokenizer


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders dialogues under a policy of `--control-tokens`."""

    template: ChatTemplate
    added_tokens: AddedTokens
    replayer: Replayer | None
    """What fills in dialogues that need not be rendered, if it may."""
    spelled: SpelledTokens
    policy: str
    literal: LiteralTokenizer | None
    """Under `literal`."""

    def without_replay(self) -> Renderer:
        """Return one that renders every dialogue."""
        return replace(self, replayer=None)

    def replay_counts(self) -> Counter[str]:
        """Return how many dialogues were replayed and audited so far, and how many differed."""
        if self.replayer is None:
            return Counter()
        names = ("replayed", "audited", "audit_mismatches")
        return Counter({name: getattr(self.replayer, name) for name in names})

    def replay_texts(self, dialogue: Dialogue) -> RenderedDialogue | None:
        """Return what `render` does, if that runs no template and takes a few µs, else None."""
        if self.replayer is None:
            return None
        if self.policy != "keep" and self.spelled.first_in(dialogue) is not None:
            return None
        return self.replayer.replay_texts(dialogue)

    def render(self, dialogue: Dialogue, merge: str) -> RenderedDialogue | Reject:
        """Render a dialogue and find its turns. merge: `auto`, `always` or `never`."""
        token = None if self.policy == "keep" else self.spelled.first_in(dialogue)
        if token is None and self.replayer is not None and merge == self.replayer.merge:
            return self.replayer.render_dialogue(dialogue)
        if token is None:
            return render_dialogue(self.template, self.added_tokens, dialogue, merge)
        if self.literal is not None:
            return self._render_literally(self.literal, dialogue, merge, token)
        return _reject(
            dialogue,
            Reason.CONTROL_TOKEN,
            f"{token.where}: the text spells the control token {token.content}; remove it, or let "
            "--control-tokens literal make it ordinary text",
        )

    @property
    def counts_spelling_as(self) -> str | None:
        """What dialogues whose given text spells control tokens are counted as, if any are left."""
        return {"keep": "control_tokens", "literal": "control_tokens_literal"}.get(self.policy)

    def _render_literally(
        self, literal: LiteralTokenizer, dialogue: Dialogue, merge: str, token: SpelledToken
    ) -> RenderedDialogue | Reject:
        plain = render_dialogue(self.template, self.added_tokens, dialogue, merge)
        if isinstance(plain, Reject):
            return plain
        marked = self.spelled.mark(dialogue)
        rendered = render_dialogue(self.template, self.added_tokens, marked, merge)
        who = "the chat template"
        if isinstance(rendered, RenderedDialogue):
            try:
                found = _without_marks(literal, rendered)
            except NotLiteralError:
                who = "the tokenizer"
            else:
                if _turns_of(found) == _turns_of(plain):
                    return found
        return _reject(
            dialogue,
            Reason.NOT_LITERAL,
            f"{token.where}: {who} does not let the control token {token.content} be ordinary "
            "text; remove it, or choose --control-tokens keep",
        )


def load_renderer(
    template: ChatTemplate, tokenizer: LoadedTokenizer, options: PackOptions
) -> Renderer:
    """Make ready what the options of a run need; raise SetupError."""
    policy = options.control_tokens
    replayer = Replayer(template, tokenizer.added_tokens, options.merge, options.seed)
    return Renderer(
        template=template,
        added_tokens=tokenizer.added_tokens,
        replayer=replayer,
        spelled=SpelledTokens(tokenizer.added_tokens.control.values()),
        policy=policy,
        literal=literal_tokenizer(tokenizer) if policy == "literal" else None,
    )


def _reject(dialogue: Dialogue, reason: Reason, detail: str) -> Reject:
    return Reject(dialogue.row, dialogue.origin, reason, detail)


def _turns_of(rendered: RenderedDialogue) -> list[tuple[str, list[tuple[int, tuple[Range, ...]]]]]:
    """Return what the marks must not change: the texts, and where in them the turns are."""
    return [
        (document.text, [(turn.message, turn.spans) for turn in document.turns])
        for document in (rendered.merged, *rendered.own)
    ]


def _without_marks(literal: LiteralTokenizer, rendered: RenderedDialogue) -> RenderedDialogue:
    """Take the marks out of a dialogue and encode it as they say; raise NotLiteralError."""
    return rendered._replace(
        merged=_document_without_marks(literal, rendered.merged),
        own=tuple(_document_without_marks(literal, document) for document in rendered.own),
        merged_end=place_without_marks(rendered.merged.text, rendered.merged_end),
    )


def _document_without_marks(literal: LiteralTokenizer, document: DocumentText) -> DocumentText:
    text, encoded = _encode(literal, document.text)
    turns = tuple(_turn_without_marks(literal, document.text, turn) for turn in document.turns)
    return DocumentText(text, turns, encoded)


def _turn_without_marks(literal: LiteralTokenizer, text: str, turn: TurnText) -> TurnText:
    own, own_encoded = (None, None) if turn.own_text is None else _encode(literal, turn.own_text)
    return turn._replace(
        spans=tuple(
            (place_without_marks(text, start), place_without_marks(text, end))
            for start, end in turn.spans
        ),
        start=place_without_marks(text, turn.start),
        end=place_without_marks(text, turn.end),
        own_text=own,
        own_encoded=own_encoded,
    )


def _encode(literal: LiteralTokenizer, marked: str) -> tuple[str, EncodedText]:
    text, starts = without_marks(marked)
    return text, literal.encode(text, starts)
