"""What the rows of a source get that do not say it themselves: a system message, variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtpack.input.dialogue import SYSTEM_ROLES, Dialogue


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDefaults:
    """What each row of a source gets, unless it has it itself."""

    system: str | None = None
    """A system message, for rows without a message of a system or a developer."""
    template_args: dict[str, Any] | None = None
    """Variables of the chat template; a row may set each of them in another way."""

    def apply(self, dialogue: Dialogue) -> Dialogue:
        """Return a dialogue with what it has not itself."""
        if self.system is not None and SYSTEM_ROLES.isdisjoint(dialogue.roles):
            message = {"role": "system", "content": self.system}
            untrained = [index + 1 for index in dialogue.untrained]
            units = {index + 1: units for index, units in (dialogue.turn_units or {}).items()}
            dialogue = dialogue.with_messages([message, *dialogue.messages], untrained)
            dialogue = dialogue._replace(turn_units=units or None)
        if self.template_args is not None:
            args = {**self.template_args, **(dialogue.template_args or {})}
            dialogue = dialogue._replace(template_args=args)
        return dialogue
