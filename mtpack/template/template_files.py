"""Reads chat templates from files: those in a folder, and those in a file.

The first of these that a folder has is used, whole:

    chat_template.jinja and additional_chat_templates/NAME.jinja
    tokenizer_config.json
    processor_config.json
    chat_template.json

This is where transformers looks: its tokenizers in the first two, in this order, and its processors
in the last two, in this order (5.24: `PreTrainedTokenizerBase._from_pretrained`,
`ProcessorMixin.get_processor_dict`). The tokenizer's own come first, because a dialogue of text is
rendered by the tokenizer. All files are untrusted.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mtpack.errors import SetupError
from mtpack.tokenizer.files import parse_object

_KEY = "chat_template"
_JSON_FILES = ("tokenizer_config.json", "processor_config.json", "chat_template.json")
_STARTS_AS_JSON = re.compile(rf'\ufeff?\s*\{{\s*"{_KEY}"\s*:')
_MAX_BYTES = 64 * 2**20


def find_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates in a folder by name; `default` is the usual one.

    Returns an empty dict if the folder has none. Raises SetupError if the files that the templates
    are in can't be read, or don't have the form that transformers takes.
    """
    additional = sorted(folder.glob("additional_chat_templates/*.jinja"))
    files = {path.stem: path for path in additional}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: _read_text(path) for name, path in files.items()}
    for path in (folder / name for name in _JSON_FILES):
        if path.is_file() and (found := _read_named(path, _read_stored(path, _read_text(path)))):
            return found
    return {}


def read_templates(path: Path) -> dict[str, str]:
    """Return the chat templates in a file by name; a single one is called `default`.

    The file is a Jinja text, or JSON with the key `chat_template`. Raises SetupError if it can't be
    read, or is JSON without a template.
    """
    text = _read_text(path)
    if not (path.suffix == ".json" or _STARTS_AS_JSON.match(text) or _has_key(text)):
        return {"default": text}
    found = _read_named(path, _read_stored(path, text))
    if not found:
        raise SetupError(f"{path}: JSON without a chat template; it has no {_KEY}")
    return {"default": next(iter(found.values()))} if len(found) == 1 else found


def _has_key(text: str) -> bool:
    """Return whether `text` is JSON that stores templates. Jinja can be JSON without the key."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _KEY in value


def _read_stored(path: Path, text: str) -> Any:
    return parse_object(path, text.removeprefix("\ufeff")).get(_KEY)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise SetupError(f"{path}: too large for a chat template")
        # As Python reads a text: all newlines become "\n".
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise SetupError(f"{path}: the chat template can't be read ({reason})") from error


def _read_named(path: Path, stored: Any) -> dict[str, str]:
    """Return the templates that a JSON file stores: a text, or texts by name.

    transformers takes a list of `{"name": ..., "template": ...}` or an object of texts.
    """
    if stored is None:
        return {}
    if isinstance(stored, str):
        return {"default": stored}
    if isinstance(stored, dict):
        stored = [{"name": name, "template": text} for name, text in stored.items()]
    if not isinstance(stored, list):
        raise SetupError(f"{path}: {_KEY} must be a text, or named templates")
    found: dict[str, str] = {}
    for entry in stored:
        entry = entry if isinstance(entry, dict) else {}
        name, text = entry.get("name"), entry.get("template")
        if not isinstance(name, str) or not isinstance(text, str):
            raise SetupError(f"{path}: each template in {_KEY} must have a name and a text")
        if found.setdefault(name, text) != text:
            raise SetupError(f"{path}: {_KEY} has two templates of one name, {name[:50]!r}")
    return found
