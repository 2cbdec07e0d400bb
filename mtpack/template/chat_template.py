"""A model's chat template: compiled, with its variables and the properties that mtpack detects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2

from mtpack.errors import SetupError
from mtpack.input.dialogue import Messages
from mtpack.template.environment import make_environment
from mtpack.template.free_variables import list_free_variables, list_optional_variables
from mtpack.template.limits import Limits, Meter, TemplateLimitError
from mtpack.template.markers import (
    IndexedMessage,
    MarkedText,
    has_generation_tags,
    install_markers,
    parse_marked,
    read_marks,
)
from mtpack.template.modes import Mode, list_possible_modes
from mtpack.tokenizer.loading import LoadedTokenizer

_LIMITS = Limits()
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


class TemplateRaisedError(Exception):
    """The template refused to render; the text is the template's reason."""


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
        digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode())
        self.sha256 = digest.hexdigest()

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
        known = {*_RESERVED, *self.variables, *self.environment.globals}
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
        known = {*_RESERVED, *self.environment.globals}
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
        except Exception as error:  # templates are foreign code and can raise anything
            detail = (str(error) or type(error).__name__).split("\n")[0]
            raise TemplateRaisedError(detail[:200]) from error

    def _write_within_limits(self, render: Callable[..., str], variables: dict[str, Any]) -> str:
        self.meter.restart()
        try:
            return render(variables)
        except RecursionError:  # the allowed depth must not depend on the stack of the caller
            self.meter.restart()
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(render, variables).result()


def load_chat_template(
    tokenizer: LoadedTokenizer,
    file: str | None,
    arguments: Sequence[str],
    date: str,
    tool_arguments: str = "auto",
) -> ChatTemplate:
    """Load the template in `file`, or else the tokenizer's own; raise SetupError.

    arguments: each is KEY=VALUE; a value is read as JSON if it is valid JSON, otherwise as text.
    date: ISO format, the date that `strftime_now` formats.
    """
    sources, name = tokenizer.chat_templates, tokenizer.source
    if file is not None:
        try:
            sources, name = {"default": Path(file).read_text(encoding="utf-8")}, file
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise SetupError(f"{file}: the chat template can't be read ({reason})") from error
    if "default" not in sources:
        raise SetupError(
            f"{name}: the tokenizer has no chat template; name one with --chat-template FILE"
        )
    variables: dict[str, Any] = dict(tokenizer.special_tokens)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise SetupError(f"--template-arg {argument}: write it as KEY=VALUE")
        if key in _RESERVED:
            raise SetupError(f"--template-arg {argument}: mtpack sets {key} itself; remove it")
        variables[key] = _json_or_text(value)
    try:
        return ChatTemplate(sources, variables, date, tool_arguments=tool_arguments)
    except Exception as error:  # Jinja's own errors, and those of Python's compiler
        line = getattr(error, "lineno", None)
        where = f" line {line}" if line else ""
        detail = str(error).split("\n")[0]
        raise SetupError(f"{name}{where}: the chat template is not valid ({detail})") from error


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
