"""JSON is read strictly; each error that other parsers ignore has its own reason."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtpack.input.dialogue import Reason
from mtpack.input.strict_json import MAX_DEPTH, StrictJsonError, parse

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
tricky_keys = st.text(alphabet=":\"'\\{}[], /\n\t0aé😀\u2028", max_size=6)
many_quotes = st.text(alphabet='"\\u2:', max_size=12)
spellings = st.sampled_from(["as it is", "ascii", "all escaped"])


def spell(text: str, spelling: str) -> str:
    """Write a string as JSON in one of several equivalent ways."""
    if spelling == "all escaped":
        units = text.encode("utf-16-be")
        return '"' + "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)) + '"'
    return json.dumps(text, ensure_ascii=spelling == "ascii")


def refusal(text: bytes) -> StrictJsonError:
    with pytest.raises(StrictJsonError) as caught:
        parse(text)
    return caught.value


def assert_reads_as_json_loads(text: bytes) -> None:
    # repr differs for 1, 1.0 and True, for 0.0 and -0.0, and for other orders of keys
    assert repr(parse(text)) == repr(json.loads(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", Reason.INVALID_JSON),
        (b" \r\n", Reason.INVALID_JSON),
        (b'{"a": 1', Reason.INVALID_JSON),
        (b'{"a": "cut o', Reason.INVALID_JSON),
        (b'{"a": 1,}', Reason.INVALID_JSON),
        (b"{'a': 1}", Reason.INVALID_JSON),
        (b"{} {}", Reason.INVALID_JSON),
        (b"012", Reason.INVALID_JSON),
        (b'"a\tb"', Reason.INVALID_JSON),
        (b"\x00", Reason.INVALID_JSON),
        (b"\xef\xbb\xbf{}", Reason.INVALID_JSON),
        (b'"caf\xe9"', Reason.NOT_UTF8),
        (b'"\xed\xa0\x80"', Reason.NOT_UTF8),
        ("{}".encode("utf-16"), Reason.NOT_UTF8),
        (b'{"a": 1, "a": 1}', Reason.DUPLICATE_KEY),
        (b"[NaN]", Reason.NOT_A_NUMBER),
        (b"Infinity", Reason.NOT_A_NUMBER),
        (b'{"a": -Infinity}', Reason.NOT_A_NUMBER),
        (b"1e999", Reason.NOT_A_NUMBER),
        (b"[-1E+0400]", Reason.NOT_A_NUMBER),
        (b'"\\ud800"', Reason.LONE_SURROGATE),
        (b'"\\udc00 \\ud83d"', Reason.LONE_SURROGATE),
        (b"[" * 5000 + b"]" * 5000, Reason.TOO_DEEP),
        (b"[" * 100_000, Reason.TOO_DEEP),
    ],
    ids=str,
)
def test_each_error_has_its_reason(text, reason):
    assert refusal(text).reason == reason


@pytest.mark.parametrize("text", [b'{"a": "NaN', b"{'a': 'Infinity'}", b'["1e999" x]', b"[nan]"])
def test_text_that_only_resembles_a_bad_number_is_invalid_json(text):
    assert refusal(text).reason == Reason.INVALID_JSON


def test_the_error_names_the_position():
    assert "column 7" in str(refusal(b'{"a": nope}'))
    assert "byte 5 " in str(refusal(b'"caf\xe9"'))
    assert "column 3 " in str(refusal(b'"a\\ud800"'))


@pytest.mark.parametrize("num_digits", [1, 18, 19, 20, 21, 100, 308])
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_keep_their_digits(num_digits, sign):
    number = sign * int(("9081726354" * 31)[:num_digits])
    assert repr(parse(b'{"n": [%d]}' % number)) == repr({"n": [number]})


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64])
def test_integers_at_the_limits_of_64_bits_are_exact(number):
    assert parse(b"%d" % number) == number


@pytest.mark.parametrize("number", [b"9" * 310, b"-" + b"9" * 310, b"1" + b"0" * 300 + b"e20"])
def test_a_number_that_is_too_large_is_refused_and_not_rounded(number):
    assert refusal(b"[" + number + b"]").reason == Reason.NOT_A_NUMBER


@given(
    st.from_regex(rb"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
)
@example(b"-0")
@example(b"-0.0")
@example(b"1e-999")
@example(b"1.7976931348623157e308")
@example(b"5e-324")
@example(b"12345678901234567890123.5")
def test_every_form_of_a_number_is_read_as_json_loads_reads_it(number):
    assert_reads_as_json_loads(number)


@given(
    json_values,
    st.booleans(),
    st.sampled_from([None, 0, 1, "\t"]),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\r\n", "\t:\n ")]),
)
def test_json_in_any_layout_is_read_as_json_loads_reads_it(value, ascii_only, indent, marks):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent, separators=marks).encode()
    assert_reads_as_json_loads(text)


@given(st.data())
def test_a_duplicate_key_is_refused_at_any_depth_and_with_any_escapes(data):
    keys = data.draw(st.lists(tricky_keys, min_size=1, max_size=4, unique=True))
    keys.append(data.draw(st.sampled_from(keys)))
    members = []
    for key in data.draw(st.permutations(keys)):
        value = json.dumps(data.draw(json_values | many_quotes))
        members.append(f"{spell(key, data.draw(spellings))}: {value}")
    text = "{" + ", ".join(members) + "}"
    for key in data.draw(st.lists(st.none() | tricky_keys, max_size=5)):
        text = (
            f"[1, {text}]"
            if key is None
            else f'{{"x{len(text)}": 0, {spell(key, "ascii")}: {text}}}'
        )
    assert refusal(text.encode()).reason == Reason.DUPLICATE_KEY


@given(
    st.dictionaries(
        tricky_keys | many_quotes,
        tricky_keys | many_quotes | st.dictionaries(many_quotes, tricky_keys),
    ),
    spellings,
)
def test_different_keys_are_never_duplicates(value, spelling):
    def write(item):
        if isinstance(item, str):
            return spell(item, spelling)
        return (
            "{" + ",".join(f"{spell(key, spelling)}:{write(of)}" for key, of in item.items()) + "}"
        )

    assert parse(write(value).encode()) == value


@pytest.mark.parametrize("mark", [b":", b": "])
@pytest.mark.parametrize("value", [rb'"\\"', rb'"\\\""', rb'"\""', rb'"\u0022"', b"1", b"[]"])
def test_quotes_in_a_string_do_not_hide_a_duplicate_key(mark, value):
    once = b'{"a"' + mark + value + b"}"
    twice = once[:-1] + b',"a"' + mark + value + b"}"
    assert_reads_as_json_loads(once)
    assert refusal(twice).reason == Reason.DUPLICATE_KEY


@pytest.mark.parametrize("mark", [b":", b": "])
def test_a_long_integer_is_exact_next_to_a_string_of_digits(mark):
    assert_reads_as_json_loads(b'{"id"' + mark + b'"%s","n":%s}' % (b"1" * 400, b"9" * 20))


def test_the_same_key_in_two_objects_is_not_a_duplicate():
    assert parse(b'[{"a": {"a": 1}}, {"a": 2}]') == [{"a": {"a": 1}}, {"a": 2}]


json_like_pieces = rb"""{ } [ ] : , " \ \u d83d dc00 0 9 - . e true null NaN "a":""".split()
json_like_bytes = st.lists(
    st.sampled_from([*json_like_pieces, b"1" * 20, b" ", b"\xc3", b"\xa9"])
).map(b"".join)


