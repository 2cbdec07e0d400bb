"""Every chat template in ../shared/templates compared with the slow reference, as a table.

`python -m tests.support.template_table` prints the table. For each template, it says how many kinds
of dialogues (`dialogue_kinds.py`) give the documents of the reference under every `--merge`, how
many the template refuses (in transformers and in mtpack), and for how many merging is not exact.
"""

import datetime
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from unittest import mock

from transformers.utils import chat_template_utils

from mtpack.documents.token_spans import encode_dialogues
from mtpack.input.dialogue import Dialogue, Origin, Reject
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import read_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.hidden_tools import list_tool_kinds, refuse_hidden_tools
from mtpack.template.message_forms import find_forms
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.template.tracing.replayer import Replayer
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, LoadedTokenizer, load_tokenizer
from tests.conftest import SHARED
from tests.support.dialogue_kinds import KINDS, Row
from tests.support.encoders import encoder_of
from tests.support.reference import (
    FLAGS,
    Mode,
    Reference,
    ReferenceDocument,
    ReferenceTurn,
    TemplateRaised,
    ToolsNotShown,
)
from tests.support.template_facts import BOS, EOS, FACTS

DATE = "2026-01-31"
MERGES = ("auto", "always", "never")
Documents = list[ReferenceDocument]
TEMPLATES = sorted(FACTS)

# Text that looks like a control token in a template's source. Each becomes an added token, so that
# the tokenizer knows the tokens of the template.
CONTROL = re.compile(
    r"<\|[^|<>\s'\"]{1,40}\|>|<｜[^｜<>]{1,40}｜>|<\|[a-z_]+>|<[a-z_]+\|>|</?s>|<[a-z]+_of_[a-z]+>"
    r"|\[/?[A-Z_]{3,30}\]|\[\|[a-z]+\|\]|<seed:[a-z]+>|</?think>"
)
NOT_SHOWN = "tools_not_shown"
NOT_SPECIAL = ("<think>", "</think>")


@dataclass(frozen=True)
class TableRow:
    """The results of one template with all kinds of dialogues."""

    template: str
    passed: tuple[str, ...] = ()
    """Kinds that give the documents of the reference."""
    refused: tuple[str, ...] = ()
    """Kinds that the template refuses, in transformers as in mtpack."""
    not_shown: tuple[str, ...] = ()
    """Kinds whose tool calls or results the template does not write, for the reference as well."""
    not_found: tuple[str, ...] = ()
    """Kinds that only mtpack refuses, because it can't find a turn."""
    failed: tuple[str, ...] = ()
    """Kinds with any other result."""
    not_exact: tuple[str, ...] = ()
    """Kinds in which a turn needs a document of its own."""
    as_prompted: float = 1.0
    """The share of the turns that stand after exactly a prompt of the server (from 0 to 1, under
    `--merge auto`; turns without a prompt are left out)."""
    replayed: float = 1.0
    """Of the kinds that are not refused, the share that is replayed after all have been recorded
    (from 0 to 1, over every `--merge`)."""


class CachedReference(Reference):
    """The reference, with a cache of its renders and its tokens."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rendered: dict[str, str | TemplateRaised] = {}
        self.encoded: dict[str, Any] = {}

    def render(
        self,
        messages: list[Row],
        tools: Any,
        prompt: bool = False,
        mode: Mode | Literal["of the dialogue"] = "of the dialogue",
    ) -> str:
        mode = self.mode if mode == "of the dialogue" else mode
        key = json.dumps([messages, tools, prompt, mode, self.arguments])
        if key not in self.rendered:
            try:
                self.rendered[key] = super().render(messages, tools, prompt, mode)
            except TemplateRaised as error:
                self.rendered[key] = error
        found = self.rendered[key]
        if isinstance(found, TemplateRaised):
            raise found
        return found

    def tokens(self, text: str) -> Any:
        if text not in self.encoded:
            self.encoded[text] = super().tokens(text)
        return self.encoded[text]


@dataclass(frozen=True)
class LoadedTemplate:
    """One template, loaded for the reference and for mtpack."""

    reference: CachedReference
    tokenizer: LoadedTokenizer
    template: ChatTemplate


@contextmanager
def load_template(name: str, folder: Path | None = None) -> Iterator[LoadedTemplate]:
    """Load a template with the tokenizer in `folder`, or with one that has its control tokens."""
    source = (SHARED / "templates" / name).read_text(encoding="utf-8")
    with TemporaryDirectory() as temporary, frozen_clock():
        if folder is None:
            folder = Path(temporary)
            write_tokenizer(folder, source, FACTS[name].name_stops())
        tokenizer = load_tokenizer(str(folder))
        variables = tokenizer.special_tokens | dict(FACTS[name].variables)
        template = ChatTemplate({"default": source}, variables, DATE)
        yield LoadedTemplate(CachedReference(folder, FACTS[name], source), tokenizer, template)


def write_tokenizer(folder: Path, source: str, stops: tuple[str, ...]) -> None:
    """Write the embedded tokenizer, with the control tokens of a template's source added.

    stops: the tokens that its generation config names, if the tokenizer has them.
    """
    stored = json.loads((EMBEDDED_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    known = {token["content"] for token in stored["added_tokens"]}
    behaviour = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    number = 1 + max(*stored["model"]["vocab"].values(), *(t["id"] for t in stored["added_tokens"]))
    for content in sorted({*CONTROL.findall(source), BOS, EOS} - known):
        token = {"id": number, "content": content, "special": content not in NOT_SPECIAL}
        stored["added_tokens"].append(token | behaviour)
        number += 1
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ids = {token["content"]: token["id"] for token in stored["added_tokens"]}
    generation = {"eos_token_id": [ids[stop] for stop in stops if stop in ids]}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")


@contextmanager
def frozen_clock() -> Iterator[None]:
    """Let transformers' `strftime_now` format DATE."""

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return cls.fromisoformat(DATE)

    with mock.patch.object(chat_template_utils, "datetime", Frozen):
        yield


