"""Damage bytes, texts and JSON values, as strategies of hypothesis."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

MARK = "zqxsecret"
SECRET = f"What somebody has written in a dialogue: {MARK}"
"""A text that stands for content. Messages may quote the start of a name, but never `MARK`."""

_EXTREMES = [0, 1, -1, 2, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, True, False, None]
_TEXTS = ["", " ", "\n", "\0", "a", "</s>", "{", "[]", "{}", "null", "\ud800", "é" * 9, SECRET]
scalars = st.sampled_from([*_EXTREMES, *_TEXTS]) | st.text(max_size=4)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def damaged(draw, content: bytes, pieces: tuple[bytes, ...], max_changes: int = 3) -> bytes:
    """Change up to `max_changes` places: cut, repeat, or put one of `pieces` there."""
    for _ in range(draw(st.integers(1, max_changes))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 2, 5, 20, 10**9])))
        middle = draw(
            st.sampled_from([b"", content[start:end] * 2, *pieces]) | st.binary(max_size=3)
        )
        content = content[:start] + middle + content[end:]
    return content


def _list_places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    places = []
    for key, inner in items:
        places.append((*path, key))
        if isinstance(inner, dict | list):
            places += _list_places(inner, (*path, key))
    return places


@st.composite
def changed(draw, value: dict[str, Any], max_changes: int = 2) -> dict[str, Any]:
    """Change values inside a JSON object: replace, remove, exchange or repeat them."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, max_changes))):
        places = _list_places(value)
        if not places:
            break
        *path, key = draw(st.sampled_from(places))
        parent: Any = value
        for step in path:
            parent = parent[step]
        change = draw(st.sampled_from(["replace", "replace", "remove", "exchange", "wrap", "more"]))
        if change == "remove":
            del parent[key]
        elif change == "replace":
            parent[key] = draw(json_values)
        elif change == "wrap":
            parent[key] = draw(st.sampled_from([[parent[key]], {"content": parent[key]}]))
        elif change == "exchange":
            other: Any = value
            for step in draw(st.sampled_from(places)):
                other = other[step] if _has(other, step) else None
            parent[key] = copy.deepcopy(other)
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[draw(st.text(max_size=5))] = parent[key]
    return value


def _has(value: Any, step: Any) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and type(step) is int and step < len(value)
