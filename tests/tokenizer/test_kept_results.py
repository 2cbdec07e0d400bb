"""What is kept of a tokenizer is what would be found again, and a run decides the same with it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from mtpack.errors import SetupError
from mtpack.fast_path import FastPathFailedError
from mtpack.tokenizer import encoders, kept_results
from mtpack.tokenizer.byte_level import build_byte_level
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.engines import FastLoading, FlatTokens, load_fast_engine
from mtpack.tokenizer.kept_results import KeptResults
from mtpack.tokenizer.loading import (
    EMBEDDED_FOLDER,
    describe_tokenizer,
    load_tokenizer,
    read_tokenizer_files,
)
from mtpack.user_cache import find_cache_folder
from tests.conftest import shared

EMBEDDED = load_tokenizer(None)


def keep(tokenizer=EMBEDDED) -> KeptResults:
    return KeptResults(tokenizer.files, is_kept=True)


def fail(*arguments):
    raise AssertionError("this was kept")


@pytest.mark.parametrize("name", [None, "qwen3", "phi-3-mini"])
def test_the_kept_table_of_byte_lengths_is_the_one_that_was_built(name):
    tokenizer = load_tokenizer(name and str(shared(f"tokenizers/{name}")))
    built = keep(tokenizer).find_byte_level(lambda: build_byte_level(tokenizer))
    kept = keep(tokenizer).find_byte_level(fail)
    if name == "phi-3-mini":
        assert built is kept is None
        return
    assert np.array_equal(kept.lengths, built.lengths)
    assert kept.lengths.dtype == built.lengths.dtype == np.int32
    assert kept.normal_form == built.normal_form


@pytest.mark.parametrize(
    "name", [None, "qwen3", "phi-3-mini", "t5-small-unigram", "bert-base-uncased-wordpiece"]
)
def test_a_kept_tokenizer_is_the_one_that_was_built_and_loads_nothing(name, monkeypatch):
    built = load_tokenizer(name and str(shared(f"tokenizers/{name}")))
    keep(built).find_tokenizer()
    with monkeypatch.context() as patch:
        patch.setattr("tokenizers.Tokenizer.from_str", fail)
        kept = keep(built).find_tokenizer()
    assert describe_tokenizer(kept) == describe_tokenizer(built)
    assert (kept.added_tokens.control, kept.folder) == (built.added_tokens.control, built.folder)
    assert kept.backend.to_str() == built.backend.to_str()


def test_a_kept_tokenizer_has_the_tokens_that_only_the_config_declares(tmp_path):
    shutil.copy(EMBEDDED_FOLDER / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|over|>"}))
    files = read_tokenizer_files(str(tmp_path))
    for _ in range(2):
        tokenizer = KeptResults(files, is_kept=True).find_tokenizer()
        assert tokenizer.backend.encode("<|over|>").ids == [tokenizer.pad_id]
        assert load_fast_engine(tokenizer).encode(["<|over|>"]).ids.tolist() == [tokenizer.pad_id]


def test_nothing_is_kept_of_a_tokenizer_that_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": null}')
    for _ in range(2):
        with pytest.raises(SetupError, match="not a tokenizer that can be loaded"):
            KeptResults(read_tokenizer_files(str(tmp_path)), is_kept=True).find_tokenizer()
    assert not find_cache_folder().exists()


def test_a_damaged_table_is_built_again():
    keep().find_byte_level(lambda: build_byte_level(EMBEDDED))
    (file,) = (find_cache_folder() / "tokenizers").iterdir()
    stored = file.read_bytes()
    file.write_bytes(stored[:-4] + b"\x7f\0\0\0")
    assert keep().find_byte_level(lambda: None) is None


def test_results_belong_to_the_files_and_the_versions(tmp_path, monkeypatch):
    keep().keep_probe("")
    assert keep().read_probe() == ""
    shutil.copy(EMBEDDED_FOLDER / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|over|>"}))
    assert keep(load_tokenizer(str(tmp_path))).read_probe() is None
    for name, value in (
        ("__version__", "another"),
        ("_FORMAT", 0),
        ("_find_fastokens", lambda: ["another"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(kept_results, name, value)
            assert keep().read_probe() is None
    assert keep().read_probe() == ""


def test_a_probe_that_was_passed_is_not_run_again_but_the_sample_is(monkeypatch):
    Encoders(EMBEDDED, 0, keep()).probe_fast(["a row"])
    monkeypatch.setattr(encoders, "build_probe_texts", fail)
    Encoders(EMBEDDED, 0, keep()).probe_fast(["a row"])
    change_one_id_of(monkeypatch, "a row")
    assert find_refusal() == (
        "fastokens gives other ids than tokenizers for this tokenizer (text 1 of the sample)"
    )


def change_one_id_of(monkeypatch, text: str) -> None:
    """Make fastokens give a wrong first id for a text."""

    def load(tokenizer, begun):
        right = load_fast_engine(tokenizer, begun)

        def encode(texts):
            found = right.encode(texts)
            ids = found.ids.copy()
            if text in texts:
                ids[found.offsets[texts.index(text)]] += 1
            return FlatTokens(ids, found.offsets)

        return replace(right, encode=encode)

    monkeypatch.setattr(encoders, "load_fast_engine", load)


def find_refusal(*, is_kept: bool = True) -> str | None:
    try:
        Encoders(EMBEDDED, 0, keep() if is_kept else None).probe_fast(["one", "a row"])
    except FastPathFailedError as error:
        return str(error)
    return None


@pytest.mark.parametrize("text", ["trailing ", "a row", "no text of the probe"])
def test_the_decision_is_the_same_with_and_without_what_is_kept(text, monkeypatch):
    change_one_id_of(monkeypatch, text)
    decisions = [find_refusal(is_kept=is_kept) for is_kept in (False, True, True)]
    assert len(set(decisions)) == 1
    assert (decisions[0] is None) == (text == "no text of the probe")


def test_a_refused_engine_is_not_loaded_again(monkeypatch):
    change_one_id_of(monkeypatch, "trailing ")
    assert find_refusal() is not None
    monkeypatch.setattr(encoders, "load_fast_engine", fail)
    assert find_refusal() is not None


def test_fastokens_loads_also_where_no_thread_can_be_started(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    begun = FastLoading(EMBEDDED.files)
    expected = load_fast_engine(EMBEDDED).encode(["Hello"]).ids.tolist()
    assert load_fast_engine(EMBEDDED, begun).encode(["Hello"]).ids.tolist() == expected
