"""Complete runs, from files to shards: the same bytes, nothing lost, readable by other programs."""

import json
import random
import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mtpack
from mtpack.verify.structure import check_structure
from tests.conftest import SAMPLE_DATA, examples

SAMPLE_FILES = sorted(SAMPLE_DATA.glob("*.jsonl"))
REPORT_KEYS = {
    "rows_read",
    "rows_packed",
    "rows_dropped",
    "rows_rejected",
    "documents",
    "turns_read",
    "turns_packed",
    "turns_dropped",
    "turns_own_document",
    "prompt_differs",
    "no_eot",
    "unproven",
    "bent",
    "given_trained",
    "straddles",
    "content_dropped",
    "tokens",
    "tokens_if_merged",
    "loss_tokens",
    "control_tokens",
    "control_tokens_in_answers",
    "control_tokens_literal",
    "sequences",
    "sequences_lower_bound",
    "fill",
    "shards",
    "tokenizer_engine",
    "audited",
    "audit_mismatches",
    "replayed",
    "rendered",
    "seconds",
}


def pack(output: Path, inputs=SAMPLE_FILES, **options) -> mtpack.PackReport:
    return mtpack.pack(inputs, output=str(output), **{"workers": 1, "seq_len": 1024, **options})


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of an output that must be the same in every run."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in ("manifest.json", "recipe.toml")  # it names the input
    }


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("sample") / "packed"
    pack(output, shard_size="2MiB")
    return output


def test_the_report_has_the_keys_that_other_programs_read(packed):
    report = mtpack.open_shards(packed).manifest.report.as_dict()
    assert set(report) >= REPORT_KEYS
    assert json.loads(json.dumps(report)) == report
    assert set(report["shards"][0]) == {"path", "rows", "bytes", "sha256"}
    assert {"read", "render", "tokenize", "plan", "assemble", "write", "total"} <= set(
        report["seconds"]
    )


def test_every_invariant_holds_for_the_sample_data(packed):
    assert check_structure(mtpack.open_shards(packed)).violation is None


def test_the_same_input_options_and_seed_give_the_same_bytes(packed, tmp_path):
    pack(tmp_path / "again", shard_size="2MiB")
    assert contents(tmp_path / "again") == contents(packed)


def test_the_bytes_do_not_depend_on_the_number_of_workers(packed, tmp_path, monkeypatch):
    # Many splits, cut by this process.
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 50_000)
    pack(tmp_path / "three", shard_size="2MiB", workers=3)
    assert contents(tmp_path / "three") == contents(packed)


def test_another_seed_gives_another_order_of_the_same_turns(packed, tmp_path):
    pack(tmp_path / "other", shard_size="2MiB", seed=1)
    assert contents(tmp_path / "other") != contents(packed)
    assert turns_in(tmp_path / "other") == turns_in(packed)


def test_the_same_command_again_reports_the_same_and_writes_nothing(packed):
    before = {path: path.stat().st_mtime_ns for path in packed.iterdir()}
    warnings: list[str] = []
    callbacks = mtpack.Callbacks(warn=warnings.append)
    report = pack(packed, shard_size="2MiB", callbacks=callbacks)
    assert report.tally.rows_read == 320
    assert any("already complete" in line for line in warnings)
    assert {path: path.stat().st_mtime_ns for path in packed.iterdir()} == before


def test_a_run_after_an_interrupted_one_starts_over_with_a_warning(packed, tmp_path):
    output = tmp_path / "interrupted"
    (output / ".mtpack").mkdir(parents=True)
    (output / ".mtpack" / "run.json").write_text('{"mtpack_run": {}}')
    (output / ".mtpack" / "split-0000000.arrow").write_bytes(b"half")
    warnings: list[str] = []
    pack(output, shard_size="2MiB", callbacks=mtpack.Callbacks(warn=warnings.append))
    assert any("did not complete" in line for line in warnings)
    assert contents(output) == contents(packed)


def test_overwrite_replaces_the_shards_of_the_other_run(packed, tmp_path):
    output = tmp_path / "packed"
    shutil.copytree(packed, output)
    pack(output, SAMPLE_FILES[:1], overwrite=True)
    assert [path.name for path in output.glob("*.arrow")] == ["shard-00000.arrow"]
    assert mtpack.open_shards(output).manifest.report.tally.rows_read == 90


