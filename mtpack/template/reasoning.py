"""How a template writes a reasoning, and the modes that open or close it in the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from mtpack.input.reasoning import END_OF_THINK, THINK
from mtpack.template.made_up import NAME, QUESTION, REASONING, WORDS, Message, make_result
from mtpack.template.made_up_renders import MadeUpRenders, TurnKind, make_turns
from mtpack.template.modes import Mode
from mtpack.template.probe_results import keep_with_template
from mtpack.template.slots import find_common_length
from mtpack.tokenizer.added_tokens import AddedTokens


class Scaffold(NamedTuple):
    """An empty reasoning, as a template writes it. Without white space."""

    before: str
    """The text before the reasoning."""
    after: str
    """The text after it."""

    @property
    def text(self) -> str:
        """The whole empty reasoning."""
        return self.before + self.after


class Gap(NamedTuple):
    """A turn without a reasoning, where the template or the prompt has one."""

    is_empty: bool
    """Whether an empty reasoning, or its end, is trained. Otherwise, the prompt opens a reasoning
    and the turn does not continue it."""
    mode: Mode | None
    """The mode whose prompt fits a turn without a reasoning; None if there is none."""


_THINK_TAGS = Scaffold(THINK, END_OF_THINK)
"""What servers write where the template itself never writes a reasoning."""


@keep_with_template
def find_modes(renders: MadeUpRenders, kind: TurnKind) -> tuple[Mode, ...]:
    """Return the modes that change the end of the prompt, in the order of the template."""

    def end_of_prompt(mode: Mode | None) -> str | None:
        prompt = renders.text([QUESTION], kind.tools, mode, prompt=True)
        return None if prompt is None else prompt.rpartition(WORDS["user"])[2]

    unchanged = (None, end_of_prompt(None))
    modes = renders.template.list_possible_modes(kind.tools)
    return tuple(mode for mode in modes if end_of_prompt(mode) not in unchanged)


@keep_with_template
def find_reasoning_mode(
    renders: MadeUpRenders, kind: TurnKind, *, after_result: bool
) -> Mode | None:
    """Return the mode that has to be set so that a reasoning is trained; None if none has to be.

    It has to be where the default mode drops a reasoning, or closes it in the prompt, and the mode
    writes it and continues its own prompt. It need not be if both modes write the same text.
    after_result: whether the turn follows a tool's result, and not a question.
    """
    results = [[call, make_result()] for call in make_turns(has_calls=True)]
    for before, message in product(
        results if after_result else [[]], make_turns(kind.has_calls, REASONING)
    ):
        default = renders.text([QUESTION, *before, message], kind.tools)
        if default is None:
            continue
        for mode in (None, *find_modes(renders, kind)):
            turn = _render_turn(renders, [QUESTION, *before], message, kind, mode)
            if turn is not None and REASONING in (turn.text or ""):
                return None if turn.own == default else mode
        return None
    return None


class _MadeUpTurn(NamedTuple):
    """A made-up message of an assistant, in a mode."""

    own: str
    """The text up to the message."""
    prompt: str

    @property
    def text(self) -> str | None:
        """What the message adds to the prompt; None if `own` does not start with the prompt."""
        return self.own[len(self.prompt) :] if self.own.startswith(self.prompt) else None

    def begins_with(self, scaffolds: Sequence[Scaffold]) -> bool:
        """Return whether it begins with an empty reasoning, or ends one that the prompt opens."""
        given, text = remove_space(self.prompt), remove_space(self.text or "")
        return any(
            text.startswith(scaffold.text)
            or (given.endswith(scaffold.before) and text.startswith(scaffold.after))
            for scaffold in scaffolds
        )


def _render_turn(
    renders: MadeUpRenders,
    before: Sequence[Message],
    message: Message,
    kind: TurnKind,
    mode: Mode | None,
) -> _MadeUpTurn | None:
    """Render a message after others; None if the template refuses it, or its prompt."""
    own = renders.text([*before, message], kind.tools, mode)
    prompt = renders.text(list(before), kind.tools, mode, prompt=True)
    return None if own is None or prompt is None else _MadeUpTurn(own, prompt)


@keep_with_template
def find_scaffolds(renders: MadeUpRenders, added_tokens: AddedTokens) -> tuple[Scaffold, ...]:
    """Return the empty reasonings that the template can write."""
    found = dict.fromkeys(_list_scaffolds(renders, added_tokens))
    return tuple(found) or (_THINK_TAGS,)


def _list_scaffolds(renders: MadeUpRenders, added_tokens: AddedTokens) -> Iterator[Scaffold]:
    """Yield what is written around a reasoning, in all modes, with and without calls."""
    for kind in (TurnKind(False, False), TurnKind(True, False), TurnKind(True, True)):
        modes = (None, *find_modes(renders, kind))
        turns = zip(make_turns(kind.has_calls), make_turns(kind.has_calls, REASONING), strict=True)
        for without, message in turns:
            plain = renders.turn(without, kind.tools, None)
            for mode in modes:
                written = renders.turn(message, kind.tools, mode)
                if plain is not None and written is not None and REASONING in written:
                    yield from _read_scaffolds(added_tokens, plain, written)


def _read_scaffolds(added_tokens: AddedTokens, plain: str, written: str) -> Iterator[Scaffold]:
    """Yield the texts around the reasoning in `written`; plain: the same turn without one."""
    before, _, after = written.partition(REASONING)
    common = find_common_length(written, plain)
    header = min(added_tokens.find_token_start(text, common) for text in (written, plain))
    until_answer, answer, _ = after.partition(WORDS["assistant"])
    endings = [until_answer] if answer and NAME not in until_answer else []  # no call
    if after.endswith(plain[header:]):
        endings.append(after[: len(after) - len(plain[header:])])
    for ending in endings:
        scaffold = Scaffold(remove_space(before[header:]), remove_space(ending))
        if all(scaffold):
            yield scaffold


@keep_with_template
def find_gap(
    renders: MadeUpRenders, added_tokens: AddedTokens, kind: TurnKind, base: Mode | None
) -> Gap | None:
    """Return what is missing in a turn without a reasoning; None if nothing is.

    base: the mode of its dialogue.
    """
    modes = [mode for mode in find_modes(renders, kind) if base is None or mode.name != base.name]
    scaffolds = find_scaffolds(renders, added_tokens)
    for message in make_turns(kind.has_calls):
        turn = _render_turn(renders, [QUESTION], message, kind, base)
        if turn is None:
            continue
        others = {mode: _render_turn(renders, [QUESTION], message, kind, mode) for mode in modes}
        fitting = {
            mode: other.own
            for mode, other in others.items()
            if other is not None and other.text is not None and not other.begins_with(scaffolds)
        }
        mode = next(iter(fitting), None)
        if turn.text is not None:
            return Gap(True, mode) if turn.begins_with(scaffolds) else None
        given = remove_space(turn.prompt)
        is_open = any(given.endswith(scaffold.before) for scaffold in scaffolds)
        return Gap(False, mode) if is_open and turn.own not in fitting.values() else None
    return None


def remove_space(text: str) -> str:
    """Return a text without its white space."""
    return "".join(text.split())
