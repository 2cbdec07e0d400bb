"""fastokens gives the ids of tokenizers or is not used; positions follow from byte lengths."""

import gzip
import itertools
import json
import os
import subprocess
import sys
import unicodedata
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import fastokens
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from mtpack.errors import SetupError
from mtpack.fast_path import FastPathFailedError
from mtpack.token_batch import offsets_from_lengths
from mtpack.tokenizer.byte_level import build_byte_level
from mtpack.tokenizer.engines import (
    Engine,
    FlatTokens,
    find_first_difference,
    load_fast_engine,
    load_reference_engine,
)
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, LoadedTokenizer, load_tokenizer
from mtpack.tokenizer.probe import build_probe_texts, choose_sample, find_wrong_text
from tests.conftest import shared
from tests.support.hostile_texts import hostile_texts

EMBEDDED = "embedded"
BYTE_LEVEL_NAMES = (EMBEDDED, "gpt2", "minimind", "qwen3")
SUPPORTED = (*BYTE_LEVEL_NAMES, "phi-3-mini")
NOT_SUPPORTED = ("bert-base-uncased-wordpiece", "t5-small-unigram")
MANY = 20_000

# The patterns with which models cut text, from their files.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"|[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SIGNS, SPACE = r"| ?[^\s\p{L}\p{N}]+", r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LATER = rf"{WORD}{UPPER}*{LOWER}+%s{WORD}{UPPER}+{LOWER}*%s|%s{SIGNS}[\r\n/]*{SPACE}"[1:]
PATTERNS = {
    "llama 3": [rf"{CONTRACTIONS}{WORD}\p{{L}}+|\p{{N}}{{1,3}}{SIGNS}[\r\n]*{SPACE}"],
    "qwen 3.5": [
        rf"{CONTRACTIONS}{WORD}[\p{{L}}\p{{M}}]+|\p{{N}}| "
        rf"?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{SPACE}"
    ],
    "gpt-4o": [LATER % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?", r"\p{N}{1,3}")],
    "mistral": [LATER % ("", "", r"\p{N}")],
    "deepseek": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^RN\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
        r""" ?[\p{P}\p{S}]+[RN]*|\s*[RN]+|\s+(?!\S)|\s+""".replace("RN", "\r\n"),
    ],
}
UNUSUAL_PATTERNS = {
    "gpt-2 as a regex": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "words": r"[^\w]?\w+|\d{1,3}|[[:punct:]]+|\s+",
}
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
WITH_A_SPACE = BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True}


@cache
def loaded(name: str) -> LoadedTokenizer:
    return load_tokenizer(None if name == EMBEDDED else str(shared(f"tokenizers/{name}")))


@cache
def engines(name: str) -> tuple[Engine, Engine]:
    return load_reference_engine(loaded(name)), load_fast_engine(loaded(name))


@cache
def hostile_to(name: str) -> list[str]:
    return hostile_texts(MANY, contents(loaded(name)))


def contents(tokenizer: LoadedTokenizer) -> list[str]:
    return [token.content for token in tokenizer.added_tokens.tokens]


def changed(folder: Path, **changes: object) -> LoadedTokenizer:
    """Load the embedded tokenizer with some parts of tokenizer.json replaced."""
    stored = json.loads((EMBEDDED_FOLDER / "tokenizer.json").read_text())
    for path, value in changes.items():
        part = stored
        *outer, last = path.split("__")
        for name in outer:
            part = part[name]
        part[last] = value
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return load_tokenizer(str(folder))


def splitting(*patterns: str, behavior: str = "Isolated") -> dict[str, object]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
        for pattern in patterns
    ]
    return before_bytes(*splits)


def before_bytes(*steps: dict[str, object]) -> dict[str, object]:
    return {"type": "Sequence", "pretokenizers": [*steps, BYTE_LEVEL]}


def added(number: int, content: str, **flags: bool) -> dict[str, object]:
    usual = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": content, **usual, **flags}


def assert_equal(reference: Engine, fast: Engine, texts: list[str]) -> None:
    differing = find_first_difference(reference.encode(texts), fast.encode(texts))
    assert differing is None, ascii(texts[differing])


# Equal ids


@pytest.mark.oracle
@pytest.mark.parametrize("name", SUPPORTED)
def test_fastokens_gives_the_ids_of_tokenizers_on_hostile_texts(name):
    assert_equal(*engines(name), hostile_to(name))


@pytest.mark.oracle
@pytest.mark.parametrize("name", SUPPORTED)
def test_fastokens_gives_the_ids_of_tokenizers_on_real_rows(name):
    assert_equal(*engines(name), real_rows())


