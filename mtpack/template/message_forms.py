"""The forms in which a template takes messages, found by probes, and messages brought into them.

Dialogues hold messages in the standard form, as inference servers hand them to a template
(`input/message.py`): the arguments of a tool call are an object, a content is text, and the content
of a message that only calls tools is `""`. Some templates can't take a part of it so. Each
dialogue is brought into the form of its template once, before it is rendered or replayed.

The forms are found once for each template and process: the template renders small made-up
dialogues. So they don't depend on the rows. Templates differ in what they require of a dialogue
(alternating roles, a system message, tools, a content). Therefore each probe tries several.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from operator import is_
from typing import Any

from mtpack.input.content import is_text_parts, make_text_parts
from mtpack.input.dialogue import ROLES, Dialogue, Messages
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.limits import TemplateLimitError
from mtpack.template.made_up import (
    ANSWER,
    ARGUMENTS,
    KEY,
    QUESTION,
    SYSTEM,
    VALUE,
    WORDS,
    Message,
    make_calling_message,
    make_result,
    make_tool,
)
from mtpack.template.probe_results import keep_with_template

TEXT_ARGUMENTS = (
    "the chat template can't take tool-call arguments as objects, so it gets them as JSON text "
    "(--tool-arguments auto)"
)
"""What a report says where `MessageForms.arguments` is `text`."""


@dataclass(frozen=True, slots=True)
class MessageForms:
    """The forms in which a template takes messages. The default is the standard form."""

    arguments: str = "object"
    """`object`; `text`, where the template needs the arguments of a tool call as JSON text."""
    looped: frozenset[str] = frozenset()
    """The roles whose text parts the template writes itself. Others get one text."""
    only_parts: frozenset[str] = frozenset()
    """The roles whose content the template takes as a list of text parts alone, not as text."""
    refused: frozenset[str] = frozenset()
    """The roles whose text the template refuses. A single part of these that has further keys (such
    as the languages of a translation) stays as it is."""
    null_content: bool = False
    """Whether the content of a message that only calls tools is null: the template then tests for
    null, and writes something else for `""`."""
    as_json: tuple[type, ...] = ()
    """The types of a tool's result that the template writes as JSON. Others get JSON text."""

    def apply(self, dialogue: Dialogue) -> Dialogue:
        """Return the dialogue in these forms; in most cases, that is `dialogue` itself."""
        if dialogue.has_only_texts and not self.only_parts:
            return dialogue
        messages = self.apply_to_messages(dialogue.messages)
        if all(map(is_, messages, dialogue.messages)):
            return dialogue
        return dialogue.with_messages(messages, dialogue.untrained)

    def apply_to_messages(self, messages: Messages) -> Messages:
        """Return messages in these forms; those that need no change are the same objects."""
        return [
            message if self._is_plain_text(message) else self._apply_to_message(message)
            for message in messages
        ]

    def _is_plain_text(self, message: Message) -> bool:
        """Return whether a message needs no change, since it has a text and no calls."""
        return (
            type(message.get("content")) is str
            and "tool_calls" not in message
            and message["role"] not in self.only_parts
        )

    def _apply_to_message(self, message: Message) -> Message:
        role, content = message["role"], message.get("content")
        calls = message.get("tool_calls")
        formed = self._form_content(role, content, has_calls=bool(calls))
        if formed is not content:
            message = {**message, "content": formed}
        if calls and self.arguments == "text":
            message = {**message, "tool_calls": [_with_text_arguments(call) for call in calls]}
        return message

    def _form_content(self, role: str, content: Any, *, has_calls: bool) -> Any:
        if is_text_parts(role, content):
            if role in self.looped or (role in self.refused and _is_special_part(content)):
                return content
            content = "\n".join([part["text"] for part in content])
        elif content is None:
            content = ""
        elif not isinstance(content, (str, *self.as_json)):
            content = _write_json(content)
        if not isinstance(content, str):
            return content
        if has_calls and not content and self.null_content:
            return None
        return make_text_parts(content) if role in self.only_parts else content


def _is_special_part(parts: list[Message]) -> bool:
    return len(parts) == 1 and not parts[0].keys() <= {"type", "text"}


def _with_text_arguments(call: Message) -> Message:
    function = call.get("function", call)
    if isinstance(function.get("arguments"), str):
        return call
    function = {**function, "arguments": _write_json(function.get("arguments", {}))}
    return {**call, "function": function} if "function" in call else function


def _write_json(value: Any) -> str:
    """Write a value as the filter `tojson` does in transformers."""
    return json.dumps(value, ensure_ascii=False)


def find_forms(template: ChatTemplate, tools: list[Any] | None) -> MessageForms:
    """Return the forms for dialogues with these tools."""
    forms = _probe(template, template.choose_name(tools))
    if template.tool_arguments in ("auto", forms.arguments):
        return forms
    return replace(forms, arguments=template.tool_arguments)


@keep_with_template
def _probe(template: ChatTemplate, name: str) -> MessageForms:
    """Find the forms of the template with this name (`ChatTemplate.choose_name`)."""
    probes = _Probes(template, name)
    forms = MessageForms()
    for role in ("user", "assistant", "system", "developer"):
        forms = probes.find_content_form(forms, role)
    forms = probes.find_form_of_arguments(forms)
    forms = probes.find_null_content(forms)
    forms = probes.find_content_form(forms, "tool")
    return probes.find_types_written_as_json(forms)


# Made-up dialogues

