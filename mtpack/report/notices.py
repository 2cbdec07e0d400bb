"""Notices: what a user should know about the turns of an output, why it is so and how to avoid it.

The reports of `pack`, `inspect` and `verify` take their texts from here, so they show the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from mtpack.counts import NO_MODE, OTHER_KEYS, Counts
from mtpack.report.escaping import escape_line


@dataclass(frozen=True, slots=True)
class Notice:
    """One count that a user should know, with its explanation."""

    name: str
    count: int
    text: str
    """What is counted, the reason for it and, where there is a remedy, the remedy."""


_EXACT = (
    "turns: the merged document is proven to be, up to the end of each, the same as the dialogue "
    "that ends with that turn"
)


def turn_summary(counts: Counts) -> list[Notice]:
    """Return the number of turns that can be merged exactly, then all notices."""
    exact = counts.turns_packed - counts.turns_own_document - counts.bent - counts.unproven
    return [Notice("merging exact", exact, _EXACT), *notices_of(counts)]


def notices_of(counts: Counts) -> list[Notice]:
    """Return the notices whose count is not 0; none for an ordinary output."""
    notices = []
    for field in fields(counts):
        if field.name == "content_dropped":
            notices += _never_shown(counts.content_dropped)
        if field.name == "never_read":
            notices += _never_read(counts.never_read)
        if field.name in _BY_MODE:
            notices += _explain_by_mode(field.name, getattr(counts, field.name))
        if text := field.metadata.get("text"):
            name = field.metadata["label"] or field.name
            notices.append(Notice(name, getattr(counts, field.name), text))
        if field.name == "turns_own_document":
            repeated = max(0, counts.tokens - counts.tokens_if_merged)
            notices.append(Notice("repeated", repeated, _cost(counts)))
    return [notice for notice in notices if notice.count]


def _cost(counts: Counts) -> str:
    """Compare the tokens with one document per dialogue, in sequences that are equally full."""
    tokens, if_merged = counts.tokens, counts.tokens_if_merged
    if not if_merged:
        return "tokens"
    times = tokens / if_merged
    sequences = round(counts.sequences / times) or 1
    return (
        f"tokens: {tokens:,} in {counts.sequences:,} sequences, {times:.2f} times as many as "
        f"with one document per dialogue: {if_merged:,} in about {sequences:,}"
    )


# What is counted by mode, the reason, and what the mode does.
_BY_MODE = {
    "rows_in_mode": (
        "rows: rendered with {mode}, because the default mode of the chat template leaves out "
        "their reasoning",
        "",
    ),
    "reasoning_missing": (
        "turns: they have no reasoning, but the prompt opens one; a reasoning in the rows "
        '("reasoning_content") avoids this',
        ", or --template-arg {mode}",
    ),
    "reasoning_empty": (
        "turns: they have no reasoning, so an empty one is trained; a reasoning in the rows "
        '("reasoning_content") avoids this',
        ", or --template-arg {mode}: then the prompt has it already",
    ),
}


def _explain_by_mode(name: str, counts: dict[str, int]) -> list[Notice]:
    text, remedy = _BY_MODE[name]
    return [
        Notice(
            name.replace("_", " "),
            count,
            (text + remedy * (mode != NO_MODE)).format(mode=escape_line(mode)),
        )
        for mode, count in counts.items()
    ]


_PARTS = {
    "content": "their content",
    "content.thinking": "the thinking in their content, before </think>",
    "reasoning_content": "their reasoning",
    "tool_calls": "their tool calls, or some of them",
}


def _never_shown(content_dropped: dict[str, int]) -> list[Notice]:
    """Return a notice for each part that the template drops; the last one adds the remedies."""
    texts = {}
    for key in content_dropped:
        role, _, part = key.partition(".")
        what = escape_line(f"{role} messages: {_PARTS.get(part, part)}")
        texts[key] = what if part else "rows: their tools"
    remedies = ["another template"]
    if "system.content" in texts:
        remedies.append("the system's text at the start of the first user message")
    if texts:
        texts[next(reversed(texts))] += (
            "\nThe chat template leaves this out, so the model never sees it; "
            f"possible remedies: {', or '.join(remedies)}"
        )
    return [Notice("never shown", content_dropped[key], text) for key, text in texts.items()]


_MOST_LINES = 5
"""So many lines are shown of the keys that are never read."""


def _never_read(counts: dict[str, int]) -> list[Notice]:
    """Return a notice for keys that equally many rows have, those of most rows first."""
    keys_by_count: dict[int, list[str]] = {}
    for key, count in counts.items():
        if key != OTHER_KEYS:
            keys_by_count.setdefault(count, []).append(key)
    rows = sorted(keys_by_count.items(), reverse=True)
    lines = [
        (count, f"rows{' each' if len(keys) > 1 else ''}: {', '.join(map(escape_line, keys))}")
        for count, keys in rows[:_MOST_LINES]
    ]
    rest = [key for _, keys in rows[_MOST_LINES:] for key in keys]
    if rest:
        lines.append((len(rest), "further keys, in fewer rows (--json has them all)"))
    if OTHER_KEYS in counts:
        lines.append((counts[OTHER_KEYS], "values of keys with longer names, too many to list"))
    if lines:
        count, text = lines[-1]
        reason = "Neither mtpack nor the chat template reads these keys (docs/rows.md)"
        lines[-1] = (count, f"{text}\n{reason}")
    return [Notice("never read", count, text) for count, text in lines]
