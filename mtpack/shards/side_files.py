"""The files of an output next to its shards: rejected rows, and what `datasets` needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from mtpack.input.dialogue import Reject
from mtpack.shards.arrow import ShardMetadata, shard_schema
from mtpack.shards.manifest import ShardRecord

REJECTS = "rejects.jsonl"
_DATASETS_FILES = ("state.json", "dataset_info.json")
SIDE_FILES = (REJECTS, *_DATASETS_FILES)


def write_rejects(file: TextIO, rejects: Iterable[Reject]) -> None:
    """Write rejected rows to `REJECTS`, one JSON object per line."""
    file.writelines(json.dumps(reject.as_record()) + "\n" for reject in rejects)


def write_datasets_files(area: Path, shards: list[ShardRecord], metadata: ShardMetadata) -> None:
    """Write the files that `datasets.load_from_disk` needs to map the folder into memory.

    `Sequence` is the name of a list feature that datasets 3, 4 and 5 can all read.
    """
    digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode())
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.path} for shard in shards],
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    features = {field.name: _feature(field.type) for field in shard_schema(metadata)}
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    for name, content in zip(_DATASETS_FILES, (state, info), strict=True):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (area / name).write_text(text, encoding="utf-8")


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
        return {"feature": _feature(kind.value_type), "length": length, "_type": "Sequence"}
    name = "float32" if pa.types.is_float32(kind) else str(kind)  # Arrow says "float"
    return {"dtype": name, "_type": "Value"}
