"""The Jinja environment of chat templates, as transformers 5 sets it up.

The sandbox, the white space rules, the filters, the globals and the `generation` tag are those of
`apply_chat_template` (transformers/utils/chat_template_utils.py), with two deliberate differences.
`strftime_now` formats a fixed date, so that runs are repeatable. The `generation` tag can mark its
output in the text itself, so that the output is found wherever the template puts it. What a
render writes is counted (`limits.py`), which does not change its text.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils

from mtpack.template.limits import LimitedEnvironment, Meter

# Unicode noncharacters: never assigned and not for interchange, so no proper text has them.
GENERATION_START = "\ufdd3"
GENERATION_END = "\ufdd4"


def make_environment(date: str, meter: Meter, *, marked: bool) -> LimitedEnvironment:
    """Return an environment; `marked`: put marks around the output of `generation` tags.

    date: ISO format, the date that `strftime_now` formats.
    """
    environment = LimitedEnvironment(meter, **make_settings(marked=marked))
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=datetime.datetime.fromisoformat(date).strftime,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment


def make_settings(*, marked: bool) -> dict[str, Any]:
    """Return the settings of Jinja environments for chat templates."""
    return {
        "trim_blocks": True,
        "lstrip_blocks": True,
        "extensions": [_MarkedGeneration if marked else _Generation, jinja2.ext.loopcontrols],
    }


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without Jinja's HTML escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: writes its body, which has its own scope."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


class _MarkedGeneration(_Generation):
    """The same tag, with marks around what it writes."""

    def _write(self, caller: Callable[[], str]) -> str:
        return f"{GENERATION_START}{caller()}{GENERATION_END}"


class _Dict:
    """The `dict` of templates: only a call and `fromkeys`, no other attribute of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """The `namespace` of templates: no attribute may start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a template can't store the attribute {name!r} on a namespace"
        )
