"""Find what a run reads: its recipe, and the files of each source."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mtpack.counts import Counts
from mtpack.errors import InputError, SetupError
from mtpack.input.files import (
    FileKind,
    InputFile,
    find_inputs,
    find_kind,
    require_one_standard_input,
    require_split,
)
from mtpack.recipe.load import Config, load_recipe
from mtpack.recipe.sources import Recipe, refuse_unfinished
from mtpack.shards.manifest import MANIFEST, SourceRecord, is_manifest
from mtpack.storage.places import join_place, to_place

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Files, folders, patterns or URLs: one, or several."""


class InputName(NamedTuple):
    """The name of an input file, and the index of its source."""

    name: str
    source: int


def load_run(inputs: Inputs, config: Config | None, options: Mapping[str, Any]) -> Recipe:
    """Return what goes into a run; raise SetupError. The arguments: as of `pack`."""
    names = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    recipe = load_recipe(config, [os.fspath(name) for name in names], options)
    refuse_unfinished(recipe)
    if recipe.file and not any(source.path for source in recipe.sources):
        raise SetupError(
            f"{recipe.file}: source: is missing; name the files to pack under [[source]], or in "
            "the command"
        )
    return recipe


def find_files(recipe: Recipe) -> list[InputName]:
    """Return the input files of a run in order; raise SetupError."""
    options, has_several = recipe.options, len(recipe.sources) > 1
    found: list[InputName] = []
    for index, source in enumerate(recipe.sources):
        is_own_split = source.split != options.split or not has_several
        try:
            names = find_inputs(source.path, options.output, source.split, needs_split=is_own_split)
        except SetupError as error:
            if not recipe.file:
                raise
            raise SetupError(f"{recipe.name_source(index)}: path: {error}") from error
        found += [InputName(name, index) for name in names]
    if has_several:
        try:
            _check_together(options.split, [file.name for file in found])
        except SetupError as error:
            raise SetupError(f"{recipe.file}: {error}") from error
    _refuse_packed_folders([file.name for file in found])
    return found


def _check_together(split: str | None, names: list[str]) -> None:
    """Raise SetupError for what can't be among the files of several sources."""
    require_one_standard_input(names)
    if split is not None:
        require_split(split, names)


def _refuse_packed_folders(names: list[str]) -> None:
    """Raise SetupError if an input is a shard in an output of mtpack."""
    tables = {os.path.dirname(name) for name in names if find_kind(name) == FileKind("arrow")}
    for folder in sorted(tables):
        if is_manifest(join_place(to_place(folder), MANIFEST)):
            raise SetupError(
                f"{folder}: holds sequences that mtpack has packed; give the dialogues that they "
                "were packed from"
            )


def refuse_empty_files(recipe: Recipe, files: Collection[InputFile]) -> None:
    """Raise InputError if all files of a source of several are empty."""
    if len(recipe.sources) > 1:
        filled = {file.source for file in files if file.num_bytes}
        for index in range(len(recipe.sources)):
            if index not in filled:
                raise _refuse_empty_source(recipe, index)


def _refuse_empty_source(recipe: Recipe, index: int) -> InputError:
    return InputError(
        f"{recipe.name_source(index)}: path: its files hold no rows; name others, or remove the "
        "source"
    )


def record_sources(recipe: Recipe, counts: Sequence[Counts]) -> list[SourceRecord]:
    """Return what happened to the rows of each source; raise InputError for one without rows.

    counts: of each source. Returns an empty list if there is only one, and it has no name.
    """
    if len(counts) == 1 and not recipe.sources[0].name:
        return []
    records, first = [], 0
    for index, (source, counted) in enumerate(zip(recipe.sources, counts, strict=True)):
        if not counted.rows_read and len(counts) > 1:
            raise _refuse_empty_source(recipe, index)
        records.append(SourceRecord(name=source.name, first_dialogue=first, counts=counted))
        first += counted.rows_read
    return records
