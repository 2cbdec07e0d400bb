"""Reads the files that come with a tokenizer, which are untrusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtpack.errors import SetupError


def read_text(path: Path) -> str:
    """Return the text of a file; raise SetupError if it can't be read or is not UTF-8."""
    try:
        text = path.read_bytes().decode()  # takes a third of the time of `read_text`
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{path}: can't be read ({error})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if there is no such file.

    Raises SetupError if the file has no valid JSON object, or half of a surrogate pair in it.
    """
    return parse_file(path, read_text(path)) if path.is_file() else {}


def parse_file(path: Path, text: str) -> dict[str, Any]:
    """Return the JSON object that `text`, the content of `path`, is; raise as `read_object`."""
    value = parse_object(path, text)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise SetupError(f"{path}: has half of a surrogate pair; correct the file") from None
    return value


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """Return the JSON object that `text`, the content of `path`, is; raise SetupError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise SetupError(f"{path}: not a JSON object")
    return value
