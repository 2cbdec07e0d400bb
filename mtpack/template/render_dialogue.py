"""Render dialogues with Jinja, and find their turns: the reference of every replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject, make_dialogue
from mtpack.template.chat_template import ChatTemplate, TemplateObjectError, TemplateRaisedError
from mtpack.template.limits import TemplateLimitError
from mtpack.template.made_up import ANSWER, QUESTION
from mtpack.template.markers import MarkedText, Text
from mtpack.template.message_forms import find_forms
from mtpack.template.message_regions import TurnNotFoundError
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.renders import Render, select_messages
from mtpack.template.turn_probes import TurnProbes
from mtpack.template.turn_spans import TurnFinder
from mtpack.tokenizer.added_tokens import AddedTokens


@dataclass(frozen=True, slots=True)
class _JinjaRenders:
    """The renders of one dialogue by its chat template."""

    have_slots: ClassVar[bool] = False
    template: ChatTemplate
    dialogue: Dialogue

    def text(self, render: Render) -> str:
        return self._write(self.template.render, render)

    def marked(self, render: Render) -> MarkedText:
        return self._write(self.template.render_marked, render)

    def _write(self, write: Callable[..., Text], render: Render) -> Text:
        messages = select_messages(self.template, self.dialogue, render)
        return write(messages, self.dialogue.tools, prompt=render.prompt, mode=render.mode)


def render_dialogue(
    template: ChatTemplate, added_tokens: AddedTokens, dialogue: Dialogue, merge: str
) -> RenderedDialogue | Reject:
    """Render a dialogue and find its turns.

    merge: `auto`, `always` or `never`. Returns a Reject if the template refuses the dialogue, does
    more than its limits allow, or writes a turn where it can't be found.
    """
    try:
        probes = TurnProbes(template, added_tokens)
        finder = TurnFinder(_JinjaRenders(template, dialogue), probes, dialogue)
        return finder.divide(finder.locate_turns(), merge)
    except TemplateObjectError as error:
        return dialogue.reject(Reason.TEMPLATE_RAISED, f"the chat template {error}")
    except TemplateRaisedError as error:
        reason = _hide_content(str(error), dialogue)
        detail = f"the chat template refuses this dialogue: {reason}"
        return dialogue.reject(Reason.TEMPLATE_RAISED, detail)
    except TemplateLimitError as error:  # from any render, those of prompts included
        detail = f"the chat template {error}; shorten the dialogue or use another --chat-template"
        return dialogue.reject(Reason.TEMPLATE_LIMIT, detail)
    except TurnNotFoundError as error:
        return dialogue.reject(Reason.TURN_NOT_FOUND, str(error))


def finds_turns(template: ChatTemplate, added_tokens: AddedTokens) -> bool:
    """Return whether the turn of a simple dialogue is found, or the template refuses it."""
    dialogue = make_dialogue(0, Origin("probe", 1), [QUESTION, ANSWER])
    dialogue = find_forms(template, None).apply(dialogue)
    rendered = render_dialogue(template, added_tokens, dialogue, "never")
    if isinstance(rendered, Reject):
        return rendered.reason is not Reason.TURN_NOT_FOUND
    text = rendered.own[0].text
    spans = [text[slice(*span)] for turn in rendered.own[0].turns.to_list() for span in turn.spans]
    answer = ANSWER["content"]
    return any(answer in span for span in spans) or (bool(spans) and answer not in text)


def _hide_content(error_text: str, dialogue: Dialogue) -> str:
    """Return a template's error text, or a replacement if it quotes the dialogue."""
    contents = _list_texts([message.get("content") for message in dialogue.messages])
    contents += _list_texts(dialogue.template_args or {})
    if any(len(content.strip()) > 2 and content.strip() in error_text for content in contents):
        return "its message is not shown because it quotes the dialogue"
    return error_text


def _list_texts(value: Any) -> list[str]:
    """Return every scalar in a JSON value, as text."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _list_texts(item)]
    return [str(value)]
