"""`max-rows`: a source is read up to its N-th row, in every kind of file, and no further."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.input import reading
from mtpack.input.files import InputFile, describe_input, find_inputs
from mtpack.input.reading import ReadOptions, cut_sources, read_section, read_sources, read_splits
from tests.support.file_kinds import FILE_KINDS


def make_rows(count: int, first: int = 0) -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": f"{first + number} " * 30}]}
        for number in range(count)
    ]


def read(files: list[InputFile], **options) -> list[tuple[str, bytes | None]]:
    splits = read_splits(files, ReadOptions(**options))
    return [(row.file, row.text) for split in splits for row in split.rows()]


@pytest.fixture(params=[2**19, 700])
def small_splits(request, monkeypatch):
    monkeypatch.setattr(reading, "SPLIT_BYTES", request.param)


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_the_first_rows_of_files_of_every_kind_are_read(kind, tmp_path, small_splits):
    for number, count in enumerate((7, 3, 9)):
        folder = tmp_path / str(number)
        folder.mkdir()
        FILE_KINDS[kind](folder / kind, make_rows(count, 100 * number))
    names = find_inputs([str(tmp_path / str(number) / kind) for number in range(3)])
    files = [describe_input(name, name) for name in names]
    every = read(files)
    assert len(every) == 19
    for most in (1, 6, 7, 8, 10, 12, 18, 19, 30):
        assert read(files, max_rows=most) == every[:most], most


lines = st.lists(st.sampled_from(["", " ", "[1]", '{"a": 1}', "x" * 50, "é"]), max_size=12)


@given(lines, st.integers(1, 12), st.sampled_from([5, 17, 10**6]), st.booleans(), st.booleans())
def test_blank_lines_are_no_rows_wherever_the_cuts_are(
    tmp_path_factory, texts, most, split_bytes, ends_in_newline, has_mark
):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    text = "\n".join(texts) + "\n" * ends_in_newline
    path.write_text(text, encoding="utf-8-sig" if has_mark else "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "SPLIT_BYTES", split_bytes)
        files = [describe_input("a.jsonl", path)]
        limit = {"row_format": "messages", "line_limit": 20}
        assert read(files, max_rows=most, **limit) == read(files, **limit)[:most]


def test_files_after_the_last_row_are_not_opened(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": []}\n' * 5)
    gone = InputFile("gone.jsonl", str(tmp_path / "gone.jsonl"), 10, 0)
    assert len(read([describe_input("a.jsonl", path), gone], max_rows=5)) == 5


def test_no_section_has_files_of_two_sources(tmp_path):
    files = []
    for number in range(6):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(f'{{"messages": [], "id": {number}}}\n')
        files.append(describe_input(path.name, path, source=number // 2))
    options = [
        ReadOptions(),
        ReadOptions(row_format="alpaca", variant="v"),
        ReadOptions(max_rows=1),
    ]
    sections = list(cut_sources(files, options))
    assert [(section.number, section.source) for section in sections] == [(0, 0), (1, 1), (2, 2)]
    assert [len(section.parts) for section in sections] == [2, 2, 1]
    (split,) = read_section(sections[1], options[1])
    assert (split.source, split.variant) == (1, "v")
    assert [row.format for row in split.rows()] == ["alpaca", "alpaca"]
    splits = list(read_sources(files, options))
    assert [split.key for split in splits] == ["0000000.0000", "0000001.0000", "0000002.0000"]


def test_rows_of_another_variant_have_another_digest(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": []}\n')
    files = [describe_input("a.jsonl", path)]
    plain, *others = [
        next(islice(read_splits(files, ReadOptions(variant=variant)), 1)).digest()
        for variant in ("", "a", "b")
    ]
    assert len({plain.sha256, *(other.sha256 for other in others)}) == 3
    assert {plain.files[0][1]} == {other.files[0][1] for other in others}  # that of the content
