"""The counts of a run: its rows, turns and tokens by what happened to them.

Each step counts what it does, and counts add up: those of a step to those of a split, those of all
splits to those of a run, which are in the report and in `manifest.json`. A count is declared here
and nowhere else: the type of its field, the flag that it counts, and what the reports say about it.
docs/format.md explains every count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np

from mtpack.token_batch import TokenBatch, TurnFlag

NO_MODE = "none"
"""Stands for the mode in counts by mode, if no mode of the template helps."""

OTHER_KEYS = "other keys"
"""Stands for all other names in counts by names that come from the rows."""
_MAX_NAMES = 100


@dataclass(frozen=True, slots=True)
class _Summable:
    """Numbers, and dicts that hold a number for each reason, which add up one by one."""

    def __add__(self, other: Self) -> Self:
        sums: dict[str, Any] = {}
        for each in fields(self):
            ours, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(ours, dict):
                sums[each.name] = _add_reasons(ours, theirs, bool(each.metadata.get("has_names")))
            else:
                sums[each.name] = ours + theirs
        return type(self)(**sums)

    def list_nonzero(self) -> dict[str, Any]:
        """Return the counts that are not 0, by name, as JSON values: the arguments of this class.

        `dataclasses.asdict` copies all of them, which takes a millisecond for each split of a run.
        """
        counts = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: count for name, count in counts if count}


def _add_reasons(ours: dict[str, int], theirs: dict[str, int], has_names: bool) -> dict[str, int]:
    """Add numbers by reason; leave out those whose sum is 0."""
    sums = dict(ours)
    for reason, count in theirs.items():
        sums[reason] = sums.get(reason, 0) + count
    if has_names:
        sums = limit_names(Counter(sums))
    return {reason: sums[reason] for reason in sorted(sums) if sums[reason]}


def limit_names(counts: Counter[str]) -> Counter[str]:
    """Return counts by names that come from the rows: those of the shortest names, and the others
    summed up as `OTHER_KEYS`.

    The sum of several parts is the same in whatever order they are added up.
    """
    if len(counts) <= _MAX_NAMES:
        return counts
    names = sorted(counts.keys() - {OTHER_KEYS}, key=lambda name: (len(name), name))
    kept = Counter({name: counts[name] for name in names[:_MAX_NAMES]})
    kept[OTHER_KEYS] = counts.total() - kept.total()
    return kept


def _explained(text: str, *, label: str | None = None, flag: TurnFlag | None = None) -> Any:
    """Declare a count that the reports explain where it is not 0.

    text: what is counted, the reason for it and, where there is a remedy, the remedy. label: the
    name that the reports show; by default, that of the field. flag: what the counted turns have.
    """
    return field(default=0, metadata={"text": text, "label": label, "flag": flag})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts(_Summable):
    """The counts of rows, turns and tokens. The same input and options give the same counts.

    Packed, dropped and rejected rows add up to `rows_read`; packed and dropped turns to
    `turns_read`.
    """

    rows_read: int = 0
    rows_packed: int = 0
    """Rows with at least one turn in a sequence."""
    rows_dropped: dict[str, int] = field(default_factory=dict)
    rows_rejected: dict[str, int] = field(default_factory=dict)
    documents: int = 0
    turns_read: int = 0
    """Trained assistant messages of the accepted rows."""
    turns_packed: int = 0
    turns_dropped: dict[str, int] = field(default_factory=dict)
    turns_own_document: int = _explained(
        "turns: each has a document of its own, because the chat template rewrites history, so "
        "merging is not exact; a template that keeps history avoids this, --merge always merges "
        "anyway",
        label="own document",
        flag=TurnFlag.OWN_DOCUMENT,
    )
    bent: int = _explained(
        "turns: merged although the chat template rewrites history, so they are trained after a "
        "text that the model does not get at inference; --merge auto avoids this",
        flag=TurnFlag.BENT,
    )
    unproven: int = _explained(
        "turns: merged without proof, because the chat template can't render the dialogue up to "
        "them; another template may be able to",
        flag=TurnFlag.UNPROVEN,
    )
    prompt_other_mode: int = _explained(
        "turns: they continue the prompt of another mode of the chat template, such as "
        "enable_thinking=false, so they start where that prompt ends",
        label="other mode",
        flag=TurnFlag.PROMPT_OTHER_MODE,
    )
    prompt_context: int = _explained(
        "turns: they are trained after the prompt that the model gets at inference, because the "
        "chat template writes another text before them in the dialogue",
        label="prompt as context",
        flag=TurnFlag.PROMPT_CONTEXT,
    )
    prompt_differs: int = _explained(
        "turns: they do not continue the prompt that the model gets at inference; a template "
        "argument may avoid this, such as --template-arg enable_thinking=false",
        flag=TurnFlag.PROMPT_DIFFERS,
    )
    no_eot: int = _explained(
        "turns: no control token ends them, so the model does not learn to stop; a template that "
        "writes one avoids this",
        flag=TurnFlag.NO_EOT,
    )
    not_a_stop: int = _explained(
        "turns: they end in a control token that the model's files do not name as a stop token, so "
        "a server may not stop there; to name it, add it to eos_token_id in generation_config.json "
        "next to the tokenizer",
        flag=TurnFlag.NOT_A_STOP,
    )
    rows_in_mode: dict[str, int] = field(default_factory=dict)
    """Accepted rows that are rendered in another mode than the default, because it drops their
    reasoning, by mode (such as `thinking=true`)."""
    reasoning_missing: dict[str, int] = field(default_factory=dict)
    """Turns of accepted rows that have no reasoning although the prompt opens one, before the
    overlong policy; by the mode whose prompt does not, `none` if there is none."""
    reasoning_empty: dict[str, int] = field(default_factory=dict)
    """Turns of accepted rows that have no reasoning, so an empty one is trained, before the
    overlong policy; by the mode whose prompt has it already, `none` if there is none."""
    content_dropped: dict[str, int] = field(default_factory=dict)
    """By what the template leaves out (such as `assistant.tool_calls`): the number of messages,
    before the overlong policy; for `tools`, the number of accepted rows."""
    never_read: dict[str, int] = field(default_factory=dict, metadata={"has_names": True})
    """Accepted rows by each of their keys that neither mtpack nor the template reads: `source` of
    a row, `messages.mood` of its messages, `chat_template_kwargs.x` of the variables that it sets.
    Keys come from the rows, so at most 100 are kept; `other keys` is the sum of all others."""
    nulls_dropped: int = _explained(
        "rows: a null in the arguments, the result or the definition of a tool was read as a "
        "missing key, because Parquet and Arrow store both alike; in a column of JSON text they "
        "differ",
        label="nulls dropped",
    )
    weight_too_small: int = _explained(
        "turns: they carry no loss, because their weight is rounded to 0; the smallest weight is "
        "1/1024",
        label="weight too small",
    )
    given_trained: int = _explained(
        "tokens: part of the prompt, but trained, because the template's generation tags mark them"
    )
    straddles: int = _explained(
        "tokens: partly inside and partly outside a turn, so the text is cut there, if that is the "
        "start of a turn, or they carry no loss"
    )
    control_tokens: int = _explained(
        "rows: text of users, systems or tools contains control tokens, and the model will read "
        "them as such; --control-tokens literal makes them ordinary text",
        label="control tokens",
    )
    control_tokens_in_answers: int = _explained(
        "rows: text of assistants contains control tokens that open or end a turn, so the model "
        "learns to write them inside of its turns; --control-tokens literal makes them ordinary "
        "text",
        label="control tokens in answers",
    )
    control_tokens_literal: int = _explained(
        "rows: their text contains control tokens, which are encoded as ordinary text",
        label="literal tokens",
    )
    tokens: int = 0
    """The tokens of all documents, without padding."""
    tokens_if_merged: int = 0
    """The tokens of all accepted rows if every turn were merged, before the overlong policy."""
    loss_tokens: int = 0
    weight_units: int = 0
    """The sum of the weights of the packed turns in units of 1/1024; 0 without `--turn-weights`."""
    sequences: int = 0
    sequences_lower_bound: int = 0
    """A lower bound of the number of sequences that any plan needs."""

    def list_troubles(self) -> dict[tuple[str, str], int]:
        """Return what a user should know of rows and turns: the counts that are not 0, by the name
        of the field and the reason (empty for a count without reasons).
        """
        troubles: dict[tuple[str, str], int] = {}
        for each in fields(self):
            count = getattr(self, each.name)
            if isinstance(count, dict):
                troubles |= {(each.name, reason): number for reason, number in count.items()}
            elif each.metadata.get("text"):
                troubles[each.name, ""] = count
        return {trouble: count for trouble, count in troubles.items() if count}

    @classmethod
    def of(cls, batch: TokenBatch) -> Counts:
        """Count documents that are packed as they are, with their turns and tokens."""
        flagged: dict[str, Any] = {
            each.name: int(np.count_nonzero(batch.turn_flags & each.metadata["flag"]))
            for each in fields(cls)
            if each.metadata.get("flag")
        }
        return cls(
            documents=batch.num_documents,
            turns_packed=batch.num_turns,
            tokens=len(batch.ids),
            loss_tokens=int(batch.loss_token_num.sum()),
            weight_units=0 if batch.turn_units is None else int(batch.turn_units.sum()),
            **flagged,
        )

    def check(self) -> None:
        """Raise AssertionError if a row or a turn is in no count: that is a bug in mtpack."""
        rows = self.rows_packed + sum(self.rows_dropped.values()) + sum(self.rows_rejected.values())
        turns = self.turns_packed + sum(self.turns_dropped.values())
        if rows != self.rows_read or turns != self.turns_read:
            raise AssertionError(f"the counts do not add up: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts(_Summable):
    """The counts of how a run came to its result. The result does not depend on them."""

    rendered: int = 0
    """Dialogues rendered by the template."""
    replayed: int = 0
    """Dialogues replayed from recordings instead (mtpack/template/tracing/README.md)."""
    reused: int = 0
    """Dialogues whose tokens came from `--token-store`, or from a run that did not complete."""
    audited: int = 0
    """Replayed dialogues that were also rendered, plus texts that both engines encoded."""
    audit_mismatches: int = 0
    """Those of them that differed. Then all splits were made again without the fast path."""
    splits: int = 0
    """Splits of the input."""
    splits_reused: int = 0
    """Those of them whose tokens came from `--token-store`, or from a run that did not complete."""
    shards_resumed: int = 0
    """Shards that a run wrote which did not complete."""
