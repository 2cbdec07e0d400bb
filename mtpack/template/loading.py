"""Chooses, checks and compiles a chat template: the tokenizer's own, or the one the user names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtpack.errors import SetupError
from mtpack.template.chat_template import RESERVED, ChatTemplate
from mtpack.template.template_files import find_templates, read_templates
from mtpack.tokenizer.loading import LoadedTokenizer

# Jinja compiles 20,000 characters a second; the templates of models have up to 20,000.
_MAX_CHARACTERS = 2**18
_HTML = re.compile(r"\s*<(!doctype\s+html|html)\b", re.IGNORECASE)


def load_chat_template(
    tokenizer: LoadedTokenizer,
    named: str | None,
    arguments: Sequence[str],
    date: str,
    tool_arguments: str = "auto",
) -> ChatTemplate:
    """Load the template that `named` says, or else the tokenizer's own; raise SetupError.

    named: a file or a folder with templates, or the name of one of the tokenizer's; a file or
    folder of that name wins. arguments: each is KEY=VALUE; a value is read as JSON if it is valid
    JSON, otherwise as text. date: ISO format, the date that `strftime_now` formats.
    """
    name, sources = _find_sources(tokenizer, named)
    return build_chat_template(name, sources, tokenizer, arguments, date, tool_arguments)


def build_chat_template(
    name: str,
    sources: dict[str, str],
    tokenizer: LoadedTokenizer,
    arguments: Sequence[str],
    date: str,
    tool_arguments: str = "auto",
) -> ChatTemplate:
    """Compile templates as `load_chat_template` does, and read no file; raise SetupError.

    name: where they come from, for messages. sources: as in `ChatTemplate`.
    """
    for source in sources.values():
        _check_text(name, source)
    variables = {**tokenizer.special_tokens, **_parse_arguments(arguments)}
    try:
        template = ChatTemplate(sources, variables, date, tool_arguments=tool_arguments)
    except Exception as error:  # Jinja's own errors, and those of Python's compiler
        line = getattr(error, "lineno", None)
        where = f" line {line}" if line else ""
        detail = str(error).split("\n")[0]
        raise SetupError(f"{name}{where}: the chat template is not valid ({detail})") from error
    _check_reads_messages(name, template)
    return template


def _find_sources(tokenizer: LoadedTokenizer, named: str | None) -> tuple[str, dict[str, str]]:
    """Return where the templates to use come from, for messages, and the templates by name.

    Which of them renders a dialogue is decided as in transformers (`get_chat_template`): `tool_use`
    if it has tools, else `default`. One of the tokenizer's that the user names renders all.
    """
    source = tokenizer.source
    if named is None:
        found = find_templates(tokenizer.folder)
        missing = "the tokenizer has no chat template; name one with --chat-template FILE"
        remedy = "choose one with --chat-template NAME"
    elif os.path.exists(named):  # False, and no error, for what can't be a path
        source, path = named, Path(named)
        found = find_templates(path) if path.is_dir() else read_templates(path)
        missing = "the folder has no chat template"
        remedy = "save the one to use in a file of its own"
    elif named in (own := find_templates(tokenizer.folder)):
        return f"{source} ({_show(named)})", {"default": own[named]}
    else:
        raise SetupError(
            f"{_show(named)}: there is no such chat template; name a file, a folder, or one of the "
            f"tokenizer's templates ({_list_names(own) or 'it has none'})"
        )
    if not found:
        raise SetupError(f"{source}: {missing}")
    if "default" not in found:
        names = _list_names(found)
        raise SetupError(f"{source}: no chat template is named default, only {names}; {remedy}")
    return source, found


def _list_names(templates: Iterable[str]) -> str:
    names = sorted(templates)
    more = ["..."] if len(names) > 20 else []
    return ", ".join([*map(_show, names[:20]), *more])


def _show(name: str) -> str:
    """Return a name that fits into one line of a message."""
    shown = name if len(name) <= 60 else f"{name[:60]}..."
    return shown if shown and shown.isprintable() else repr(shown)


def _check_text(name: str, source: str) -> None:
    """Raise SetupError if the source of a template can't be one."""
    wrong = None
    if not source.strip():
        wrong = "the chat template is empty"
    elif "\0" in source or not _is_unicode(source):
        wrong = "not a chat template but binary data"
    elif _HTML.match(source):
        wrong = "not a chat template but a web page; download the file itself"
    elif len(source) > _MAX_CHARACTERS:
        wrong = f"the chat template has more than {_MAX_CHARACTERS:,} characters"
    if wrong:
        raise SetupError(f"{name}: {wrong}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        return False
    return True


def _check_reads_messages(name: str, template: ChatTemplate) -> None:
    """Raise SetupError if a template that renders dialogues never reads their messages."""
    for used in {template.choose_name(None), template.choose_name([])}:
        tokens = template.environment.lex(template.sources[used])  # only as far as they are read
        if not any(kind == "name" and word == "messages" for _, kind, word in tokens):
            raise SetupError(
                f"{name}: not a chat template: it never reads `messages`, so it would write the "
                "same text for every dialogue"
            )


def _parse_arguments(arguments: Sequence[str]) -> Mapping[str, Any]:
    """Return the variables that `--template-arg` sets."""
    variables = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise SetupError(f"--template-arg {argument}: write it as KEY=VALUE")
        if key in RESERVED:
            raise SetupError(f"--template-arg {argument}: mtpack sets {key} itself; remove it")
        variables[key] = _json_or_text(value)
    return variables


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
