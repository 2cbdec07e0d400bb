"""What a run works with: its inputs, and the objects and folders that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mtpack.input import reading
from mtpack.input.files import InputFile
from mtpack.running.earlier_work import SPLITS
from mtpack.running.outputs import Output
from mtpack.running.pipeline import Pipeline
from mtpack.running.token_store import name_run_folder
from mtpack.shards.work_area import WorkArea


@dataclass(frozen=True, slots=True)
class RunSetup:
    """The inputs of a run, and the objects and folders that it uses."""

    files: list[InputFile]
    area: WorkArea
    output: Output
    pipeline: Pipeline
    is_resumed: bool
    """Whether the work area holds work of an earlier run."""

    @property
    def own_store(self) -> Path:
        """The folder in the work area for splits that are tokenized as in this run."""
        return self.area.scratch / SPLITS / name_run_folder(self.pipeline)

    @property
    def shared_store(self) -> Path | None:
        """The folder of `--token-store` for splits that are tokenized as in this run, if any."""
        store = self.pipeline.options.token_store
        return None if store is None else Path(store) / name_run_folder(self.pipeline)

    @property
    def input_bytes(self) -> int:
        """The estimated number of bytes of text in the input."""
        return sum(map(estimate_text_bytes, self.files))

    @property
    def num_workers(self) -> int:
        """The number of worker processes that the input needs."""
        num_splits = 1 + self.input_bytes // reading.SPLIT_BYTES
        return min(self.pipeline.options.num_workers, num_splits)


def estimate_text_bytes(file: InputFile) -> int:
    """Estimate the number of bytes of text in a file."""
    is_compressed = file.kind.compression or file.kind.content == "parquet"
    return file.num_bytes * (4 if is_compressed else 1)


def read_first_rows(files: list[InputFile]) -> Iterator[str]:
    """Yield the text of the first rows of the first file of JSON lines."""
    line_files = (file._replace(source=0) for file in files if file.kind.content == "lines")
    for split in islice(reading.read_splits(islice(line_files, 1)), 1):
        for row in split.rows():
            yield (row.text or b"").decode(errors="replace")