def compute_table_row(name: str, folder: Path | None = None) -> TableRow:
    """Compare all kinds of dialogues, under every `--merge`."""
    outcomes: dict[str, list[str]] = {
        outcome: []
        for outcome in ("passed", "refused", "not_shown", "not_found", "failed", "not_exact")
    }
    contexts: list[bool] = []
    with load_template(name, folder) as loaded:
        replayed = replay_documents(loaded)
        for kind, row in KINDS.items():
            found = [pack(loaded, render(loaded, row, merge), merge) for merge in MERGES]
            expected = [
                compute_reference_documents(loaded.reference, row, merge) for merge in MERGES
            ]
            if (
                found == expected == replayed.documents[kind]
                and list_flags(found) == list_flags(expected)
                and list_flags(replayed.documents[kind]) == list_flags(expected)
            ):
                outcomes_by_documents = {None: "refused", NOT_SHOWN: "not_shown"}
                outcome = (
                    "passed"
                    if isinstance(expected[0], list)
                    else outcomes_by_documents[expected[0]]
                )
            else:
                outcome = "not_found" if "turn_not_found" in found else "failed"
            outcomes[outcome].append(kind)
            contexts += check_contexts(loaded, found[MERGES.index("auto")])
            if has_own_documents(loaded, row):
                outcomes["not_exact"].append(kind)
    results = {outcome: tuple(kinds) for outcome, kinds in outcomes.items()}
    as_prompted = sum(contexts) / len(contexts) if contexts else 1.0
    return TableRow(name, **results, as_prompted=as_prompted, replayed=replayed.share)


def check_contexts(loaded: LoadedTemplate, documents: Documents | str | None) -> list[bool]:
    """Return for each turn with a prompt whether the text before it is a prompt of the server.

    documents: those of the dialogue that the reference has seen last.
    """
    contexts = []
    for document in documents if isinstance(documents, list) else ():
        for turn in document.turns:
            before = list(document.ids[: turn.loss_positions[0]])
            text = loaded.tokenizer.backend.decode(before, skip_special_tokens=False)
            prompts = loaded.reference.prompts(turn.message)
            contexts += [text in prompts] if prompts else []
    return contexts


def list_flags(results: list[Documents | str | None] | list[Documents | None]) -> list[Any]:
    """Return the flags of every turn, which the comparison of documents leaves out."""
    return [
        [sorted(turn.flags) for document in documents for turn in document.turns]
        for documents in results
        if isinstance(documents, list)
    ]


@dataclass(frozen=True)
class Replayed:
    """The documents of replayed dialogues, after every kind has been recorded."""

    documents: dict[str, list[Documents | str | None]]
    """By kind, the results for each `--merge`."""
    share: float
    """The share of the accepted dialogues that is replayed."""


