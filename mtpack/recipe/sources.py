"""The tables of a recipe: the sources of a run, how they are mixed, and what is held back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mtpack.errors import SetupError
from mtpack.options import PackOptions, choices
from mtpack.recipe.values import (
    make_choice,
    read_name,
    read_positive,
    read_positive_integer,
    read_share,
    read_text,
    read_texts,
    read_variables,
    read_weight,
    refuse_value,
)

TEXT = "text"
"""The format of rows of plain text."""
# The variables that a render sets itself.
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
_FORMATS = choices(next(each for each in fields(PackOptions) if each.name == "format"))
_FORMATS_WITH_A_KEY = ("auto", "messages")
_PERCENTAGE = re.compile(r"\d+(\.\d+)?%")


def _key(read: Callable[[str, Any], Any], default: Any = None) -> Any:
    """Declare a key: the function that reads its value, and the value that it has by default."""
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files of which the rows are read in one way: a `[[source]]` of a recipe."""

    path: tuple[str, ...] = _key(read_texts, ())
    """Files, folders, patterns and URLs, as arguments of the command."""
    name: str = _key(read_name, "")
    """Empty for a source that is the only one and has no name."""
    format: str | None = _key(make_choice(_FORMATS))
    """None: that of the run. So it is for `messages_key` and `split`."""
    messages_key: str | None = _key(read_text)
    split: str | None = _key(read_text)
    epochs: float = _key(read_positive, 1.0)
    """How often each row is taken, or the share of the rows that is taken."""
    max_rows: int | None = _key(read_positive_integer)
    """The number of rows that are read, from the first one on; None: all."""
    system: str | None = _key(read_text)
    """The system message of rows that have none."""
    template_args: Mapping[str, Any] | None = _key(read_variables)
    """Variables of the chat template, for rows that do not set them."""
    weight: float = _key(read_weight, 1.0)
    """What the weight of each turn is multiplied with."""
    share: float | None = _key(read_share)
    """The share of the mix."""

    @property
    def row_format(self) -> str:
        """The format of all rows, or `auto`: that of each file is detected."""
        return "messages" if self.messages_key is not None else self.format or "auto"

    @property
    def is_text(self) -> bool:
        """Whether its rows are plain text."""
        return self.format == TEXT

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table to read in addition to those with the names of a format."""
        if self.is_text:
            return (TEXT,)
        name = self.messages_key
        return () if name is None else (name, name.partition(".")[0])

    def resolve(self, options: PackOptions, where: str) -> Source:
        """Return the source with the choices of the run where it has none; raise SetupError.

        where: names the source in messages.
        """
        row_format = self.format or options.format
        messages_key = self.messages_key
        if row_format in _FORMATS_WITH_A_KEY:
            messages_key = messages_key or options.messages_key
        elif messages_key is not None:
            raise SetupError(
                f'{where}: messages-key has no meaning with format = "{row_format}"; '
                "leave one of them out"
            )
        if self.weight != 1 and not options.turn_weights:
            raise SetupError(
                f"{where}: weight has no meaning without turn-weights = true (--turn-weights); "
                "leave it out, or add that"
            )
        if row_format == TEXT:
            for key, value in (("system", self.system), ("template-args", self.template_args)):
                if value is not None:
                    raise SetupError(
                        f'{where}: {key} has no meaning with format = "{TEXT}", which is not '
                        "rendered with a template; leave one of them out"
                    )
        for name in self.template_args or ():
            if name in _RESERVED or not name.isidentifier():
                raise SetupError(f"{where}: template-args: {name!r} can't be set; remove it")
        return replace(
            self,
            format=row_format,
            messages_key=messages_key,
            split=self.split or options.split,
            template_args=self.template_args or None,
        )

    def describe_variant(self, options: PackOptions) -> str:
        """Return what makes its rows other dialogues than those of a plain source; "" if nothing.

        Their tokens depend on this in addition to `PackOptions.split_options` and their format.
        """
        found: dict[str, Any] = {}
        if self.messages_key != options.messages_key:
            found["messages_key"] = self.messages_key
        if self.system is not None:
            found["system"] = self.system
        if self.template_args is not None:
            found["template_args"] = self.template_args
        if self.weight != 1:
            found["weight"] = self.weight
        return json.dumps(found, sort_keys=True) if found else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What the shares of the sources are shares of: the table `[mix]`."""

    by: str = _key(make_choice(("tokens", "turns", "rows")), "tokens")
    total: int | None = _key(read_positive_integer)
    """Of the whole mix, in the unit of `by`."""


def _read_validation_size(where: str, value: Any) -> int | str:
    """Return a number of rows, or a percentage such as 1%; raise SetupError."""
    if isinstance(value, str) and _PERCENTAGE.fullmatch(value) and 0 < float(value[:-1]) < 100:
        return value
    if type(value) is int and value > 0:
        return value
    raise refuse_value(where, 'a number of rows, or a percentage such as "1%"', value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is held back from training: the table `[validation]`."""

    size: int | str | None = _key(_read_validation_size)
    """A number of rows, or a percentage of them such as `1%`."""
    path: tuple[str, ...] = _key(read_texts, ())
    """Files of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What goes into a run: its options and its sources."""

    options: PackOptions
    sources: tuple[Source, ...]
    """At least one, each resolved. Their paths are relative to the working folder."""
    mix: Mix | None = None
    validation: Validation | None = None
    file: str = ""
    """The file that it comes from; empty if there is none."""

    def name_source(self, index: int) -> str:
        """Return what a message calls a source; index: from 0."""
        return name_source(self.file, index, self.sources[index].name)


def name_source(file: str, index: int, name: str) -> str:
    """Return what a message calls a source of a recipe; index: from 0."""
    called = f' "{name}"' if name else ""
    return f"{file}: source {index + 1}{called}"


def describe_sources(sources: Sequence[Source], options: PackOptions) -> list[dict[str, Any]]:
    """Return what the contents of an output depend on in its sources, except their files.

    As JSON values, without what is as in a source that has only files. Empty if there is only one
    such source, so that a run without a recipe is described by its options alone.
    """
    described = []
    for source in sources:
        chosen = {
            "name": source.name or None,
            "format": None if source.format == options.format else source.format,
            "max_rows": source.max_rows,
        }
        if variant := source.describe_variant(options):
            chosen |= json.loads(variant)
        described.append({key: value for key, value in chosen.items() if value is not None})
    return described if any(described) else []


def refuse_unfinished(recipe: Recipe) -> None:
    """Raise SetupError for keys that are read, but of which nothing is done yet."""
    for index, source in enumerate(recipe.sources):
        chosen = {
            "epochs": source.epochs != 1,
            "share": source.share is not None,
        }
        for key, is_chosen in chosen.items():
            if is_chosen:
                raise SetupError(
                    f"{recipe.name_source(index)}: {key}: not possible yet; leave it out"
                )
    for key, table in (("mix", recipe.mix), ("validation", recipe.validation)):
        if table is not None:
            raise SetupError(f"{recipe.file}: {key}: not possible yet; leave it out")
