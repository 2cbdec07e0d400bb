"""Any bytes and any JSON are a row: they give a dialogue, or a reject that says what is wrong."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpack.counts import Counts
from mtpack.input.dialogue import ROLES, Dialogue, Origin, Reason, Reject
from mtpack.input.files import describe_input
from mtpack.input.reading import LINE_LIMIT, read_splits
from mtpack.input.row_formats import ROW_KEYS, detect_format
from mtpack.input.rows import RowOptions, read_dialogue
from mtpack.options import PackOptions
from mtpack.running.pipeline import Pipeline, check_template, load_pipeline
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.tokenize_split import tokenize
from tests.conftest import examples
from tests.fuzz.corpus import HARD_ROWS, ROWS
from tests.fuzz.mutations import MARK, changed, damaged, json_values

WHERE = Origin("rows.jsonl", 7)
PIECES = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"\\ud83d", b"null", b"NaN"),
    *(b"1e999", b"-0", b"9" * 400, b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b"\r"),
    *(b'"messages":', b'"role":"user",', b'"content":[', b'{"a":' * 101, b"[" * 1100),
)
formats = st.sampled_from([None, None, None, None, "messages", "sharegpt", "alpaca"])
paths = st.sampled_from(
    [*[None] * 8, "messages", "data.messages", "conversations", "a", "", ".", "a..b"]
)
row_options = st.builds(
    lambda path, keeps: RowOptions(messages_key=path, keeps_argument_text=keeps),
    paths,
    st.booleans(),
)
known_rows = st.sampled_from([*ROWS.values()])
rows = (
    known_rows.flatmap(lambda row: changed(row, 1))
    | known_rows.flatmap(lambda row: changed(row, 1))
    | known_rows.flatmap(changed)
    | st.builds(lambda one, other: one | other, known_rows, known_rows.flatmap(changed))
    | st.dictionaries(st.sampled_from(ROW_KEYS) | st.text(max_size=5), json_values, max_size=4)
    | json_values
)


def write(value) -> bytes:
    """Return JSON text; half surrogates are spelled as escapes."""
    return json.dumps(value).encode()


def read(text: bytes | None, row_format: str | None, options: RowOptions) -> Dialogue | Reject:
    """Read a row and check what holds for each; the result is a dialogue or a reject."""
    detected = None if text is None else detect_format(text)
    assert detected in (None, "messages", "sharegpt", "alpaca")
    found = read_dialogue(3, WHERE, text, LINE_LIMIT, row_format, options)
    if isinstance(found, Reject):
        assert isinstance(found.reason, Reason)
        assert found.detail.isprintable()
        assert len(found.detail) < 1000
        assert MARK not in found.detail
        json.dumps(found.as_record()).encode()
    else:
        assert isinstance(found, Dialogue)
        assert found.messages
        assert all(message["role"] in ROLES for message in found.messages)
        parts = [found.messages, found.tools, found.template_args]
        json.dumps(parts, ensure_ascii=False).encode()  # there is no half surrogate
        assert set(found.trained_messages()) <= set(range(len(found.messages)))
    assert found == read_dialogue(3, WHERE, text, LINE_LIMIT, row_format, options)
    return found


@given(known_rows.map(write).flatmap(lambda text: damaged(text, PIECES)), formats, row_options)
@settings(max_examples=examples(1000))
def test_damaged_bytes_are_a_dialogue_or_a_reject(text, row_format, options):
    read(text, row_format, options)


@given(rows.map(write), formats, row_options)
@settings(max_examples=examples(3000), suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_a_dialogue_or_a_reject(text, row_format, options):
    read(text, row_format, options)


@pytest.mark.parametrize("text", [*HARD_ROWS, None])
def test_hard_rows_are_a_dialogue_or_a_reject(text):
    for row_format in (None, "messages", "sharegpt", "alpaca"):
        for path in (None, "messages", "data.messages"):
            read(text, row_format, RowOptions(messages_key=path))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    loaded = load_pipeline(PackOptions(output="unused"))
    check_template(loaded)
    return loaded


@given(st.lists(rows, min_size=20, max_size=60))
@settings(
    max_examples=examples(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, *HealthCheck],
)
def test_any_rows_are_rendered_and_tokenized_or_rejected(pipeline, tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(b"\n".join(map(write, rows)))
    for split in read_splits([describe_input("fuzzed.jsonl", path)]):
        found = tokenize(pipeline, split, Stopwatch())
        assert len(found.row_turns) == split.digest().num_rows
        assert sum(found.row_turns < 0) == len(found.rejects)
        assert all(MARK not in reject.detail for reject in found.rejects)
        assert isinstance(found.counts, Counts)