@cache
def real_rows() -> list[str]:
    """Return rows as JSON text, and all strings in them."""
    lines = []
    for file, number in (("bench_en.jsonl.gz", 60), ("bench_zh.jsonl.gz", 40)):
        with gzip.open(shared(f"data/{file}"), "rt") as stream:
            lines += list(itertools.islice(stream, number))
    for file in ("glaive_toolcall_en.jsonl", "glaive_toolcall_zh.jsonl", "reason_tool_use.jsonl"):
        lines += shared(f"data/{file}").read_text().splitlines()[:20]
    return [*lines, *(text for line in lines for text in strings_in(json.loads(line)))]


def strings_in(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in strings_in(item)]


@pytest.mark.parametrize("family", PATTERNS)
def test_fastokens_gives_the_ids_of_tokenizers_with_the_patterns_of_other_models(family, tmp_path):
    tokenizer = changed(tmp_path, pre_tokenizer=splitting(*PATTERNS[family]))
    texts = hostile_texts(MANY // 4, contents(tokenizer), seed=1)
    assert_equal(load_reference_engine(tokenizer), load_fast_engine(tokenizer), texts)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "!", "1", "é", "ab ", "a\n", "\r\n "])
def test_long_runs_have_the_same_ids(unit):
    assert_equal(*engines(EMBEDDED), [unit * (100_000 // len(unit)), "", f"x{unit * 20_000}y"])


def test_the_reference_gives_the_ids_of_tokenizers():
    for name in (EMBEDDED, *NOT_SUPPORTED):
        texts = ["", "Hello, wörld!", "", *hostile_texts(50, contents(loaded(name)))]
        tokens = load_reference_engine(loaded(name)).encode(texts)
        encodings = loaded(name).backend.encode_batch(texts, add_special_tokens=False)
        assert [tokens.of(i).tolist() for i in range(len(texts))] == [e.ids for e in encodings]
        assert (tokens.ids.dtype, tokens.offsets.dtype) == (np.int32, np.int64)


def test_no_texts_give_no_tokens():
    for engine in engines(EMBEDDED):
        nothing = engine.encode([])
        assert (len(nothing.ids), nothing.offsets.tolist()) == (0, [0])


def test_both_engines_know_tokens_that_only_the_config_declares(tmp_path):
    stored = (EMBEDDED_FOLDER / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(stored)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|over|>"}))
    tokenizer = load_tokenizer(str(tmp_path))
    for engine in (load_reference_engine(tokenizer), load_fast_engine(tokenizer)):
        number = tokenizer.backend.token_to_id("<|over|>")
        assert engine.encode(["<|over|>"]).ids.tolist() == [number]
    assert "<|over|>" not in stored


def test_a_post_processor_adds_no_tokens(tmp_path):
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["x"]}},
    }
    tokenizer = changed(tmp_path, post_processor=processor)
    expected = engines(EMBEDDED)[0].encode(["Hello"]).ids.tolist()
    for engine in (load_reference_engine(tokenizer), load_fast_engine(tokenizer)):
        assert engine.encode(["Hello"]).ids.tolist() == expected


# Engines that can't be used


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_a_tokenizer_that_fastokens_does_not_support_is_refused_in_one_line(name):
    with pytest.raises(FastPathFailedError, match=r"^fastokens can't load this tokenizer \(.*\)$"):
        load_fast_engine(loaded(name))


def test_a_missing_fastokens_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    with pytest.raises(FastPathFailedError, match="can't be imported"):
        load_fast_engine(loaded(EMBEDDED))


def test_a_text_that_can_not_be_encoded_raises_the_error_of_its_engine():
    reference, fast = engines(EMBEDDED)
    with pytest.raises(SetupError, match="embedded: the tokenizer failed"):
        reference.encode(["\ud800"])
    with pytest.raises(FastPathFailedError, match="fastokens failed"):
        fast.encode(["\ud800"])


class PanicException(BaseException):
    """An exception with the name of the one that Rust libraries raise."""


def engine_that_returns(result: object) -> Engine:
    """Return the fast engine with a fastokens that returns or raises `result`."""

    class Tokenizer:
        @staticmethod
        def from_json_str(text: str) -> "Tokenizer":
            return Tokenizer()

        def encode_batch_flat(self, texts: list[str], add_special_tokens: bool) -> object:
            if isinstance(result, BaseException):
                raise result
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastokens, "Tokenizer", Tokenizer)
        return load_fast_engine(loaded(EMBEDDED))


