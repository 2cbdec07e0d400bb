"""A model's chat template: compiled, with its variables and the properties that mtpack detects."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jinja2

from mtpack.input.dialogue import Messages
from mtpack.template.environment import make_environment
from mtpack.template.free_variables import list_free_variables, list_optional_variables
from mtpack.template.limits import Limits, Meter, TemplateLimitError
from mtpack.template.made_up import make_up_argument
from mtpack.template.markers import (
    IndexedMessage,
    MarkedText,
    has_generation_tags,
    install_markers,
    parse_marked,
    read_marks,
)
from mtpack.template.modes import Mode, list_possible_modes
from mtpack.template.probe_results import ProbeResults
from mtpack.template.texts import UnstableTextError, check_text

_LIMITS = Limits()
# Variants to keep with what probes have found, and the characters of all their arguments.
_MAX_VARIANTS = 64
_MAX_CHARACTERS = 2**20
# In the text of a Python object: it differs from run to run, and rejected rows must not.
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


class TemplateRaisedError(Exception):
    """The template refused to render; the text is the template's reason."""


class TemplateObjectError(TemplateRaisedError):
    """The template makes text of an object that has none; the text says of which one."""


class ChatTemplate:
    """Renders messages to text exactly as transformers' `apply_chat_template` does."""

    def __init__(
        self,
        sources: dict[str, str],
        variables: dict[str, Any],
        date: str,
        limits: Limits = _LIMITS,
        tool_arguments: str = "auto",
    ) -> None:
        """Compile the templates.

        sources: the source of each template by name; `tool_use`, if present, is for dialogues with
        tools. variables: special tokens and template arguments. date: ISO format, the date that
        `strftime_now` formats. tool_arguments: `auto`, or the form in which the template gets the
        arguments of calls: `object` or `text`. Raises jinja2.TemplateSyntaxError.
        """
        self.meter = Meter(limits)
        plain = make_environment(date, self.meter, marked=False)
        marked = make_environment(date, self.meter, marked=True)
        install_markers(marked)
        self.sources = sources
        self.tool_arguments = tool_arguments
        self.variables = variables
        self.environment = plain
        self._plain = {name: plain.from_string(text) for name, text in sources.items()}
        self._marked = {
            name: marked.from_string(parse_marked(marked, text)) for name, text in sources.items()
        }
        # Names of the templates that have generation tags.
        self.tagged = {name for name, text in sources.items() if has_generation_tags(marked, text)}
        self.made_up = self
        """The template that probes ask: with made-up arguments, if it has those of a row."""
        self.probe_results: ProbeResults = {}
        """What probes have found for `made_up` (`probe_results.py`)."""
        self._variants: dict[str, ChatTemplate] = {}
        """By arguments; the one that was used last is the last one."""
        digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode())
        self.sha256 = digest.hexdigest()

    def with_arguments(self, arguments: dict[str, Any] | None) -> ChatTemplate:
        """Return the template with further variables, those that a row sets.

        They replace variables of the same name. What the template does not read makes no
        difference. Rows whose arguments differ in texts alone share one `made_up`.
        """
        names = [name for name in sorted(arguments or ()) if self.reads_variable(name)]
        if not arguments or not names:
            return self
        real = {name: arguments[name] for name in names}
        made_up = {name: make_up_argument(value) for name, value in real.items()}
        key = json.dumps(made_up)
        variant = self._variants.pop(key, None)
        if variant is None:
            variant = self._make_variant(made_up)
            self._make_room(len(key))
        self._variants[key] = variant
        if key == json.dumps(real):
            return variant
        exact = self._make_variant(real)
        exact.made_up, exact.probe_results = variant, variant.probe_results
        return exact

    def _make_room(self, num_characters: int) -> None:
        """Drop variants, so that there is room for one with so many characters of arguments."""
        most = _MAX_CHARACTERS - num_characters
        while self._variants and (
            len(self._variants) >= _MAX_VARIANTS or sum(map(len, self._variants)) > most
        ):
            del self._variants[next(iter(self._variants))]

    def _make_variant(self, arguments: dict[str, Any]) -> ChatTemplate:
        variant = copy.copy(self)
        variant.variables = {**self.variables, **arguments}
        variant.made_up, variant.probe_results = variant, {}
        variant._variants = {}
        return variant

    def render(
        self,
        messages: Messages,
        tools: list[Any] | None,
        *,
        prompt: bool = False,
        mode: Mode | None = None,
    ) -> str:
        """Return the rendered text; with `prompt`, it ends with the generation prompt.

        mode: a switch to set. Raises TemplateRaisedError, and TemplateLimitError if the render
        exceeds a limit.
        """
        return self._write(self._plain, messages, tools, prompt, mode)

    def render_marked(
        self,
        messages: Messages,
        tools: list[Any] | None,
        *,
        prompt: bool = False,
        mode: Mode | None = None,
    ) -> MarkedText:
        """Return the same text as `render`, and the region of each message in it.

        Raises the errors of `render`. If the marks change the text, no message has a region.
        """
        text = self._write(self._plain, messages, tools, prompt, mode)
        indexed = [IndexedMessage(message, index) for index, message in enumerate(messages)]
        has_generations = self.choose_name(tools) in self.tagged
        without_regions = MarkedText(text, {}, [] if has_generations else None)
        try:
            marked = self._write(self._marked, indexed, tools, prompt, mode)
        except TemplateRaisedError:
            return without_regions
        found = read_marks(marked, has_generations=has_generations)
        return found if found.text == text else without_regions

    def list_possible_modes(self, tools: list[Any] | None) -> tuple[Mode, ...]:
        """Return the modes that the template may have, except for what the variables set."""
        source = self.sources[self.choose_name(tools)]
        known = {*RESERVED, *self.variables, *self.environment.globals}
        free = list_free_variables(self.environment, source)
        return list_possible_modes(name for name in free if name not in known)

    def reads_variable(self, name: str) -> bool:
        """Return whether the template reads a variable; all templates of a tokenizer count."""
        return any(
            name in list_free_variables(self.environment, source)
            for source in self.sources.values()
        )

    def list_settable_variables(self) -> list[str]:
        """Return the variables that are meant for the caller, apart from those of mtpack."""
        known = {*RESERVED, *self.environment.globals}
        read = dict.fromkeys(
            name
            for source in self.sources.values()
            for name in list_optional_variables(self.environment, source)
        )
        return [name for name in read if name not in known]

    def make_variables(
        self, messages: Any, tools: Any, prompt: Any, *, mode: Mode | None
    ) -> dict[str, Any]:
        """Return the variables of a render; mode: a switch to set."""
        variables = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": prompt,
            **self.variables,
        }
        return variables if mode is None else {**variables, mode.name: mode.value}

    def choose_name(self, tools: list[Any] | None) -> str:
        """Return the name of the template that renders a dialogue with these tools."""
        return "tool_use" if tools is not None and "tool_use" in self._plain else "default"

    def _write(
        self,
        templates: dict[str, jinja2.Template],
        messages: Sequence[dict[str, Any]],
        tools: list[Any] | None,
        prompt: bool,
        mode: Mode | None,
    ) -> str:
        if not messages:
            raise TemplateRaisedError("no messages")  # as transformers does
        variables = self.make_variables(messages, tools, prompt, mode=mode)
        template = templates[self.choose_name(tools)]
        try:
            text = self._write_within_limits(template.render, variables)
            text.encode()  # no tokenizer encodes half of a surrogate pair
            return text
        except (TemplateLimitError, MemoryError):
            raise
        except RecursionError as error:
            raise TemplateLimitError("nests deeper than Python can follow") from error
        except UnstableTextError as error:
            raise TemplateObjectError(str(error)) from error
        except Exception as error:  # templates are foreign code and can raise anything
            try:
                check_text(error.args)
            except UnstableTextError as found:
                raise TemplateObjectError(str(found)) from error
            detail = (str(error) or type(error).__name__).split("\n")[0]
            raise TemplateRaisedError(_ADDRESS.sub("", detail)[:200]) from error

    def _write_within_limits(self, render: Callable[..., str], variables: dict[str, Any]) -> str:
        self.meter.begin()
        try:
            return render(variables)
        except RecursionError:  # the allowed depth must not depend on the stack of the caller
            self.meter.restart()
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(render, variables).result()
        finally:
            self.meter.end()
