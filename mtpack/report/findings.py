"""What a user should know of the turns of an output: how many, why, at what cost, what avoids it.

One home for the words: the report of a run, `inspect` and `verify` show the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtpack.shards.manifest import Tally


@dataclass(frozen=True, slots=True)
class Notice:
    """One line of the account."""

    name: str
    count: int
    text: str
    """What is counted, why it is so and, where something can be done, what."""


def turn_summary(tally: Tally) -> list[Notice]:
    """Return how many turns can be merged exactly, then all that is out of the ordinary."""
    exact = tally.turns_packed - tally.turns_own_document - tally.bent - tally.unproven
    proven = "turns: proven, one by one, to be the same in one document as alone"
    return [Notice("merging exact", exact, proven), *notices_of(tally)]


def notices_of(tally: Tally) -> list[Notice]:
    """Return what is out of the ordinary in an output, with what would avoid it."""
    findings = [
        Notice("own document", tally.turns_own_document, _TEXTS["own document"]),
        Notice("repeated", max(0, tally.tokens - tally.tokens_if_merged), _cost(tally)),
        *(Notice(name, getattr(tally, field), _TEXTS[name]) for name, field in _TURNS.items()),
        *_never_shown(tally.content_dropped),
        *(Notice(name, getattr(tally, field), _TEXTS[name]) for name, field in _OTHERS.items()),
    ]
    return [finding for finding in findings if finding.count]


# Names of findings, and the figures of the tally that they show.
_TURNS = {
    "bent": "bent",
    "unproven": "unproven",
    "prompt differs": "prompt_differs",
    "no end of turn": "no_eot",
}
_OTHERS = {
    "given, trained": "given_trained",
    "straddling": "straddles",
    "control tokens": "control_tokens",
    "literal tokens": "control_tokens_literal",
}
_TEXTS = {
    "own document": "turns: merging them is not exact, as the chat template rewrites history; a "
    "template that keeps it avoids this, --merge always accepts it",
    "bent": "turns: merged though the chat template rewrites history, so they are trained behind "
    "what the model won't see; --merge auto avoids it",
    "unproven": "turns: merged unproven, as the chat template refuses the dialogue up to them; "
    "another template may take it",
    "prompt differs": "turns: they start otherwise than the model's prompt ends; --template-arg "
    "enable_thinking=false, say, may avoid it",
    "no end of turn": "turns: no control token ends them, so the model won't learn to stop; a "
    "template that writes one avoids it",
    "given, trained": "tokens: the prompt gives them, but the template's generation tags have them "
    "trained",
    "straddling": "tokens: over the edge of a turn, so without loss",
    "control tokens": "rows: the text of users, systems or tools spells control tokens, and the "
    "model will read them as such; --control-tokens literal makes them ordinary text",
    "literal tokens": "rows: control tokens in the text of users, systems or tools are ordinary "
    "text",
}


def _cost(tally: Tally) -> str:
    """Compare with one document a dialogue, in sequences that are filled as well."""
    if not tally.tokens_if_merged:
        return "tokens"
    times = tally.tokens / tally.tokens_if_merged
    sequences = round(tally.sequences / times) or 1
    return (
        f"tokens: {tally.tokens:,} in {tally.sequences:,} sequences, {times:.2f} times what one "
        f"document a dialogue would have: {tally.tokens_if_merged:,} in about {sequences:,}"
    )


_PARTS = {
    "content": "their content",
    "content.thinking": "the thinking in their content, before </think>",
    "reasoning_content": "their reasoning",
    "tool_calls": "their tool calls, or some of them",
}


def _never_shown(content_dropped: dict[str, int]) -> list[Notice]:
    """Return a finding for each part that the template drops; the last one says what that means."""
    texts = {}
    for key in content_dropped:
        role, _, part = key.partition(".")
        texts[key] = f"{role} messages: {_PARTS.get(part, part)}" if part else "rows: their tools"
    remedies = ["another template"]
    if any(key.endswith(".tool_calls") for key in texts):
        remedies.append("arguments given as objects")
    if "system.content" in texts:
        remedies.append("the system's words put into the user's first message")
    if texts:
        texts[next(reversed(texts))] += (
            "\nThe chat template leaves this out, so the model never sees it; "
            f"what may help: {', or '.join(remedies)}"
        )
    return [Notice("never shown", content_dropped[key], text) for key, text in texts.items()]
