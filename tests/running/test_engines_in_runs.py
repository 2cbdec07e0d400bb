"""Engines in runs: which one is chosen, how it is probed, and what happens if it is wrong."""

from pathlib import Path

import numpy as np
import pytest

import mtpack
from mtpack.errors import SetupError
from mtpack.fast_path import FastPathFailedError
from mtpack.running.pack import Callbacks
from mtpack.tokenizer import encoders
from mtpack.tokenizer.engines import Engine, FlatTokens, load_fast_engine
from mtpack.user_cache import find_cache_folder
from tests.conftest import SAMPLE_DATA, shared

ROWS = sorted(SAMPLE_DATA.glob("*.jsonl"))


def pack(folder, **options):
    warnings: list[str] = []
    settings = {"workers": 1, "tokenizer_engine": "auto", **options}
    report = mtpack.pack(ROWS, output=folder, callbacks=Callbacks(warn=warnings.append), **settings)
    return report, warnings


def test_both_engines_give_the_same_shards_and_the_report_names_the_engine(tmp_path):
    for engine in ("tokenizers", "fastokens"):
        report, warnings = pack(tmp_path / engine, tokenizer_engine=engine)
        assert report.about.tokenizer_engine == engine
        assert not [line for line in warnings if "engine" in line or "fastokens" in line]
    one, other = (mtpack.open_shards(tmp_path / name) for name in ("tokenizers", "fastokens"))
    assert one.manifest.report.shards == other.manifest.report.shards


def test_a_small_input_does_not_load_the_fast_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "load_fast_engine", pytest.fail)
    monkeypatch.setattr("mtpack.running.pipeline._SECONDS_TO_LOAD", 1.0)
    report, _ = pack(tmp_path / "packed")
    assert report.about.tokenizer_engine == "tokenizers"


def choose_fastokens_for_any_size(monkeypatch):
    monkeypatch.setattr("mtpack.running.pipeline._SECONDS_TO_LOAD", 0.0)


def test_a_tokenizer_that_fastokens_cannot_load_falls_back_with_one_line(tmp_path, monkeypatch):
    choose_fastokens_for_any_size(monkeypatch)
    tokenizer = shared("tokenizers/t5-small-unigram")
    template = shared("templates/trl/qwen3_instruct_2507.jinja")
    options = {"tokenizer": tokenizer, "chat_template": template}
    report, warnings = pack(tmp_path / "packed", **options)
    assert report.about.tokenizer_engine == "tokenizers"
    assert sum("continuing with tokenizers" in line for line in warnings) == 1
    with pytest.raises(SetupError, match="--tokenizer-engine auto or tokenizers"):
        pack(tmp_path / "other", tokenizer_engine="fastokens", **options)


def break_fastokens(monkeypatch, is_broken) -> None:
    """Make the fast engine change one id of each batch of texts for which `is_broken(texts)`."""

    def load(tokenizer, begun):
        right = load_fast_engine(tokenizer, begun)

        def encode(texts):
            found = right.encode(texts)
            if not is_broken(texts):
                return found
            ids = found.ids.copy()
            ids[np.flatnonzero(ids)[0]] -= 1
            return FlatTokens(ids, found.offsets)

        return Engine("fastokens", encode)

    monkeypatch.setattr(encoders, "load_fast_engine", load)
    choose_fastokens_for_any_size(monkeypatch)


def assert_tokenizers_makes_all_ids(tmp_path) -> list[str]:
    right, _ = pack(tmp_path / "right", tokenizer_engine="tokenizers")
    found, warnings = pack(tmp_path / "found")
    assert found.shards == right.shards
    assert found.tally == right.tally
    assert found.about.tokenizer_engine == "tokenizers"
    return warnings


def test_an_engine_that_fails_the_probe_is_not_used(tmp_path, monkeypatch):
    break_fastokens(monkeypatch, lambda texts: any("<|im_end|><|im_end|>" in x for x in texts))
    warnings = assert_tokenizers_makes_all_ids(tmp_path)
    assert sum("continuing with tokenizers" in line for line in warnings) == 1
    with pytest.raises(SetupError, match="other ids than tokenizers"):
        pack(tmp_path / "other", tokenizer_engine="fastokens")


def test_a_failed_audit_discards_all_ids_of_a_wrong_engine(tmp_path, monkeypatch):
    is_dialogue = "<|im_start|>user\n"  # no text of the probe begins like this
    draw_a_third = lambda audit, rows: range(0, len(rows), 3)  # noqa: E731
    monkeypatch.setattr("mtpack.fast_path.Audit.draw", draw_a_third)
    monkeypatch.setattr(encoders, "build_probe_texts", lambda tokens: ["of no use"])
    break_fastokens(monkeypatch, lambda texts: texts[0].startswith(("<|im_start|>", is_dialogue)))
    warnings = assert_tokenizers_makes_all_ids(tmp_path)
    assert sum("gave other ids" in line for line in warnings) == 1
    about = mtpack.open_shards(tmp_path / "found").manifest.report.about
    assert about.audit_mismatches == 1


def test_an_engine_that_fails_during_a_run_is_replaced(tmp_path, monkeypatch):
    def load(tokenizer, begun):
        begun.finish()

        def encode(texts):
            raise FastPathFailedError("fastokens", "fastokens failed (PanicException)")

        return Engine("fastokens", encode)

    monkeypatch.setattr(encoders, "load_fast_engine", load)
    choose_fastokens_for_any_size(monkeypatch)
    assert_tokenizers_makes_all_ids(tmp_path)


def test_the_audit_of_a_correct_engine_finds_no_mismatch(tmp_path, learn_everything):
    report, _ = pack(tmp_path / "packed", tokenizer_engine="fastokens")
    replays = report.about.rendered
    assert report.about.audited > replays
    assert report.about.audit_mismatches == 0


# The cache


def list_cached() -> list[Path]:
    return [path for path in find_cache_folder().rglob("*") if path.is_file()]


def test_the_shards_are_the_same_whatever_the_cache_holds(tmp_path):
    def pack_again(name, **options):
        return pack(tmp_path / name, tokenizer_engine="fastokens", **options)[0].shards

    without = pack_again("without", no_cache=True)
    assert not list_cached()
    assert pack_again("first") == without
    kept = list_cached()
    assert len(kept) == 3  # the tokenizer's tokens, its byte lengths, and the result of the probe
    assert pack_again("kept") == without
    for file in kept:
        file.write_bytes(file.read_bytes()[::-1])
    assert pack_again("damaged") == without
    for file in kept:
        file.unlink()
        file.mkdir()
    assert pack_again("not writable") == without
