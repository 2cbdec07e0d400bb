from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from mtpack.turns import Int32


@dataclass(frozen=True, slots=True)
class ByteLevel:
    lengths: Int32
    normal_form: str | None


def byte_level_of(tokenizer) -> ByteLevel | None:
    d = json.loads(tokenizer.backend.to_str())
    pre = json.dumps(d["pre_tokenizer"])
    if "ByteLevel" not in pre or tokenizer.added_tokens.swallowing:
        return None
    v = tokenizer.backend.get_vocab()
    L = np.zeros(max(v.values()) + 1, np.int32)
    added = {t["id"] for t in d["added_tokens"]}
    for k, i in v.items():
        L[i] = len(k.encode()) if i in added else len(k)
    return ByteLevel(L, "NFC" if d["normalizer"] else None)
