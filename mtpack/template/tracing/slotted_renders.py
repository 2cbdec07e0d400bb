"""The renders of a dialogue as texts with slots, and the same renders filled with its texts.

A replay of a render writes literal text, which is the same in all dialogues of a shape, and values
of a program, which differ. Each value becomes a slot (`template/slots.py`). So `turn_spans.py` can
find the turns of all dialogues of a shape at once. Where it needs to know what is in the slots,
they are filled first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mtpack.input.dialogue import Dialogue, Messages
from mtpack.template.chat_template import TemplateRaisedError
from mtpack.template.markers import MarkedText, has_reserved_characters, read_marks
from mtpack.template.modes import Mode
from mtpack.template.renders import Render, select_messages
from mtpack.template.slots import NUM_SLOTS, UndecidedError, make_slot
from mtpack.template.tracing.interpreter import (
    Interpreter,
    ReplayRaisedError,
    TextPiece,
    UnrecordedError,
)
from mtpack.template.tracing.known_renders import KnownRenders
from mtpack.template.tracing.program import Program
from mtpack.template.tracing.slotted_dialogue import SlottedText
from mtpack.template.tracing.tracers import Untraceable


class SlottedRenders:
    """The renders of a dialogue as texts with slots, each replayed when it is first needed."""

    have_slots: ClassVar[bool] = True

    def __init__(self, known: KnownRenders, messages: Messages, tools: Any, *, learn: bool) -> None:
        """learn: whether renders that are not known are recorded."""
        self.program = Program(messages, tools)
        self._is_complete = False
        self._known = known
        self._learn = learn
        self._whole: dict[Mode | None, Interpreter] = {}
        """Of the whole dialogue, by mode."""
        self._texts: dict[Render, tuple[SlottedText, SlottedText] | None] = {}
        """Without and with marks; None if the template refuses it."""
        self._slots: dict[int, int] = {}
        """The number of the slot of each value of the program, ascending."""

    @property
    def value_indices(self) -> list[int]:
        """The index of the program's value for each slot of the texts, by `slot_number`."""
        return list(self._slots)

    def complete(self, *, forget_texts: bool) -> None:
        """Add no other render from now on: the program then runs for other dialogues.

        forget_texts: whether no text is needed again (they take memory for each shape).
        """
        self._is_complete, self._learn = True, False
        self._whole.clear()
        self.program.forget_dialogue()
        if forget_texts:
            self._texts.clear()

    def text(self, render: Render) -> str:
        """Return the text of a render; raises what `marked` raises."""
        return self.marked(render).text

    def marked(self, render: Render) -> MarkedText:
        """Return a render with its regions.

        Raises TemplateRaisedError, UndecidedError for one with other messages, UnrecordedError if
        it is not known, and Untraceable if it can't be recorded.
        """
        if render.has_other_messages:
            raise UndecidedError
        return self.read_marks(self.find(render, marked=True).text)

    def read_marks(self, text: str) -> MarkedText:
        """Return a text with its regions."""
        return read_marks(text, has_generations=self._known.name in self._known.template.tagged)

    def find(self, render: Render, *, marked: bool) -> SlottedText:
        """Return the text of a render, with or without marks; raises what `marked` raises."""
        if not render.num_messages:
            raise TemplateRaisedError("no messages")
        if render not in self._texts:
            if self._is_complete:
                raise UnrecordedError
            interpreter = self._interpret(render)
            self._texts[render] = None if interpreter is None else self._make_texts(interpreter)
        texts = self._texts[render]
        if texts is None:
            raise TemplateRaisedError("the template refuses it")
        return texts[marked]

    def fill_other(self, dialogue: Dialogue, render: Render, *, marked: bool) -> str:
        """Return a render with other messages; raises what `marked` raises."""
        messages = select_messages(self._known.template, dialogue, render)
        renders = SlottedRenders(self._known, messages, dialogue.tools, learn=self._learn)
        wanted = Render(len(messages), render.prompt, mode=render.mode)
        text = renders.find(wanted, marked=marked)
        return text.fill(renders.program.values)[0]

    def _interpret(self, render: Render) -> Interpreter | None:
        """Replay a render; None if the template refuses it."""
        try:
            return self._replay(render, self._whole.get(render.mode))
        except UnrecordedError:
            if not self._learn:
                raise
        messages = self.program.messages[: render.num_messages]
        self._known.in_mode(render.mode).record(messages, self.program.tools, render.prompt)
        try:
            return self._replay(render, None)
        except UnrecordedError as error:
            raise Untraceable("a recording that can't be replayed") from error

    def _replay(self, render: Render, whole: Interpreter | None) -> Interpreter | None:
        num_messages, prompt = render.num_messages, render.prompt
        known = self._known.in_mode(render.mode)
        try:
            found = None if whole is None else whole.resume_at(num_messages, prompt)
            if found is None:
                found = Interpreter(self.program, num_messages, prompt, known.max_steps)
                found.run_from_start(known.automaton.root)
        except ReplayRaisedError:
            return None
        if num_messages == len(self.program.messages) and not prompt:
            self._whole[render.mode] = found
        return found

    def _make_texts(self, interpreter: Interpreter) -> tuple[SlottedText, SlottedText]:
        """Return what an interpreter wrote, without and with marks."""
        marked = "".join(map(self._write, interpreter.pieces))
        plain = self.read_marks(marked).text
        return SlottedText.of(plain, self.value_indices), SlottedText.of(marked, self.value_indices)

    def _write(self, piece: TextPiece) -> str:
        """Return the text of a piece: for a value of the program, its slot."""
        if isinstance(piece, str):
            return piece
        if has_reserved_characters(self.program.values[piece]):
            raise UnrecordedError
        number = self._slots.setdefault(piece, len(self._slots))
        if number >= NUM_SLOTS:
            raise UnrecordedError
        return make_slot(number)


@dataclass(frozen=True, slots=True)
class FilledRenders:
    """The renders of one dialogue, with its texts in the slots."""

    have_slots: ClassVar[bool] = False
    slotted: SlottedRenders
    values: Sequence[Any]
    """The values of the program's slots, for this dialogue."""
    dialogue: Dialogue

    def text(self, render: Render) -> str:
        """Return the text of a render; raises what `SlottedRenders.marked` raises."""
        return self._fill(render, marked=False)

    def marked(self, render: Render) -> MarkedText:
        """Return a render with its regions; raises what `SlottedRenders.marked` raises."""
        return self.slotted.read_marks(self._fill(render, marked=True))

    def _fill(self, render: Render, *, marked: bool) -> str:
        if render.has_other_messages:
            return self.slotted.fill_other(self.dialogue, render, marked=marked)
        return self.slotted.find(render, marked=marked).fill(self.values)[0]
