"""What all ways of a comparison share: the input, its rendered texts, and a folder to work in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.rendering import read_dialogues
from mtpack.input.dialogue import Dialogue
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import read_splits
from mtpack.options import DEFAULT_DATE
from mtpack.template.chat_template import load_chat_template
from mtpack.tokenizer.loading import load_tokenizer

Figures = dict[str, float]
"""What one round of a way measured, by name."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One comparison; equal to none but itself, so that what is made once for it can be cached."""

    inputs: tuple[str, ...]
    tokenizer: Path
    """A folder."""
    chat_template: Path | None
    training_template: Path | None
    """The same template with the assistant's text marked, as TRL's way needs it."""
    seq_len: int
    workers: int
    trl_rows: int | None
    """How many leading rows TRL's way gets; all, if None."""
    folder: Path
    """For outputs and caches; it goes with the run."""

    @cached_property
    def rows(self) -> Path:
        """All rows as they stand, in one file of plain JSONL: what every way reads."""
        names = find_inputs(self.inputs)
        splits = read_splits(describe_input(name, name) for name in names)
        path = self.folder / "rows.jsonl"
        with open(path, "wb") as file:
            for split in splits:
                file.writelines((row.text or b"") + b"\n" for row in split.rows())
        return path

    @cached_property
    def dialogues(self) -> list[Dialogue]:
        """All rows."""
        return read_dialogues(self.inputs)

    @cached_property
    def texts(self) -> list[str]:
        """Every dialogue, as the chat template writes it."""
        tokenizer = load_tokenizer(str(self.tokenizer))
        file = None if self.chat_template is None else str(self.chat_template)
        template = load_chat_template(tokenizer, file, (), DEFAULT_DATE)
        return [template.render(dialogue.messages, dialogue.tools) for dialogue in self.dialogues]

    @cached_property
    def text_sizes(self) -> list[int]:
        """UTF-8 bytes of every text: what all throughputs count."""
        return [len(text.encode()) for text in self.texts]

    @property
    def megabytes(self) -> float:
        """All texts."""
        return sum(self.text_sizes) / 1e6


def as_json_line(dialogue: Dialogue, behind_contents: str = "") -> str:
    """Write a dialogue as a row of messages, with something behind every text content."""
    messages = [
        {**message.fields, "content": content + behind_contents}
        if isinstance(content := message.fields.get("content"), str)
        else message.fields
        for message in dialogue.messages
    ]
    tools = {} if dialogue.tools is None else {"tools": dialogue.tools}
    return json.dumps({"messages": messages, **tools}, ensure_ascii=False) + "\n"
