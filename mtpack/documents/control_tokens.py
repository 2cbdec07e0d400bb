"""Render a dialogue under a policy for control tokens in its texts (`--control-tokens`).

    keep     they are encoded as control tokens
    literal  they are encoded as ordinary text
    error    the row is rejected

Under `literal`, a dialogue whose texts spell a control token is rendered a second time, with marks
in these tokens. If the template writes the same text apart from the marks, the marks show which
control tokens are ordinary text, and the text is encoded here. Otherwise the row is rejected.
Dialogues that spell none are rendered as under `keep`. Which tokens count in which texts is in
`control_tokens_in_text.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from mtpack.documents.control_tokens_in_text import (
    SpelledToken,
    SpelledTokens,
    remove_marks,
    to_unmarked_position,
)
from mtpack.documents.literal_tokens import (
    LiteralTokenizer,
    NotLiteralError,
    build_literal_tokenizer,
)
from mtpack.input.dialogue import Dialogue, Reason, Reject
from mtpack.options import PackOptions
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.markers import Range
from mtpack.template.probe_results import keep_with_template
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_dialogue import (
    DocumentText,
    KnownTokens,
    RenderedDialogue,
    Turns,
    TurnText,
)
from mtpack.template.tracing.budget import LearningBudget
from mtpack.template.tracing.replayer import Replayer
from mtpack.template.written_tokens import find_turn_tokens, find_written_tokens
from mtpack.tokenizer.added_tokens import AddedTokens
from mtpack.tokenizer.loading import LoadedTokenizer

# Arguments of rows for which replays are kept (those of one template take up to some megabytes).
_MAX_VARIANTS = 8


@dataclass(frozen=True)
class Renderer:
    """Renders dialogues under a policy of `--control-tokens`."""

    template: ChatTemplate
    added_tokens: AddedTokens
    replayer: Replayer | None
    """Replays the template for dialogues that need not be rendered; None if replay is disabled."""
    control_tokens: frozenset[str]
    """Their texts."""
    policy: str
    """`keep`, `literal` or `error`."""
    literal: LiteralTokenizer | None
    """None except under the policy `literal`."""
    _variants: dict[ChatTemplate, Renderer] = field(default_factory=dict, init=False)
    """Those for rows with arguments; the one that was used last is the last one."""
    _counts: Counter[str] = field(default_factory=Counter, init=False)
    """The counts of the replayers that were dropped."""

    def of(self, dialogue: Dialogue) -> Renderer:
        """Return the renderer of a dialogue: its row may set variables of the template."""
        template = self.template.with_arguments(dialogue.template_args)
        if template is self.template:
            return self
        if template is not template.made_up:  # its texts are those of this row alone
            return replace(self, template=template, replayer=None)
        variant = self._variants.pop(template, None)
        if variant is None:
            replayer = self.replayer and self.replayer.for_variant(template)
            variant = replace(self, template=template, replayer=replayer)
        self._variants[template] = variant
        if len(self._variants) > _MAX_VARIANTS:
            dropped = self._variants.pop(next(iter(self._variants)))
            self._counts.update(dropped.count_replays())
        return variant

    def count_replays(self) -> Counter[str]:
        """Count the dialogues `replayed` and `audited` in this process so far."""
        counts = Counter(self._counts)
        if self.replayer is not None:
            counts.update(replayed=self.replayer.replayed, audited=self.replayer.audited)
        for variant in self._variants.values():
            counts.update(variant.count_replays())
        return counts

    @cached_property
    def spelled(self) -> SpelledTokens:
        """Finds the control tokens that texts spell.

        To find out which ones open or end a turn, it renders: so only workers use it.
        """
        return _find_spelled_tokens(self.template, self.control_tokens, self.added_tokens.stops)

    def render(self, dialogue: Dialogue, merge: str) -> RenderedDialogue | Reject:
        """Render a dialogue and find its turns. merge: `auto`, `always` or `never`."""
        spelled = () if self.policy == "keep" else self.spelled.find(dialogue)
        if not spelled and self.replayer is not None and merge == self.replayer.merge:
            return self.replayer.render_dialogue(dialogue)
        if not spelled:
            return render_dialogue(self.template, self.added_tokens, dialogue, merge)
        token = spelled[0]
        if self.literal is not None:
            return self._render_literally(self.literal, dialogue, merge, token)
        return dialogue.reject(
            Reason.CONTROL_TOKEN,
            f"{token.where}: the text spells the control token {token.content}; remove it, or "
            "encode it as ordinary text with --control-tokens literal",
        )

    def name_counts(self, dialogue: Dialogue) -> frozenset[str]:
        """Return the names of the `Counts` that have an accepted dialogue, for what it spells."""
        if self.policy == "error":
            return frozenset()
        spelled = self.spelled.find(dialogue)
        if spelled and self.policy == "literal":
            return frozenset({"control_tokens_literal"})
        return frozenset(
            "control_tokens_in_answers" if token.in_answer else "control_tokens"
            for token in spelled
        )

    def _render_literally(
        self, literal: LiteralTokenizer, dialogue: Dialogue, merge: str, token: SpelledToken
    ) -> RenderedDialogue | Reject:
        plain = render_dialogue(self.template, self.added_tokens, dialogue, merge)
        if isinstance(plain, Reject):
            return plain
        marked = self.spelled.mark(dialogue)
        template = self.template
        if marked.template_args != dialogue.template_args:
            template = template.with_arguments(marked.template_args)
        rendered = render_dialogue(template, self.added_tokens, marked, merge)
        culprit = "the chat template"
        if isinstance(rendered, RenderedDialogue):
            try:
                unmarked = _remove_marks(literal, rendered)
            except NotLiteralError:
                culprit = "the tokenizer"
            else:
                if _get_turns(unmarked) == _get_turns(plain):
                    return unmarked
        return dialogue.reject(
            Reason.NOT_LITERAL,
            f"{token.where}: {culprit} can't treat the control token {token.content} as ordinary "
            "text; remove it, or choose --control-tokens keep",
        )


@keep_with_template
def _find_spelled_tokens(
    template: ChatTemplate, control_tokens: frozenset[str], stops: tuple[str, ...]
) -> SpelledTokens:
    turn_tokens = find_turn_tokens(template, control_tokens, stops)
    return SpelledTokens(control_tokens, turn_tokens)


def load_renderer(
    template: ChatTemplate, tokenizer: LoadedTokenizer, options: PackOptions
) -> Renderer:
    """Make the renderer for the options of a run; raise SetupError."""
    policy = options.control_tokens
    added = tokenizer.added_tokens
    special = frozenset(added.control.values())
    others = (token.content for token in added.tokens if token.content not in special)
    control = special | find_written_tokens(template, others)
    return Renderer(
        template=template,
        added_tokens=added,
        replayer=Replayer(template, added, options.merge, options.seed, LearningBudget()),
        control_tokens=control,
        policy=policy,
        literal=build_literal_tokenizer(tokenizer, control) if policy == "literal" else None,
    )


def _get_turns(
    rendered: RenderedDialogue,
) -> list[tuple[str, list[tuple[int, tuple[Range, ...]]]]]:
    """Return what the marks must not change: all texts, and the spans of the turns in them."""
    return [
        (document.text, [(turn.message, turn.spans) for turn in document.turns.to_list()])
        for document in (rendered.merged, *rendered.own)
    ]


def _remove_marks(literal: LiteralTokenizer, rendered: RenderedDialogue) -> RenderedDialogue:
    """Remove the marks from a dialogue and encode its texts; raise NotLiteralError."""
    return RenderedDialogue(
        row=rendered.row,
        merged=_remove_marks_from_document(literal, rendered.merged),
        own=tuple(_remove_marks_from_document(literal, document) for document in rendered.own),
        merged_end=to_unmarked_position(rendered.merged.text, rendered.merged_end),
        to_compare=tuple(
            (turn, _remove_marks_from_document(literal, document))
            for turn, document in rendered.to_compare
        ),
    )


def _remove_marks_from_document(literal: LiteralTokenizer, document: DocumentText) -> DocumentText:
    text, starts = remove_marks(document.text)
    turns = [_remove_marks_from_turn(document.text, turn) for turn in document.turns.to_list()]
    encoded = KnownTokens(literal.encode(text, starts), partial(literal.encode_part, text, starts))
    return DocumentText(text, Turns.of(turns), encoded)


def _remove_marks_from_turn(text: str, turn: TurnText) -> TurnText:
    return turn._replace(
        spans=tuple(
            (to_unmarked_position(text, start), to_unmarked_position(text, end))
            for start, end in turn.spans
        ),
        start=to_unmarked_position(text, turn.start),
        end=to_unmarked_position(text, turn.end),
    )
