"""Find where each turn starts and ends in the rendered text, and whether merging it is exact.

This is the definition of a turn; docs/turns.md has it with examples. A *turn* is an assistant
message that carries loss: what the model has to write at inference. For the message at index i:

    full    the whole dialogue, rendered
    own     the messages up to and including i, rendered
    prompt  the messages before i, rendered with the generation prompt: the model's input
    region  the characters that the template writes for message i, its role header included

Region: marks in the template's loop over the messages find it (`markers.py`). If there is no such
loop, it is what `own` adds to the text of the messages before i. If neither works, the row is
rejected (`turn_not_found`).

Start: the end of `prompt`, if `own` starts with `prompt`. So the role header carries no loss, nor
does a scaffold (`<think>`) that the prompt contains. Otherwise it is the end of their common
prefix, moved back to the edge of an added token of `prompt`, and the turn is flagged
`PROMPT_DIFFERS`. If they differ already before the region, only the region is compared with the
generation prompt. If `prompt` contains the whole turn, nothing is left to train. If `prompt`
can't be rendered (the assistant speaks first), the turn starts after its role header, which is
found in the region as the text of the generation prompt.

End: the end of the region without trailing white space, so the end-of-turn token is trained. A
later message inside the region (a tool's answer) ends the turn before it. If the turn ends in no
control token, but one alone closes the conversation, that token is part of the turn. A turn that
ends in no control token is flagged `NO_EOT`.

Spans: the loss tokens lie in [start, end), or, if the template has `{% generation %}` tags, in the
tagged characters of the region.

Merging turn i into `full` is exact if and only if `full` and `own` agree up to the end of the turn,
in text and, where that end is not an added token, in token ids (`documents/token_spans.py` compares
the ids). Any other turn gets `own` as its own document under `--merge auto`, and is
trained in `full` and flagged `BENT` under `--merge always`. Under `--merge never`, every turn has
its own document. A turn whose `own` the template refuses is trained in `full`, as `UNPROVEN`.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mtpack.input.dialogue import Dialogue, Message, Origin, Reason, Reject
from mtpack.template.chat_template import TemplateRaisedError
from mtpack.template.limits import TemplateLimitError
from mtpack.template.markers import MarkedText, Range, has_mark_characters
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.added_tokens import AddedTokens
from mtpack.tokenizer.encode import EncodedText


class TurnText(NamedTuple):
    """One turn in a rendered text. A tuple, since one is made for each turn (speed)."""

    message: int
    """The index of the message in its dialogue."""
    spans: tuple[Range, ...]
    """Ranges [start, end) of characters that carry loss; several only with generation tags."""
    start: int
    """The start of the turn: characters before it belong to the prompt."""
    end: int
    """The end of the turn: the position after its last character."""
    flags: TurnFlag
    own_text: str | None = None
    """`own`, if the ids up to `end` must be compared with its ids: equal text does not decide."""
    own_encoded: EncodedText | None = None
    """The tokens of `own_text`, if they are known already."""


class DocumentText(NamedTuple):
    """A rendered text and the turns that are trained in it."""

    text: str
    turns: Sequence[TurnText]
    encoded: EncodedText | None = None
    """The tokens of `text`, if they are known already."""


class RenderedDialogue(NamedTuple):
    """The documents of one dialogue, as text."""

    row: int
    """`Dialogue.row`."""
    merged: DocumentText
    """`full`, with the turns that are trained in it."""
    own: tuple[DocumentText, ...]
    """One document for each other turn: its `own`."""
    merged_end: int
    """The end of the last turn in `full`, if all turns were trained in it."""


_QUESTION = Message("user", {"role": "user", "content": "?"}, trained=False)


class Template(Protocol):
    """Renders dialogues: a chat template, or a replay of one."""

    def render(
        self, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool = False
    ) -> str:
        """Return the rendered text; raise TemplateRaisedError."""

    def render_marked(
        self, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool = False
    ) -> MarkedText:
        """Return the rendered text and its regions; raise TemplateRaisedError."""


class _TurnNotFoundError(Exception):
    """The region of a message can't be found; the text says what to do."""


def render_dialogue(
    template: Template, added_tokens: AddedTokens, dialogue: Dialogue, merge: str
) -> RenderedDialogue | Reject:
    """Render a dialogue and find its turns.

    merge: `auto`, `always` or `never`. Returns a Reject if the template refuses the dialogue, does
    more than its limits allow, or writes a turn where it can't be found.
    """
    finder = _TurnFinder(template, added_tokens, dialogue)
    try:
        full = template.render_marked(dialogue.messages, dialogue.tools)
        return finder.divide(full, merge)
    except TemplateRaisedError as error:
        return Reject(
            dialogue.row,
            dialogue.origin,
            Reason.TEMPLATE_RAISED,
            f"the chat template refuses this dialogue: {_hide_content(str(error), dialogue)}",
        )
    except TemplateLimitError as error:  # from any render, those of prompts included
        return Reject(
            dialogue.row,
            dialogue.origin,
            Reason.TEMPLATE_LIMIT,
            f"the chat template {error}; shorten the dialogue or use another --chat-template",
        )
    except _TurnNotFoundError as error:
        return Reject(dialogue.row, dialogue.origin, Reason.TURN_NOT_FOUND, str(error))


