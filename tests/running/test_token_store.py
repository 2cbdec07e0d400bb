"""`--token-store`: tokenized splits are reused, and only where the result is the same."""

import gzip
import json
from pathlib import Path

import pytest

import mtpack
from mtpack.running.callbacks import Callbacks
from tests.conftest import SAMPLE_DATA

ROWS = SAMPLE_DATA / "conversations_en.jsonl"


def pack(output: Path, store: Path, inputs=ROWS, **options):
    settings = {"workers": 1, "seq_len": 1024, "token_store": store, **options}
    return mtpack.pack(inputs, output=output, callbacks=Callbacks(), **settings)


@pytest.fixture
def store(tmp_path) -> Path:
    pack(tmp_path / "first", tmp_path / "store")
    return tmp_path / "store"


def is_reused(report) -> bool:
    """Return whether all dialogues came from the store; fail if only some did."""
    accepted = report.tally.rows_read - sum(report.tally.rows_rejected.values())
    assert report.about.reused in (0, accepted)
    assert report.about.reused + report.about.rendered + report.about.replayed == accepted
    return report.about.reused > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seq_len": 512},
        {"seq_len": 96, "overlong": "truncate"},
        {"seq_len": 96, "overlong": "split"},
        {"seq_len": 96, "overlong": "error", "on_error": "skip"},
        {"seed": 3},
        {"packing": "none"},
        {"label_alignment": "shifted", "pad_documents_to": 8},
    ],
)
def test_other_packing_options_reuse_the_store_and_give_the_same_output(tmp_path, store, options):
    again = pack(tmp_path / "again", store, **options)
    fresh = pack(tmp_path / "fresh", tmp_path / "other store", **options)
    assert not is_reused(fresh)
    if options.get("overlong") != "error":
        assert is_reused(again)  # else rejected rows leave the counts: the split is made again
    assert again.tally == fresh.tally
    assert again.shards == fresh.shards
    rejects = [tmp_path / name / "rejects.jsonl" for name in ("again", "fresh")]
    assert rejects[0].read_text() == rejects[1].read_text()


@pytest.mark.parametrize(
    "options",
    [
        {"merge": "never"},
        {"train_turns": "last"},
        {"control_tokens": "literal"},
        {"date": "2020-02-02"},
        {"template_arg": ["x=1"]},
    ],
)
def test_options_that_change_a_split_make_the_store_unusable(tmp_path, store, options):
    assert not is_reused(pack(tmp_path / "again", store, **options))


def test_the_same_rows_are_found_in_any_file(tmp_path, store):
    packed = tmp_path / "elsewhere.jsonl.gz"
    packed.write_bytes(gzip.compress(ROWS.read_bytes()))
    assert is_reused(pack(tmp_path / "again", store, packed))


def test_rows_after_others_have_the_right_indices(tmp_path, store):
    before = tmp_path / "before.jsonl"
    row = {"messages": [{"role": "user", "content": "Hi"}] * 2, "more": "x" * 2**20}
    before.write_text(json.dumps(row) + "\n")  # a split of its own, without a turn
    pack(tmp_path / "again", store, [before, ROWS])
    pack(tmp_path / "fresh", tmp_path / "other store", [before, ROWS])
    shards = [mtpack.open_shards(tmp_path / name) for name in ("again", "fresh")]
    assert shards[0].manifest.report.about.reused > 0
    assert shards[0].manifest.report.shards == shards[1].manifest.report.shards


def test_changed_rows_are_tokenized_again(tmp_path, store):
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(ROWS.read_bytes().replace(b"the", b"teh", 1))
    assert not is_reused(pack(tmp_path / "again", store, changed))


@pytest.mark.parametrize("damage", ["documents", "record", "missing", "nonsense"])
def test_a_damaged_entry_is_ignored_and_replaced(tmp_path, store, damage):
    fresh = mtpack.open_shards(tmp_path / "first").manifest.report
    record = next(store.rglob("*.json"))
    documents = record.with_suffix("")
    if damage == "documents":
        content = bytearray(documents.read_bytes())
        content[-3] ^= 1
        documents.write_bytes(content)
    elif damage == "record":
        record.write_bytes(record.read_bytes()[:-20])
    elif damage == "missing":
        documents.unlink()
    else:
        record.write_text("[1]")
    again = pack(tmp_path / "again", store)
    assert not is_reused(again)
    assert again.shards == fresh.shards
    assert is_reused(pack(tmp_path / "once more", store))


def test_rejected_rows_of_a_stored_split_are_reported_again(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"messages": 1}\n' + ROWS.read_bytes())
    for name in ("first", "again"):
        report = pack(tmp_path / name, tmp_path / "store", rows, on_error="skip")
        reject = json.loads((tmp_path / name / "rejects.jsonl").read_text())
        assert (reject["row"], reject["line"]) == (0, 1)
        assert report.tally.rows_rejected == {"invalid_row": 1}
    assert is_reused(report)


def test_the_report_has_the_size_of_the_store(tmp_path, store):
    report = mtpack.open_shards(tmp_path / "first").manifest.report
    files = [file for file in store.rglob("*") if file.is_file()]
    assert report.about.token_store_bytes == sum(file.stat().st_size for file in files) > 0


def test_splits_of_a_disabled_fast_path_are_tokenized_again(
    tmp_path, learn_everything, store, monkeypatch
):
    for record in store.rglob("*.json"):
        assert "replay" in json.loads(record.read_text())["fast_paths"]
    monkeypatch.setattr("mtpack.running.split_task.find_split", lambda *_: None)
    monkeypatch.setattr("mtpack.template.tracing.replayer.Replayer._replay", replay_wrongly)
    report = pack(tmp_path / "again", store)
    assert report.about.audit_mismatches > 0
    monkeypatch.undo()
    for record in store.rglob("*.json"):
        assert "replay" not in json.loads(record.read_text())["fast_paths"]
    assert is_reused(pack(tmp_path / "once more", store))


def replay_wrongly(replayer, dialogue, shape):
    rendered = replayer.render_without_replay(dialogue)
    return rendered._replace(merged=rendered.merged._replace(text=rendered.merged.text + " "))


def test_stored_splits_are_packed_without_any_engine(tmp_path, store, monkeypatch):
    def fail(*arguments):
        raise AssertionError("nothing is to be tokenized")

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", fail)
    for name in ("build_byte_level", "load_fast_engine", "load_reference_engine"):
        monkeypatch.setattr(f"mtpack.tokenizer.encoders.{name}", fail)
    assert is_reused(pack(tmp_path / "again", store, seq_len=512))


def test_a_folder_of_other_files_is_refused_as_a_token_store(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("Hi")
    with pytest.raises(mtpack.SetupError) as refused:
        pack(tmp_path / "packed", home)
    assert str(refused.value) == (
        f"{home}: holds files that mtpack did not write, such as letter.txt; "
        "choose another --token-store"
    )
    assert [path.name for path in home.iterdir()] == ["letter.txt"]
    assert not (tmp_path / "packed").exists()
    with pytest.raises(mtpack.SetupError, match="not a folder; choose another --token-store"):
        pack(tmp_path / "packed", home / "letter.txt")


def test_a_token_store_with_another_file_in_it_and_an_empty_folder_are_accepted(tmp_path, store):
    (store / "README").write_text("tokens of the team")
    assert is_reused(pack(tmp_path / "again", store))
    (tmp_path / "empty").mkdir()
    assert not is_reused(pack(tmp_path / "fresh", tmp_path / "empty"))
