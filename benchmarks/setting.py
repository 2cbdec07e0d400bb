"""The input of a comparison, its rendered texts, and a folder for temporary files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.rendering import read_dialogues
from mtpack.input.dialogue import Dialogue
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import read_splits
from mtpack.options import PackOptions
from mtpack.running.pipeline import Pipeline, load_pipeline

Figures = dict[str, float]
"""The results of one way in one round, by name."""


@dataclass(frozen=True, eq=False)
class Setting:
    """The options of one comparison. Compared by identity, so that results can be cached for it."""

    inputs: tuple[str, ...]
    tokenizer: Path
    """A folder."""
    chat_template: Path | None
    training_template: Path | None
    """The same template, with the assistant's text marked for TRL."""
    seq_len: int
    workers: int
    trl_rows: int | None
    """The number of first rows for TRL's way; None: all."""
    read_seconds: float
    """How long each way to read rows or batches is measured."""
    old: Path | None
    """The interpreter of another version of mtpack, which is measured next to this one."""
    folder: Path
    """For outputs and caches; it is deleted at the end of the run."""

    @cached_property
    def rows(self) -> Path:
        """A plain JSONL file of all rows, unchanged: the input of every way."""
        return self.write_rows("rows.jsonl", self.row_texts)

    @cached_property
    def row_texts(self) -> list[bytes]:
        """All rows, as the lines of JSON that they are."""
        names = find_inputs(self.inputs)
        splits = read_splits(describe_input(name, name) for name in names)
        return [row.text or b"" for split in splits for row in split.rows()]

    def write_rows(self, name: str, rows: Sequence[bytes]) -> Path:
        """Write some rows as a plain JSONL file into the folder."""
        path = self.folder / name
        path.write_bytes(b"".join(row + b"\n" for row in rows))
        return path

    @cached_property
    def dialogues(self) -> list[Dialogue]:
        """All rows, as dialogues."""
        return read_dialogues(self.inputs, self._pipeline)

    @cached_property
    def texts(self) -> list[str]:
        """The text of every dialogue, rendered with the chat template."""
        template = self._pipeline.template
        return [template.render(dialogue.messages, dialogue.tools) for dialogue in self.dialogues]

    @cached_property
    def _pipeline(self) -> Pipeline:
        template = None if self.chat_template is None else str(self.chat_template)
        options = PackOptions(tokenizer=str(self.tokenizer), chat_template=template)
        return load_pipeline(options)

    @cached_property
    def text_sizes(self) -> list[int]:
        """The UTF-8 bytes of every text."""
        return [len(text.encode()) for text in self.texts]

    @property
    def megabytes(self) -> float:
        """The UTF-8 size of all texts in MB: throughputs are in these MB."""
        return sum(self.text_sizes) / 1e6


def format_json_line(dialogue: Dialogue, suffix: str = "") -> str:
    """Return a dialogue as a row of messages, with a suffix at the end of every text content."""
    messages = [
        {**message, "content": content + suffix}
        if isinstance(content := message.get("content"), str)
        else message
        for message in dialogue.messages
    ]
    tools = {} if dialogue.tools is None else {"tools": dialogue.tools}
    return json.dumps({"messages": messages, **tools}, ensure_ascii=False) + "\n"
