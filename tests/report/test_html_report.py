"""The HTML report: its figures are those of the shards, its data is text, its size is bounded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mtpack
from mtpack.cli import main
from mtpack.report.figures import count_figures
from mtpack.report.html_problems import SequenceMark
from mtpack.report.html_report import write_html_report
from mtpack.report.row_view import view_row
from mtpack.report.turn_marks import TurnMark
from mtpack.shards.dataset import Shards
from tests.support.html_report import (
    CONTROLS,
    MARKUP,
    ROWS,
    Page,
    hand_made,
    make_row,
    pack_rows,
    write_report,
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_rows(tmp_path_factory.mktemp("html"))


@pytest.fixture(scope="module")
def page(packed: Path) -> Page:
    return Page(write_report(packed).read_text(encoding="utf-8"))


def texts_of(page: Page) -> list[str]:
    """Return the text of every document of the page."""
    vocabulary = page.data["vocabulary"]
    return [
        "".join(vocabulary[token][1] for token in document["tokens"])
        for sequence in page.data["sequences"]
        for document in sequence["documents"]
    ]


# --- figures


def bucket_of(size: int) -> str:
    low = 1 << (size.bit_length() - 1)
    return str(low) if low == 1 else f"{low:,}-{2 * low - 1:,}"


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def count_sizes(sizes: list[int]) -> list[list[str]]:
    """Return the lines of a table of sizes, from the smallest bucket to the largest."""
    counts = Counter(map(bucket_of, sizes))
    labels = dict.fromkeys(bucket_of(size) for size in range(min(sizes), max(sizes) + 1))
    return [[label, f"{counts[label]:,}", share(counts[label], len(sizes))] for label in labels]


def test_the_tables_hold_what_a_slow_count_finds(packed: Path, page: Page) -> None:
    rows = [*mtpack.open_shards(packed)]
    documents = [
        (number, int(length), dialogue)
        for number, row in enumerate(rows)
        for length, dialogue in zip(row["document_lengths"], row["dialogue_ids"], strict=True)
        if dialogue >= 0
    ]
    turns = [int(row["loss_token_num"][start]) for row in rows for start in row["turn_starts"]]
    in_rows = Counter(number for number, _, _ in documents)
    assert page.tables["turn-lengths"] == count_sizes(turns)
    assert page.tables["document-lengths"] == count_sizes([length for _, length, _ in documents])
    assert page.tables["documents-per-sequence"] == count_sizes([*in_rows.values()])
    assert page.tables["turns-per-sequence"] == count_sizes([row["turn_num"] for row in rows])
    tokens = sum(length for _, length, _ in documents)
    parts = {
        "loss tokens": sum(turns),
        "context": tokens - sum(turns),
        "padding": 256 * len(rows) - tokens,
    }
    assert page.tables["compute"] == [
        [name, f"{count:,}", share(count, 256 * len(rows))] for name, count in parts.items()
    ]


def test_the_weights_are_those_of_the_losses(packed: Path, page: Page) -> None:
    weights: dict[str, list[float]] = {}
    for row in mtpack.open_shards(packed):
        ends = np.cumsum(row["seq_lengths"])
        for start, end in zip(ends - row["seq_lengths"], ends, strict=True):
            in_document = int(row["loss_mask"][start:end].sum())
            for turn in row["turn_starts"]:
                if start <= turn < end:
                    size = int(row["loss_token_num"][turn])
                    sums = weights.setdefault(bucket_of(size), [0, 0, 0, 0])
                    for number, weight in enumerate((1, 1, size, size / in_document)):
                        sums[number] += weight
    totals = np.sum([*weights.values()], axis=0)
    found = {line[0]: line[1:] for line in page.tables["weights"] if line[1] != "0"}
    assert found == {
        label: [f"{sums[0]:,}", *(share(sums[n], totals[n]) for n in (1, 2, 3))]
        for label, sums in weights.items()
    }


def test_the_fill_is_that_of_each_sequence(packed: Path, page: Page) -> None:
    filled = [int(row["document_lengths"].sum()) / 256 for row in mtpack.open_shards(packed)]
    for label, count, _ in page.tables["fill"]:
        low, high = (int(part) / 100 for part in label.removesuffix("%").split("-"))
        assert int(count) == sum(low < part <= high for part in filled)
    assert sum(int(count) for _, count, _ in page.tables["fill"]) == len(filled)


# --- sequences


def test_the_sequences_have_the_ids_and_turns_of_the_shards(packed: Path, page: Page) -> None:
    shards = mtpack.open_shards(packed)
    vocabulary = page.data["vocabulary"]
    assert [sequence["number"] for sequence in page.data["sequences"]] == [*range(len(shards))]
    for sequence in page.data["sequences"]:
        view = view_row(shards, sequence["number"])
        assert sequence["padding"] == view.padding
        for shown, document in zip(sequence["documents"], view.documents, strict=True):
            ids = view.token_ids[document.start : document.start + document.length]
            assert [vocabulary[token][0] for token in shown["tokens"]] == ids.tolist()
            assert (shown["start"], shown["dialogue"]) == (document.start, document.dialogue)
        for shown, turn in zip(sequence["turns"], view.turns, strict=True):
            positions = [at for part in shown["ranges"] for at in range(*part)]
            assert positions == turn.positions.tolist()
            assert (shown["document"], shown["message"]) == (turn.document, turn.message)


def test_a_character_of_several_tokens_is_shown_once(page: Page) -> None:
    assert any("👩\u200d👩\u200d👧 中文 🇩🇪 done<|im_end|>" in text for text in texts_of(page))


def marks_of(page: Page) -> set[str]:
    return {each["mark"] for sequence in page.data["sequences"] for each in sequence["problems"]}


def test_cut_turns_and_cut_starts_are_problems(page: Page) -> None:
    assert {TurnMark.CUT, TurnMark.STRADDLE} <= marks_of(page)


def test_dialogues_in_several_documents_and_padding_are_problems(tmp_path: Path) -> None:
    packed = pack_rows(tmp_path, [make_row("Hi", "Ho", "Ha")], merge="never")
    page = Page(write_report(packed).read_text(encoding="utf-8"))
    assert marks_of(page) == set(SequenceMark)


def test_turns_that_are_merged_although_this_is_not_exact_are_a_problem(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last else m.content[:2] }}<|im_end|>\n{% endfor %}"
    )
    rows = [make_row("Hi", "Hello", "How", "Fine")]
    packed = pack_rows(tmp_path, rows, merge="always", chat_template=str(template))
    page = Page(write_report(packed).read_text(encoding="utf-8"))
    assert TurnMark.BENT in marks_of(page)
    bent = [
        each
        for sequence in page.data["sequences"]
        for each in sequence["problems"]
        if each["mark"] == TurnMark.BENT
    ]
    assert len(bent) == mtpack.open_shards(packed).manifest.report.tally.bent > 0


def test_a_sound_sequence_has_no_problem(tmp_path: Path) -> None:
    packed = pack_rows(tmp_path, [make_row("Hi", "Ho", "Ha")], seq_len=48)
    assert not marks_of(Page(write_report(packed).read_text(encoding="utf-8")))


def test_without_the_tokenizer_ids_are_shown(tmp_path: Path) -> None:
    page = Page(report_of(hand_made(tmp_path, 3, 16), tmp_path))
    assert texts_of(page)[0].split() == [str(1000 + number) for number in range(16)]
    assert marks_of(page) == set()


def report_of(shards: Shards, folder: Path) -> str:
    file = folder / "report.html"
    write_html_report(file, shards, count_figures(shards), None)
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sequences", "seq_len", "shown"), [(200, 64, 60), (500, 4096, 60), (12, 100_000, 5)]
)
def test_a_report_has_at_most_a_few_megabytes(
    tmp_path: Path, sequences: int, seq_len: int, shown: int
) -> None:
    text = report_of(hand_made(tmp_path, sequences, seq_len), tmp_path)
    page = Page(text)
    documents = [document for each in page.data["sequences"] for document in each["documents"]]
    assert len(page.data["sequences"]) == shown
    assert {document["length"] for document in documents} == {seq_len}
    assert {len(document["tokens"]) for document in documents} == {min(seq_len, 30_000)}
    assert len(text.encode()) < 4 * 2**20


def test_the_same_shards_give_the_same_report(packed: Path, tmp_path: Path) -> None:
    shards = mtpack.open_shards(packed)
    assert report_of(shards, tmp_path) == report_of(shards, tmp_path)


# --- hostile data


def test_the_text_of_a_dialogue_is_never_an_element(page: Page) -> None:
    assert len(page.scripts) == 2  # the data, and the script of mtpack
    tags = Counter(tag for tag, _ in page.elements)
    assert not tags.keys() & {"img", "b>", "iframe", "object", "link", "base"}
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on")
    ]
    for character in "<>&":
        assert character not in page.scripts[0]


def test_the_text_of_a_dialogue_is_shown_as_it_is(page: Page) -> None:
    texts = texts_of(page)
    assert any(f"user\n{MARKUP}<|im_end|>" in text for text in texts)
    escaped = CONTROLS.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    escaped = escaped.replace("\u2028", "\\u2028").replace("\x00", "\\x00")
    assert any(f"assistant\n{escaped}<|im_end|>" in text for text in texts)


def test_names_of_files_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "<b onclick=x>&\n"
    folder.mkdir()
    text = write_report(pack_rows(folder, ROWS[:1])).read_text(encoding="utf-8")
    assert "&lt;b onclick=x&gt;&amp;\\x0a" in text
    assert "<b onclick" not in text


def test_nothing_in_the_page_names_a_place_to_load_from(page: Page) -> None:
    for tag, attributes in page.elements:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#"), tag
    policies = [
        attributes["content"]
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert [policy.split(";")[0] for policy in policies] == ["default-src 'none'"]


# --- the command


@pytest.mark.parametrize("name", ["data.jsonl", "report", "missing/report.html"])
def test_a_file_that_can_not_be_meant_is_refused(packed: Path, tmp_path: Path, name: str) -> None:
    arguments: list[Any] = ["inspect", str(packed), "--html", str(tmp_path / name)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--html" in result.stderr
    assert not list(tmp_path.iterdir())


def test_one_sequence_is_no_report(packed: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    arguments = ["inspect", str(packed), "--row", "0", "--html", str(report)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert not report.exists()


def test_json_says_what_was_written(packed: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    arguments = ["inspect", str(packed), "--html", str(report), "--json"]
    written = json.loads(CliRunner().invoke(main, arguments).stdout)
    sequences = len(mtpack.open_shards(packed))
    assert written == {
        "path": str(report),
        "bytes": report.stat().st_size,
        "shown": sequences,
        "sequences": sequences,
    }
