"""Places: a path, or the URL of something in a store. These functions take either."""

from __future__ import annotations

import os
from pathlib import Path

from mtpack.storage.objects import is_object, list_folder, open_object
from mtpack.storage.urls import is_url, join_url

Place = str | Path


def to_place(name: str) -> Place:
    """Return the URL that a name is, or else its path."""
    return name if is_url(name) else Path(name)


def join_place(folder: Place, name: str) -> Place:
    """Return the place of a name in a folder."""
    return join_url(folder, name) if isinstance(folder, str) else folder / name


def is_file(place: Place) -> bool:
    """Return whether a file or an object is there; raise OSError if a store does not answer."""
    return is_object(place) if isinstance(place, str) else os.path.isfile(place)


def read_start(place: Place, limit: int) -> bytes:
    """Return the first `limit` bytes of a file or an object; raise OSError."""
    with open_object(place) if isinstance(place, str) else open(place, "rb") as file:
        return file.read(limit)


def list_sizes(folder: Place) -> dict[str, int]:
    """Return the sizes of the files or objects in a folder, by name; raise OSError."""
    if isinstance(folder, str):
        return list_folder(folder)
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
