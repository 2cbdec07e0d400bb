"""Rows that are read in blocks are what they are if they are read one by one."""

import json
import os
import re
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpack.input import text_blocks
from mtpack.input.dialogue import Dialogue, Origin, Reject
from mtpack.input.files import describe_input
from mtpack.input.reading import LINE_LIMIT, read_splits
from mtpack.input.rows import read_dialogue
from mtpack.input.splits import LinesInMemory, PieceRows, RowsInMemory
from mtpack.input.text_blocks import read_text_rows
from mtpack.input.text_rows import TextRows
from tests.conftest import SAMPLE_DATA, SHARED, examples

USUAL = (
    b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}'
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(text_blocks, "_LEAST_ROWS", 1)


def find_rows(text: bytes, row_format: str | None = "messages") -> PieceRows:
    return LinesInMemory("rows.jsonl", row_format, 1, text, LINE_LIMIT).find_rows()


def read_block(*pieces: PieceRows) -> TextRows:
    return read_text_rows(pieces, np.arange(sum(map(len, pieces))))


def read_one_by_one(*pieces: PieceRows) -> list[Dialogue | Reject]:
    raw = [piece.row(row) for piece in pieces for row in range(len(piece))]
    where = [Origin(row.file, row.line) for row in raw]
    return [
        read_dialogue(number, origin, row.text, LINE_LIMIT, row.format)
        for number, (origin, row) in enumerate(zip(where, raw, strict=True))
    ]


def list_contents(rows: TextRows, row: int) -> list[str]:
    start = int(rows.starts[row])
    return [rows.contents[start + message] for message in range(int(rows.lengths[row]))]


def check(*pieces: PieceRows) -> TextRows:
    """Check that what a block says of its rows is what each says on its own; return the rows."""
    expected = read_one_by_one(*pieces)
    found = read_block(*pieces)
    for index, row in enumerate(found.rows.tolist()):
        dialogue = expected[row]
        assert isinstance(dialogue, Dialogue)
        assert dialogue.has_only_texts
        assert not dialogue.untrained
        assert dialogue.template_args is None
        assert found.list_roles(index) == dialogue.roles
        assert list_contents(found, index) == [message["content"] for message in dialogue.messages]
        names = found.unread[found.unread_codes[index]]
        assert sorted(names) == sorted(dialogue.unread)
    return found


def message(role: str, content: str) -> str:
    return f'{{"role": {role}, "content": {content}}}'


TEXTS = [
    '{"messages": [{"content": "Hi", "role": "user"}]}',  # keys in another order
    r'{"messages": [{"role": "user", "content": "\"Hi\" \\ \u00e9 \ud83d\ude00 \u0000 \/"}]}',
    r'{"messages": [{"role": "user", "content": "\\"}]}',  # no quote is escaped
    r'{"messages": [{"role": "user", "content": "\\\""}]}',
    r'{"m\u0065ssages": [{"role": "us\u0065r", "content": "\u0022"}]}',
    '{"messages": [{"role": "user", "content": "日本語 {\\"role\\": 1}"}]}',
    '{ "messages" :\t[ { "role" : "user" , "content" : "Hi" } ] }',
    '{"id": "x", "messages": [{"role": "user", "content": "Hi"}], "n": 1.5, "is": true}',
]


def test_rows_of_texts_are_read_in_blocks():
    lines = [USUAL.decode(), *TEXTS] * 3
    for separator in ("\n", "\r\n", "\n\n", "\n \r\n"):
        found = check(find_rows(separator.join(lines).encode()))
        assert len(found) == len(lines)


