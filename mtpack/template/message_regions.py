"""Find what a template writes for a message: its *region* in a rendered text.

The terms are those of `turn_spans.py`. Marks in the template's loops over the messages find most
regions (`markers.py`). Where they do not (the template builds a new list first, or writes the last
message apart from the others), the region is what `own` adds to a text that can't contain anything
of the message:

- the text of the messages before it, if the dialogue continued with a question starts with `own`;
- else the prompt, if the dialogue with another answer starts with the prompt as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtpack.input.dialogue import Dialogue
from mtpack.template.made_up import WORDS
from mtpack.template.markers import MarkedText, Range, has_mark_characters
from mtpack.template.modes import Mode
from mtpack.template.renders import Render, Renders, try_render
from mtpack.template.slots import UndecidedError, find_common_length
from mtpack.tokenizer.added_tokens import AddedTokens


class TurnNotFoundError(Exception):
    """The region of a message can't be found; the text says what to do."""


@dataclass(frozen=True, slots=True)
class RegionFinder:
    """Finds the regions of the messages of one dialogue, in texts that contain them."""

    renders: Renders
    added_tokens: AddedTokens
    dialogue: Dialogue
    mode: Mode | None
    """The mode of the dialogue."""

    def find(self, text: MarkedText, message: int) -> Range:
        """Return the region of `message`; it is empty if the template does not write the message.

        Raises TurnNotFoundError, and UndecidedError where the texts in slots decide.
        """
        region = text.find_region(message)
        if region is not None:
            return region
        if self.renders.have_slots:  # the rest depends on the contents of the dialogue
            raise UndecidedError
        text_has_marks = has_mark_characters(text.text)
        if not text_has_marks and text.generations != []:
            region = (
                self._find_after_messages(text.text, message)
                or self._find_after_prompt(text.text, message)
                or self._find_nothing(text.text, message)
            )
        if region is None and _is_empty(self.dialogue.messages[message]):
            region = text.find_empty_region(message)
        if region is None:
            raise TurnNotFoundError(
                "the dialogue contains characters from U+FDD0 to U+FDD4, which Unicode does not "
                "allow in text; remove them"
                if text_has_marks
                else f"message {message}: where the chat template writes it can't be found; "
                "use a template that writes messages one by one in a loop"
            )
        return region

    def _find_after_messages(self, own: str, message: int) -> Range | None:
        """Return what `own` adds to the text of the messages before `message`.

        Returns None unless `own` starts with that text, and the dialogue continued with a question
        starts with `own`. Then the added text is exactly what the template writes for the message.
        """
        before = self._try_text(Render(message))
        continued = self._try_text(Render(message + 1, question=True))
        if before is None or continued is None:
            return None
        end = len(own.rstrip())
        if len(before) < end and own.startswith(before) and continued.startswith(own[:end]):
            return len(before), len(own)
        return None

    def _find_after_prompt(self, own: str, message: int) -> Range | None:
        """Return what `own` adds to the prompt, without what closes every conversation.

        Returns None unless `own` starts with the prompt, and so does the dialogue with another
        answer, which has that answer after the prompt. Then nothing of the message is before it.
        """
        prompt = self._try_text(Render(message, prompt=True))
        other = self._try_text(Render(message, answer=True))
        if prompt is None or other is None or own != self._try_text(Render(message + 1)):
            return None
        if not (own.startswith(prompt) and other.startswith(prompt)):
            return None
        if WORDS["assistant"] not in other[len(prompt) :]:
            return None
        end = len(own.removesuffix(self._find_closing_text(own, message)))
        return (len(prompt), end) if len(prompt) <= end else None

    def _find_closing_text(self, own: str, message: int) -> str:
        """Return the text after all messages: the end of the text of those before `message`."""
        before = self._try_text(Render(message)) or ""
        if own.startswith(before):
            return ""
        common = find_common_length(before, own)
        return before[self.added_tokens.find_last_boundary(before, common) :]

    def _find_nothing(self, text: str, message: int) -> Range | None:
        """Return an empty region if the template writes nothing for the message.

        So it is if `own` is the text of the messages before it, or stays the same with another
        answer. The region is where `text`, and the dialogue continued with a question, leave `own`.
        """
        own = self._try_text(Render(message + 1))
        others = (Render(message), Render(message, answer=True))
        if own is None or own not in map(self._try_text, others):
            return None
        continued = self._try_text(Render(message + 1, question=True)) or own
        end = min(find_common_length(own, other) for other in (text, continued))
        return end, end

    def _try_text(self, render: Render) -> str | None:
        return try_render(self.renders.text, render._replace(mode=self.mode))


def _is_empty(message: dict[str, Any]) -> bool:
    return not any(message.get(key) for key in ("content", "tool_calls", "reasoning_content"))
