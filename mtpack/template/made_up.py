"""The messages of small made-up dialogues, in which *probes* find what a template does.

Some properties belong to a template, not to a dialogue: in which forms it takes messages, how it
ends a turn, how it writes a reasoning, which switches it has. To find them, the template renders
dialogues of these messages. Their texts are words that stand for any text, so what is found does
not depend on the rows of a run.
"""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import ROLES

Message = dict[str, Any]

WORDS = {role: f"mtpack{role}" for role in ROLES}
"""The content of a message of each role."""
REASONING, NAME, KEY, VALUE = "mtpackreasoning", "mtpackname", "mtpackkey", "mtpackvalue"
ARGUMENTS = {KEY: VALUE}
_CALL_ID = "call00001"  # some templates require nine letters and digits

SYSTEM, QUESTION, ANSWER = (
    {"role": role, "content": WORDS[role]} for role in ("system", "user", "assistant")
)


_TEXT = "linden"  # in no message
_LONGEST_SETTING = 32


def make_up_argument(value: Any, *, is_inner: bool = False) -> Any:
    """Return a made-up argument of a template, which stands for all those of the same kind.

    Switches, numbers and short words are settings, which stay as they are (`"high"`). A word stands
    for longer texts and for those in lists and objects, 1 for numbers in these, and the first
    element for a whole list.
    """
    match value:
        case str():
            is_setting = len(value) <= _LONGEST_SETTING and len(value.split()) < 2
            return value if not value or (is_setting and not is_inner) else _TEXT
        case list():
            return [make_up_argument(each, is_inner=True) for each in value[:1]]
        case dict():
            return {name: make_up_argument(each, is_inner=True) for name, each in value.items()}
        case int() | float() if is_inner and not isinstance(value, bool):
            return 1
    return value


def make_call(name: str = NAME, arguments: Any = ARGUMENTS) -> Message:
    """Return a tool call."""
    function = {"name": name, "arguments": arguments}
    return {"id": _CALL_ID, "type": "function", "function": function}


def make_calling_message(content: str, arguments: Any = ARGUMENTS) -> Message:
    """Return an assistant message that calls a tool."""
    return {"role": "assistant", "content": content, "tool_calls": [make_call(NAME, arguments)]}


def make_result(content: Any = WORDS["tool"]) -> Message:
    """Return the message with the result of a tool."""
    return {"role": "tool", "name": NAME, "tool_call_id": _CALL_ID, "content": content}


def make_tool(word: str = NAME) -> Message:
    """Return the declaration of a tool with one argument; all its texts are `word`."""
    parameters = {
        "type": "object",
        "properties": {word: {"type": "string", "description": word}},
        "required": [word],
    }
    function = {"name": word, "description": word, "parameters": parameters}
    return {"type": "function", "function": function}