def buffers(ids: list[int], offsets: list[int]) -> tuple[bytes, bytes]:
    return np.array(ids, "<i4").tobytes(), np.array(offsets, "<i8").tobytes()


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(ValueError("bad regex"), id="an error"),
        pytest.param(PanicException("index out of bounds"), id="a panic"),
        pytest.param(buffers([5, 6], [0, 1]), id="a text is missing"),
        pytest.param(buffers([5, 6], [0, 1, 1]), id="tokens left over"),
        pytest.param(buffers([5, 6], [1, 1, 2]), id="tokens before the first text"),
        pytest.param(buffers([5, 6], [0, 3, 2]), id="texts that overlap"),
        pytest.param((b"\5\0\0\0\6\0\0", buffers([], [0, 1, 2])[1]), id="half a number"),
        pytest.param(buffers([5, -1], [0, 1, 2]), id="a negative id"),
        pytest.param(buffers([5, 8192], [0, 1, 2]), id="an id after the vocabulary"),
    ],
)
def test_any_error_in_fastokens_raises_engine_failed_error(result):
    with pytest.raises(FastPathFailedError, match=r"^fastokens .*$"):
        engine_that_returns(result).encode(["a", "b"])


def test_a_correct_result_is_returned():
    tokens = engine_that_returns(buffers([5, 8191], [0, 1, 2])).encode(["a", "b"])
    assert (tokens.of(0).tolist(), tokens.of(1).tolist()) == ([5], [8191])


