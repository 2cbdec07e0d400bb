"""Where every turn starts and ends in the rendered text, and whether merging it is exact.

The definition is on one page in docs/turns.md. For a trained message i, `own` is the dialogue
rendered up to and with i, `prompt` is what the model would be given in its place, and `full` is
the whole dialogue. A turn is what `own` has behind `prompt`, up to its end-of-turn token; it may
be trained in `full` exactly if `full` and `own` agree up to that end.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass, replace

from mtpack.dialogue import Dialogue, Message, Reason, Reject
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.limits import TemplateLimitError
from mtpack.template.marking import MarkedText, Range, holds_marks
from mtpack.tokenizer.added_tokens import AddedTokens
from mtpack.turns import TurnFlag


@dataclass(frozen=True, slots=True)
class TurnText:
    """One turn in a rendered text."""

    message: int
    spans: tuple[Range, ...]
    """Characters [start, end) that carry loss; one range unless the template marks several."""
    start: int
    """Where the model takes over: characters before it are given."""
    end: int
    """Behind the last character of the turn."""
    flags: TurnFlag
    own_text: str | None = None
    """What the ids up to `end` are to be compared with, where equal text does not settle them."""


@dataclass(frozen=True, slots=True)
class DocumentText:
    """A rendered text and the turns that are trained in it."""

    text: str
    turns: tuple[TurnText, ...]


@dataclass(frozen=True, slots=True)
class RenderedDialogue:
    """A dialogue as documents."""

    dialogue: Dialogue
    merged: DocumentText
    """The whole dialogue, with the turns that may be trained in it."""
    own: tuple[DocumentText, ...]
    """One document for each of the other turns."""
    merged_end: int
    """Where the whole dialogue would be cut if all turns were trained in it."""


_QUESTION = Message("user", {"role": "user", "content": "?"}, trained=False)


class _TurnNotFoundError(Exception):
    """The template writes a message in no one place that can be found."""


def render_dialogue(
    template: ChatTemplate, added_tokens: AddedTokens, dialogue: Dialogue, merge: str
) -> RenderedDialogue | Reject:
    """Render a dialogue and find its turns. merge: `auto`, `always` or `never`."""
    turns = _Turns(template, added_tokens, dialogue)
    try:
        full = template.render_marked(dialogue.messages, dialogue.tools)
        return turns.render(full, merge)
    except TemplateRaisedError as error:
        return Reject(
            dialogue.row,
            dialogue.origin,
            Reason.TEMPLATE_RAISED,
            f"the chat template refuses this dialogue: {_without_content(str(error), dialogue)}",
        )
    except TemplateLimitError as error:  # in any of its renders, the prompts among them
        return Reject(
            dialogue.row,
            dialogue.origin,
            Reason.TEMPLATE_LIMIT,
            f"the chat template {error}; shorten the dialogue or use another --chat-template",
        )
    except _TurnNotFoundError as error:
        return Reject(dialogue.row, dialogue.origin, Reason.TURN_NOT_FOUND, str(error))


def _without_content(words: str, dialogue: Dialogue) -> str:
    """Return a template's words, unless they quote the dialogue."""
    contents = (str(message.fields.get("content", "")).strip() for message in dialogue.messages)
    if any(len(content) > 2 and content in words for content in contents):
        return "its message quotes the dialogue"
    return words