_WORDS = ("mtpackcedar", "mtpackebony")  # in the message that is tested, and in no other
_NUMBER = 7305159
# Results of tools, and how JSON writes them. White space may be added.
_RESULTS: tuple[tuple[type, Any, str], ...] = (
    (dict, {KEY: [True, VALUE]}, f'{{"{KEY}":[true,"{VALUE}"]}}'),
    (list, [{KEY: True}, VALUE], f'[{{"{KEY}":true}},"{VALUE}"]'),
)


def _surround(message: Message) -> list[Messages]:
    """Return dialogues with this message; most templates take the first one."""
    match message["role"]:
        case "system" | "developer":
            return [[message, QUESTION], [message, QUESTION, ANSWER]]
        case "user":
            return [[message], [message, ANSWER], [SYSTEM, message, ANSWER]]
        case "tool":
            calls = [make_calling_message(content) for content in ("", WORDS["assistant"])]
            return [[QUESTION, call, message, ANSWER][:end] for call, end in product(calls, (3, 4))]
    rest = [make_result(), ANSWER] if "tool_calls" in message else []
    return [[QUESTION, message], [QUESTION, message, *rest], [SYSTEM, QUESTION, message, *rest]]


class _Probes:
    """Asks what the template with a name writes for made-up dialogues."""

    def __init__(self, template: ChatTemplate, name: str) -> None:
        self._template = template
        all_tools = (None, [make_tool()])
        self._tools = [tools for tools in all_tools if template.choose_name(tools) == name]
        self._exceeded_a_limit = False

    def find_content_form(self, forms: MessageForms, role: str) -> MessageForms:
        """Return `forms` with those of the content of a role added."""
        # The user's form is found first, when those of the messages around it are not known.
        around = [forms, _ONLY_PARTS] if role == "user" else [forms]

        def render(content: Any) -> Iterator[str]:
            message = make_result() if role == "tool" else {"role": role}
            message["content"] = content
            for each in around:
                yield from self._render_all(each, message, as_it_is=True)

        def shows(words: Iterable[str]) -> bool:
            # The keys of parts show that the template wrote the list and did not read it.
            return any(
                all(word in text for word in words) and not re.search(r"""["']text\\?["']:""", text)
                for text in render(make_text_parts(*words))
            )

        word = _WORDS[0]
        takes_text = any(word in text for text in render(word))
        # Servers join the parts of a tool's result, whatever the template does.
        if role != "tool" and shows(_WORDS):
            forms = replace(forms, looped=forms.looped | {role})
        if not takes_text and shows([word]):
            forms = replace(forms, only_parts=forms.only_parts | {role})
        elif not takes_text and not any(True for _ in render(word)):
            forms = replace(forms, refused=forms.refused | {role})
        return forms

    def find_form_of_arguments(self, forms: MessageForms) -> MessageForms:
        """Return `forms` with that of arguments: text only if objects are not written, or badly."""

        def writes(arguments: Any) -> bool:
            # Some templates write a call only with some contents.
            with_null = replace(forms, null_content=True)
            return any(
                VALUE in text and f"{{'{KEY}'" not in text  # not as Python writes an object
                for each, content in ((forms, ""), (with_null, ""), (forms, WORDS["assistant"]))
                for text in self._render_all(each, make_calling_message(content, arguments))
            )

        if writes(ARGUMENTS) or not writes(_write_json(ARGUMENTS)):
            return forms
        return replace(forms, arguments="text")

    def find_null_content(self, forms: MessageForms) -> MessageForms:
        """Return `forms`, with null contents if the template shows a call with them, and not null,
        and writes something else for `""`.
        """
        with_null = replace(forms, null_content=True)
        call = make_calling_message("")
        for text in self._render_all(with_null, call):
            if VALUE in text:
                with_text = list(self._render_all(forms, call))
                others = list(self._render_all(forms, make_calling_message(WORDS["assistant"])))
                is_written = any(
                    text.count(word) > max([other.count(word) for other in others], default=0)
                    for word in ("None", "null")
                )
                return forms if is_written or text in with_text else with_null
        return forms

    def find_types_written_as_json(self, forms: MessageForms) -> MessageForms:
        """Return `forms` with the types of a tool's result that the template writes as JSON."""

        def texts(content: Any) -> list[str]:
            return list(self._render_all(forms, make_result(content), as_it_is=True))

        if not any(_WORDS[0] in text for text in texts(_WORDS[0])):
            return forms  # it writes no results
        types = [
            result_type
            for result_type, content, json_text in _RESULTS
            if any(json_text in re.sub(r"\s", "", text) for text in texts(content))
        ]
        numbers = texts(_NUMBER)
        is_json = [text.replace(str(_NUMBER), "true") for text in numbers] == texts(True)
        if is_json and str(_NUMBER) in "".join(numbers):
            types += [int, float]
        return replace(forms, as_json=tuple(types))

    def _render_all(
        self, forms: MessageForms, message: Message, *, as_it_is: bool = False
    ) -> Iterator[str]:
        """Yield the texts of all dialogues with a message that the template does not refuse.

        as_it_is: whether only the other messages are brought into `forms`.
        """
        for dialogue, tools in product(_surround(message), self._tools):
            formed = [
                each if as_it_is and each is message else other
                for each, other in zip(dialogue, forms.apply_to_messages(dialogue), strict=True)
            ]
            if self._exceeded_a_limit:  # another hundred such renders would take too long
                return
            try:
                text = self._template.render(formed, tools)
            except TemplateRaisedError:
                continue
            except (TemplateLimitError, MemoryError):
                self._exceeded_a_limit = True
                return
            yield text


_ONLY_PARTS = MessageForms(only_parts=frozenset(ROLES))