def test_ctrl_c_is_not_an_engine_error():
    with pytest.raises(KeyboardInterrupt):
        engine_that_returns(KeyboardInterrupt()).encode(["a"])


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_loading_starts_no_thread_so_that_the_process_may_fork():
    code = """
import os
from mtpack.tokenizer.loading import load_tokenizer, read_tokenizer_files
from mtpack.tokenizer.engines import FastLoading, load_fast_engine
before = len(os.listdir("/proc/self/task"))
begun = FastLoading(read_tokenizer_files(None))
load_fast_engine(load_tokenizer(None), begun)
print(len(os.listdir("/proc/self/task")) - before)
"""
    may_have_threads = {**os.environ, "FASTOKENS_BPE_THREADS": "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=may_have_threads)
    assert done.stdout.strip() == "0"


# The probe


def probe(reference: Engine, fast: Engine, texts: list[str]) -> int | None:
    return find_wrong_text(fast, texts, reference.encode(texts))


@pytest.mark.parametrize("name", SUPPORTED)
def test_equal_engines_pass_the_probe(name):
    texts = build_probe_texts(loaded(name).added_tokens)
    assert probe(*engines(name), texts) is None
    assert set(contents(loaded(name))) - {""} <= set(texts)  # these have few added tokens
    assert sum(len(text.encode()) for text in texts) < 150_000


def make_ids_wrong(engine: Engine, is_wrong) -> Engine:
    """Return an engine with a wrong first id where `is_wrong(text, number of texts)`."""

    def encode(texts: list[str]) -> FlatTokens:
        tokens = engine.encode(texts)
        ids = tokens.ids.copy()
        for number, text in enumerate(texts):
            if is_wrong(text, len(texts)) and len(tokens.of(number)):
                ids[tokens.offsets[number]] += 1
        return tokens._replace(ids=ids)

    return replace(engine, encode=encode)


@pytest.mark.parametrize(
    "is_wrong",
    [
        pytest.param(lambda text, number: text == "trailing ", id="one text"),
        pytest.param(lambda text, number: text == "é" and number > 1, id="in a batch only"),
        pytest.param(lambda text, number: text == "é" and number == 1, id="alone only"),
        pytest.param(lambda text, number: "<|im_end|><|im_end|>" in text, id="adjacent tokens"),
        pytest.param(lambda text, number: "  \u180e" in text, id="a rare white space"),
        pytest.param(lambda text, number: len(text) > 15_000, id="a long text"),
    ],
)
def test_the_probe_finds_one_wrong_id(is_wrong):
    reference, fast = engines(EMBEDDED)
    texts = [*build_probe_texts(loaded(EMBEDDED).added_tokens), "é"]
    found = probe(reference, make_ids_wrong(fast, is_wrong), texts)
    assert any(is_wrong(texts[found], number) for number in (1, len(texts)))


def test_the_probe_finds_a_token_that_is_left_out():
    reference, fast = engines(EMBEDDED)

    def encode(texts: list[str]) -> FlatTokens:
        tokens = fast.encode(texts)
        lengths = np.diff(tokens.offsets)
        lengths[-1] -= 1
        return FlatTokens(tokens.ids[:-1], offsets_from_lengths(lengths))

    assert probe(reference, replace(fast, encode=encode), ["Hello", "world"]) == 1


UNUSUAL = {
    **{name: {"pre_tokenizer": splitting(pattern)} for name, pattern in UNUSUAL_PATTERNS.items()},
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "a prefix": {"normalizer": {"type": "Prepend", "prepend": "x"}},
    "a space before": {"pre_tokenizer": WITH_A_SPACE},
    **{
        f"tokens with {' '.join(flags)}": {
            "added_tokens": [
                added(0, "<|endoftext|>", **dict.fromkeys(flags, True)),
                added(8192, "<TAG>", **dict.fromkeys(flags, True)),
                added(8193, "don", **dict.fromkeys(flags, True)),
                added(8194, "   ", **dict.fromkeys(flags, True)),
                added(8195, "e\u0301", **dict.fromkeys(flags, True)),
            ],
            "normalizer": {"type": "NFC"},
        }
        for flags in (
            ("lstrip",),
            ("rstrip",),
            ("lstrip", "rstrip"),
            ("single_word",),
            ("normalized",),
            ("normalized", "lstrip", "single_word"),
        )
    },
}


@pytest.mark.parametrize("change", UNUSUAL)
def test_a_tokenizer_whose_ids_differ_anywhere_is_refused_by_the_probe(change, tmp_path):
    tokenizer = changed(tmp_path, **UNUSUAL[change])
    reference, fast = load_reference_engine(tokenizer), load_fast_engine(tokenizer)
    texts = hostile_texts(MANY // 4, contents(tokenizer), seed=2)
    if find_first_difference(reference.encode(texts), fast.encode(texts)) is not None:
        with suppress(FastPathFailedError):  # as good as a difference
            assert probe(reference, fast, build_probe_texts(tokenizer.added_tokens)) is not None


def test_a_long_row_of_the_input_is_cut():
    sample = choose_sample(["x" * 30_000, "y" * 30_000, "z"])
    assert sample == ["x" * 30_000, "y" * 10_000]


# Positions of tokens


@pytest.mark.oracle
@pytest.mark.parametrize("name", BYTE_LEVEL_NAMES)
def test_positions_from_byte_lengths_are_the_offsets_of_tokenizers(name):
    tokenizer, reference = loaded(name), engines(name)[0]
    table = build_byte_level(tokenizer)
    texts = hostile_to(name)
    if table.normal_form is not None:
        texts = [text for text in texts if unicodedata.is_normalized(table.normal_form, text)]
    assert len(texts) > MANY / 2
    tokens = reference.encode(texts)
    encodings = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        edges = offsets_from_lengths(table.lengths[tokens.of(number)])
        assert edges[-1] == len(text.encode())
        character_of_byte = [i for i, c in enumerate(text) for _ in c.encode()]
        assert encoding.offsets == [
            (character_of_byte[start], character_of_byte[end - 1] + 1)
            for start, end in itertools.pairwise(edges.tolist())
        ]


def test_byte_lengths_do_not_sum_up_with_absorbed_space_and_need_the_normal_form(tmp_path):
    tag = added(8192, "<TAG>", rstrip=True)
    tokenizer = changed(tmp_path, normalizer={"type": "NFC"}, added_tokens=[tag])
    table = build_byte_level(tokenizer)
    tokens = load_reference_engine(tokenizer).encode(["<TAG>x", "<TAG> x", "é", "e\u0301"])
    sums = [int(table.lengths[tokens.of(number)].sum()) for number in range(4)]
    assert sums == [6, 6, 2, 2]
    assert table.normal_form == "NFC"


def test_the_length_of_an_added_token_is_that_of_its_normal_form(tmp_path):
    spelled = "n\u0303"  # two characters that NFC composes to one
    tokens = [added(8186, spelled, normalized=True), added(8187, spelled * 2)]
    tokenizer = changed(tmp_path, normalizer={"type": "NFC"}, added_tokens=tokens)
    assert load_reference_engine(tokenizer).encode(["ñ", spelled * 2]).ids.tolist() == [8186, 8187]
    assert build_byte_level(tokenizer).lengths[[8186, 8187]].tolist() == [2, 6]


def test_unused_ids_have_length_zero(tmp_path):
    vocabulary = {letter: 2 * number for number, letter in enumerate(ALPHABET)}
    changes = {"model__vocab": vocabulary, "model__merges": [], "added_tokens": []}
    assert build_byte_level(changed(tmp_path, **changes)).lengths.tolist() == [1, 0] * 255 + [1]


WITHOUT_A_BYTE = {letter: number for number, letter in enumerate(ALPHABET[1:])}


@pytest.mark.parametrize("name", ["phi-3-mini", *NOT_SUPPORTED])
def test_there_is_no_table_if_tokens_do_not_spell_bytes(name):
    assert build_byte_level(loaded(name)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": WITH_A_SPACE},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}},
        {"pre_tokenizer": before_bytes(BYTE_LEVEL)},
        {"pre_tokenizer": before_bytes({"type": "WhitespaceSplit"})},
        {"pre_tokenizer": splitting("x", behavior="Removed")},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}},
        {"model__byte_fallback": True},
        {"model__end_of_word_suffix": "</w>"},
        {"model__vocab": WITHOUT_A_BYTE, "model__merges": []},
    ],
    ids=str,
)
def test_there_is_no_table_if_text_is_changed_or_lost(changes, tmp_path):
    assert build_byte_level(changed(tmp_path, added_tokens=[], **changes)) is None