@pytest.mark.parametrize(
    "line",
    [
        *(USUAL + USUAL, USUAL + b" " + USUAL, b" " + USUAL, USUAL + b" x", b"null", b"5", b'"a"'),
        *(USUAL.replace(b", ", b",\r"), USUAL.replace(b"Hi", b"\r"), b"\r" + USUAL, b"{\r}"),
        *(USUAL.replace(b"Hi", b"\xff"), USUAL.replace(b"Hi", b"\xed\xa0\x80"), b"{}", b"[]"),
        *(USUAL.replace(b"Hi", b"\\ud800"), USUAL.replace(b"Hi", b"\t"), USUAL[:-1], USUAL[1:]),
        *(USUAL.replace(b'"Hi"', value) for value in (b"1", b"null", b"[]", b"{}", b'["Hi"]')),
        *(USUAL.replace(b'"user"', value) for value in (b'"bot"', b"null", b"1", b'["user"]')),
        USUAL.replace(b'"Hi"', b'"Hi", "content": "Hi"'),
        USUAL.replace(b'"Hi"', b'"Hi", "name": "A"'),
        USUAL.replace(b'"Hi"', b'"Hi", "weight": 0'),
        USUAL.replace(b'"Hi"', b'"Hi", "name": null'),
        USUAL.replace(b', "content": "Hi"', b""),
        *(
            USUAL[:-1] + b", " + more + b"}"
            for more in (
                *(b'"messages": []', b'"tools": []', b'"system": "Be."', b'"x": {"y": 1, "y": 2}'),
                *(b'"label": false', b'"x": NaN', b'"x": 1e999', b'"x": "\xff"', b'"x": "\\udc00"'),
                *(b'"x": [1, 2]', b'"x": 1, "x": 1', b'"x": ' + b"[" * 2000 + b"]" * 2000, b'"x"'),
                *(b'"x": ' + b"9" * 400, b'"x": Infinity', b'"x": null', b'"x": 01'),
            )
        ),
        b'{"messages": []}',
        b'{"messages": [null]}',
        b'{"messages": null}',
        b'{"messages": [{"role": "user", "content": "Hi"}, null]}',
        b'{"messages": [["role", "user"]]}',
        b'{"prompt": "Hi", "completion": "Yes."}',
        b'{"conversations": [{"from": "human", "value": "Hi"}]}',
        b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "Hi"}]}',
        b"{" * 3000 + b"}" * 3000,
    ],
)
def test_a_line_that_says_more_or_is_not_strict_is_not_taken_from_a_block(line):
    for first in (0, 5, 9):
        lines = [USUAL] * 9
        lines.insert(first, line)
        found = check(find_rows(b"\n".join(lines)))
        assert first not in found.rows.tolist()
        assert len(found) >= 4


def test_keys_of_rows_with_plain_values_are_unread_and_others_are_left_out():
    rows = [
        {"id": "a", "n": 1, "is": True},
        {"id": "b", "n": 2.5, "is": False},
        {"id": "", "n": 10**40},
        {"n": -0.0},
        {},
    ]
    messages = json.loads(USUAL)
    text = b"\n".join(json.dumps(row | messages).encode() for row in rows)
    found = check(find_rows(text))
    assert [found.unread[code] for code in found.unread_codes] == [tuple(row) for row in rows]


def test_two_objects_on_a_line_and_one_over_two_lines_are_no_rows():
    split = re.sub(rb"\[", b"[\n", USUAL, count=1)
    text = b"\n".join([USUAL, USUAL + USUAL, split, USUAL])
    assert check(find_rows(text)).rows.tolist() == [0, 4]


def test_only_rows_that_may_have_the_format_are_read_and_lines_above_the_limit_are_not():
    long = USUAL.replace(b"Hi", b"Hi" * 500)
    text = b"\n".join([USUAL, long, USUAL])
    piece = LinesInMemory("rows.jsonl", None, 1, text, 500).find_rows()
    assert check(piece).rows.tolist() == [0, 2]


def test_rows_of_tables_and_lists_are_read_in_blocks_too():
    lines = [USUAL, USUAL.replace(b", ", b",\n"), None, USUAL]
    piece = RowsInMemory("rows.parquet", "messages", [1, 2, 3, 9], lines).find_rows()
    found = check(find_rows(USUAL), piece, find_rows(USUAL + b"\n"))
    assert found.rows.tolist() == [0, 1, 2, 4, 5]


def test_a_block_without_rows_of_texts_is_not_read():
    assert len(check(find_rows(b"\n".join([b'{"messages": [{"role": "user"}]}'] * 30)))) == 0
    assert len(check(find_rows(b""))) == 0
    assert len(check(find_rows(b"\n\n"))) == 0


MEMBERS = ['"role": "user"', '"role": "assistant"', '"content": "Yes."', '"content": ""']
MEMBERS += ['"content": "\\"Yes\\""', '"content": "\\u0022"', '"content": null', '"content": 1']
MEMBERS += ['"content": ["Yes"]', '"role": "bot"', '"role": ["user"]', '"ro\\u006ce": "user"']
MEMBERS += ['"name": "A"', '"name": null', '"train": true', '"\\"": ""', '"weight": 0']
OTHERS = ['"id": 7', '"id": 123456789012345678901234567890', '"id": 1.5', '"source": "web"']
OTHERS += ['"source": "\\"web\\""', '"tools": null', '"tools": []', '"messages": []']
OTHERS += ['"system": null', '"system": "Be."', '"label": true', '"enable_thinking": false']
OTHERS += ['"prompt": "Why?"', '"deep": ' + "[" * 120 + "]" * 120, '"x": {"y": 1, "y": 2}']
USUAL_MESSAGES = ['{"role": "user", "content": "Why?"}', '{"content": "日", "role": "assistant"}']


