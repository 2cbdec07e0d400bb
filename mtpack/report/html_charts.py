"""Charts of the HTML report: horizontal bars as static SVG, which need no script.

A chart is as wide as a phone, so its text keeps its size on every screen. Its colours are classes
of `page/report.css`, since they differ in light and dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH = 300
_LABEL_END = 96  # labels end here, and bars begin after a gap
_BAR_START = 102
_BAR_WIDTH = 146  # the rest is for the value
_BAR_HEIGHTS = {1: 14, 3: 12}  # by the number of bars next to each other
_GAP = 8
_HEAD_TO_BASELINE = 0.8


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars of one line of a chart: one for each series."""

    label: str
    values: tuple[float, ...]
    texts: tuple[str, ...]
    """The values as they are shown."""


def draw_bars(title: str, lines: Sequence[Bars], series: Sequence[str]) -> Markup:
    """Return a chart as an SVG element; the longest bar has the whole width.

    title: what a screen reader says. lines: each has a value for every one of `series`.
    """
    most = max((value for line in lines for value in line.values), default=0) or 1
    thickness = _BAR_HEIGHTS[len(series)]
    step = thickness * len(series) + _GAP
    drawn = [
        _draw_line(line, number * step + _GAP / 2, thickness, most, series)
        for number, line in enumerate(lines)
    ]
    height = step * len(lines)
    return Markup(
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        '<line class="axis" x1="{x}" y1="0" x2="{x}" y2="{height}"/>{drawn}</svg>'
    ).format(width=_WIDTH, height=height, title=title, x=_BAR_START, drawn=Markup().join(drawn))


def _draw_line(
    line: Bars, top: float, thickness: int, most: float, series: Sequence[str]
) -> Markup:
    """Draw the label and the bars of a line; a value above 0 is always visible."""
    middle = top + thickness * len(series) / 2
    parts = [
        Markup('<text class="label" x="{}" y="{:.1f}">{}</text>').format(
            _LABEL_END, middle + 4, line.label
        )
    ]
    for number, (name, value, text) in enumerate(zip(series, line.values, line.texts, strict=True)):
        y = top + number * thickness
        width = max(value / most * _BAR_WIDTH, 1) if value else 0
        parts.append(
            Markup(
                '<g><title>{label}: {name} {text}</title><rect class="series-{number}" x="{x}" '
                'y="{y:.1f}" width="{width:.1f}" height="{height}"/>'
                '<text x="{end:.1f}" y="{base:.1f}">{text}</text></g>'
            ).format(
                label=line.label,
                name=name,
                text=text,
                number=number,
                x=_BAR_START,
                y=y,
                width=width,
                height=thickness - 1,
                end=_BAR_START + width + 4,
                base=y + thickness * _HEAD_TO_BASELINE,
            )
        )
    return Markup().join(parts)


def draw_shares(title: str, parts: Sequence[tuple[str, float, str]]) -> Markup:
    """Return one bar that is divided into shares: (name, share of the whole, text)."""
    drawn = []
    x = 0.0
    for number, (name, share, text) in enumerate(parts):
        width = share * 1000
        drawn.append(
            Markup(
                '<g><title>{}: {}</title><rect class="series-{}" x="{:.1f}" y="0" '
                'width="{:.1f}" height="24"/></g>'
            ).format(name, text, number, x, width)
        )
        x += width
    return Markup(
        '<svg class="shares" viewBox="0 0 1000 24" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}</svg>'
    ).format(title, Markup().join(drawn))