@st.composite
def damaged_json(draw):
    text = json.dumps(draw(json_values), ensure_ascii=False).encode()
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 3)))
    return text[:start] + draw(json_like_bytes | st.binary(max_size=3)) + text[end:]


def refuse_duplicates(pairs):
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def depth(value) -> int:
    if not isinstance(value, dict | list):
        return 0
    items = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, items), default=0)


@given(st.binary() | json_like_bytes | damaged_json())
def test_any_bytes_are_refused_with_a_reason_or_read_as_json_loads_reads_them(text):
    try:
        value = parse(text)
    except StrictJsonError as error:
        refused = error
    else:
        assert repr(value) == repr(json.loads(text, object_pairs_hook=refuse_duplicates))
        assert depth(value) <= MAX_DEPTH
        return
    assert isinstance(refused.reason, Reason)
    assert len(str(refused).splitlines()) == 1


@pytest.mark.parametrize(
    ("opening", "innermost", "closing"),
    [
        (b"[", b"", b"]"),
        (b"[", b"1", b"]"),
        (b'{"a":', b"null", b"}"),
        (b'[1, {"a": ', b'"x"', b"}]"),
        (b'{"a": 12345678901234567890, "b": [', b"", b"]}"),
    ],
    ids=str,
)
def test_nesting_is_accepted_up_to_the_limit(opening, innermost, closing):
    levels = opening.count(b"[") + opening.count(b"{")
    times = MAX_DEPTH // levels
    deepest = opening * times + innermost + closing * times
    assert_reads_as_json_loads(deepest)
    assert refusal(b"[" + deepest + b"]").reason == Reason.TOO_DEEP
    assert refusal(b'{"a":' + deepest + b"}").reason == Reason.TOO_DEEP


def test_brackets_inside_strings_are_not_nesting():
    assert parse(b'"' + b"[{" * 5000 + b'"') == "[{" * 5000
