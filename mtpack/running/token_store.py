"""The token store: tokenized splits that other runs can reuse.

A run keeps one in its work area, so that the next run can continue it; `--token-store` names one
for any number of outputs. A split is stored before the overlong policy is applied, so a run with
another sequence length, packing or seed can reuse it. Its path depends on all that the split
depends on: the contents of its rows, the tokenizer, the template, the options that matter, and the
version of mtpack. A stored split is two files: a document file, and next to it a record, which is
written last and holds the sha256 of the document file. A stored split that is incomplete or changed
is ignored and replaced.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from mtpack.counts import Counts, RunCounts
from mtpack.input.splits import Split
from mtpack.running.document_file import read_all, save_batch
from mtpack.running.pipeline import Pipeline
from mtpack.running.split_record import dump_rejects, parse_rejects
from mtpack.running.tokenize_split import TokenizedSplit
from mtpack.shards.atomic_file import nameless_file
from mtpack.shards.manifest import hash_file
from mtpack.token_batch import TokenBatch
from mtpack.version import __version__

_NAME_LENGTH = 32
_RUN_FOLDER = re.compile(f"[0-9a-f]{{{_NAME_LENGTH}}}")


def holds_splits(store: Path) -> bool:
    """Return whether a folder is a token store: runs have left folders with splits in it."""
    return any(_RUN_FOLDER.fullmatch(path.name) and path.is_dir() for path in store.iterdir())


def name_run_folder(pipeline: Pipeline) -> str:
    """Return the name of the folder for splits that are tokenized as in this run."""
    described = pipeline.options.split_options()
    described["mtpack"] = __version__
    described["tokenizer"] = pipeline.tokenizer.sha256
    described["template"] = pipeline.template.sha256
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_LENGTH]


def find_split(
    file: Path, split: Split, num_rows: int, disabled: Collection[str]
) -> TokenizedSplit | None:
    """Return the stored split; None if there is no intact one, or a disabled fast path made it.

    file: in the folder of the run, named by the digest of the split, as for `store_split`.
    num_rows: of the split.
    """
    try:
        record = json.loads(record_path(file).read_bytes())
        if hash_file(file) != record["sha256"] or set(record["fast_paths"]) & set(disabled):
            return None
        if len(record["row_turns"]) != num_rows:
            return None
        return _parse_tokenized_split(record, read_all(file), split)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def store_split(file: Path, tokenized: TokenizedSplit) -> None:
    """Store a tokenized split in an existing folder; replace one that could not be used."""
    sha256 = save_batch(file, tokenized.batch)
    record = {
        "sha256": sha256,
        "fast_paths": sorted(tokenized.fast_paths),
        "row_turns": tokenized.row_turns.tolist(),
        "counts": tokenized.counts.list_nonzero(),
        "warnings": sorted(tokenized.warnings),
        "rejects": dump_rejects(tokenized.rejects),
    }
    with nameless_file(record_path(file)) as record_file:
        record_file.write(json.dumps(record, sort_keys=True).encode())


def measure_store(store: str | None) -> int:
    """Return the size of all files in a token store in bytes; 0 if `store` is None."""
    if store is None:
        return 0
    return sum(file.stat().st_size for file in Path(store).rglob("*") if file.is_file())


def record_path(file: Path) -> Path:
    """Return the path of the record of a stored split."""
    return file.with_name(f"{file.name}.json")


def _parse_tokenized_split(
    record: dict[str, Any], batch: TokenBatch, split: Split
) -> TokenizedSplit:
    row_turns = np.array(record["row_turns"], dtype=np.int32)
    return TokenizedSplit(
        batch=batch,
        row_turns=row_turns,
        rejects=parse_rejects(record["rejects"], split),
        counts=Counts(**record["counts"]),
        run_counts=RunCounts(
            reused=int(np.count_nonzero(row_turns >= 0)), splits=1, splits_reused=1
        ),
        warnings=frozenset(record["warnings"]),
        fast_paths=frozenset(record["fast_paths"]),
    )
