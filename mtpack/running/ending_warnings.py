"""Warn of a chat template whose turns do not teach the model to stop."""

from __future__ import annotations

from mtpack.counts import Counts

_MOST_TOLERATED = 0.01  # share of the turns: a few may have been cut, or end in a special way


def list_ending_warnings(counts: Counts, template_source: str) -> set[str]:
    """Return a warning for each way to end without a stop token that more than a few turns have.

    template_source: the file or model that the chat template comes from.
    """
    ways = {
        "no control token": (
            counts.no_eot,
            "choose a template that ends turns with one (--chat-template), or, if it writes the "
            "token with the next message, name that as eos_token_id in generation_config.json "
            "next to the tokenizer",
        ),
        "a control token that the model's files do not name as a stop token": (
            counts.not_a_stop,
            "if servers stop there, add it to eos_token_id in generation_config.json next to the "
            "tokenizer; otherwise choose another template (--chat-template)",
        ),
    }
    return {
        f"{template_source}: {number:,} of {counts.turns_packed:,} turns end in {ending}, so the "
        f"model may not learn to stop; {remedy}"
        for ending, (number, remedy) in ways.items()
        if number > _MOST_TOLERATED * counts.turns_packed
    }
