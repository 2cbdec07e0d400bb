"""What small made-up dialogues show about a template: how it ends a turn and writes a reasoning.

A server stops at a stop token, which a template may write only with the next message. It may set a
switch of the template. Both are properties of the template, not of a dialogue. So they are found
once for each *kind* of turn, in dialogues whose texts are words that stand for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from mtpack.input.dialogue import Dialogue, Messages
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.limits import TemplateLimitError
from mtpack.template.modes import Mode
from mtpack.template.slots import find_common_length
from mtpack.tokenizer.added_tokens import AddedTokens

_QUESTION, _ANSWER, _REASONING = "mtpackquestion", "mtpackanswer", "mtpackreasoning"
_NAME, _VALUE, _RESULT = "mtpackname", "mtpackvalue", "mtpackresult"
_CALL_ID = "call00001"  # some templates require nine letters and digits
_ASK: Messages = [{"role": "user", "content": _QUESTION}]
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": _NAME,
            "parameters": {"type": "object", "properties": {_NAME: {"type": "string"}}},
        },
    }
]


class TurnKind(NamedTuple):
    """The properties of a turn that a template may depend on."""

    has_tools: bool
    """Whether the dialogue declares tools."""
    has_calls: bool
    """Whether the message calls tools."""


class Ending(NamedTuple):
    """How a template ends a turn of a kind."""

    in_message: bool
    """Whether what the template writes for the message may end in a control token of its own."""
    trailing: str
    """White space that it writes after the turn if no message follows."""
    stop: str
    """The stop token that it writes with the next message, and white space before it; "" if the
    turn ends in a token of its own, or if no stop token follows."""


class Scaffold(NamedTuple):
    """An empty reasoning, as a template writes it. Without white space."""

    before: str
    """The text before the reasoning."""
    text: str
    """The text before and the text after it."""


_THINK_TAGS = Scaffold("<think>", "<think></think>")
"""What servers write where the template itself never writes a reasoning."""
_UNKNOWN = Ending(in_message=True, trailing="", stop="")


class TurnProbes:
    """Renders made-up dialogues, each when its result is first needed."""

    def __init__(self, template: ChatTemplate, added_tokens: AddedTokens) -> None:
        """Take the template, and the tokens that it may write."""
        self.added_tokens = added_tokens
        self._template = template
        self.list_modes = lru_cache(maxsize=None)(self._list_modes)
        self.find_ending = lru_cache(maxsize=None)(self._find_ending)
        self.find_reasoning_mode = lru_cache(maxsize=None)(self._find_reasoning_mode)

    def _list_modes(self, has_tools: bool) -> tuple[Mode, ...]:
        """Return the modes that change the end of the prompt, in the order of the template."""
        default = self._render_prompt_end(has_tools, None)
        modes = self._template.list_modes(_TOOLS if has_tools else None)
        ends = ((mode, self._render_prompt_end(has_tools, mode)) for mode in modes)
        return tuple(mode for mode, end in ends if end not in (None, default))

    def _render_prompt_end(self, has_tools: bool, mode: Mode | None) -> str | None:
        prompt = self._render(_ASK, has_tools, mode, prompt=True)
        return None if prompt is None else prompt.rpartition(_QUESTION)[2]

    # The end of a turn

    def _find_ending(self, kind: TurnKind) -> Ending:
        """Return how the template ends a turn of a kind."""
        for message in _make_turns(kind.has_calls):
            own = self._render_marked(message, kind)
            if own is not None:
                break
        else:
            return _UNKNOWN
        text, end = own
        start = max(text.rfind(word) + len(word) for word in (_ANSWER, _VALUE, _NAME))
        message_end, turn = text[start:end].rstrip(), text.rstrip()
        own_token = self.added_tokens.find_trailing_control_token(message_end)
        trailing = text[len(turn) :]
        ending = Ending(bool(own_token), trailing, "")
        closing = self.added_tokens.find_trailing_control_token(text[start:].rstrip())
        if closing in self.added_tokens.stops or (closing and self._ends_every_turn(kind, closing)):
            return ending
        return ending._replace(stop=self._find_next_stop(message, kind, turn))

    def _ends_every_turn(self, kind: TurnKind, token: str) -> bool:
        """Return whether a turn without calls ends in this token, too."""
        if not kind.has_calls:
            return True
        for message in _make_turns(has_calls=False):
            own = self._render_marked(message, kind)
            if own is not None:
                return own[0].rstrip().endswith(token)
        return False

    def _find_next_stop(self, message: dict[str, Any], kind: TurnKind, turn: str) -> str:
        """Return the stop token that follows `turn` with the next message, and the space before."""
        result = {"role": "tool", "tool_call_id": _CALL_ID, "name": _NAME, "content": _RESULT}
        following: Messages = [result] if kind.has_calls else _ASK
        text = self._render([*_ASK, message, *following], kind.has_tools)
        if text is None or not text.startswith(turn):
            return ""
        rest = text[len(turn) :]
        token = rest.lstrip()
        stops = (stop for stop in self.added_tokens.stops if stop and token.startswith(stop))
        stop = max(stops, key=len, default="")
        return rest[: len(rest) - len(token)] + stop if stop else ""

    def _render_marked(self, message: dict[str, Any], kind: TurnKind) -> tuple[str, int] | None:
        """Return the text up to a message, and the end of what is written for the message."""
        try:
            own = self._template.render_marked([*_ASK, message], _get_tools(kind.has_tools))
        except (TemplateRaisedError, TemplateLimitError):
            return None
        region = own.find_region(1)
        return own.text, len(own.text) if region is None else region[1]

    # Reasoning

    def _find_reasoning_mode(self, kind: TurnKind) -> Mode | None:
        """Return the mode that has to be set so that the model writes a reasoning; None if none.

        It is needed where the template drops a reasoning or closes it in the prompt, unless another
        mode's prompt is continued by the same text.
        """
        for message in _make_turns(kind.has_calls, _REASONING):
            plain = self._render([*_ASK, message], kind.has_tools)
            if plain is None:
                continue
            for mode in (None, *self.list_modes(kind.has_tools)):
                own = plain if mode is None else self._render([*_ASK, message], kind.has_tools, mode)
                prompt = self._render(_ASK, kind.has_tools, mode, prompt=True)
                if own is None or prompt is None or not own.startswith(prompt):
                    continue
                if _REASONING in own[len(prompt) :]:
                    return None if own == plain else mode
            return None
        return None

    @cached_property
    def scaffolds(self) -> tuple[Scaffold, ...]:
        """The empty reasonings that the template can write."""
        return tuple(dict.fromkeys(self._list_scaffolds())) or (_THINK_TAGS,)

    def _list_scaffolds(self) -> Iterator[Scaffold]:
        """Yield what is written around a reasoning, in all modes, with and without calls."""
        for has_tools, has_calls in ((False, False), (True, False), (True, True)):
            modes = (None, *self.list_modes(has_tools))
            turns = zip(_make_turns(has_calls), _make_turns(has_calls, _REASONING), strict=True)
            for without, message in turns:
                plain = self._render_region(without, has_tools, None)
                for mode in modes:
                    written = self._render_region(message, has_tools, mode)
                    if plain is not None and written is not None and _REASONING in written:
                        yield from self._read_scaffolds(plain, written)

    def _read_scaffolds(self, plain: str, written: str) -> Iterator[Scaffold]:
        """Yield the texts around the reasoning in `written`; plain: the same turn without one."""
        before, _, after = written.partition(_REASONING)
        header = self._find_difference(written, plain)
        opening = _remove_space(before[header:])
        until_answer, _, answer = after.partition(_ANSWER)
        rest = [until_answer] if answer or after.startswith(_ANSWER) else []
        if after.endswith(plain[header:]):
            rest.append(after[: len(after) - len(plain[header:])])
        for closing in map(_remove_space, rest):
            if opening and closing:
                yield Scaffold(opening, opening + closing)

    def _render_region(
        self, message: dict[str, Any], has_tools: bool, mode: Mode | None
    ) -> str | None:
        """Return what the template writes for a message after a question."""
        try:
            own = self._template.render_marked([*_ASK, message], _get_tools(has_tools), mode=mode)
        except (TemplateRaisedError, TemplateLimitError):
            return None
        region = own.find_region(1)
        return own.text if region is None else own.text[slice(*region)]

    def _find_difference(self, one: str, other: str) -> int:
        """Return where two texts part, moved back to the start of an added token."""
        common = find_common_length(one, other)
        return min(self.added_tokens.find_token_start(text, common) for text in (one, other))

    def _render(
        self, messages: Messages, has_tools: bool, mode: Mode | None = None, *, prompt: bool = False
    ) -> str | None:
        """Return a render; None if the template refuses it."""
        tools = _get_tools(has_tools)
        try:
            return self._template.render(messages, tools, prompt=prompt, mode=mode)
        except (TemplateRaisedError, TemplateLimitError):
            return None


@lru_cache(maxsize=8)
def get_probes(template: ChatTemplate, added_tokens: AddedTokens) -> TurnProbes:
    """Return the probes of a template, always the same."""
    return TurnProbes(template, added_tokens)


def kind_of(dialogue: Dialogue, message: int) -> TurnKind:
    """Return the kind of the turn of a message."""
    has_calls = bool(dialogue.messages[message].get("tool_calls"))
    return TurnKind(dialogue.tools is not None, has_calls)


def has_reasoning(message: dict[str, Any]) -> bool:
    """Return whether a message has a reasoning of its own."""
    reasoning = message.get("reasoning_content")
    return isinstance(reasoning, str) and bool(reasoning.strip())


def _get_tools(has_tools: bool) -> list[Any] | None:
    return _TOOLS if has_tools else None


def _make_turns(has_calls: bool, reasoning: str = "") -> Iterator[dict[str, Any]]:
    """Yield an assistant message in each form that a template may require."""
    turn: dict[str, Any] = {"role": "assistant", "content": _ANSWER}
    if reasoning:
        turn |= {"reasoning_content": reasoning, "thinking": reasoning}
    if not has_calls:
        yield turn
        return
    for arguments in ({_NAME: _VALUE}, f'{{"{_NAME}": "{_VALUE}"}}'):
        function = {"name": _NAME, "arguments": arguments}
        calls = [{"id": _CALL_ID, "type": "function", "function": function}]
        for content in (_ANSWER, ""):
            yield turn | {"content": content, "tool_calls": calls}


def _remove_space(text: str) -> str:
    return "".join(text.split())
