"""Finds the messages of a row in the `sharegpt` format.

`{"conversations": [{"from": "human", "value": "..."}, ...]}`, or `conversation`. The messages are
read as in every format (`message.py`).
"""

from __future__ import annotations

from typing import Any

from mtpack.input.messages import FoundMessages, require_message_list


def pop_conversation(fields: dict[str, Any]) -> FoundMessages:
    """Remove the messages from the fields of a row and return them; raise RowError."""
    key = "conversations" if "conversations" in fields else "conversation"
    return FoundMessages(require_message_list(key, fields.pop(key)))
