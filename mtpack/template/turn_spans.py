"""Where every turn starts and ends in the rendered text, and whether merging it is exact.

The definition is on one page in docs/turns.md. For a trained message i, `own` is the dialogue
rendered up to and with i, `prompt` is what the model would be given in its place, and `full` is
the whole dialogue. A turn is what `own` has behind `prompt`, up to its end-of-turn token; it may
be trained in `full` exactly if `full` and `own` agree up to that end.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mtpack.input.dialogue import Dialogue, Message, Origin, Reason, Reject
from mtpack.template.chat_template import TemplateRaisedError
from mtpack.template.markers import MarkedText, Range, holds_marks
from mtpack.template.sandbox.limits import TemplateLimitError
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.added_tokens import AddedTokens
from mtpack.tokenizer.encode import EncodedText


class TurnText(NamedTuple):
    """One turn in a rendered text. A tuple, as it is made for every turn of a replayed dialogue."""

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
    own_encoded: EncodedText | None = None
    """`own_text` as tokens, where they are known already."""


class DocumentText(NamedTuple):
    """A rendered text and the turns that are trained in it."""

    text: str
    turns: Sequence[TurnText]
    encoded: EncodedText | None = None
    """The text as tokens, where they are known already."""


class RenderedDialogue(NamedTuple):
    """A dialogue as documents."""

    row: int
    """`Dialogue.row`."""
    merged: DocumentText
    """The whole dialogue, with the turns that may be trained in it."""
    own: tuple[DocumentText, ...]
    """One document for each of the other turns."""
    merged_end: int
    """Where the whole dialogue would be cut if all turns were trained in it."""


_QUESTION = Message("user", {"role": "user", "content": "?"}, trained=False)


class Template(Protocol):
    """What gives the texts of dialogues: a chat template, or what fills in what one would."""

    def render(
        self, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool = False
    ) -> str:
        """Return the text; raise TemplateRaisedError."""

    def render_marked(
        self, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool = False
    ) -> MarkedText:
        """Return the text and what was written for each message; raise TemplateRaisedError."""


class _TurnNotFoundError(Exception):
    """The template writes a message in no one place that can be found."""


def render_dialogue(
    template: Template, added_tokens: AddedTokens, dialogue: Dialogue, merge: str
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


def finds_turns(template: Template, added_tokens: AddedTokens) -> bool:
    """Return whether the turn of a simple dialogue is found; true where the template refuses it."""
    answer = Message("assistant", {"role": "assistant", "content": "mtpackprobe"}, trained=True)
    dialogue = Dialogue(0, Origin("probe", 1), (_QUESTION, answer), None)
    rendered = render_dialogue(template, added_tokens, dialogue, "never")
    if isinstance(rendered, Reject):
        return rendered.reason is not Reason.TURN_NOT_FOUND
    text = rendered.own[0].text
    spans = [text[slice(*span)] for turn in rendered.own[0].turns for span in turn.spans]
    return "mtpackprobe" not in text or any("mtpackprobe" in span for span in spans)


def _without_content(words: str, dialogue: Dialogue) -> str:
    """Return a template's words, unless they quote the dialogue."""
    contents = (str(message.fields.get("content", "")).strip() for message in dialogue.messages)
    if any(len(content) > 2 and content in words for content in contents):
        return "its message quotes the dialogue"
    return words


