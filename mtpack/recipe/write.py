"""Write a recipe as TOML, so that `load.py` reads the same one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from mtpack.options import PackOptions
from mtpack.recipe.load import RESOLVERS, is_relative
from mtpack.recipe.sources import Mix, Recipe, Source, Validation
from mtpack.recipe.values import name_key
from mtpack.storage.urls import is_url

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Of a source, next to its path and its name: what it need not repeat if it is that of the run.
_INHERITED = ("format", "messages_key", "split")


def format_recipe(recipe: Recipe) -> str:
    """Return a recipe as TOML: every option, and every source with its keys.

    Its paths are relative to the working folder.
    """
    options = dict(_list_options(recipe.options, ""))
    return _format(recipe, options, "")


def format_own_recipe(recipe: Recipe) -> str:
    """Return the recipe of an output, as TOML: what its contents follow from.

    Its paths are relative to the folder of the output, except those that are absolute. Without the
    options that say how a run is done, which change nothing: so it is the same for all such runs.
    """
    recorded = {option.name for option in fields(PackOptions) if option.metadata["recorded"]}
    folder = recipe.options.output
    options = {
        name: value for name, value in _list_options(recipe.options, folder) if name in recorded
    }
    return _format(recipe, options | {"output": "."}, folder)


def _format(recipe: Recipe, options: Mapping[str, Any], folder: str) -> str:
    lines = [_format_line(name, value) for name, value in options.items()]
    for source in recipe.sources:
        if source.path:
            lines += ["", "[[source]]"]
            lines += _list_lines(source, folder, _find_repeated(source, recipe.options))
    for name, table in (("mix", recipe.mix), ("validation", recipe.validation)):
        if table is not None:
            lines += ["", f"[{name}]", *_list_lines(table, folder, ())]
    return "\n".join(lines) + "\n"


def _list_options(options: PackOptions, folder: str) -> Iterator[tuple[str, Any]]:
    """Yield each option that has a value, and the value."""
    for option in fields(PackOptions):
        value = getattr(options, option.name)
        metavar = option.metadata.get("metavar", "")
        if value is None or value == ():
            continue
        if metavar in RESOLVERS and (metavar == "DIR" or os.path.exists(value)):
            value = _make_relative(value, folder)
        yield option.name, value


def _find_repeated(source: Source, options: PackOptions) -> tuple[str, ...]:
    """Return the fields of a source that have the value of the run."""
    return tuple(name for name in _INHERITED if getattr(source, name) == getattr(options, name))


def _list_lines(
    table: Source | Mix | Validation, folder: str, left_out: tuple[str, ...]
) -> Iterator[str]:
    for each in fields(table):
        value = getattr(table, each.name)
        if each.name in left_out or value is None or (value == each.default and each.name != "by"):
            continue
        if each.name == "path":
            value = [_make_relative(path, folder) for path in value]
        yield _format_line(each.name, value)


def _make_relative(name: str, folder: str) -> str:
    """Return a path relative to a folder; of a folder in a store, as an absolute path."""
    if not is_relative(name, folder):
        return name
    return os.path.abspath(name) if is_url(folder) else os.path.relpath(name, folder)


def _format_line(name: str, value: Any) -> str:
    return f"{name_key(name)} = {_format_value(value)}"


def _format_value(value: Any) -> str:
    """Return a value as TOML; its texts are those of JSON but for one character."""
    if isinstance(value, Mapping):
        items = [f"{_format_key(key)} = {_format_value(item)}" for key, item in value.items()]
        return f"{{ {', '.join(items)} }}" if items else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_format_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _format_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _format_value(key)
