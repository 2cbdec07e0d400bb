"""Inputs as people publish them: what the model is trained on, or the lines that a user sees.

The inputs are in ../shared/data/cases, packed with Qwen3's tokenizer and template. PACKED says for
a command line what comes out: the documents as text, with what is trained in ⟦brackets⟧. Qwen3's
template removes the thinking from earlier turns, so each turn has a document of its own. REFUSED
says which exit status and which lines a user gets.
"""

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtpack.cli import main
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import SHARED, shared
from tests.support.packed_texts import list_texts

CASES = SHARED / "data" / "cases"
WARNINGS = ("the small tokenizer that comes", ": read as ")

# How Qwen3's template writes a dialogue


def join(*messages: str) -> str:
    return "\n".join(messages)


def system(text: str) -> str:
    return f"<|im_start|>system\n{text}<|im_end|>"


def user(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>"


def answer(text: str) -> str:
    """Return an answer in the history, without loss."""
    return f"<|im_start|>assistant\n{text}<|im_end|>"


def trained(text: str, thinking: str = "") -> str:
    return f"<|im_start|>assistant\n⟦<think>\n{thinking}\n</think>\n\n{text}<|im_end|>⟧"


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def result(text: str) -> str:
    return user(f"<tool_response>\n{text}\n</tool_response>")


def tools(*schemas: str, before: str = "") -> str:
    """Return the system message with tools. before: the row's own system message."""
    return system(
        f"{before}# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        + "\n".join(f'{{"type": "function", "function": {schema}}}' for schema in schemas)
        + "\n</tools>\n\nFor each function call, return a json object with function name and "
        "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def schema(name: str, description: str, properties: str, required: str) -> str:
    return (
        f'{{"name": "{name}", "description": "{description}", "parameters": {{"type": "object", '
        f'"properties": {properties}, "required": [{required}]}}}}'
    )


HELLO = [join(user("hi"), trained("hello"))]
YO = [join(user("hi"), trained("yo"))]

CITY, SECONDS = (
    '"city": {"type": "string"}',
    '"seconds": {"type": "integer", "description": "how long", "enum": [1, 2]}',
)
WEATHER = schema("get_weather", "weather", f"{{{CITY}}}", '"city"')
ASKED = join(tools(WEATHER), user("weather in Rome?"))
ROME = call("get_weather", '{"city": "Rome"}')
NO_ARGUMENTS = call("get_weather", "{}")
F, G = call("f", '{"a": 1}'), call("g", '{"a": 2}')


def weather(call: str = ROME, found: str = "sunny", asked: str = ASKED) -> list[str]:
    """Return the documents of a question, a call, its result and an answer."""
    return [
        join(asked, trained(call)),
        join(asked, answer(call), result(found), trained("Sunny.")),
    ]


def timer(schema: str, arguments: str = '{"seconds": 3}') -> list[str]:
    asked, set_timer = join(tools(schema), user("timer 3 s")), call("set_timer", arguments)
    return [
        join(asked, trained(set_timer)),
        join(asked, answer(set_timer), result("ok"), trained("Set.")),
    ]


def now(*schemas: str, arguments: str = "{}") -> list[str]:
    asked, call_now = join(tools(*schemas), user("time?")), call("now", arguments)
    return [
        join(asked, trained(call_now)),
        join(asked, answer(call_now), result("noon"), trained("Noon.", "it is noon")),
    ]


AGENT = [
    *weather(),
    *timer(schema("set_timer", "timer", f"{{{SECONDS}}}", "")),
    *now(schema("now", "", "{}", ""), WEATHER),
    *HELLO,
]
WEATHER_OR_NULL = schema("get_weather", "weather", f'{{{CITY}, "seconds": null}}', '"city"')
AGENT_WITH_NULLS = [
    *weather(
        call("get_weather", '{"city": "Rome", "seconds": null}'),
        asked=join(tools(WEATHER_OR_NULL), user("weather in Rome?")),
    ),
    *timer(
        schema("set_timer", "timer", f'{{"city": null, {SECONDS}}}', ""),
        '{"city": null, "seconds": 3}',
    ),
    *now(
        schema("now", "", '{"city": null, "seconds": null}', ""),
        WEATHER_OR_NULL,
        arguments='{"city": null, "seconds": null}',
    ),
    *HELLO,
]
ONE_CALL = [
    join(user("w?"), trained(F)),
    join(user("w?"), answer(F), result("1"), trained("one")),
]
FIRST_WITHOUT_LOSS = [join(user("hi"), answer("hello"), user("x"), trained("y"))]
THINKING_OFF = join(user("hi"), "<|im_start|>assistant\n<think>\n\n</think>\n\n⟦hello<|im_end|>⟧")

PACKED = {
    # Rows: system messages and tools
    "system_top.jsonl": [join(system("answer in French only"), user("hi"), trained("bonjour"))],
    "functions_key.jsonl": [join(tools(WEATHER), HELLO[0])],
    "tools_in_system.jsonl": [join(tools(WEATHER, before="be brief\n\n"), HELLO[0])],
    "tools_dict.jsonl": [join(tools(WEATHER), HELLO[0])],
    "tools_str_one.jsonl": [join(tools(WEATHER), HELLO[0])],
    # Rows: variables of the template
    "kwargs_row.jsonl": [THINKING_OFF, join(user("hi"), trained("hello", "greet"))],
    "enable_thinking_row.jsonl": [THINKING_OFF],
    # Rows: loss switches
    "loss_mask_int.jsonl": FIRST_WITHOUT_LOSS,
    "masked.jsonl": FIRST_WITHOUT_LOSS,
    "trainable.jsonl": FIRST_WITHOUT_LOSS,
    "step_loss_mask.jsonl": FIRST_WITHOUT_LOSS,
    # Rows: roles, and names of keys
    "roles_human.jsonl": YO,
    "sharegpt_in_messages.jsonl": YO,
    "swift_tool_call_role.jsonl": [
        join(ASKED, answer(ROME), result("sunny"), trained("It is sunny in Rome."))
    ],
    "nested.jsonl --messages-key data.messages": HELLO,
    "other_key.jsonl --messages-key dialog": HELLO,
    # Rows: reasoning
    "think_part.jsonl": [join(user("1+1"), trained("2", "easy"))],
    "reasoning_details.jsonl": [join(user("2+2?"), trained("4", "two and two"))],
    # Rows: JSON text
    "messages_str.jsonl": YO,
    "msgs_string.parquet": YO,
    "json_msgs.parquet": [
        *weather(),
        *timer(
            schema("set_timer", "timer", '{"seconds": {"type": "integer", "enum": [1, 2]}}', "")
        ),
    ],
    # Files
    "agent_saved": AGENT,
    "agent_saved/data-00000-of-00001.arrow": AGENT,
    "agent_dd --split train": AGENT,
    "agent_dd --split test": weather(),
    "agent_dd/test": weather(),
    "one_obj.json": YO,
    "jsonl_named.json": [*YO, join(user("ciao"), trained("già"))],
    "x.ndjson": YO,
    "arr.json.gz": YO,
    # What was read before as well
    "agent.jsonl": AGENT,
    "agent_fromds.jsonl": AGENT_WITH_NULLS,
    "args_dict.jsonl": weather(),
    "args_dict_null.jsonl": weather(),
    "args_text.jsonl": weather(),
    "args_text_null.jsonl": weather(),
    "call_args_empty_str.jsonl": weather(NO_ARGUMENTS),
    "call_args_missing.jsonl": weather(NO_ARGUMENTS),
    "call_args_none.jsonl": weather(NO_ARGUMENTS),
    "result_null.jsonl": weather(found=""),
    "result_num.jsonl": weather(found="20"),
    "result_obj.jsonl": weather(found='{"temp": 20, "sky": "clear"}'),
    "empty.jsonl": ONE_CALL,
    "null.jsonl": ONE_CALL,
    "jtool.jsonl": ONE_CALL[:1],
    "sameid.jsonl": [
        join(user("w?"), trained(F)),
        join(user("w?"), answer(F), result("1"), trained(G)),
        join(user("w?"), answer(F), result("1"), answer(G), result("2"), trained("done")),
    ],
    "jamba.jsonl": [
        join(user("How do I stop generation?"), trained("Emit the token <|endoftext|>")),
        join(
            user("How do I stop generation?"),
            answer("Emit the token <|endoftext|>"),
            user("ok"),
            trained("fine"),
        ),
    ],
    "open.jsonl": [
        join("<|im_start|>assistant\n⟦Welcome!<|im_end|>⟧", user("Hi"), trained("Yes?"))
    ],
    "starts_assistant.jsonl": [
        join("<|im_start|>assistant\n⟦hello<|im_end|>⟧", user("hi"), trained("ok"))
    ],
}

SKIP = "repair or remove the row, or skip such rows with --on-error skip"
NO_MESSAGES = (
    'the row has none of "messages" (or "prompt" and "completion"), "conversations", '
    '"instruction" and "output"'
)
KTO = "is false: the answer is a bad example (KTO), so it is not trained; remove such rows"
REFUSED = {
    "dpo.jsonl": (
        1,
        'dpo.jsonl line 1: preference_row: the row has "chosen" and "rejected": it compares '
        'answers, so mtpack can\'t train it; keep the answer to train, as "completion" (or as '
        f'"messages", with its prompt), and remove the other\n{SKIP}',
    ),
    "kto.jsonl": (1, f'kto.jsonl line 1: preference_row: "label" {KTO}\n{SKIP}'),
    "kto_sg.jsonl": (1, f'kto_sg.jsonl line 1: preference_row: "kto_tag" {KTO}\n{SKIP}'),
    "images_sg.jsonl": (
        1,
        'images_sg.jsonl line 1: media_row: the row has "images" and <image> in its text; mtpack '
        f"packs text only\n{SKIP}",
    ),
    "nested.jsonl": (
        1,
        f'nested.jsonl line 1: invalid_row: {NO_MESSAGES}; its keys are "data"; name the key of '
        f"the messages with --messages-key\n{SKIP}",
    ),
    "other_key.jsonl": (
        1,
        f'other_key.jsonl line 1: invalid_row: {NO_MESSAGES}; its keys are "dialog"; name the key '
        f"of the messages with --messages-key\n{SKIP}",
    ),
    "agent_dd": (2, 'agent_dd: has the splits "train", "test"; choose one with --split'),
    "agent_dd --split validation": (
        2,
        'agent_dd: has no split "validation"; it has "train", "test"',
    ),
    "agent_saved --split train": (
        2,
        "agent_saved: has no splits to choose from; leave out --split, which is for folders that "
        "datasets saved with several splits",
    ),
}

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, which is not here")


def run(command: str, output: Path, *more: str) -> Result:
    """Run `mtpack pack` on cases, in the folder of the cases."""
    arguments = [*shlex.split(command), "-o", str(output), *more]
    result = CliRunner().invoke(main, ["pack", *arguments, "--workers", "1", "--quiet"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def trained_texts(tmp_path_factory) -> dict[str, list[str]]:
    """Return the documents of every command of PACKED; those without options are one run.

    In that run, nothing is unread, and the files follow each other, so each has the next rows.
    """
    tokenizer = str(shared("tokenizers/qwen3"))
    decode = load_tokenizer(tokenizer).backend.decode
    runs = [[command] for command in PACKED if " --" in command]
    runs.append([command for command in PACKED if " --" not in command])
    texts: dict[str, list[str]] = {command: [] for command in PACKED}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CASES)
        for commands in runs:
            output = tmp_path_factory.mktemp("packed") / "out"
            found = run(" ".join(commands), output, "--tokenizer", tokenizer, "--json")
            assert found.exit_code == 0, found.stderr
            report = json.loads(found.stdout)
            assert report["never_read"] == {}
            owners = [command for command in commands for _ in range(count_rows(command))]
            assert report["rows_packed"] == len(owners)
            for row, text in list_texts(output, decode):
                texts[owners[row]].append(text)
    return texts


def count_rows(command: str) -> int:
    """Return the number of rows of a command of PACKED: each ends with its own last document."""
    documents = PACKED[command]
    return 1 + sum(
        not after.startswith(before[: before.index("⟦")]) for before, after in pairwise(documents)
    )


@needs_shared
def test_every_case_is_in_the_table():
    commands = {command.split()[0].split("/")[0] for command in (*PACKED, *REFUSED)}
    assert commands == {path.name for path in CASES.iterdir()}


@needs_shared
@pytest.mark.parametrize("command", PACKED)
def test_a_case_is_trained_as_its_plain_meaning_says(command, trained_texts):
    assert trained_texts[command] == PACKED[command]


@needs_shared
@pytest.mark.parametrize("command", REFUSED)
def test_a_case_that_must_not_be_trained_blindly_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.chdir(CASES)
    found = run(command, tmp_path / "packed")
    status, lines = REFUSED[command]
    said = [line for line in found.stderr.splitlines() if not any(w in line for w in WARNINGS)]
    assert (found.exit_code, "\n".join(said)) == (status, f"mtpack: {lines}")
    assert found.stdout == ""
    assert not (tmp_path / "packed").exists()