@dataclass(frozen=True, slots=True)
class _Turns:
    """Finds the turns of one dialogue."""

    template: Template
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
                own.append(DocumentText(text.text, (turn._replace(flags=flags),)))
            elif not exact:
                merged.append(self._bent(full, text.text[turn.start : turn.end], message))
                merged_end = merged[-1].end
            elif self.added_tokens.cut_behind(text.text[: turn.end]):
                merged.append(turn)
            else:
                merged.append(turn._replace(own_text=text.text))
        if merged_end is None:  # of the last turn, which only its own document has so far
            merged_end = full.regions.get(message, (0, len(full.text)))[1]
        return RenderedDialogue(
            self.dialogue.row, DocumentText(full.text, tuple(merged)), tuple(own), merged_end
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

    def _bent(self, full: MarkedText, own_words: str, message: int) -> TurnText:
        """Find a turn that `full` writes in another context, or with other words."""
        turn = self._locate(full, message, TurnFlag.BENT)
        if full.generations is not None:
            return turn
        end, last_token = turn.end, self.added_tokens.control_token_behind(own_words)
        if full.text.startswith(own_words, turn.start):
            end = turn.start + len(own_words)
        elif full.text.startswith(last_token, end) and not full.text[:end].endswith(last_token):
            end += len(last_token)  # here it opens the tool's answer, too
        return turn._replace(spans=((turn.start, end),), end=end)

    def _locate(self, text: MarkedText, message: int, flags: TurnFlag) -> TurnText:
        """Find the turn of `message` in a text that has it."""
        region = self._region(text, message)
        if region is None:
            return TurnText(
                message, (), text.empty_regions[message], text.empty_regions[message], flags
            )
        prompt = self._prompt(message)
        end = self._end(text, message, region, prompt)
        start, as_prompted = self._start(text.text, message, region, end, prompt)
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
        if not self.added_tokens.end_a_turn(text.text[:end].rstrip()):
            flags |= TurnFlag.NO_EOT
        return TurnText(message, spans, start, end, flags)

    def _prompt(self, message: int) -> str | None:
        """Return what the model is given to write `message`; None where nothing can be."""
        try:
            return self.template.render(
                self.dialogue.messages[:message], self.dialogue.tools, prompt=True
            )
        except TemplateRaisedError:
            return None

    def _region(self, text: MarkedText, message: int) -> Range | None:
        """Return what the template writes for `message`, as its marks or its prefixes tell.

        None for a message that says nothing and is not written.
        """
        region = text.regions.get(message)
        marks_in_words = holds_marks(text.text)
        if region is None and not marks_in_words and text.generations != []:
            region = self._region_behind_prefix(text.text, message)
        if region is None and not (message in text.empty_regions and self._says_nothing(message)):
            raise _TurnNotFoundError(
                "the dialogue holds characters from U+FDD0 to U+FDD4, which Unicode keeps out of "
                "text; remove them"
                if marks_in_words
                else f"message {message}: where the chat template writes it can't be found; "
                "use a template that writes messages one by one in a loop"
            )
        return region

    def _region_behind_prefix(self, own: str, message: int) -> Range | None:
        """Return what `own` adds to the dialogue without its last message, if it only adds.

        The text must start with the dialogue before the message, and the dialogue that goes on
        with a question must start with the text: then the difference is the message's, whole.
        """
        before = self.dialogue.messages[:message]
        behind = (*self.dialogue.messages[: message + 1], _QUESTION)
        try:
            prefix = self.template.render(before, self.dialogue.tools)
            continued = self.template.render(behind, self.dialogue.tools)
        except TemplateRaisedError:
            return None
        end = len(own.rstrip())
        if len(prefix) < end and own.startswith(prefix) and continued.startswith(own[:end]):
            return len(prefix), len(own)
        return None

    def _end(self, text: MarkedText, message: int, region: Range, prompt: str | None) -> int:
        """Return the end of what is written for a message, white space excepted.

        It ends before a later message that the template writes inside it (a tool's answer). Where
        the model would have no control token to stop with, but one alone closes the conversation,
        that token is the turn's.
        """
        inside = [start for later, (start, _) in text.regions.items() if later > message]
        last = min((start for start in inside if region[0] < start), default=region[1])
        end = region[0] + len(text.text[region[0] : min(last, region[1])].rstrip())
        says_no_more = prompt is not None and prompt.startswith(text.text[:end])
        if self.added_tokens.end_a_turn(text.text[:end]) and not says_no_more:
            return end
        closing = text.text[end:].strip()
        if closing and closing == self.added_tokens.control_token_behind(closing):
            return text.text.index(closing, end) + len(closing)
        return end

    def _start(
        self, text: str, message: int, region: Range, end: int, prompt: str | None
    ) -> tuple[int, bool]:
        """Return where the model takes over, and whether that is where its prompt ends."""
        if prompt is None:
            return self._behind_header(text, message, region)
        if text.startswith(prompt):
            return len(prompt), True
        if prompt.startswith(text[:end]):  # the prompt says all of it, and more
            return end, False
        start = self._agreement(prompt, text)
        if start > region[0]:
            return start, False
        # It already differs from the text in an earlier message: compare the message's own header.
        header = self._generation_prompt(self.dialogue.messages[:message])
        words = text[slice(*region)]
        shared = len(header) if words.startswith(header) else self._agreement(header, words)
        return region[0] + shared, False

    def _behind_header(self, text: str, message: int, region: Range) -> tuple[int, bool]:
        """Return where the header ends in a message that nothing can be rendered before.

        What opens every conversation may stand before the header: a default system prompt.
        """
        header = self._generation_prompt(self.dialogue.messages[: message + 1]).lstrip()
        words = text[slice(*region)]
        given = len(header)
        while given:  # a prompt may say more than the header: a scaffold that the text lacks
            place = words.find(header[:given])
            if place >= 0:
                return region[0] + place + given, given == len(header)
            given = self.added_tokens.last_boundary(header, given - 1)
        return region[0], False

    def _generation_prompt(self, messages: tuple[Message, ...]) -> str:
        """Return what the template writes behind `messages` to have the model speak."""
        for asked in (messages, (_QUESTION,)):
            try:
                prompt = self.template.render_marked(asked, self.dialogue.tools, prompt=True)
                told = self.template.render(asked, self.dialogue.tools)
            except TemplateRaisedError:
                continue
            behind = prompt.text[max((end for _, end in prompt.regions.values()), default=0) :]
            added = prompt.text[len(told) :] if prompt.text.startswith(told) else ""
            if added or behind.strip():
                return added or behind
        return ""

    def _says_nothing(self, message: int) -> bool:
        fields = self.dialogue.messages[message].fields
        return not any(fields.get(key) for key in ("content", "tool_calls", "reasoning_content"))

    def _agreement(self, prompt: str, text: str) -> int:
        """Return how far `text` starts like `prompt`, cut back to an added token's edge in it."""
        agreed = len(os.path.commonprefix([prompt, text]))  # noqa: RUF071 (by character, as meant)
        return self.added_tokens.last_boundary(prompt, agreed)