def test_standard_input_gives_the_same_output_as_a_file(tmp_path, monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SAMPLE_FILES[0].read_bytes())))
    pack(tmp_path / "piped", ["-"])
    pack(tmp_path / "named", SAMPLE_FILES[:1])
    assert contents(tmp_path / "piped") == contents(tmp_path / "named")


def test_windows_are_planned_separately_and_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 20_000)
    report = pack(tmp_path / "packed", window="8Ki")
    shards = mtpack.open_shards(tmp_path / "packed")
    assert len(report.shards) > 5
    assert check_structure(shards).violation is None
    assert report.tally.sequences == len(shards) >= report.tally.sequences_lower_bound
    for shard in shards.opened:  # no shard spans two windows
        rows = np.concatenate([batch.dialogue_ids for batch in shard.batches])
        assert np.ptp(rows[rows >= 0]) < 100


@pytest.mark.parametrize("workers", [1, 2])
def test_a_window_is_written_and_its_files_removed_while_the_next_is_tokenized(
    tmp_path, monkeypatch, workers
):
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 10_000)
    stages, most_files = [], 0

    def progress(stage: str, amount: int) -> None:
        nonlocal most_files
        stages.append(stage)
        most_files = max(most_files, len(list(tmp_path.glob("packed/.mtpack/splits/*/*-*.json"))))

    callbacks = mtpack.Callbacks(progress=progress)
    pack(tmp_path / "packed", window="4Ki", workers=workers, callbacks=callbacks)
    num_splits = stages.count("tokenize")
    assert stages.index("write") < num_splits // 2
    assert most_files < num_splits // 2


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("ipc_format", ["stream", "file"])
def test_every_kind_of_shard_reads_the_same(packed, tmp_path, ipc_format, compression):
    output = tmp_path / "packed"
    pack(output, shard_size="2MiB", ipc_format=ipc_format, compression=compression)
    shards = mtpack.open_shards(output)
    assert check_structure(shards).violation is None
    for row, expected in zip(shards, mtpack.open_shards(packed), strict=True):
        assert all(np.array_equal(row[name], expected[name]) for name in expected)
    assert (output / "state.json").exists() == (ipc_format == "stream")


def test_plain_pyarrow_reads_a_shard_without_nullable_columns(packed):
    for path in packed.glob("*.arrow"):
        table = pa.ipc.open_stream(path).read_all()
        table.validate(full=True)
        assert not any(field.nullable for field in table.schema)
        assert json.loads(table.schema.metadata[b"mtpack"])["seq_len"] == 1024