def replay_documents(loaded: LoadedTemplate) -> Replayed:
    """Record every kind, then replay each that can be replayed."""
    documents: dict[str, list[Documents | str | None]] = {kind: [] for kind in KINDS}
    replayed = accepted = 0
    for merge in MERGES:
        replayer = Replayer(loaded.template, loaded.tokenizer.added_tokens, merge)
        for row in KINDS.values():
            replayer.render_dialogue(as_dialogue(row, loaded.template))
        replayed -= replayer.replayed
        for kind, row in KINDS.items():
            dialogue = as_dialogue(row, loaded.template)
            outcome = refuse(loaded, dialogue) or replayer.render_dialogue(dialogue)
            accepted += not isinstance(outcome, Reject)
            documents[kind].append(pack(loaded, outcome, merge))
        replayed += replayer.replayed
    return Replayed(documents, replayed / accepted)


def render(loaded: LoadedTemplate, row: Row, merge: str) -> RenderedDialogue | Reject:
    dialogue = as_dialogue(row, loaded.template)
    refused = refuse(loaded, dialogue)
    return refused or render_dialogue(
        loaded.template, loaded.tokenizer.added_tokens, dialogue, merge
    )


def refuse(loaded: LoadedTemplate, dialogue: Dialogue) -> Reject | None:
    template, added_tokens = loaded.template, loaded.tokenizer.added_tokens
    kinds = list_tool_kinds(dialogue)
    return None if kinds is None else refuse_hidden_tools(template, added_tokens, dialogue, kinds)


def pack(
    loaded: LoadedTemplate, rendered: RenderedDialogue | Reject, merge: str
) -> Documents | str | None:
    """Return mtpack's documents, None if the template refuses, or another reason."""
    if isinstance(rendered, Reject):
        return None if rendered.reason == "template_raised" else str(rendered.reason)
    return encode_documents(loaded.tokenizer, rendered, merge)


def encode_documents(
    tokenizer: LoadedTokenizer, rendered: RenderedDialogue, merge: str
) -> list[ReferenceDocument]:
    """Encode a dialogue, and return its documents in the classes of the reference."""
    batch, _ = encode_dialogues(encoder_of(tokenizer), RenderedDocuments.of([rendered]), merge)
    documents = []
    for document in range(batch.num_documents):
        turns = []
        for turn in range(*batch.turn_offsets[document : document + 2]):
            positions: list[int] = []
            for span in range(*batch.span_offsets[turn : turn + 2]):
                positions += range(batch.span_starts[span], batch.span_ends[span])
            flags = frozenset(
                name for name in FLAGS if TurnFlag[name] & int(batch.turn_flags[turn])
            )
            turns.append(ReferenceTurn(int(batch.turn_messages[turn]), tuple(positions), flags))
        ids = batch.ids[slice(*batch.document_offsets[document : document + 2])]
        documents.append(ReferenceDocument(tuple(ids.tolist()), tuple(turns)))
    return documents


def compute_reference_documents(
    reference: Reference, row: Row, merge: str
) -> Documents | str | None:
    """Return the reference's documents, None if the template refuses, or `NOT_SHOWN`."""
    try:
        return reference.documents(row, merge)
    except TemplateRaised:
        return None
    except ToolsNotShown:
        return NOT_SHOWN


def has_own_documents(loaded: LoadedTemplate, row: Row) -> bool:
    rendered = render(loaded, row, "auto")
    if isinstance(rendered, Reject):
        return False
    batch, _ = encode_dialogues(
        encoder_of(loaded.tokenizer), RenderedDocuments.of([rendered]), "auto"
    )
    return bool((batch.turn_flags & TurnFlag.OWN_DOCUMENT).any())


def as_dialogue(row: Row, template: ChatTemplate) -> Dialogue:
    dialogue = read_dialogue(0, Origin("row", 1), json.dumps(row).encode(), LINE_LIMIT)
    assert isinstance(dialogue, Dialogue), dialogue
    return find_forms(template, dialogue.tools).apply(dialogue)


COLUMNS = "{:<67}{:>7}{:>8}{:>10}{:>10}{:>12}{:>9}  {}"
HEADINGS = (
    "template",
    "passed",
    "refused",
    "not shown",
    "not exact",
    "as prompted",
    "replayed",
    "kinds not exact or wrong",
)


def format_line(row: TableRow) -> str:
    """Return the line of the printed table for `row`."""
    lists = {"not exact": row.not_exact, "turn not found": row.not_found, "WRONG": row.failed}
    return COLUMNS.format(
        row.template,
        len(row.passed),
        len(row.refused),
        len(row.not_shown),
        len(row.not_exact),
        f"{row.as_prompted:.1%}",
        f"{row.replayed:.0%}",
        "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in lists.items() if kinds),
    ).rstrip()


def main(names: list[str]) -> None:
    print(COLUMNS.format(*HEADINGS))
    for name in names or TEMPLATES:
        print(format_line(compute_table_row(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