@st.composite
def rows(draw) -> bytes:
    """Draw rows as JSON text; most messages have a role and a text only. A key may appear twice."""
    unusual = st.lists(st.sampled_from(MEMBERS), max_size=4).map(
        lambda members: f"{{{', '.join(members)}}}"
    )
    anything = st.sampled_from(['"Yes"', "{}", "[]", "1", "null"])
    usual = [st.sampled_from(USUAL_MESSAGES)] * 12
    messages = draw(st.lists(st.one_of(*usual, unusual, anything), max_size=4))
    texts = f'"messages": [{", ".join(messages)}]'
    others = st.lists(st.sampled_from(OTHERS), max_size=2)
    keys = draw(st.permutations([texts, *draw(st.one_of(st.just([]), others))]))
    return f"{{{', '.join(keys)}}}".encode()


separators = st.sampled_from([*[b"\n"] * 8, b"\r\n", b"\n\n", b"\r", b"", b" \n", b"\n\t\r\n"])


@given(st.lists(st.tuples(rows(), separators), max_size=30), st.sampled_from(["messages", None]))
@settings(max_examples=examples(1000))
def test_any_rows_are_in_blocks_what_they_are_one_by_one(drawn, row_format):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "_LEAST_ROWS", 1)
        check(find_rows(b"".join(row + separator for row, separator in drawn), row_format))


def real_files() -> list[str]:
    folders = (SAMPLE_DATA, SHARED / "data")
    found = [path for folder in folders if folder.exists() for path in sorted(folder.iterdir())]
    return [str(path) for path in found if ".jsonl" in path.name and "long" not in path.name]


@pytest.mark.parametrize("name", real_files())
def test_rows_of_real_files_are_in_blocks_what_they_are_one_by_one(name):
    for number, split in enumerate(read_splits([describe_input("rows", name)])):
        if number % 10 == 0:
            check(*split.found_rows)


# Blocks that are changed at random

MUTATIONS, SAMPLE = 20_000, 400  # with --full, and by default
AT_ONCE = 200  # mutations in one process
TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\r", b"\n", b"null", b"\\u0022"]
TOKENS += [b'\\"', b"\\\\", b"\0", b"\xff", b"\\ud800", b"1e999", b"NaN", b'"role":', b'"x": 1,']


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Change a few places: write a byte or a token, cut a part out, repeat one or move one."""
    for _ in range(random.integers(1, 4)):
        start, end = sorted(random.integers(0, len(content) + 1, 2).tolist())
        end = min(end, start + int(random.integers(1, 100)))
        part = content[start:end]
        match random.integers(5):
            case 0:
                new = TOKENS[random.integers(len(TOKENS))]
                content = content[:start] + new + content[start + random.integers(2) :]
            case 1:
                content = content[:start] + content[end:]
            case 2:
                content = content[:start] + part + content[start:]
            case 3:
                other = int(random.integers(0, len(content) + 1))
                content = content[:other] + part + content[other:]
            case _:
                content = content[:start] + random.bytes(1) + content[start + 1 :]
    return content


def run_in_fork(blocks: list[bytes]) -> Iterator[str]:
    """Check blocks in a process of its own; yield what went wrong."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        for number, block in enumerate(blocks):
            try:
                check(find_rows(block))
            except BaseException as error:
                text = f"block {number}: {type(error).__name__} {str(error)[:300]!r} {block!r}\n"
                os.write(sending, text.encode())
        os._exit(0)
    os.close(sending)
    with open(receiving) as stream:
        yield from stream.read().splitlines()
    _, status = os.waitpid(child, 0)
    if status:
        yield f"status {os.waitstatus_to_exitcode(status)}"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_mutated_blocks_end_no_process_and_give_the_same_rows(pytestconfig):
    count = MUTATIONS if pytestconfig.getoption("--full") else SAMPLE
    random = np.random.default_rng(21)
    lines = [USUAL.decode(), *TEXTS]
    for _ in range(count // AT_ONCE):
        blocks = []
        for _ in range(AT_ONCE):
            chosen = random.choice(lines, random.integers(1, 7)).tolist()
            blocks.append(mutate("\n".join(chosen).encode(), random))
        assert list(run_in_fork(blocks)) == []
