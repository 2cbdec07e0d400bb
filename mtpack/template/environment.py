"""The Jinja environment of chat templates, as transformers 5 sets it up.

What `apply_chat_template` gives a template (sandbox, white space rules, filters, globals, the
`generation` tag) is in transformers/utils/chat_template_utils.py; two things differ on purpose:
`strftime_now` tells a fixed date, so that runs repeat, and the `generation` tag can mark its
output in the text itself, so that it is found wherever the template puts it. All that a template
does is counted (metering.py), which changes no text.
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

from mtpack.template.sandbox.guards import guard_json
from mtpack.template.sandbox.limits import Meter
from mtpack.template.sandbox.metering import MeteredEnvironment

# Unicode noncharacters: never assigned, not for interchange, so not in any text that is meant.
GENERATION_START = "\ufdd3"
GENERATION_END = "\ufdd4"


def make_environment(date: str, meter: Meter, *, marked: bool) -> MeteredEnvironment:
    """Return an environment; `marked` puts marks around the output of `generation` tags."""
    environment = MeteredEnvironment(meter, **settings(marked=marked))
    environment.filters["tojson"] = _json_writer(meter)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=datetime.datetime.fromisoformat(date).strftime,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment


def settings(*, marked: bool) -> dict[str, Any]:
    """Return the settings of Jinja environments for chat templates."""
    return {
        "trim_blocks": True,
        "lstrip_blocks": True,
        "extensions": [_MarkedGeneration if marked else _Generation, jinja2.ext.loopcontrols],
    }


def _json_writer(meter: Meter) -> Callable[..., str]:
    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Write JSON without Jinja's HTML escapes."""
        guard_json(meter, value, indent, separators)
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    return to_json


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: what stands between them, as its own scope."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


class _MarkedGeneration(_Generation):
    def _write(self, caller: Callable[[], str]) -> str:
        return f"{GENERATION_START}{caller()}{GENERATION_END}"


class _Dict:
    """The `dict` of templates: it can be called, and nothing else of the class is in reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """The `namespace` of templates: no attribute that starts with an underscore."""

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
