"""Options from the keyword arguments of a Python caller."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mtpack.errors import SetupError
from mtpack.options import PackOptions


def options_from(values: Mapping[str, Any]) -> PackOptions:
    """Build options from the keyword arguments of a Python caller; raise SetupError.

    In addition to the types of the fields, it accepts: a path object for a file or folder, an int
    for a size, and a mapping or a single string for `template_arg`.
    """
    known = {option.name: option for option in fields(PackOptions)}
    accepted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise SetupError(f"{name}: no such option; see mtpack pack --help")
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif "size" in known[name].metadata and type(value) is int:
            value = str(value)
        elif name == "template_arg":
            value = _list_template_args(value)
        accepted[name] = value
    return PackOptions(**accepted)


def _list_template_args(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(f"{key}={json.dumps(item)}" for key, item in value.items())
    return tuple(value)