@dataclass(frozen=True, slots=True)
class _Turns:
    """Finds the turns of one dialogue."""

    template: ChatTemplate
    added_tokens: AddedTokens
    dialogue: Dialogue

    def render(self, full: MarkedText, merge: str) -> RenderedDialogue:
        merged: list[TurnText] = []
        own: list[DocumentText] = []
        merged_end: int | None = 0
        for message in self.dialogue.trained_messages():
            text = self._own(full, message)
            if text is None:  # nothing to compare with, so the turn stays where it is
                merged.append(self._locate(full, message, TurnFlag.UNPROVEN))
                merged_end = merged[-1].end
                continue
            turn = self._locate(text, message, TurnFlag(0))
            exact = full.text.startswith(text.text[: turn.end])
            merged_end = turn.end if exact else None
            if merge == "never" or (merge == "auto" and not exact):
                flags = turn.flags if exact else turn.flags | TurnFlag.OWN_DOCUMENT
                own.append(DocumentText(text.text, (replace(turn, flags=flags),)))
            elif not exact:
                merged.append(self._locate(full, message, TurnFlag.BENT))
                merged_end = merged[-1].end
            elif self.added_tokens.cut_behind(text.text[: turn.end]):
                merged.append(turn)
            else:
                merged.append(replace(turn, own_text=text.text))
        if merged_end is None:  # of the last turn, which only its own document has so far
            merged_end = full.regions.get(message, (0, len(full.text)))[1]
        return RenderedDialogue(
            self.dialogue, DocumentText(full.text, tuple(merged)), tuple(own), merged_end
        )

    def _own(self, full: MarkedText, message: int) -> MarkedText | None:
        """Render the dialogue up to and with `message`; None where the template refuses."""
        if message == len(self.dialogue.messages) - 1:
            return full
        try:
            return self.template.render_marked(
                self.dialogue.messages[: message + 1], self.dialogue.tools
            )
        except TemplateRaisedError:
            return None

    def _locate(self, text: MarkedText, message: int, flags: TurnFlag) -> TurnText:
        """Find the turn of `message` in a text that has it."""
        if message in text.silent and self._says_nothing(message):
            place = text.silent[message]
            return TurnText(message, (), place, place, flags)
        if message not in text.regions:
            raise _TurnNotFoundError(
                "the dialogue holds characters from U+FDD0 to U+FDD4, which Unicode keeps out of "
                "text; remove them"
                if holds_marks(text.text)
                else f"message {message}: where the chat template writes it can't be found; "
                "use a template that writes messages one by one in a loop"
            )
        region_start, region_end = text.regions[message]
        end = region_start + len(text.text[region_start:region_end].rstrip())
        start, as_prompted = self._start(text.text, message, region_start, region_end)
        spans: tuple[Range, ...] = ((start, end),)
        if text.generations is not None:
            spans = tuple(
                (max(first, region_start), min(last, region_end))
                for first, last in text.generations
                if first < region_end and last > region_start
            )
            end = max((last for _, last in spans), default=end)
        if not as_prompted:
            flags |= TurnFlag.PROMPT_DIFFERS
        if not self.added_tokens.end_a_turn(text.text[:end].rstrip()):
            flags |= TurnFlag.NO_EOT
        return TurnText(message, spans, start, end, flags)

    def _start(
        self, text: str, message: int, region_start: int, region_end: int
    ) -> tuple[int, bool]:
        """Return where the model takes over, and whether that is where its prompt ends."""
        before = self.dialogue.messages[:message]
        try:
            prompt = self.template.render(before, self.dialogue.tools, prompt=True)
        except TemplateRaisedError:
            prompt = None
        if prompt is not None:
            if text.startswith(prompt):
                return len(prompt), True
            start = self._agreement(prompt, text)
            if start > region_start:
                return start, False
        # The message's own header, since nothing before it can be compared: either there is no
        # prompt, or it already differs from the text in an earlier message.
        behind = self.dialogue.messages[: message + 1] if prompt is None else before
        header = self._generation_prompt(behind)
        region = text[region_start:region_end]
        agreed = len(header) if region.startswith(header) else self._agreement(header, region)
        return region_start + agreed, prompt is None and 0 < agreed == len(header)

    def _generation_prompt(self, messages: tuple[Message, ...]) -> str:
        """Return what the template writes behind `messages` to have the model speak."""
        for asked in (messages, (_QUESTION,)):
            try:
                prompt = self.template.render_marked(asked, self.dialogue.tools, prompt=True)
            except TemplateRaisedError:
                continue
            return prompt.text[max((end for _, end in prompt.regions.values()), default=0) :]
        return ""

    def _says_nothing(self, message: int) -> bool:
        fields = self.dialogue.messages[message].fields
        return not any(fields.get(key) for key in ("content", "tool_calls", "reasoning_content"))

    def _agreement(self, prompt: str, text: str) -> int:
        """Return how far `text` starts like `prompt`, cut back to an added token's edge in it."""
        agreed = len(os.path.commonprefix([prompt, text]))  # noqa: RUF071 (by character, as meant)
        return self.added_tokens.last_boundary(prompt, agreed)
