"""Numbers of bytes and seconds as text."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(amount: float) -> str:
    """Return a number of bytes in the largest unit that fits.

    >>> format_bytes(512), format_bytes(3 * 2**29)
    ('512 B', '1.5 GiB')
    """
    number, unit = _scale(amount)
    return f"{_format_scaled(number, unit)} {unit}"


def format_bytes_of(part: float, whole: float) -> str:
    """Return a part of a number of bytes and the whole, in the unit of the whole.

    >>> format_bytes_of(2**29, 3 * 2**29)
    '0.5 of 1.5 GiB'
    """
    number, unit = _scale(whole)
    in_unit = part / 1024 ** _UNITS.index(unit)
    return f"{_format_scaled(in_unit, unit)} of {_format_scaled(number, unit)} {unit}"


def _scale(amount: float) -> tuple[float, str]:
    for unit in _UNITS[:-1]:
        if amount < 1024:
            return amount, unit
        amount /= 1024
    return amount, _UNITS[-1]


def _format_scaled(number: float, unit: str) -> str:
    return f"{number:,.0f}" if unit == "B" else f"{number:,.1f}"


def format_seconds(seconds: float) -> str:
    """Return a time as minutes and seconds, or with hours if there are any.

    >>> format_seconds(75), format_seconds(3605)
    ('1:15', '1:00:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
