"""Find the parts of dialogues that a template drops: the model never sees them.

A part of a message (its content, its reasoning, its tool calls) is dropped if the first text in
which the model sees the message does not depend on it. For an assistant message, that text is its
`served` (`turn_spans.py`); for any other message, that of the next assistant message. So a part
that a template removes from the history only later is not dropped.

This is tested once for every *kind* of message, not for every message. The template renders a
small dialogue that is made up from the kind alone, and renders it again with another word in the
part. So the result does not depend on which dialogue of a kind comes first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

from mtpack.input.content import is_text_parts, make_text_parts
from mtpack.input.dialogue import SYSTEM_ROLES, Dialogue, Origin, make_dialogue
from mtpack.input.reasoning import END_OF_THINK, THINK, has_reasoning
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.made_up import (
    WORDS,
    Message,
    make_call,
    make_calling_message,
    make_result,
    make_tool,
)
from mtpack.template.made_up_renders import MadeUpRenders
from mtpack.template.message_forms import find_forms
from mtpack.template.probe_results import keep_with_template
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.tokenizer.added_tokens import AddedTokens


class _Calls(NamedTuple):
    """The tool calls of a message: the properties that a template may depend on."""

    several: bool
    nested: bool
    """Whether a call is under the key `function`, as in the chat APIs."""
    has_arguments: bool


Kind = tuple[Any, ...]
"""A `_Kind` as a plain tuple: to make a `_Kind` takes as long as to find its properties."""


class DroppedParts(NamedTuple):
    """The parts of a message of some kind that the model does not see (`assistant.content`)."""

    partly: frozenset[str]
    """Those of which a word, or all of them, is dropped."""
    wholly: frozenset[str]
    """Those of which each word is dropped: for tool calls, all names and arguments."""


class _Kind(NamedTuple):
    """A message and its context: the properties that a template may depend on."""

    role: str
    previous: str | None
    """The role of the message before it; `opening` if that message is `opening` (below)."""
    following: str | None
    """The role of the message after it; None for an assistant message, which ends the text."""
    opening: str | None
    """The role of the system message that opens the dialogue, or None."""
    tools: str | None
    """`nested` (under `function`), `flat`, `empty` or None."""
    content: str
    """`blank`, `text`, `part`, `parts`, or text with a `</think>`: `thinking, answer`,
    `thinking, blank` or `blank, answer`. For a tool, also `object`, `list` or `number`."""
    has_reasoning: bool
    calls: _Calls | None
    is_after_user: bool
    """Whether an earlier message is a user's."""
    is_after_calls: bool
    """Whether an earlier message has tool calls."""


class MessageKinds:
    """Counts the messages of dialogues by kind, and the parts that a template drops."""

    def __init__(self) -> None:
        """Start with no messages."""
        self._messages: Counter[Kind] = Counter()
        self._tools: Counter[tuple[str | None, str | None]] = Counter()
        self._plain: Counter[tuple[str, ...]] = Counter()
        """The number of dialogues of `add_plain`, by their roles."""

    def add_plain(self, roles: tuple[str, ...], number: int) -> None:
        """Count the messages of dialogues with these roles, each a text that is not blank.

        All assistant messages carry loss, or the last one, and no text has a `</think>`.
        """
        self._plain[roles] += number

    def add(self, dialogue: Dialogue, kinds: list[Kind] | None = None) -> None:
        """Count the messages of a dialogue; kinds: what `list_kinds` returns, if known.

        Messages after the last trained one are in no document and are not counted.
        """
        kinds = list_kinds(dialogue) if kinds is None else kinds
        if kinds:
            opening = _find_opening(dialogue.roles[: len(kinds)])
            self._tools[_classify_tools(dialogue.tools), opening] += 1
            self._messages.update(kinds)

    def count_dropped(self, template: ChatTemplate, added_tokens: AddedTokens) -> Counter[str]:
        """Count messages by the part that `template` drops (such as `assistant.tool_calls`).

        `tools` counts dialogues. If the template refuses the made-up dialogue of a kind, no part of
        that kind is counted.
        """
        messages = self._messages.copy()
        for roles, number in self._plain.items():
            for kind in _list_plain_kinds(roles):
                messages[kind] += number
        counts: Counter[str] = Counter()
        for (tools, opening), number in self._tools.items():
            if _drops_tools(template, added_tokens, tools, opening):
                counts["tools"] += number
        for each, number in messages.items():
            for part in find_dropped_parts(template, added_tokens, each).partly:
                counts[part] += number
        return counts


# Dialogues to kinds

_OPENING = "opening"
_CALLING = "calling assistant"