def test_datasets_maps_the_folder_into_memory_without_a_copy(packed):
    datasets = pytest.importorskip("datasets")
    before = pa.total_allocated_bytes()
    loaded = datasets.load_from_disk(str(packed))
    assert pa.total_allocated_bytes() - before < 2**20
    shards = mtpack.open_shards(packed)
    assert loaded.num_rows == len(shards)
    for number in (0, len(shards) // 2, -1):
        for name, value in loaded[number].items():
            assert np.array_equal(value, shards[number][name]), name


def test_the_collator_of_trl_accepts_the_rows_unchanged(packed):
    datasets = pytest.importorskip("datasets")
    trainer = pytest.importorskip("trl.trainer.sft_trainer")
    rows = [datasets.load_from_disk(str(packed))[number] for number in range(3)]
    collator = trainer.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collator([{key: row[key] for key in row} for row in rows])
    lengths = np.concatenate([row["seq_lengths"] for row in rows])
    positions = np.concatenate([np.arange(length) for length in lengths])
    assert np.array_equal(batch["position_ids"][0], positions)
    labels = np.concatenate([row["labels"] for row in rows])
    assert np.array_equal(batch["labels"][0], labels)  # it masks first tokens, which carry no loss


def test_sequences_are_read_only_views(packed):
    row = mtpack.open_shards(packed)[0]
    with pytest.raises(ValueError, match="read-only"):
        row["labels"][0] = 1


def test_a_shard_does_not_depend_on_path_time_or_host(packed, tmp_path):
    moved = tmp_path / "elsewhere" / "data"
    moved.mkdir(parents=True)
    copies = [Path(shutil.copy(path, moved)) for path in SAMPLE_FILES]
    pack(tmp_path / "packed", copies, shard_size="2MiB")
    for path in packed.glob("*.arrow"):
        assert path.read_bytes() == (tmp_path / "packed" / path.name).read_bytes()


# Any dialogues, any options


texts = st.text(
    st.sampled_from("abc de\n\t.!?1é中🙂‍<>|") | st.characters(exclude_categories=["Cs"]),
    max_size=30,
)


@st.composite
def rows(draw) -> list[dict]:
    roles = st.sampled_from(["user", "assistant", "assistant", "system", "tool"])
    made = []
    for _ in range(draw(st.integers(1, 6))):
        messages = []
        for role in draw(st.lists(roles, min_size=1, max_size=7)):
            message = {"role": role, "content": draw(texts)}
            if role == "assistant":
                if draw(st.booleans()):
                    message["reasoning_content"] = draw(texts)
                if draw(st.integers(0, 3)) == 0:
                    message["train"] = draw(st.booleans())
            messages.append(message)
        made.append({"messages": messages})
    return made


options_of_a_run = st.fixed_dictionaries(
    {
        "seq_len": st.sampled_from([8, 24, 64, 256]),
        "merge": st.sampled_from(["auto", "always", "never"]),
        "train_turns": st.sampled_from(["all", "last"]),
        "overlong": st.sampled_from(["turns", "split", "truncate", "drop"]),
        "packing": st.sampled_from(["dense", "none"]),
        "pad_documents_to": st.sampled_from([1, 4]),
        "seed": st.integers(0, 2**40),
    }
)


def turns_in(folder: Path) -> list[tuple[int, int, tuple[int, ...]]]:
    """Return every turn of an output as (dialogue, message, its trained tokens), sorted."""
    turns = []
    shards = mtpack.open_shards(folder)
    shift = 1 if shards.metadata.label_alignment == "shifted" else 0
    for row in shards:
        ends = np.cumsum(row["seq_lengths"])
        heads = [*row["turn_starts"].tolist(), shards.metadata.seq_len]
        for (start, end), message in zip(pairwise(heads), row["turn_messages"], strict=True):
            document = int(np.searchsorted(ends, start + shift, side="right"))
            labels = row["labels"][start : min(end, int(ends[document]))]
            trained = tuple(labels[labels != -100].tolist())
            assert len(trained) == row["loss_token_num"][start]
            turns.append((int(row["dialogue_ids"][document]), int(message), trained))
    return sorted(turns)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(rows(), options_of_a_run)
def test_any_dialogues_under_any_options_keep_every_promise(tmp_path_factory, dialogues, options):
    folder = tmp_path_factory.mktemp("any")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, dialogues)), encoding="utf-8")
    outputs = {name: folder / name for name in ("aligned", "shifted")}
    try:
        reports = {
            name: pack(output, folder / "rows.jsonl", label_alignment=name, **options)
            for name, output in outputs.items()
        }
    except mtpack.InputError:  # nothing is left to pack; the tests of overlong documents cover that
        return
    tally = reports["aligned"].tally
    tally.check()
    trained = {
        (row, index)
        for row, dialogue in enumerate(dialogues)
        for index, message in enumerate(dialogue["messages"])
        if message["role"] == "assistant" and message.get("train") is not False
    }
    if options["train_turns"] == "last":
        trained = set(dict(sorted(trained)).items())
    turns = turns_in(outputs["aligned"])
    assert turns == turns_in(outputs["shifted"])
    packed_turns = {(row, message) for row, message, _ in turns}
    assert len(packed_turns) == len(turns) == tally.turns_packed
    assert packed_turns <= trained
    assert len(trained) == tally.turns_read
    for output in outputs.values():
        shards = mtpack.open_shards(output)
        assert check_structure(shards).violation is None
        for row in shards:
            shares = zip(row["loss_mask"].tolist(), row["loss_token_num"].tolist(), strict=True)
            assert sum(Fraction(mask, num) for mask, num in shares) == row["turn_num"]


def test_shuffling_the_rows_changes_the_sequences_but_no_turn(packed, tmp_path):
    lines = b"".join(path.read_bytes() for path in SAMPLE_FILES).splitlines()
    random.Random(0).shuffle(lines)
    (tmp_path / "shuffled.jsonl").write_bytes(b"\n".join(lines))
    pack(tmp_path / "packed", tmp_path / "shuffled.jsonl")
    assert sorted(turn[2] for turn in turns_in(tmp_path / "packed")) == sorted(
        turn[2] for turn in turns_in(packed)
    )
