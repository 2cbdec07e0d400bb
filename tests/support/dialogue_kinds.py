"""The kinds of dialogues that every chat template is tested with.

The words are animals. No two messages of a dialogue share a word, unless the kind requires it.
"""

from typing import Any

from tests.support.template_facts import EOS

Row = dict[str, Any]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather <now> & 'here'",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where, Zürich say"}},
                "required": ["city"],
            },
        },
    }
]
UNICODE = "Grüße\u2028 🙂 e\u0301 北京"


def say(role: str, content: Any, **fields: Any) -> Row:
    return {"role": role, "content": content, **fields}


def call(city: str, number: str = "call00001") -> Row:
    function = {"name": "weather", "arguments": {"city": city}}
    return {"id": number, "type": "function", "function": function}


def call_as_text(city: str) -> Row:
    function = {"name": "weather", "arguments": f'{{"city": "{city}"}}'}
    return {"id": "call00001", "type": "function", "function": function}


def result(content: Any, number: str = "call00001") -> Row:
    return say("tool", content, name="weather", tool_call_id=number)


def parts(*texts: str) -> list[Row]:
    return [{"type": "text", "text": text} for text in texts]


KINDS: dict[str, Row] = {
    "plain": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "ferret"),
        ]
    },
    "system": {
        "messages": [
            say("system", "marmot"),
            say("user", "walrus"),
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "ferret"),
        ]
    },
    "unicode, white space at the edges": {
        "messages": [
            say("system", f" \nmarmot {UNICODE}\n\n"),
            say("user", f"\n\nwalrus {UNICODE} "),
            say("assistant", f"  otter {UNICODE}\n"),
            say("user", f"badger {UNICODE}\t"),
            say("assistant", f"\n\nferret {UNICODE}\n \n"),
        ]
    },
    "empty content": {
        "messages": [
            say("user", ""),
            say("assistant", ""),
            say("user", "badger"),
            say("assistant", ""),
        ]
    },
    "identical texts": {
        "messages": [
            say("user", "otter"),
            say("assistant", "otter"),
            say("user", "otter"),
            say("assistant", "otter"),
            say("user", "otter"),
            say("assistant", "otter"),
        ]
    },
    "inline think": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "<think>\nstoat\n</think>\n\notter"),
            say("user", "badger"),
            say("assistant", "<think>\nsable\n</think>\n\nferret"),
        ]
    },
    "reasoning_content": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "otter", reasoning_content="stoat"),
            say("user", "badger"),
            say("assistant", "ferret", reasoning_content="sable"),
        ]
    },
    "tools, one call": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "", tool_calls=[call("Zürich")]),
            result("badger"),
            say("assistant", "ferret"),
        ],
        "tools": TOOLS,
    },
    "tools, parallel calls": {
        "messages": [
            say("system", "marmot"),
            say("user", "walrus"),
            say("assistant", "otter", tool_calls=[call("Zürich"), call("Oslo", "call00002")]),
            result("badger"),
            result("beaver", "call00002"),
            say("assistant", "ferret"),
            say("user", "lemur"),
            say("assistant", "tapir"),
        ],
        "tools": TOOLS,
    },
    "tools, arguments as text": {
        "messages": [
            say("user", "walrus"),
            say("assistant", None, tool_calls=[call_as_text("Zürich")]),
            result("badger"),
            say("assistant", "ferret"),
            say("user", "lemur"),
            say("assistant", "tapir"),
        ],
        "tools": TOOLS,
    },
    "tools, reasoning before a call": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "", reasoning_content="stoat", tool_calls=[call("Zürich")]),
            result("badger"),
            say("assistant", "ferret", reasoning_content="sable"),
            say("user", "lemur"),
            say("assistant", "tapir", reasoning_content="civet"),
        ],
        "tools": TOOLS,
    },
    "tools, a repeated id": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "", tool_calls=[call("Zürich")]),
            result("badger"),
            say("assistant", "", tool_calls=[call("Oslo")]),
            result("beaver"),
            say("assistant", "ferret"),
        ],
        "tools": TOOLS,
    },
    "tools, not called": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "ferret"),
        ],
        "tools": TOOLS,
    },
    "consecutive messages of one role": {
        "messages": [
            say("user", "walrus"),
            say("user", "marmot"),
            say("assistant", "otter"),
            say("assistant", "stoat"),
            say("user", "badger"),
            say("assistant", "ferret"),
        ]
    },
    "ends on a user message": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "ferret"),
            say("user", "lemur"),
        ]
    },
    "opened by the assistant": {
        "messages": [
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "ferret"),
        ]
    },
    "opened by the assistant, after a system message": {
        "messages": [
            say("system", "marmot"),
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "ferret"),
        ]
    },
    "one turn not trained": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "otter", train=False),
            say("user", "badger"),
            say("assistant", "ferret"),
        ]
    },
    "text parts": {
        "messages": [
            say("user", parts("wal", "rus")),
            say("assistant", parts("otter")),
            say("user", parts("badger")),
            say("assistant", parts("ferret")),
        ]
    },
    "some turns with reasoning": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "ferret", reasoning_content="sable"),
            say("user", "lemur"),
            say("assistant", "tapir"),
        ]
    },
    "some turns with inline think": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "<think>\nstoat\n</think>\n\notter"),
            say("user", "badger"),
            say("assistant", "ferret"),
        ]
    },
    "an answer without reasoning after a call with it": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "otter", reasoning_content="stoat", tool_calls=[call("Oslo")]),
            result("badger"),
            say("assistant", "ferret"),
        ],
        "tools": TOOLS,
    },
    "null content": {
        "messages": [
            say("user", "walrus"),
            say("assistant", None, tool_calls=[call("Oslo")]),
            result("badger"),
            {"role": "assistant", "tool_calls": [call("Bonn", "call00002")]},
            result("beaver", "call00002"),
            say("assistant", "ferret", tool_calls=None),
        ],
        "tools": TOOLS,
    },
    "a call as the last message": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "ferret", tool_calls=[call("Oslo")]),
        ],
        "tools": TOOLS,
    },
    "a call without a result, an answer before another": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "", tool_calls=[call("Oslo")]),
            say("user", "badger"),
            say("assistant", "ferret"),
            say("assistant", "stoat"),
            say("user", "lemur"),
        ],
        "tools": TOOLS,
    },
    "a call id that comes twice": {
        "messages": [
            say("user", "walrus"),
            say("assistant", "", tool_calls=[call("Oslo")]),
            result("badger"),
            say("assistant", "ferret"),
            say("user", "lemur"),
            say("assistant", "", tool_calls=[call("Bonn")]),
            result("beaver"),
            say("assistant", "tapir"),
        ],
        "tools": TOOLS,
    },
    "empty messages": {
        "messages": [
            say("user", "walrus"),
            say("assistant", ""),
            say("user", ""),
            say("assistant", "ferret"),
            say("user", "lemur"),
        ]
    },
    "system and tools": {
        "messages": [
            say("system", "marmot"),
            say("user", "walrus"),
            say("assistant", "otter"),
            say("user", "badger"),
            say("assistant", "", tool_calls=[call("Oslo")]),
            result("beaver"),
            say("assistant", "ferret"),
        ],
        "tools": TOOLS,
    },
    "answers that begin with white space": {
        "messages": [
            say("user", "walrus"),
            say("assistant", " otter"),
            say("user", "badger"),
            say("assistant", "\nferret"),
        ]
    },
    "control tokens spelled by a user": {
        "messages": [
            say("user", f"walrus{EOS}marmot <think>"),
            say("assistant", "otter"),
            say("user", f"badger{EOS}"),
            say("assistant", "ferret"),
        ]
    },
    "control tokens spelled by an assistant": {
        "messages": [
            say("user", "walrus"),
            say("assistant", f"otter{EOS}stoat"),
            say("user", "badger"),
            say("assistant", f"ferret{EOS}"),
        ]
    },
}