def list_kinds(dialogue: Dialogue) -> list[Kind]:
    """Return the kind of each message of a dialogue, up to the last trained one."""
    trained = dialogue.trained_messages()
    roles = dialogue.roles[: trained[-1] + 1] if trained else ()
    return list(_list_kinds(roles, dialogue.messages, _classify_tools(dialogue.tools)))


@lru_cache(maxsize=1024)
def _list_plain_kinds(roles: tuple[str, ...]) -> tuple[Kind, ...]:
    """Return the kinds of the messages of a plain dialogue, up to the last assistant message."""
    end = max((index for index, role in enumerate(roles, 1) if role == "assistant"), default=0)
    return tuple(_list_kinds(roles[:end], repeat({"content": "text"}), None))


def _list_kinds(
    roles: tuple[str, ...], messages: Iterable[Message], tools: str | None
) -> Iterator[Kind]:
    """Yield the kinds of the messages with these roles, of which the last is an assistant's."""
    opening = _find_opening(roles)
    previous = None
    is_after_user = is_after_calls = False
    for index, (role, fields) in enumerate(zip(roles, messages, strict=False)):
        calls = fields.get("tool_calls")
        yield (
            role,
            previous,
            None if role == "assistant" else roles[index + 1],
            opening,
            tools,
            _classify_content(role, fields.get("content")),
            has_reasoning(fields),
            _classify_calls(calls) if calls else None,
            is_after_user,
            is_after_calls,
        )
        previous = _OPENING if opening and index == 0 else role
        is_after_user = is_after_user or role == "user"
        is_after_calls = is_after_calls or bool(calls)


def _find_opening(roles: tuple[str, ...]) -> str | None:
    return roles[0] if roles and roles[0] in SYSTEM_ROLES else None


def _classify_tools(tools: list[Any] | None) -> str | None:
    if not tools:
        return None if tools is None else "empty"
    return "nested" if "function" in tools[0] else "flat"


def _classify_content(role: str, content: Any) -> str:
    if content is None:
        return "blank"
    if is_text_parts(role, content):
        blank = all(_is_blank(part["text"]) for part in content)
        return "blank" if blank else "part" if len(content) == 1 else "parts"
    if not isinstance(content, str):
        if isinstance(content, dict):
            return "object" if content else "blank"
        return "list" if isinstance(content, list) else "number"
    if _is_blank(content):
        return "blank"
    if role != "assistant" or END_OF_THINK not in content:
        return "text"
    thinking, _, answer = content.rpartition(END_OF_THINK)
    if _is_blank(thinking.replace(THINK, "")):
        return "blank" if _is_blank(answer) else "blank, answer"
    return "thinking, blank" if _is_blank(answer) else "thinking, answer"


def _is_blank(text: str) -> bool:
    return not text.strip()


def _classify_calls(calls: list[Message]) -> _Calls:
    nested = "function" in calls[0]
    arguments = (calls[0]["function"] if nested else calls[0]).get("arguments")
    if isinstance(arguments, str):
        arguments = arguments.strip("{} \n")
    return _Calls(len(calls) > 1, nested, bool(arguments))


# Kinds to dialogues. Every text is one word, so that another word can replace it.

_OTHER_WORD = "zebra"
_NUMBER, _OTHER_NUMBER = 58127, "94603"


@keep_with_template
def find_dropped_parts(
    template: ChatTemplate, added_tokens: AddedTokens, each: Kind
) -> DroppedParts:
    """Return the parts of a message of this kind that the model does not see.

    There are none if the template refuses the made-up dialogue of the kind.
    """
    kind = _Kind(*each)
    message, words = _make_message(kind)
    # Templates may require a certain content of the calls around the message.
    for content in ("", WORDS["assistant"]):
        before = _make_messages(_list_roles_before(kind), content)
        after = _make_messages(_list_roles_after(kind), content)
        dialogues = {word: [*before, _replace_word(message, word), *after] for word in ("", *words)}
        seen = {
            word: _render(template, added_tokens, messages, kind.tools)
            for word, messages in dialogues.items()
        }
        if None in seen.values():
            continue
        dropped: set[str] = set()
        shown: set[str] = set()
        for word, part in words.items():
            (dropped if seen[word] == seen[""] else shown).add(f"{kind.role}.{part}")
        return DroppedParts(frozenset(dropped), frozenset(dropped - shown))
    return DroppedParts(frozenset(), frozenset())


@keep_with_template
def _drops_tools(
    template: ChatTemplate, added_tokens: AddedTokens, shape: str | None, opening: str | None
) -> bool:
    if shape in (None, "empty"):
        return False
    messages = _make_messages([*([opening] if opening else []), "user", "assistant"])
    first, second = (
        _render(template, added_tokens, messages, shape, word) for word in ("alder", "birch")
    )
    return first is not None and first == second


