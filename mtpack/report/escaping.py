"""Make text safe for a terminal: every message and every table passes one of these functions.

Text from files, templates and names is untrusted. Characters that control a terminal are shown as
escapes, and no name can begin a line of its own.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

OPEN, CLOSE, LINE_BREAK, TAB, SPACE = "⟦⟧⏎⇥␣"
"""Symbols around and inside text that is trained."""
BOUNDARY = "¦"
"""The symbol after each token."""
FOUND, FOUND_END = "⟪⟫"
"""Symbols around text that was searched for."""
_SYMBOLS = (OPEN, CLOSE, LINE_BREAK, TAB, SPACE, BOUNDARY, FOUND, FOUND_END)
_JOINERS = "\u200c\u200d"  # invisible, but scripts and emoji need them as they are
_CONTROL_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, directions, surrogates, separators


def escape(text: str) -> str:
    r"""Escape the characters that control a terminal, and the symbols above; keep line breaks.

    >>> print(escape("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(
        _escape_character(one) if one in _SYMBOLS or _is_control(one) else one for one in text
    )


def escape_controls(text: str) -> str:
    """Escape the characters that control a terminal, apart from line breaks and tabs."""
    return "".join(_escape_character(one) if _is_control(one) else one for one in text)


def escape_line(text: str) -> str:
    r"""Escape the characters that control a terminal, and line breaks and tabs as well.

    >>> print(escape_line("a\nmtpack: b"))
    a\x0amtpack: b
    """
    return escape_controls(text).replace("\n", "\\x0a").replace("\t", "\\x09")


def format_message(lines: Iterable[object]) -> str:
    r"""Return the text of a message for standard error; each value is one of its lines.

    >>> print(format_message(["data\x1b.jsonl: no such file", "name another"]))
    mtpack: data\x1b.jsonl: no such file
    name another
    """
    return "mtpack: " + "\n".join(escape_line(str(line)) for line in lines)


def format_json(value: Any) -> str:
    r"""Return a value as one line of JSON without characters that control a terminal.

    >>> print(format_json({"é": "\x9b"}))
    {"é": "\u009b"}
    """
    text = json.dumps(value, ensure_ascii=False)
    return "".join(json.dumps(one)[1:-1] if _is_control(one) else one for one in text)


def _is_control(character: str) -> bool:
    if character.isprintable() or character in "\n\t" or character in _JOINERS:
        return False
    return unicodedata.category(character) in _CONTROL_CATEGORIES


def _escape_character(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
