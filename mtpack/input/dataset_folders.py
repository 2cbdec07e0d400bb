"""Folders that `datasets.save_to_disk` made: which of their files hold the rows.

A data set is a folder with `state.json`, which names its Arrow files in their order, and
`dataset_info.json`. A dict of data sets is a folder with `dataset_dict.json`, which names the
splits, and a folder for each of them. All other files in them (cached results, for one) hold no
rows of the data set (datasets, `Dataset.load_from_disk` and `DatasetDict.load_from_disk`).
"""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any

from mtpack.errors import SetupError
from mtpack.input.row_errors import quote_name
from mtpack.input.strict_json import StrictJsonError, parse
from mtpack.storage.objects import find_objects
from mtpack.storage.places import is_file, read_start, to_place
from mtpack.storage.urls import is_url

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
_SIDE_FILES = (_STATE, _INFO, _DICT)
_SIDE_FILE_LIMIT = 64 * 2**20
_INDICES = "indices.arrow"
_NAMES_SHOWN = 20


def may_describe_dataset(path: str) -> bool:
    """Return whether a file has the name of one that describes the data set in its folder."""
    return os.path.basename(path) in _SIDE_FILES


def is_dataset_folder(path: str) -> bool:
    """Return whether a path is a folder with a saved data set, or with a dict of them."""
    return _has(path, _DICT) or (_has(path, _STATE) and _has(path, _INFO))


def is_side_file(path: str) -> bool:
    """Return whether a file describes the data set in its folder, so that it holds no rows.

    `dataset_info.json` also lies next to the Arrow files in the cache of datasets.
    """
    folder, name = os.path.split(path)
    if name not in _SIDE_FILES:
        return False
    in_cache = name == _INFO and any(each.endswith(".arrow") for each in _list_names(folder))
    return in_cache or is_dataset_folder(folder)


def list_data_files(folder: str, split: str | None) -> list[str]:
    """Return the Arrow files of a saved data set, in their order; raise SetupError.

    split: the one to read of a dict of data sets; None takes the only one.
    """
    if _has(folder, _DICT):
        folder = os.path.join(folder, _choose_split(folder, split))
    return _list_shards(folder)


def lies_in_split(path: str) -> bool:
    """Return whether a file is one of a split in a dict of data sets."""
    return _has(os.path.dirname(os.path.dirname(path)), _DICT)


def _has(folder: str, name: str) -> bool:
    return is_file(to_place(os.path.join(folder, name)))


def _list_names(folder: str) -> list[str]:
    if is_url(folder):
        below = find_objects(f"{folder}/")
        return [os.path.basename(name) for name in below if os.path.dirname(name) == folder]
    return os.listdir(folder or ".")


def _choose_split(folder: str, split: str | None) -> str:
    names = _read_side_file(folder, _DICT).get("splits")
    if not isinstance(names, list) or not names or not all(map(_is_inside, names)):
        raise SetupError(
            f"{os.path.join(folder, _DICT)}: must name the splits, which lie in this folder; "
            "save the data set again"
        )
    listed = ", ".join(map(quote_name, names[:_NAMES_SHOWN]))
    if len(names) > _NAMES_SHOWN:
        listed += ", ..."
    if split is None and len(names) > 1:
        raise SetupError(f"{folder}: has the splits {listed}; choose one with --split")
    if split is not None and split not in names:
        raise SetupError(f"{folder}: has no split {quote_name(split)}; it has {listed}")
    return str(split or names[0])


def _list_shards(folder: str) -> list[str]:
    path = os.path.join(folder, _STATE)
    state = _read_side_file(folder, _STATE)
    has_indices = any(value for key, value in state.items() if key.startswith("_indices"))
    if has_indices or _has(folder, _INDICES):
        raise SetupError(
            f"{folder}: an older datasets saved it with an indices mapping, so its files hold "
            "other rows than the data set; load it, call flatten_indices() and save it again"
        )
    shards = state.get("_data_files")
    names = [
        shard.get("filename") if isinstance(shard, dict) else None
        for shard in (shards if isinstance(shards, list) else [])
    ]
    if not names:
        raise SetupError(f"{path}: names no data files; save the data set again")
    found = []
    for name in names:
        if not isinstance(name, str) or not _is_inside(name) or not name.endswith(".arrow"):
            raise SetupError(
                f"{path}: names {quote_name(name)}, which is no Arrow file in this folder; "
                "save the data set again"
            )
        if not _has(folder, name):
            raise SetupError(
                f"{os.path.join(folder, name)}: no such file, but {_STATE} names it; restore it"
            )
        found.append(os.path.join(folder, name))
    return found


def _is_inside(name: Any) -> bool:
    """Return whether a side file may name this: a path to something inside its folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePath(name)
    return not path.is_absolute() and bool(path.parts) and ".." not in path.parts


def _read_side_file(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        value = parse(read_start(to_place(path), _SIDE_FILE_LIMIT))
    except OSError as error:
        raise SetupError(f"{path}: can't be read ({error.strerror})") from error
    except StrictJsonError as error:
        raise SetupError(f"{path}: not JSON ({error}); save the data set again") from error
    if not isinstance(value, dict):
        raise SetupError(f"{path}: must hold a JSON object; save the data set again")
    return value
