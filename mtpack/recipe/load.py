"""Read a recipe: from a TOML file, and from what the command line or a Python caller says."""

from __future__ import annotations

import datetime
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields, replace
from typing import Any

from mtpack.errors import SetupError
from mtpack.option_arguments import options_from
from mtpack.option_values import check_value
from mtpack.options import PackOptions, choices, resolve_alias
from mtpack.recipe.sources import Mix, Recipe, Source, Validation, name_source
from mtpack.recipe.values import (
    name_key,
    read_table,
    read_text,
    read_texts,
    refuse_unknown_keys,
    refuse_value,
)
from mtpack.storage.places import read_start, to_place
from mtpack.storage.urls import STANDARD_INPUT, is_url, join_url, resolve_name

Config = str | os.PathLike[str] | Mapping[str, Any]
"""A recipe: its file, or its keys and values."""

_SIZE_LIMIT = 16 * 2**20
_TABLES = ("source", "mix", "validation")
_OPTIONS = {name_key(option.name): option for option in fields(PackOptions)}
_IN_PYTHON = "config"
"""What messages call a recipe that is no file."""


def load_recipe(config: Config | None, inputs: Sequence[str], given: Mapping[str, Any]) -> Recipe:
    """Return what goes into a run; raise SetupError.

    config: the recipe, if there is one. inputs: files, as arguments of the command. given: options
    by the names of their fields, which win over those in the recipe.
    """
    if config is None:
        options = _make_options(given)
        return Recipe(options=options, sources=(_make_source(inputs, options),))
    file, folder, tables = _read_config(config)
    refuse_unknown_keys(file, tables, (*_TABLES, *_OPTIONS))
    values = {
        option.name: _read_option(f"{file}: {key}", option, tables[key], folder)
        for key, option in _OPTIONS.items()
        if key in tables
    }
    try:
        options = _make_options({**values, **given})
    except SetupError as error:
        raise SetupError(f"{file}: {error}") from error
    sources = _read_sources(file, folder, tables.get("source", []), options)
    if sources and inputs:
        raise SetupError(
            f"{file}: source: the recipe has sources, and the command names the input "
            f"{inputs[0]}; leave one of them out"
        )
    validation = None
    if "validation" in tables:
        validation = read_table(Validation, f"{file}: validation", tables["validation"])
        paths = [join_folder(folder, path) for path in validation.path]
        validation = replace(validation, path=tuple(paths))
    return Recipe(
        options=options,
        sources=sources or (_make_source(inputs, options),),
        mix=read_table(Mix, f"{file}: mix", tables["mix"]) if "mix" in tables else None,
        validation=validation,
        file=file,
    )


def _make_options(values: Mapping[str, Any]) -> PackOptions:
    options = options_from(values)
    return replace(options, output=resolve_name(options.output))


def _make_source(inputs: Sequence[str], options: PackOptions) -> Source:
    return Source(path=tuple(inputs)).resolve(options, "")


def _read_config(config: Config) -> tuple[str, str, Mapping[str, Any]]:
    """Return the name of a recipe for messages, its folder, and its content."""
    if isinstance(config, Mapping):
        return _IN_PYTHON, "", config
    file = resolve_name(os.fspath(config))
    try:
        text = read_start(to_place(file), _SIZE_LIMIT)
    except OSError as error:
        raise SetupError(f"{file}: can't be read ({error.strerror})") from error
    import tomllib  # takes 2 ms, and few runs need it

    try:
        tables = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        detail = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise SetupError(f"{file}: not a recipe in TOML ({detail})") from error
    return file, os.path.dirname(file), tables


def _read_sources(file: str, folder: str, tables: Any, options: PackOptions) -> tuple[Source, ...]:
    """Return the sources of a recipe; raise SetupError."""
    if not isinstance(tables, list | tuple):
        raise SetupError(f"{file}: source: write each source under its own [[source]]")
    sources = []
    for index, table in enumerate(tables):
        name = table.get("name", "") if isinstance(table, Mapping) else ""
        where = name_source(
            file, index, name if isinstance(name, str) and name.isprintable() else ""
        )
        source = read_table(Source, where, table)
        if not source.path:
            raise SetupError(f"{where}: path: is missing; name the files of the source")
        if not source.name and len(tables) > 1:
            source = replace(source, name=f"source-{index + 1}")
        paths = [join_folder(folder, path) for path in source.path]
        sources.append(replace(source, path=tuple(paths)).resolve(options, where))
    names = Counter(source.name for source in sources)
    for index, source in enumerate(sources):
        if names[source.name] > 1:
            where = name_source(file, index, source.name)
            raise SetupError(f"{where}: name: another source has it; choose another one")
    return tuple(sources)


def is_relative(name: str, folder: str) -> bool:
    """Return whether a name depends on a folder; the working folder is ""."""
    return bool(folder) and not (name == STANDARD_INPUT or is_url(name) or os.path.isabs(name))


def join_folder(folder: str, name: str) -> str:
    """Return a name that is relative to a folder: as a path, a pattern or a URL.

    >>> join_folder("runs", "../data/*.jsonl"), join_folder("s3://bucket/packed", ".")
    ('data/*.jsonl', 's3://bucket/packed')
    """
    name = resolve_name(name)
    if not is_relative(name, folder):
        return name
    if is_url(folder):
        scheme, _, path = join_url(folder, name).partition("://")
        return f"{scheme}://{posixpath.normpath(path)}"
    return os.path.normpath(os.path.join(folder, name))


def _read_option(where: str, option: Field[Any], value: Any, folder: str) -> Any:
    """Return the value of an option, as `options_from` takes it; raise SetupError."""
    value = _read_type(where, option, resolve_alias(option.name, value))
    check_value(where, value, choices(option), option.metadata)
    resolve = RESOLVERS.get(option.metadata.get("metavar", ""))
    return value if resolve is None else resolve(folder, value)


def _read_type(where: str, option: Field[Any], value: Any) -> Any:
    """Return a value of the type of an option; raise SetupError."""
    details = option.metadata
    kind: type
    if choices(option):
        kind, expected = str, f"one of {', '.join(choices(option))}"
    elif isinstance(option.default, bool):
        kind, expected = bool, "true or false"
    elif isinstance(option.default, int):
        kind, expected = int, "an integer"
    elif isinstance(option.default, tuple):
        return _read_pairs(where, value, details["metavar"])
    elif "size" in details and type(value) is int:
        return str(value)
    elif "date" in details and type(value) is datetime.date:
        return value.isoformat()
    else:
        return read_text(where, value)
    if type(value) is not kind:
        raise refuse_value(where, expected, value)
    return value


def _read_pairs(where: str, value: Any, form: str) -> Any:
    """Return pairs as a table, or as texts of this form; raise SetupError."""
    if isinstance(value, Mapping):
        return value
    pairs = read_texts(where, value)
    if not all("=" in pair for pair in pairs):
        raise SetupError(f"{where}: write each as {form}, or write a table")
    return pairs


def _join_if_there(folder: str, name: str) -> str:
    """Return a name that is relative to a folder, if something has it there, else as it is."""
    path = join_folder(folder, name)
    is_there = not is_url(path) and os.path.exists(path)
    return path if is_there or name.startswith(("./", "../")) else name


RESOLVERS: dict[str, Callable[[str, str], str]] = {
    "DIR": join_folder,
    "FILE_OR_NAME": _join_if_there,
    "PATH_OR_ID": _join_if_there,
}
"""How the value of an option is found that may be a path, by the `metavar` of its field."""
