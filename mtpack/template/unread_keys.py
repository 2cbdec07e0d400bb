"""Find the keys of a row that its chat template never reads.

A key of a message counts as read if the source of the template names it: as an attribute, as an
item, or in any string. Templates may also write a message as a whole (`message | tojson`). Then all
its keys count as read. A probe finds out. All templates of a tokenizer count together.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import product

import jinja2
from jinja2 import nodes

from mtpack.input.content import make_text_parts
from mtpack.input.row_errors import shorten_name
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.made_up import (
    ANSWER,
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
from mtpack.template.made_up_renders import MadeUpRenders
from mtpack.template.probe_results import keep_with_template

_ARGUMENTS = "chat_template_kwargs."
_MESSAGE, _PART, _CALL, _FUNCTION = (
    "messages.",
    "messages.content.",
    "messages.tool_calls.",
    "messages.tool_calls.function.",
)
_PLACES = (_FUNCTION, _CALL, _PART, _MESSAGE)  # the longer ones first


def find_unread_keys(
    template: ChatTemplate, unread: Iterable[str], arguments: Iterable[str]
) -> set[str]:
    """Return the keys that nobody reads, neither mtpack nor the template.

    unread: as in `Dialogue.unread`. arguments: the names of the variables that the row sets; such
    a key is `chat_template_kwargs.NAME`. A long name is cut, since it may be content.
    """
    found = {
        f"{_ARGUMENTS}{shorten_name(name)}"
        for name in arguments
        if not template.reads_variable(name)
    }
    named = [_list_names(template.environment, source) for source in template.sources.values()]
    for key in unread:
        place = next((place for place in _PLACES if key.startswith(place)), "")
        name = key[len(place) :]
        is_read = bool(place) and (
            any(name in names for names in named) or _reads_all_keys(MadeUpRenders(template), place)
        )
        if not is_read:
            found.add(place + shorten_name(name))
    return found


@lru_cache(maxsize=16)
def _list_names(environment: jinja2.Environment, source: str) -> frozenset[str]:
    """Return all attributes and strings in the source of a template."""
    names: set[str] = set()
    for node in environment.parse(source).find_all((nodes.Getattr, nodes.Const)):
        if isinstance(node, nodes.Getattr):
            names.add(node.attr)
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            names.update([node.value, *node.value.split(".")])  # map(attribute="a.b")
    return frozenset(names)


@keep_with_template
def _reads_all_keys(renders: MadeUpRenders, place: str) -> bool:
    """Return whether a key that no template names changes what is written, at this place."""
    calls = (make_calling_message(content) for content in ("", WORDS["assistant"]))
    dialogues = [
        [QUESTION, ANSWER],
        [SYSTEM, QUESTION, ANSWER],
        *([QUESTION, call, make_result(), ANSWER] for call in calls),
    ]
    for messages, tools in product(dialogues, (None, [make_tool()])):
        without, with_key = (
            renders.text([_add(message, place, keys) for message in messages], tools)
            for keys in ({}, {KEY: VALUE})
        )
        if without != with_key:
            return True
    return False


def _add(message: Message, place: str, keys: Message) -> Message:
    """Return a message with further keys: its own, or those of its text part or its calls."""
    calls = message.get("tool_calls", ())
    if place == _MESSAGE:
        return message | keys
    if place == _PART:
        parts = make_text_parts(message["content"])
        return message | {"content": [part | keys for part in parts]}
    if place == _CALL:
        changed = [call | keys for call in calls]
    else:
        changed = [call | {"function": call["function"] | keys} for call in calls]
    return message | {"tool_calls": changed} if changed else message
