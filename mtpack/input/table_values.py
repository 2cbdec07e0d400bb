"""Converts the values of a table's column to JSON values.

In Arrow, all structs of a column have the same fields. So a key that a row lacks is stored as null,
and null fields of structs are read as missing. Where a null could mean something to the model, it
is noted that one was there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

Convert = Callable[[Any], Any]
"""Converts a value that is not null; raises TypeError if JSON has no such value."""

# What is inside these fields reaches the chat template as it is, null keys included. `content` is
# meant where it is an object: the result of a tool.
_PASSED_ON = frozenset(("arguments", "tools", "functions", "parameters"))
_RESULT = "content"
_EXTENSION_NAME = b"ARROW:extension:name"
_JSON = "arrow.json"


@dataclass(slots=True)
class DroppedNulls:
    """Whether a null that may mean something was dropped."""

    found: bool = False


def make_converter(
    field: pa.Field, nulls: DroppedNulls, *, is_passed_on: bool = False
) -> Convert | None:
    """Return the function that converts the values of a column; None if they stay as they are.

    nulls: set where a null is dropped inside tool calls, their results, or tools.
    """
    kind = field.type
    if _is_json(field):
        return _embed_json
    if isinstance(kind, pa.BaseExtensionType):
        return make_converter(field.with_type(kind.storage_type), nulls, is_passed_on=is_passed_on)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return make_converter(field.with_type(kind.value_type), nulls, is_passed_on=is_passed_on)
    if pa.types.is_floating(kind):
        return _check_finite
    is_passed_on = is_passed_on or field.name in _PASSED_ON
    if pa.types.is_struct(kind):
        return _struct_converter(kind, nulls, is_passed_on or field.name == _RESULT)
    if pa.types.is_map(kind):
        convert = make_converter(kind.item_field, nulls, is_passed_on=is_passed_on)
        return _map_converter(convert)
    if isinstance(kind, _LIST_TYPES):
        convert = make_converter(kind.value_field, nulls, is_passed_on=is_passed_on)
        return _list_converter(convert) if convert else None
    return None


_LIST_TYPES = (
    pa.ListType,
    pa.LargeListType,
    pa.FixedSizeListType,
    pa.ListViewType,
    pa.LargeListViewType,
)


def _is_json(field: pa.Field) -> bool:
    """Return whether the values are JSON text; old versions of Arrow know it by the metadata."""
    if getattr(field.type, "extension_name", None) == _JSON:
        return True
    return (field.metadata or {}).get(_EXTENSION_NAME) == _JSON.encode()


def _embed_json(value: str) -> orjson.Fragment:
    text = value.encode()
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        raise TypeError("a value of a JSON column is not valid JSON") from None
    return orjson.Fragment(text)


def _check_finite(value: float) -> float:
    if not math.isfinite(value):
        raise TypeError("NaN or an infinity; JSON has neither")
    return value


def _struct_converter(kind: pa.StructType, nulls: DroppedNulls, is_passed_on: bool) -> Convert:
    fields = [kind.field(index) for index in range(kind.num_fields)]
    found = {each.name: make_converter(each, nulls, is_passed_on=is_passed_on) for each in fields}
    converters = {name: convert for name, convert in found.items() if convert}

    def drop_nulls(value: dict[str, Any]) -> dict[str, Any]:
        return {key: item for key, item in value.items() if item is not None}

    def convert(value: dict[str, Any]) -> dict[str, Any]:
        present = drop_nulls(value)
        if is_passed_on and len(present) < len(value):
            nulls.found = True
        for key, convert_item in converters.items():
            if key in present:
                present[key] = convert_item(present[key])
        return present

    return convert if converters or is_passed_on else drop_nulls


def _list_converter(convert: Convert) -> Convert:
    def convert_all(value: list[Any]) -> list[Any]:
        return [None if item is None else convert(item) for item in value]

    return convert_all


def _map_converter(convert: Convert | None) -> Convert:
    """Return the function that makes an object of a map, which has only the keys that are there."""

    def convert_map(value: list[tuple[Any, Any]]) -> dict[Any, Any]:
        found = dict(value)
        if len(found) < len(value):
            raise TypeError("a map has the same key twice")
        if convert:
            found.update((key, convert(item)) for key, item in value if item is not None)
        return found

    return convert_map
