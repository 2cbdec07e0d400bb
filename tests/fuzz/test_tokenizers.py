"""Any files are a tokenizer: it loads and encodes texts, or is refused by name."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpack.errors import MtpackError
from mtpack.fast_path import FastPathFailedError
from mtpack.input.reading import read_splits
from mtpack.options import PackOptions
from mtpack.running.pipeline import check_template, load_pipeline
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.tokenize_split import tokenize
from tests.conftest import examples
from tests.fuzz.corpus import HARD_TOKENIZERS, ROWS
from tests.fuzz.mutations import MARK, changed, damaged
from tests.fuzz.test_templates import files_of
from tests.tokenizer.test_loading import NEXT_ID, TINY, added

TOKENIZER = json.loads(TINY)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "added_tokens_decoder": {
        str(NEXT_ID): added("<|im_start|>", special=True),
        str(NEXT_ID + 1): added("<|im_end|>", special=True),
    },
    "eos_token": "<|im_end|>",
    "pad_token": {"content": "<unk>"},
    "extra_special_tokens": ["<|im_start|>"],
    "chat_template": TEMPLATE,
}
FILES = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": CONFIG,
    "generation_config.json": {"eos_token_id": [NEXT_ID + 1, 0], "max_length": 20},
    "special_tokens_map.json": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<a>"]},
    "added_tokens.json": {"<a>": NEXT_ID + 2},
    "chat_template.json": {"chat_template": TEMPLATE},
    "processor_config.json": {"chat_template": TEMPLATE},
}
PIECES = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"\\ud800", b"\xff", b"\0")
texts = {name: json.dumps(content).encode() for name, content in FILES.items()}


def without_vocabulary(tokenizer: dict) -> dict:
    """Return a tokenizer without its many tokens and merges, so that other values are changed."""
    return tokenizer | {"model": tokenizer["model"] | {"vocab": {"a": 0}, "merges": []}}


@st.composite
def changed_files(draw) -> dict[str, bytes]:
    """Draw the files of a tokenizer, one or two of them changed, and some left out."""
    kept = draw(st.sets(st.sampled_from(sorted(FILES)[1:] or [""])))
    files = {name: texts[name] for name in {"tokenizer.json", "tokenizer_config.json"} | kept}
    for name in draw(st.sets(st.sampled_from(sorted(files)), min_size=1, max_size=2)):
        content = FILES[name]
        if name == "tokenizer.json" and draw(st.booleans()):
            shown = without_vocabulary(content)
            value = draw(changed(shown))
            if isinstance(value.get("model"), dict) and draw(st.booleans()):
                stored = {key: content["model"][key] for key in ("vocab", "merges")}
                value["model"] = value["model"] | stored
            files[name] = json.dumps(value).encode()
        elif draw(st.integers(0, 3)):
            files[name] = json.dumps(draw(changed(content))).encode()
        else:
            files[name] = draw(damaged(texts[name], PIECES))
    return files


def check_message(text: str) -> None:
    assert 1 <= len(text.splitlines()) <= 2, text
    assert MARK not in text


def load(folder: Path, files: dict[str, bytes]) -> None:
    """Load a tokenizer and encode rows; only errors with a name are raised, and caught here."""
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        pipeline = load_pipeline(PackOptions(tokenizer=str(folder)))
        check_template(pipeline)
        for split in read_splits(files_of(folder / "rows.jsonl", [ROWS["plain"], ROWS["tools"]])):
            found = tokenize(pipeline, split, Stopwatch())
            assert sum(found.row_turns < 0) == len(found.rejects)
    except (MtpackError, FastPathFailedError) as error:
        check_message(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@given(changed_files())
@settings(max_examples=examples(600), suppress_health_check=list(HealthCheck))
def test_any_files_of_a_tokenizer_are_loaded_or_refused(folder, files):
    load(folder, files)


@pytest.mark.parametrize("files", HARD_TOKENIZERS)
def test_hard_tokenizers_are_loaded_or_refused(folder, files):
    stored = {name: json.dumps(content).encode() for name, content in files.items()}
    load(folder, texts | stored)


def test_the_files_load_unchanged(folder):
    load(folder, texts)
    assert load_pipeline(PackOptions(tokenizer=str(folder))).tokenizer.pad_id == 0
