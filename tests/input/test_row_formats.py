"""A dialogue is the same in every format; a row of another format is rejected with its format."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from mtpack.cli import main
from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.input.files import describe_input
from mtpack.input.reading import SPLIT_BYTES, ReadOptions, read_splits
from mtpack.input.row_formats import ROW_KEYS, detect_format
from mtpack.input.rows import read_dialogue
from tests.conftest import SAMPLE_DATA, shared
from tests.support.strategies import strings_in

FORMATS = ("messages", "sharegpt", "alpaca")
ORIGIN = Origin("rows.jsonl", 7)
SAMPLES = sorted((SAMPLE_DATA / "formats").glob("*.jsonl"))
SAME_FIVE = [path for path in SAMPLES if path.stem != "sharegpt_tools"]
TABLES = [path for path in SAMPLES if path.stem != "bare_lists"]  # a row of a table has columns
HUMAN = {"from": "human", "value": "Hello"}
GPT = {"from": "gpt", "value": "Hi"}
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}
ALPACA = {"instruction": "Hello", "output": "Hi"}
PROMPT = {"prompt": "Hello", "completion": "Hi"}
TOOL = {"name": "add", "parameters": {"type": "object"}}
ROW_OF = {
    "messages": {"messages": [USER, ANSWER]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "alpaca": ALPACA,
}


def read(row, row_format=None) -> Dialogue | Reject:
    return read_dialogue(3, ORIGIN, json.dumps(row).encode(), 2**20, row_format)


def dialogue_of(row, row_format=None) -> Dialogue:
    dialogue = read(row, row_format)
    assert isinstance(dialogue, Dialogue), dialogue
    return dialogue


def fields_of(row) -> list[dict]:
    return dialogue_of(row).messages


def refusal(row, row_format=None) -> tuple[Reason, str]:
    reject = read(row, row_format)
    assert isinstance(reject, Reject), reject
    return reject.reason, reject.detail


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def pack(output: Path, *arguments: str | Path) -> dict:
    result = run("pack", *arguments, "-o", output, "--json", "--workers", "1")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def shard_of(output: Path) -> bytes:
    return (output / "shard-00000.arrow").read_bytes()


# The same dialogues in every format


@pytest.mark.parametrize("path", SAME_FIVE, ids=lambda path: path.stem)
def test_the_same_dialogues_pack_into_the_same_bytes(path, tmp_path):
    expected = pack(tmp_path / "expected", SAMPLE_DATA / "formats" / "messages.jsonl")
    report = pack(tmp_path / "packed", path)
    assert shard_of(tmp_path / "packed") == shard_of(tmp_path / "expected")
    assert report["turns_packed"] == expected["turns_packed"] == 8


texts = st.text(min_size=1)
pairs = st.lists(st.tuples(texts, texts), max_size=3)


@given(st.none() | texts, pairs, texts, texts)
def test_any_dialogue_is_the_same_in_every_format(system, history, question, answer):
    turns = [*history, (question, answer)]
    opening = [] if system is None else [{"role": "system", "content": system}]
    conversation = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    system_key = {} if system is None else {"system": system}
    sharegpt = [
        {"from": name, "value": text}
        for turn in turns
        for name, text in zip(("human", "gpt"), turn, strict=True)
    ]
    expected = dialogue_of({"messages": opening + conversation})
    for row in (
        opening + conversation,
        {"conversations": sharegpt, **system_key},
        {"conversation": sharegpt, "system": system},
        {"conversations": opening + conversation},
        {"prompt": [*opening, conversation[0]], "completion": conversation[1:]},
        {"instruction": question, "output": answer, "history": history, **system_key},
    ):
        assert dialogue_of(row) == expected


def test_calls_and_results_of_sharegpt_are_converted_to_those_of_the_chat_apis():
    path = SAMPLE_DATA / "formats" / "sharegpt_tools.jsonl"
    one, parallel = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    call = {"name": "tide_table", "arguments": {"port": "Leith", "date": "2026-01-01"}}
    assert fields_of(one) == [
        {"role": "user", "content": "When is high water in Leith today?"},
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": call}],
            "content": "",
        },
        {"role": "tool", "content": '{"high": ["04:10", "16:32"]}'},
        {"role": "assistant", "content": "At 04:10 and at 16:32."},
    ]
    assert [tool["name"] for tool in dialogue_of(one).tools] == ["tide_table"]
    assert dialogue_of(parallel).roles == (
        *("system", "user", "assistant", "tool", "tool", "assistant", "user", "assistant"),
    )
    assert len(fields_of(parallel)[2]["tool_calls"]) == 2
    assert dialogue_of(parallel).trained_messages() == [2, 5]
    assert [tool["name"] for tool in dialogue_of(parallel).tools] == ["convert"]


# sharegpt


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("human user", "user"),
        ("gpt assistant chatgpt bing bard claude model", "assistant"),
        ("tool observation function_response tool_response", "tool"),
        ("system", "system"),
        ("developer", "developer"),
    ],
)
def test_the_roles_of_sharegpt(names, role):
    for name in names.split():
        for key, text in (("from", "value"), ("role", "content"), ("from", "content")):
            dialogue = dialogue_of({"conversations": [{key: name, text: "Hello"}]})
            assert dialogue.messages == [{"role": role, "content": "Hello"}]
            assert dialogue.trained_messages() == ([0] if role == "assistant" else [])


def test_a_system_of_the_row_is_the_first_message_unless_it_is_empty():
    row = {"conversations": [HUMAN, GPT], "system": "Be brief."}
    assert fields_of(row) == [{"role": "system", "content": "Be brief."}, USER, ANSWER]
    assert dialogue_of(row).trained_messages() == [2]
    for system in ("", None):
        assert fields_of({**row, "system": system}) == [USER, ANSWER]
        assert fields_of({**ALPACA, "system": system}) == [USER, ANSWER]


@pytest.mark.parametrize("row", [{"conversations": [HUMAN, GPT]}, ALPACA], ids=str)
def test_the_tools_of_a_row_are_a_list_or_json_text_or_empty(row):
    for tools in ([TOOL], json.dumps([TOOL])):
        assert dialogue_of({**row, "tools": tools}).tools == [TOOL]
    for tools in ("", None):
        assert dialogue_of({**row, "tools": tools}).tools is None
    for tools in ("add", [1], "[", 5):
        assert refusal({**row, "tools": tools})[0] == Reason.INVALID_TOOLS


@pytest.mark.parametrize("name", ["function_call", "tool_call"])
@pytest.mark.parametrize("arguments", [{"a": 1, "b": 12345678901234567890}, {}, '{"a":  1}'])
def test_a_function_call_is_a_message_with_tool_calls(name, arguments):
    call = {"name": "add", "arguments": arguments}
    parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    expected = {"type": "function", "function": {"name": "add", "arguments": parsed}}
    for value, count in (
        (json.dumps(call), 1),
        (json.dumps([call, call]), 2),
        (call, 1),
        ([call], 1),
    ):
        dialogue = dialogue_of({"conversations": [{"from": name, "value": value}]})
        assert dialogue.messages == [
            {"role": "assistant", "tool_calls": [expected] * count, "content": ""}
        ]
        assert dialogue.trained_messages() == [0]


@pytest.mark.parametrize(
    "value",
    [
        *("", "add(1)", "{", "[]", "5", '"add"', "[null]", '{"arguments": {}}', '{"function": 1}'),
        *('{"name": 1, "arguments": {}}', '{"name": "add", "arguments": [1]}', 5, None),
        *('{"name": "add", "name": "sub", "arguments": {}}', "[" * 200, '{"name": NaN}'),
    ],
    ids=str,
)
def test_a_value_that_is_not_a_call_is_refused(value):
    message = {"from": "function_call", "value": value}
    reason, detail = refusal({"conversations": [HUMAN, message]})
    assert reason == Reason.INVALID_TOOL_CALLS
    assert detail.startswith("message 1 (")


@pytest.mark.parametrize(
    ("switch", "trained"),
    [
        ({"loss": False}, False),
        ({"train": False}, False),
        ({"weight": 0}, False),
        ({"loss_weight": 0.0}, False),
        ({"loss": True}, True),
        ({"loss_weight": 1}, True),
    ],
    ids=str,
)
def test_loss_switches_have_the_same_meaning_in_sharegpt(switch, trained):
    row = {"conversations": [HUMAN, {**GPT, **switch}, HUMAN, GPT]}
    dialogue = dialogue_of(row)
    assert dialogue.trained_messages() == ([1, 3] if trained else [3])
    assert dialogue.messages[1] == ANSWER
    with_system = dialogue_of({**row, "system": "Be brief."})
    assert with_system.trained_messages() == ([2, 4] if trained else [4])
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {}}', **switch}
    assert bool(dialogue_of({"conversations": [call]}).trained_messages()) == trained


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": []}, Reason.INVALID_ROW),
        ({"conversations": "Hello"}, Reason.INVALID_ROW),
        ({"conversations": ["Hello"]}, Reason.INVALID_MESSAGE),
        ({"conversations": [{**HUMAN, "role": "gpt"}]}, Reason.INVALID_MESSAGE),
        ({"conversations": [{**HUMAN, "content": "Bye"}]}, Reason.INVALID_MESSAGE),
        ({"conversations": [{"from": "Person", "value": ""}]}, Reason.UNKNOWN_ROLE),
        ({"conversations": [{"from": ["human"], "value": ""}]}, Reason.UNKNOWN_ROLE),
        ({"conversations": [{"value": ""}]}, Reason.UNKNOWN_ROLE),
        ({"conversations": [{"from": "human"}]}, Reason.INVALID_CONTENT),
        ({"conversations": [{"from": "gpt", "value": None}]}, Reason.INVALID_CONTENT),
        ({"conversations": [{"from": "gpt", "value": 5}]}, Reason.INVALID_CONTENT),
        ({"conversations": [{**GPT, "loss_weight": 0.3}]}, Reason.INVALID_LOSS_SWITCH),
        ({"conversations": [{**HUMAN, "loss": True}]}, Reason.INVALID_LOSS_SWITCH),
        ({"conversations": [HUMAN], "system": ["Be brief."]}, Reason.INVALID_ROW),
        (
            {"conversations": [{"from": "system", "value": "a"}, HUMAN], "system": "b"},
            Reason.INVALID_ROW,
        ),
    ],
    ids=str,
)
def test_an_invalid_sharegpt_row_is_refused_with_its_reason(row, reason):
    assert refusal(row)[0] == reason


# alpaca


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "Add.", "input": "1 2"}, "Add.\n1 2"),
        ({"instruction": "Add.", "input": ""}, "Add."),
        ({"instruction": "Add.", "input": None}, "Add."),
        ({"instruction": "Add."}, "Add."),
        ({"instruction": "", "input": "1 2"}, "1 2"),
        ({"input": "1 2"}, "1 2"),
        ({"instruction": "Add.\n", "input": " 1 2"}, "Add.\n\n 1 2"),
    ],
    ids=str,
)
def test_instruction_and_input_are_joined_by_a_newline_if_neither_is_empty(row, question):
    assert fields_of({**row, "output": "3"}) == [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "3"},
    ]


def test_the_answers_of_a_history_are_trained():
    row = {**ALPACA, "system": "Be brief.", "history": [["a", "b"], ["c", "d"]]}
    dialogue = dialogue_of(row)
    assert [message["content"] for message in dialogue.messages] == (
        ["Be brief.", "a", "b", "c", "d", "Hello", "Hi"]
    )
    assert dialogue.trained_messages() == [2, 4, 6]
    for history in ([], None):
        assert fields_of({**row, "history": history, "system": None}) == [USER, ANSWER]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "Hello"}, Reason.INVALID_ROW),
        ({"output": "Hi"}, Reason.INVALID_ROW),
        ({"instruction": 5, "output": "Hi"}, Reason.INVALID_CONTENT),
        ({"instruction": "Hello", "output": ["Hi", "Ho"]}, Reason.INVALID_CONTENT),
        ({"instruction": "Hello", "input": [], "output": "Hi"}, Reason.INVALID_CONTENT),
        *(
            ({**ALPACA, "history": history}, Reason.INVALID_ROW)
            for history in (5, "a", ["a", "b"], [["a"]], [["a", "b", "c"]], [["a", None]], [{}])
        ),
        ({**ALPACA, "system": {"text": "Be brief."}}, Reason.INVALID_ROW),
    ],
    ids=str,
)
def test_an_invalid_alpaca_row_is_refused_with_its_reason(row, reason):
    assert refusal(row)[0] == reason


# prompt and completion


def test_a_prompt_is_not_trained_unless_a_loss_switch_says_so():
    prompt = [USER, ANSWER, USER]
    dialogue = dialogue_of({"prompt": prompt, "completion": "Bye", "tools": [TOOL]})
    assert dialogue.trained_messages() == [3]
    assert dialogue.tools == [TOOL]
    asked = [USER, {**ANSWER, "train": True}, USER]
    assert dialogue_of({"prompt": asked, "completion": "Bye"}).trained_messages() == [1, 3]
    switched_off = [{**ANSWER, "train": False}]
    assert dialogue_of({"prompt": asked, "completion": switched_off}).trained_messages() == [1]


@pytest.mark.parametrize("value", [5, True, [], {}, {"role": "user", "content": ""}], ids=str)
@pytest.mark.parametrize("key", ["prompt", "completion"])
def test_prompt_and_completion_must_be_strings_or_messages(key, value):
    reason, detail = refusal({**PROMPT, key: value})
    assert reason == Reason.INVALID_ROW
    assert f'"{key}" must be a string or a list of messages' in detail


def test_a_message_of_a_completion_is_named_by_its_index_in_the_dialogue():
    reason, detail = refusal({"prompt": [USER, ANSWER], "completion": [{"role": "bot"}]})
    assert (reason, detail.split(":")[0]) == (Reason.UNKNOWN_ROLE, "message 2")


# The format of a row


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": []}, "messages"),
        ([USER], "messages"),
        (PROMPT, "messages"),
        ({"conversations": [HUMAN]}, "sharegpt"),
        ({"conversation": 5}, "sharegpt"),
        (ALPACA, "alpaca"),
        ({"input": "Hello", "output": "Hi"}, "alpaca"),
        ({"prompt": "Hello", "messages": [USER]}, "messages"),
        ({"messages": None, "conversations": [HUMAN], "instruction": None}, "sharegpt"),
        ({"prompt": "Hello", "instruction": "Hello", "output": "Hi"}, "alpaca"),
        ({"messages": None}, None),
        ({"prompt": "Hello", "chosen": "Hi", "rejected": "Ho"}, None),
        ({"text": "Hello"}, None),
        *((value, None) for value in ([], ["Hello"], {}, None, 5, "messages", True)),
    ],
    ids=str,
)
def test_the_format_of_a_row_is_detected_from_its_keys(row, expected):
    assert detect_format(json.dumps(row).encode()) == expected


def test_invalid_json_has_no_format():
    for text in (None, b"", b"{", b"\xff", b'{"messages": NaN}'):
        assert detect_format(text) is None


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize("other", [*ROW_OF.values(), [USER, ANSWER], PROMPT], ids=str)
def test_a_row_of_another_format_is_refused_with_its_format(row_format, other):
    own = detect_format(json.dumps(other).encode())
    if own == row_format:
        assert isinstance(read(other, row_format), Dialogue)
        return
    reason, detail = refusal(other, row_format)
    assert reason == Reason.OTHER_FORMAT
    assert f"read as {row_format}, but this row looks like {own} (" in detail


def test_a_row_that_fits_the_format_of_its_file_is_read_in_that_format():
    row = {
        "messages": [{"role": "user", "content": "of messages"}],
        "conversations": [{"from": "human", "value": "of sharegpt"}],
        **{"instruction": "of alpaca", "output": ""},
    }
    assert dialogue_of(row) == dialogue_of(row, "messages")
    for row_format in FORMATS:
        first = dialogue_of(row, row_format).messages[0]
        assert first["content"] == f"of {row_format}"


@pytest.mark.parametrize("row_format", [None, *FORMATS])
def test_a_row_of_no_format_is_refused_with_the_missing_keys(row_format):
    reason, detail = refusal({"text": "Hello"}, row_format)
    assert reason == Reason.INVALID_ROW
    assert '"messages"' in detail if row_format in (None, "messages") else row_format in detail


# The format of a file


def formats_of(path: Path, **more) -> list[str | None]:
    splits = read_splits([describe_input(path.name, path)], ReadOptions(**more))
    return [row.format for split in splits for row in split.rows()]


def test_a_file_has_the_format_of_its_first_row_that_fits_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            ["not JSON", '{"text": "Hello"}', *(json.dumps(ROW_OF[name]) for name in FORMATS[::-1])]
        )
    )
    assert formats_of(path) == [None, None, "alpaca", "alpaca", "alpaca"]
    assert formats_of(path, row_format="sharegpt") == ["sharegpt"] * 5


def test_each_file_of_a_split_has_its_own_format(tmp_path):
    paths = [write_rows(tmp_path / f"{name}.jsonl", [row] * 2) for name, row in ROW_OF.items()]
    [split] = read_splits(describe_input(path.name, path) for path in paths)
    assert [row.format for row in split.rows()] == [name for name in FORMATS for _ in range(2)]


def test_all_splits_of_a_file_have_its_format(tmp_path):
    filler = {"instruction": "a" * (SPLIT_BYTES // 2), "output": "b"}
    path = write_rows(tmp_path / "rows.jsonl", [{"text": ""}, *[filler] * 5, ROW_OF["messages"]])
    assert len(list(read_splits([describe_input("rows.jsonl", path)]))) > 2
    assert formats_of(path) == [None, *["alpaca"] * 6]


@pytest.mark.parametrize("name", ["sharegpt", "alpaca"])
def test_a_run_reports_each_detected_format_once_except_messages(name, tmp_path):
    rows = [ROW_OF[name]] * 3
    paths = [write_rows(tmp_path / f"{number}.jsonl", rows) for number in range(3)]
    plain = write_rows(tmp_path / "plain.jsonl", [ROW_OF["messages"]])
    result = run("pack", *paths, plain, "-o", tmp_path / "packed", "--workers", "1")
    assert result.exit_code == 0
    notices = [line for line in result.stderr.splitlines() if "read as" in line]
    assert notices == [
        f"mtpack: {paths[0]}: read as {name} (choose another format with --format)",
        f"mtpack: 3 files read as {name}",
    ]
    chosen = run("pack", *paths, "-o", tmp_path / "chosen", "--format", name, "--workers", "1")
    assert "read as" not in chosen.stderr


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_row_of_another_format_than_its_file_is_refused_by_any_worker(workers, tmp_path):
    long = {"from": "human", "value": "words " * 20_000}  # so that there are several splits
    filler = {"conversations": [HUMAN, GPT, long, GPT]}
    path = write_rows(
        tmp_path / "rows.jsonl",
        [*[filler] * 30, ROW_OF["messages"], *[filler] * 20, ALPACA],
    )
    arguments = ("pack", path, "-o", tmp_path / "packed", "--workers", workers)
    result = run(*arguments)
    assert result.exit_code == 1
    assert (
        f"{path} line 31: other_format: the file is read as sharegpt, "
        "but this row looks like messages ("
        '"messages")'
    ) in result.stderr
    assert run(*arguments, "--on-error", "skip").exit_code == 0
    rejects = (tmp_path / "packed" / "rejects.jsonl").read_text().splitlines()
    assert [(reject["line"], reject["reason"]) for reject in map(json.loads, rejects)] == [
        (31, "other_format"),
        (52, "other_format"),
    ]


@pytest.mark.parametrize("row_format", FORMATS)
def test_a_chosen_format_refuses_files_of_other_formats(row_format, tmp_path):
    for name, row in ROW_OF.items():
        path = write_rows(tmp_path / "rows.jsonl", [row])
        output = tmp_path / f"{name}_as_{row_format}"
        result = run("pack", path, "-o", output, "--format", row_format, "--workers", "1")
        assert result.exit_code == (0 if name == row_format else 1)
        refused = f"line 1: other_format: the file is read as {row_format}" in result.stderr
        assert refused == (name != row_format)


def test_another_format_makes_another_run(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [ALPACA])
    pack(tmp_path / "packed", path)
    again = run("pack", path, "-o", tmp_path / "packed", "--format", "alpaca", "--workers", "1")
    assert again.exit_code == 2
    assert "its format is auto, not alpaca" in again.stderr


def test_the_format_of_standard_input_is_detected(tmp_path):
    rows = f"{json.dumps(ALPACA)}\n".encode() * 2
    result = CliRunner().invoke(
        main, ["pack", "-", "-o", str(tmp_path / "packed"), "--workers", "1"], input=rows
    )
    assert result.exit_code == 0, result.stderr
    assert "-: read as alpaca" in result.stderr


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_of_every_format_pack_like_their_json(path, tmp_path):
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows:  # a column has one type
        for key, role in (("prompt", "user"), ("completion", "assistant")):
            if isinstance(row.get(key), str):
                row[key] = [{"role": role, "content": row[key]}]
        if isinstance(row.get("tools"), list):
            row["tools"] = json.dumps(row["tools"])
    keys = dict.fromkeys(key for row in rows for key in row)
    assert set(keys) <= set(ROW_KEYS)
    table = pa.table({key: [row.get(key) for row in rows] for key in keys})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    report = pack(tmp_path / "table", tmp_path / "rows.parquet")
    pack(tmp_path / "text", path)
    assert report["rows_packed"] == len(rows)
    assert shard_of(tmp_path / "table") == shard_of(tmp_path / "text")


# Real files


@pytest.mark.parametrize(
    ("name", "rows", "rejected", "turns"),
    [
        ("alpaca_identity.json", 91, {}, 91),
        ("content_list_loss_weight.jsonl", 500, {}, 500),
        ("openai_edge_cases.jsonl", 17, {"invalid_content": 5}, 25),  # images and videos
        ("openai_sft.jsonl", 128, {}, 128),
        ("sharegpt_dummy.json", 500, {}, 1000),
        ("sharegpt_tools.json", 300, {}, 957),
    ],
)
def test_real_files_are_read_to_the_last_row(name, rows, rejected, turns, tmp_path):
    path = shared(f"data/formats/{name}")
    report = pack(tmp_path / "packed", path, "--on-error", "skip", "--seq-len", "16384")
    assert report["rows_rejected"] == rejected
    assert (report["rows_read"], report["turns_read"]) == (rows, turns)
    assert report["rows_packed"] == rows - sum(rejected.values())
    assert report["turns_packed"] == turns


def test_real_tool_calls_are_the_same_in_sharegpt_and_as_messages():
    def read_all(rows):
        dialogues = [dialogue_of(row) for row in rows]
        return [
            (
                dialogue.roles,
                dialogue.trained_messages(),
                [
                    (
                        message.get("content"),
                        [
                            (call["function"]["name"], as_object(call["function"]["arguments"]))
                            for call in message.get("tool_calls", [])
                        ],
                    )
                    for message in dialogue.messages
                ],
            )
            for dialogue in dialogues
        ]

    def as_object(arguments):
        return json.loads(arguments) if isinstance(arguments, str) else arguments

    native = json.loads(shared("data/formats/sharegpt_tools.json").read_text("utf-8"))
    converted = shared("data/glaive_toolcall_en.jsonl").read_text("utf-8").splitlines()
    assert read_all(native) == read_all(map(json.loads, converted))


# Arbitrary rows

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Short names, or text that is longer than any name that a refusal may quote.
    | st.text(max_size=3)
    | st.text(min_size=41),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
calls = st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "arguments"), plain))
messages = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("from", "role"),
            st.sampled_from(["human", "gpt", "user", "assistant", "tool", "function_call"]) | plain,
        ),
        **dict.fromkeys(("value", "content"), plain | calls.map(json.dumps) | st.lists(calls)),
        **dict.fromkeys(("loss", "train"), st.booleans() | plain),
        **dict.fromkeys(("weight", "loss_weight"), st.sampled_from([0, 1, 0.5]) | plain),
    },
)
conversations = st.lists(messages | plain, max_size=3) | plain
any_row = (
    plain
    | conversations
    | st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("messages", "conversations", "conversation"), conversations),
            **dict.fromkeys(("prompt", "completion"), conversations | st.text()),
            **dict.fromkeys(("instruction", "input", "output", "system"), st.text() | plain),
            "history": st.lists(st.lists(st.text(), min_size=2, max_size=2) | plain) | plain,
            "tools": plain,
        },
    )
)


@given(any_row, st.sampled_from([None, *FORMATS]))
def test_any_json_value_is_a_dialogue_or_a_reject_in_every_format(row, row_format):
    result = read(row, row_format)
    assert (result.row, result.origin) == (3, ORIGIN)
    if isinstance(result, Dialogue):
        assert result.messages
        assert all(result.roles[index] == "assistant" for index in result.trained_messages())
        assert result.roles == tuple(message["role"] for message in result.messages)
    else:
        assert result.detail.isprintable()
        assert not any(text in result.detail for text in strings_in(row) if len(text) > 40)