def _render(
    template: ChatTemplate,
    added_tokens: AddedTokens,
    messages: list[Message],
    tools: str | None,
    tool_word: str = "alder",
) -> str | None:
    """Return the `served` of the last message; None if the template refuses the dialogue."""
    tool = make_tool(tool_word)
    schemas: dict[str | None, list[Any] | None] = {
        None: None,
        "empty": [],
        "flat": [tool["function"]],
        "nested": [tool],
    }
    text = MadeUpRenders(template).text(messages, schemas[tools])
    if text is None:
        return None
    formed = find_forms(template, schemas[tools]).apply_to_messages(messages)
    dialogue = make_dialogue(0, Origin("probe", 1), formed, schemas[tools], range(len(formed) - 1))
    rendered = render_dialogue(template, added_tokens, dialogue, "never")
    return rendered.own[0].text if isinstance(rendered, RenderedDialogue) and rendered.own else text


def _make_message(kind: _Kind) -> tuple[Message, dict[str, str]]:
    """Return a message of a kind, and for each of its words the part that contains it."""
    fields: Message = make_result() if kind.role == "tool" else {"role": kind.role}
    contents: dict[str, tuple[Any, dict[str, str]]] = {
        "blank": ("", {}),
        "text": ("cedar", {"cedar": "content"}),
        "thinking, answer": (
            "<think>\nebony\n</think>\n\ncedar",
            {"ebony": "content.thinking", "cedar": "content"},
        ),
        "thinking, blank": ("<think>\nebony\n</think>", {"ebony": "content.thinking"}),
        "blank, answer": ("<think>\n\n</think>\n\ncedar", {"cedar": "content"}),
        "part": (make_text_parts("cedar"), {"cedar": "content"}),
        "parts": (
            make_text_parts("cedar", "ebony"),
            {"cedar": "content", "ebony": "content"},
        ),
        "object": ({"leaf": "cedar"}, {"cedar": "content"}),
        "list": (["cedar"], {"cedar": "content"}),
        "number": (_NUMBER, {str(_NUMBER): "content"}),
    }
    fields["content"], words = contents[kind.content]
    if kind.has_reasoning:
        fields |= {"reasoning_content": "larch", "thinking": "larch"}
        words["larch"] = "reasoning_content"
    if kind.calls:
        names = [("maple", "olive"), ("pecan", "rowan")][: 1 + kind.calls.several]
        fields["tool_calls"] = [_make_call(*name, kind.calls) for name in names]
        for name, argument in names:
            words[name] = "tool_calls"
            if kind.calls.has_arguments:
                words[argument] = "tool_calls"
    return fields, words


def _make_call(name: str, argument: str, calls: _Calls) -> Message:
    call = make_call(name, {"leaf": argument} if calls.has_arguments else {})
    return call if calls.nested else {"id": call["id"], "type": call["type"], **call["function"]}


def _replace_word(message: Message, word: str) -> Message:
    """Return `message` with another word instead of `word`; unchanged if that is empty."""
    if not word:
        return message
    other = _OTHER_NUMBER if word == str(_NUMBER) else _OTHER_WORD
    changed: Message = json.loads(json.dumps(message).replace(word, other))
    return changed


def _list_roles_before(kind: _Kind) -> list[str]:
    """Return the roles of the fewest messages that give a message the context of its kind."""
    if kind.previous is None:
        return []
    start = [kind.opening] if kind.opening else []
    if kind.previous == _OPENING:
        return start
    question = ["user"] if kind.is_after_user else []
    call = [*question, _CALLING]
    if kind.previous == "tool":
        return [*start, *call, "tool"]
    if kind.previous == "assistant" and kind.role == "tool":
        return [*start, *call]
    if kind.is_after_calls:
        start += [*call, "tool", "assistant"]
    return [*start, "user"] if kind.previous == "user" else [*start, *question, kind.previous]


def _list_roles_after(kind: _Kind) -> list[str]:
    """Return the roles of the fewest messages up to the next assistant message."""
    if kind.following is None:
        return []
    if kind.following == "assistant":
        return ["assistant"]
    question = ["user"] if kind.following in SYSTEM_ROLES and kind.role != "user" else []
    return [kind.following, *question, "assistant"]


def _make_messages(roles: list[str], content: str = "") -> list[Message]:
    with_tools = {"tool": make_result(), _CALLING: make_calling_message(content)}
    return [with_tools.get(role) or {"role": role, "content": WORDS[role]} for role in roles]