def finds_turns(template: Template, added_tokens: AddedTokens) -> bool:
    """Return whether the turn of a simple dialogue is found, or the template refuses it."""
    answer = Message("assistant", {"role": "assistant", "content": "mtpackprobe"}, trained=True)
    dialogue = Dialogue(0, Origin("probe", 1), (_QUESTION, answer), None)
    rendered = render_dialogue(template, added_tokens, dialogue, "never")
    if isinstance(rendered, Reject):
        return rendered.reason is not Reason.TURN_NOT_FOUND
    text = rendered.own[0].text
    spans = [text[slice(*span)] for turn in rendered.own[0].turns for span in turn.spans]
    return "mtpackprobe" not in text or any("mtpackprobe" in span for span in spans)


def _hide_content(error_text: str, dialogue: Dialogue) -> str:
    """Return a template's error text, or a replacement if it quotes the dialogue."""
    contents = (str(message.fields.get("content", "")).strip() for message in dialogue.messages)
    if any(len(content) > 2 and content in error_text for content in contents):
        return "its message is not shown because it quotes the dialogue"
    return error_text


@dataclass(frozen=True, slots=True)
class _TurnFinder:
    """Finds the turns of one dialogue."""

    template: Template
    added_tokens: AddedTokens
    dialogue: Dialogue

    def divide(self, full: MarkedText, merge: str) -> RenderedDialogue:
        """Find all turns, and divide them between `full` and documents of their own."""
        merged: list[TurnText] = []
        own: list[DocumentText] = []
        merged_end: int | None = 0
        for message in self.dialogue.trained_messages():
            text = self._render_own(full, message)
            if text is None:  # nothing to compare `full` with
                merged.append(self._locate(full, message, TurnFlag.UNPROVEN))
                merged_end = merged[-1].end
                continue
            turn = self._locate(text, message, TurnFlag(0))
            exact = full.text.startswith(text.text[: turn.end])
            merged_end = turn.end if exact else None
            if merge == "never" or (merge == "auto" and not exact):
                flags = turn.flags if exact else turn.flags | TurnFlag.OWN_DOCUMENT
                own.append(DocumentText(text.text, (turn._replace(flags=flags),)))
            elif not exact:
                merged.append(self._locate_bent(full, text.text[turn.start : turn.end], message))
                merged_end = merged[-1].end
            elif self.added_tokens.is_cut_after(text.text[: turn.end]):
                merged.append(turn)
            else:
                merged.append(turn._replace(own_text=text.text))
        if merged_end is None:  # the last turn was located in its own document only
            merged_end = full.regions.get(message, (0, len(full.text)))[1]
        return RenderedDialogue(
            self.dialogue.row, DocumentText(full.text, tuple(merged)), tuple(own), merged_end
        )

    def _render_own(self, full: MarkedText, message: int) -> MarkedText | None:
        """Return the `own` of `message`; None if the template refuses."""
        if message == len(self.dialogue.messages) - 1:
            return full
        try:
            return self.template.render_marked(
                self.dialogue.messages[: message + 1], self.dialogue.tools
            )
        except TemplateRaisedError:
            return None

    def _locate_bent(self, full: MarkedText, own_turn: str, message: int) -> TurnText:
        """Locate in `full` a turn whose text or context differs there; own_turn: its own text."""
        turn = self._locate(full, message, TurnFlag.BENT)
        if full.generations is not None:
            return turn
        end, last_token = turn.end, self.added_tokens.find_trailing_control_token(own_turn)
        if full.text.startswith(own_turn, turn.start):
            end = turn.start + len(own_turn)
        elif full.text.startswith(last_token, end) and not full.text[:end].endswith(last_token):
            end += len(last_token)  # here the token also opens the tool's answer
        return turn._replace(spans=((turn.start, end),), end=end)

    def _locate(self, text: MarkedText, message: int, flags: TurnFlag) -> TurnText:
        """Locate the turn of `message` in a rendered text that contains the message."""
        region = self._find_region(text, message)
        if region is None:
            return TurnText(
                message, (), text.empty_regions[message], text.empty_regions[message], flags
            )
        prompt = self._render_prompt(message)
        end = self._find_end(text, message, region, prompt)
        start, as_prompted = self._find_start(text.text, message, region, end, prompt)
        spans: tuple[Range, ...] = ((start, end),)
        if text.generations is not None:
            spans = tuple(
                (max(first, region[0]), min(last, region[1]))
                for first, last in text.generations
                if first < region[1] and last > region[0]
            )
            end = max((last for _, last in spans), default=end)
        if not as_prompted:
            flags |= TurnFlag.PROMPT_DIFFERS
        if not self.added_tokens.ends_in_control_token(text.text[:end].rstrip()):
            flags |= TurnFlag.NO_EOT
        return TurnText(message, spans, start, end, flags)

    def _render_prompt(self, message: int) -> str | None:
        """Return the `prompt` of `message`; None if the template refuses."""
        try:
            return self.template.render(
                self.dialogue.messages[:message], self.dialogue.tools, prompt=True
            )
        except TemplateRaisedError:
            return None

    def _find_region(self, text: MarkedText, message: int) -> Range | None:
        """Return the region of `message`, from its marks or else from its prefix.

        Returns None for an empty message that the template does not write. Raises
        _TurnNotFoundError.
        """
        region = text.regions.get(message)
        text_has_marks = has_mark_characters(text.text)
        if region is None and not text_has_marks and text.generations != []:
            region = self._find_region_after_prefix(text.text, message)
        if region is None and not (message in text.empty_regions and self._is_empty(message)):
            raise _TurnNotFoundError(
                "the dialogue contains characters from U+FDD0 to U+FDD4, which Unicode does not "
                "allow in text; remove them"
                if text_has_marks
                else f"message {message}: where the chat template writes it can't be found; "
                "use a template that writes messages one by one in a loop"
            )
        return region

    def _find_region_after_prefix(self, own: str, message: int) -> Range | None:
        """Return what `own` adds to the text of the messages before `message`.

        Returns None unless `own` starts with that text, and the dialogue continued with a question
        starts with `own`. Then the added text is exactly what the template writes for the message.
        """
        before = self.dialogue.messages[:message]
        with_question = (*self.dialogue.messages[: message + 1], _QUESTION)
        try:
            prefix = self.template.render(before, self.dialogue.tools)
            continued = self.template.render(with_question, self.dialogue.tools)
        except TemplateRaisedError:
            return None
        end = len(own.rstrip())
        if len(prefix) < end and own.startswith(prefix) and continued.startswith(own[:end]):
            return len(prefix), len(own)
        return None

    def _find_end(self, text: MarkedText, message: int, region: Range, prompt: str | None) -> int:
        """Return the end of the turn of `message` (see the module's docstring)."""
        inside = [start for later, (start, _) in text.regions.items() if later > message]
        last = min((start for start in inside if region[0] < start), default=region[1])
        end = region[0] + len(text.text[region[0] : min(last, region[1])].rstrip())
        prompt_has_all = prompt is not None and prompt.startswith(text.text[:end])
        if self.added_tokens.ends_in_control_token(text.text[:end]) and not prompt_has_all:
            return end
        closing = text.text[end:].strip()
        if closing and closing == self.added_tokens.find_trailing_control_token(closing):
            return text.text.index(closing, end) + len(closing)
        return end

    def _find_start(
        self, text: str, message: int, region: Range, end: int, prompt: str | None
    ) -> tuple[int, bool]:
        """Return the start of the turn, and whether it is the end of its prompt."""
        if prompt is None:
            return self._find_header_end(text, message, region)
        if text.startswith(prompt):
            return len(prompt), True
        if prompt.startswith(text[:end]):  # the prompt contains the whole turn
            return end, False
        start = self._find_common_end(prompt, text)
        if start > region[0]:
            return start, False
        # They differ in an earlier message: compare the generation prompt with the region alone.
        header = self._find_generation_prompt(self.dialogue.messages[:message])
        written = text[slice(*region)]
        common = len(header)
        if not written.startswith(header):
            common = self._find_common_end(header, written)
        return region[0] + common, False

    def _find_header_end(self, text: str, message: int, region: Range) -> tuple[int, bool]:
        """Return the end of the role header of a message that has no prompt, and if it is whole.

        Text that opens every conversation (a default system prompt) may precede the header.
        """
        header = self._find_generation_prompt(self.dialogue.messages[: message + 1]).lstrip()
        written = text[slice(*region)]
        length = len(header)
        while length:  # a generation prompt may add a scaffold to the header: shorten it
            position = written.find(header[:length])
            if position >= 0:
                return region[0] + position + length, length == len(header)
            length = self.added_tokens.find_last_boundary(header, length - 1)
        return region[0], False

    def _find_generation_prompt(self, messages: tuple[Message, ...]) -> str:
        """Return the generation prompt after `messages`, or else after a question; "" if none."""
        for before in (messages, (_QUESTION,)):
            try:
                prompt = self.template.render_marked(before, self.dialogue.tools, prompt=True)
                without = self.template.render(before, self.dialogue.tools)
            except TemplateRaisedError:
                continue
            rest = prompt.text[max((end for _, end in prompt.regions.values()), default=0) :]
            added = prompt.text[len(without) :] if prompt.text.startswith(without) else ""
            if added or rest.strip():
                return added or rest
        return ""

    def _is_empty(self, message: int) -> bool:
        fields = self.dialogue.messages[message].fields
        return not any(fields.get(key) for key in ("content", "tool_calls", "reasoning_content"))

    def _find_common_end(self, prompt: str, text: str) -> int:
        """Return the end of the common prefix, moved back to an added token's edge in `prompt`."""
        common = len(os.path.commonprefix([prompt, text]))  # noqa: RUF071 (by character, as meant)
        return self.added_tokens.find_last_boundary(prompt, common)
