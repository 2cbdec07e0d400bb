"""Loss switches: keys of a message that say whether it is trained, as many tools name them."""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.row_errors import RowError

# true or 1: trained.
_WEIGHTS = ("weight", "loss_weight")
_TRAINED = ("train", "loss", *_WEIGHTS, "loss_mask", "step_loss_mask", "trainable", "training")
_MASKED = "masked"
"""true or 1: not trained."""
LOSS_SWITCHES = (*_TRAINED, _MASKED)


def pop_loss_switch(where: str, role: str, fields: dict[str, Any]) -> bool | None:
    """Remove the loss switches from the fields of a message; return whether they train it.

    None if there is none. Raises RowError, also if several switches contradict each other, or if
    they train a message that is not the assistant's. Some tools write `masked` into every message,
    so a false one means no more than its absence there.
    """
    switches = {key: fields.pop(key) for key in LOSS_SWITCHES if key in fields}
    if not switches:
        return None
    for key, value in switches.items():
        if type(value) not in (bool, int, float) or value not in (0, 1):
            needed = "true or false, 1 or 0"
            if key in _WEIGHTS:
                needed = "0 or 1; all trained turns have the same weight"
            raise RowError(Reason.INVALID_LOSS_SWITCH, f'{where}: "{key}" must be {needed}')
    wanted = {bool(value) != (key == _MASKED) for key, value in switches.items()}
    if len(wanted) > 1:
        raise RowError(
            Reason.INVALID_LOSS_SWITCH, f"{where}: {' and '.join(switches)} contradict each other"
        )
    if role != "assistant" and True in wanted and switches.keys() != {_MASKED}:
        raise RowError(
            Reason.INVALID_LOSS_SWITCH, f"{where}: only assistant messages can be trained"
        )
    return wanted.pop()
