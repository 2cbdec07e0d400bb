"""Notices: what a user should know about the turns of an output, why it is so and how to avoid it.

The reports of `pack`, `inspect` and `verify` take their texts from here, so they show the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtpack.shards.manifest import Tally


@dataclass(frozen=True, slots=True)
class Notice:
    """One count that a user should know, with its explanation."""

    name: str
    count: int
    text: str
    """What is counted, the reason for it and, where there is a remedy, the remedy."""


def turn_summary(tally: Tally) -> list[Notice]:
    """Return the number of turns that can be merged exactly, then all notices."""
    exact = tally.turns_packed - tally.turns_own_document - tally.bent - tally.unproven
    return [Notice("merging exact", exact, _TEXTS["merging exact"]), *notices_of(tally)]


def notices_of(tally: Tally) -> list[Notice]:
    """Return the notices whose count is not 0; none for an ordinary output."""
    notices = [
        Notice("own document", tally.turns_own_document, _TEXTS["own document"]),
        Notice("repeated", max(0, tally.tokens - tally.tokens_if_merged), _cost(tally)),
        *(Notice(name, getattr(tally, name), _TEXTS[name]) for name in _TURNS),
        *_never_shown(tally.content_dropped),
        *(Notice(name, getattr(tally, field), _TEXTS[name]) for name, field in _OTHERS.items()),
    ]
    return [notice for notice in notices if notice.count]


# Notices about turns: their names are the figures of the tally.
_TURNS = ("bent", "unproven", "prompt_differs", "no_eot")
# Names of other notices, and the figures of the tally that they show.
_OTHERS = {
    "given_trained": "given_trained",
    "straddles": "straddles",
    "control tokens": "control_tokens",
    "literal tokens": "control_tokens_literal",
}
_TEXTS = {
    "merging exact": "turns: the merged document is proven to be, up to the end of each, the same "
    "as the dialogue that ends with that turn",
    "own document": "turns: each has a document of its own, because the chat template rewrites "
    "history, so merging is not exact; a template that keeps history avoids this, --merge always "
    "merges anyway",
    "bent": "turns: merged although the chat template rewrites history, so they are trained after "
    "a text that the model does not get at inference; --merge auto avoids this",
    "unproven": "turns: merged without proof, because the chat template can't render the dialogue "
    "up to them; another template may be able to",
    "prompt_differs": "turns: they do not continue the prompt that the model gets at inference; "
    "a template argument may avoid this, such as --template-arg enable_thinking=false",
    "no_eot": "turns: no control token ends them, so the model does not learn to stop; a "
    "template that writes one avoids this",
    "given_trained": "tokens: part of the prompt, but trained, because the template's generation "
    "tags mark them",
    "straddles": "tokens: partly inside and partly outside a turn, so they carry no loss",
    "control tokens": "rows: text of users, systems or tools contains control tokens, and the "
    "model will read them as such; --control-tokens literal makes them ordinary text",
    "literal tokens": "rows: text of users, systems or tools contains control tokens, which are "
    "encoded as ordinary text",
}


def _cost(tally: Tally) -> str:
    """Compare the tokens with one document per dialogue, in sequences that are equally full."""
    if not tally.tokens_if_merged:
        return "tokens"
    times = tally.tokens / tally.tokens_if_merged
    sequences = round(tally.sequences / times) or 1
    return (
        f"tokens: {tally.tokens:,} in {tally.sequences:,} sequences, {times:.2f} times as many as "
        f"with one document per dialogue: {tally.tokens_if_merged:,} in about {sequences:,}"
    )


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
        texts[key] = f"{role} messages: {_PARTS.get(part, part)}" if part else "rows: their tools"
    remedies = ["another template"]
    if any(key.endswith(".tool_calls") for key in texts):
        remedies.append("arguments given as objects")
    if "system.content" in texts:
        remedies.append("the system's text at the start of the first user message")
    if texts:
        texts[next(reversed(texts))] += (
            "\nThe chat template leaves this out, so the model never sees it; "
            f"possible remedies: {', or '.join(remedies)}"
        )
    return [Notice("never shown", content_dropped[key], text) for key, text in texts.items()]
