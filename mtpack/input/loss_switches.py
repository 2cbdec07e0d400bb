"""Loss switches: keys of a message that say whether it is trained, as many tools name them.

Two of them may also be another weight than 0 and 1, where the run takes weights.
"""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.row_errors import RowError
from mtpack.turn_weight import MAX_WEIGHT

# true or 1: trained.
_WEIGHTS = ("weight", "loss_weight")
_TRAINED = ("train", "loss", *_WEIGHTS, "loss_mask", "step_loss_mask", "trainable", "training")
_MASKED = "masked"
"""true or 1: not trained."""
LOSS_SWITCHES = (*_TRAINED, _MASKED)


def pop_loss_switch(
    where: str, role: str, fields: dict[str, Any], *, takes_weights: bool
) -> float | None:
    """Remove the loss switches from the fields of a message; return the weight that they give it.

    0 if it is not trained, 1 if it is; another one only if `takes_weights`. None if there is no
    switch. Raises RowError, also if several switches contradict each other, or if they train a
    message that is not the assistant's. Some tools write `masked` into every message, so a false
    one means no more than its absence there.
    """
    switches = {key: fields.pop(key) for key in LOSS_SWITCHES if key in fields}
    if not switches:
        return None
    for key, value in switches.items():
        _check_value(where, key, value, takes_weights=takes_weights)
    is_wanted = {bool(value) != (key == _MASKED) for key, value in switches.items()}
    weights = {float(switches[key]) for key in _WEIGHTS if key in switches}
    if len(is_wanted) > 1 or len(weights) > 1:
        raise RowError(
            Reason.INVALID_LOSS_SWITCH, f"{where}: {' and '.join(switches)} contradict each other"
        )
    wanted = is_wanted.pop()
    if role != "assistant" and wanted and switches.keys() != {_MASKED}:
        raise RowError(
            Reason.INVALID_LOSS_SWITCH, f"{where}: only assistant messages can be trained"
        )
    return weights.pop() if weights else float(wanted)


def _check_value(where: str, key: str, value: Any, *, takes_weights: bool) -> None:
    """Raise RowError if a switch does not have one of its values."""
    is_weight = key in _WEIGHTS
    may_be_any = is_weight and takes_weights
    is_number = type(value) in (bool, int, float)
    if is_number and (value in (0, 1) or (may_be_any and 0 <= value <= MAX_WEIGHT)):
        return
    needed = "true or false, 1 or 0"
    if may_be_any:
        needed = f"a number from 0 to {MAX_WEIGHT:,}"
    elif is_weight:
        needed = "0 or 1; other weights need --turn-weights"
    raise RowError(Reason.INVALID_LOSS_SWITCH, f'{where}: "{key}" must be {needed}')
