"""Parts that a template drops are found and counted, exactly and with few renders."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest

import mtpack
from mtpack.input import reading
from mtpack.input.dialogue import Dialogue, Origin, make_dialogue
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import read_dialogue
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.dropped_content import MessageKinds
from mtpack.template.message_forms import find_forms
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import SHARED, shared

TEMPLATES = sorted(
    path.relative_to(SHARED / "templates").as_posix()
    for path in (SHARED / "templates").glob("*/*.jinja")
)
TOKENS = load_tokenizer(None).added_tokens
WEATHER = {"name": "weather", "description": "Tell the weather", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": WEATHER}]


def say(role: str, content: Any, **fields: Any) -> dict:
    return {"role": role, "content": content, **fields}


def calls(*cities: str, as_text: bool = False) -> list[dict]:
    made = []
    for number, city in enumerate(cities):
        arguments = json.dumps({"city": city}) if as_text else {"city": city}
        function = {"name": "weather", "arguments": arguments}
        made.append({"id": f"call0000{number}", "type": "function", "function": function})
    return made


def result(content: Any, number: int = 0) -> dict:
    return say("tool", content, name="weather", tool_call_id=f"call0000{number}")


def dialogue(*messages: dict, tools: list | None = None) -> Dialogue:
    row = json.dumps({"messages": list(messages), "tools": tools}).encode()
    read = read_dialogue(0, Origin("row", 1), row, LINE_LIMIT)
    assert isinstance(read, Dialogue), read
    return read


def count_dropped(
    template: ChatTemplate, dialogues: Iterable[Dialogue], tool_arguments: str = "auto"
) -> Counter[str]:
    kinds = MessageKinds()
    if tool_arguments != "auto":
        template = ChatTemplate(
            template.sources, template.variables, "2026-01-01", tool_arguments=tool_arguments
        )
    for each in dialogues:
        kinds.add(find_forms(template, each.tools).apply(each))
    return kinds.count_dropped(template, TOKENS)


def compile_source(source: str) -> ChatTemplate:
    return ChatTemplate(
        {"default": source}, {"bos_token": "<s>", "eos_token": "</s>"}, "2026-01-01"
    )


def make_template(body: str) -> ChatTemplate:
    """Return a template that writes `body` for every message `m`."""
    return compile_source(f"{{% for m in messages %}}<{{{{ m.role }}}}>{body}\n{{% endfor %}}")


@cache
def read_template(name: str) -> ChatTemplate:
    return compile_source(shared(f"templates/{name}").read_text(encoding="utf-8"))


CHAT = dialogue(
    say("system", "marmot"),
    say("user", "walrus"),
    say("assistant", "otter"),
    say("user", "badger"),
    say("assistant", "ferret"),
)
CALLING = dialogue(
    say("user", "walrus"),
    say("assistant", "otter", tool_calls=calls("Oslo")),
    result("badger"),
    say("assistant", "ferret", reasoning_content="stoat"),
    tools=TOOLS,
)
THINKING = dialogue(say("user", "walrus"), say("assistant", "<think>\nstoat\n</think>\n\notter"))
REST = "{{ m.tool_calls | tojson if m.tool_calls }}{{ m.thinking }}{{ tools | tojson }}"


# What counts as dropped


@pytest.mark.parametrize(
    ("body", "dropped"),
    [
        ("{{ m.content }}" + REST, {}),
        ("{{ m | tojson }}{{ tools }}", {}),
        (REST, {"user.content": 1, "assistant.content": 2, "tool.content": 1}),
        ("{{ m.content if m.role != 'tool' }}" + REST, {"tool.content": 1}),
        ("{{ m.content if not m.tool_calls }}" + REST, {"assistant.content": 1}),
        (
            "{{ m.content }}",
            {"tools": 1, "assistant.tool_calls": 1, "assistant.reasoning_content": 1},
        ),
    ],
)
def test_a_part_is_dropped_if_the_text_that_the_model_sees_does_not_depend_on_it(body, dropped):
    assert count_dropped(make_template(body), [CALLING]) == dropped


@pytest.mark.parametrize(
    "written",
    ["{{ c.function.name }}", "{{ c.function.arguments }}", "{{ c.id }}"],
)
def test_calls_written_without_name_or_arguments_are_dropped(written):
    template = make_template(f"{{% for c in m.tool_calls or [] %}}{written}{{% endfor %}}")
    assert count_dropped(template, [CALLING])["assistant.tool_calls"] == 1


@pytest.mark.parametrize("arguments", [{}, "{}", "", " { } "])
def test_empty_arguments_are_not_dropped(arguments):
    names = make_template("{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}")
    call = {"function": {"name": "weather", "arguments": arguments}}
    row = dialogue(say("user", ""), say("assistant", "", tool_calls=[call]))
    assert count_dropped(names, [row]) == {}


def test_one_dropped_call_of_several_is_counted():
    template = make_template("{{ m.tool_calls[0] if m.tool_calls }}")
    one, two = (
        dialogue(say("user", "walrus"), {"role": "assistant", "tool_calls": calls(*cities)})
        for cities in (("Oslo",), ("Oslo", "Rome"))
    )
    assert "assistant.tool_calls" not in count_dropped(template, [one])
    assert count_dropped(template, [one, two])["assistant.tool_calls"] == 1


@pytest.mark.parametrize(
    "content",
    [
        "{{ m.content }}",
        "{{ m.content[0].text }}",
        "{{ m.content if m.content is string else m.content[0].text }}",
        "{% for part in m.content %}{{ part.text }}{% endfor %}",
    ],
)
def test_no_text_part_is_dropped_by_a_template_that_takes_one_text_or_one_part(content):
    parts = [{"type": "text", "text": "wal"}, {"type": "text", "text": "rus"}]
    row = dialogue(say("user", parts), say("assistant", "otter"))
    assert count_dropped(make_template(content), [row]) == {}


@pytest.mark.parametrize("content", [{"temp": 20}, ["sunny"], 20, True])
def test_a_dropped_result_is_counted_whatever_its_type_is(content):
    row = dialogue(*CALLING.messages[:2], result(content), say("assistant", "ferret"))
    for shown, dropped in (("m.content | tojson", {}), ("''", {"tool.content": 1})):
        template = make_template(
            f"{{% if m.role == 'tool' %}}{{{{ {shown} }}}}{{% else %}}{{{{ m.content }}}}{REST}"
            "{% endif %}"
        )
        assert count_dropped(template, [row]) == dropped


def test_thinking_that_is_removed_from_the_content_is_counted():
    answer_alone = make_template("{{ m.content.split('</think>')[-1] }}")
    assert count_dropped(answer_alone, [THINKING]) == {"assistant.content.thinking": 1}
    assert count_dropped(make_template("{{ m.content }}"), [THINKING]) == {}
    thinking_alone = make_template("{{ m.content.split('</think>')[0] }}")
    assert count_dropped(thinking_alone, [THINKING]) == {"assistant.content": 1}
    no_thinking = dialogue(say("user", "walrus"), say("assistant", "<think>\n\n</think>\n\notter"))
    assert count_dropped(answer_alone, [no_thinking]) == {}
    assert count_dropped(thinking_alone, [no_thinking]) == {"assistant.content": 1}
    no_answer = dialogue(say("user", "walrus"), say("assistant", "<think>\nstoat\n</think>"))
    assert count_dropped(answer_alone, [no_answer]) == {"assistant.content.thinking": 1}
    assert count_dropped(thinking_alone, [no_answer]) == {}


def test_with_an_empty_list_of_tools_the_template_for_tools_is_tested():
    sources = {"default": "{{ messages }}", "tool_use": "{{ messages[1:] }}"}
    row = (say("user", "walrus"), say("assistant", "otter"))
    template = ChatTemplate(sources, {}, "2026-01-01")
    assert count_dropped(template, [dialogue(*row)]) == {}
    assert count_dropped(template, [dialogue(*row, tools=[])]) == {"user.content": 1}


def test_history_that_is_rewritten_later_is_not_dropped():
    last_alone = make_template("{{ m.content }}{{ m.reasoning_content if loop.last }}")
    row = dialogue(
        say("user", "walrus"),
        say("assistant", "otter", reasoning_content="stoat"),
        say("user", "badger"),
        say("assistant", "ferret", reasoning_content="sable"),
    )
    assert count_dropped(last_alone, [row]) == {}
    assert count_dropped(read_template("trl/qwen3.jinja"), [row]) == {}


def test_a_system_message_that_only_a_prompt_shows_is_dropped():
    prompt_alone = compile_source(
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}"
        "{{ messages[0].content if loop.last and m.role == 'user' }}{% endif %}{% endfor %}"
    )
    assert count_dropped(prompt_alone, [CHAT]) == {"system.content": 1}


def test_a_later_system_message_is_not_confused_with_the_opening_one():
    after_the_second = make_template("{{ m.content if m.role != 'assistant' or loop.index > 2 }}")
    row = [say("system", "marmot"), say("user", "walrus"), say("system", "lemur")]
    assert count_dropped(after_the_second, [dialogue(*row, say("assistant", "otter"))]) == {}
    all_but_the_second = make_template("{{ m.content if loop.index != 2 }}")
    assert count_dropped(all_but_the_second, [CHAT]) == {"user.content": 1}


def test_two_system_messages_are_tested_with_a_user_message_after_them():
    needs_a_user = make_template(
        "{{ raise_exception('no user') if not 'user' in messages | map(attribute='role') }}"
        "{{ m.content if m.role != 'system' }}"
    )
    row = dialogue(
        say("system", "marmot"),
        say("system", "lemur"),
        say("user", "walrus"),
        say("assistant", "otter"),
    )
    assert count_dropped(needs_a_user, [row]) == {"system.content": 2}


def test_missing_and_blank_parts_are_not_dropped():
    writes_nothing = make_template("")
    row = dialogue(say("user", " \n"), say("assistant", "", tool_calls=[]), tools=[])
    assert count_dropped(writes_nothing, [row]) == {}


def test_messages_in_no_document_are_not_counted():
    untrained = dialogue(say("user", "walrus"), say("assistant", "otter", train=False))
    closing = dialogue(say("user", "walrus"), say("assistant", "otter"), say("user", "badger"))
    assert count_dropped(make_template(""), [untrained]) == {}
    assert count_dropped(make_template(""), [closing]) == {
        "user.content": 1,
        "assistant.content": 1,
    }


@pytest.mark.parametrize(
    "body",
    [
        "{{ raise_exception('no') }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    ],
    ids=["raises", "exceeds a limit"],
)
def test_nothing_is_counted_for_a_template_that_refuses_the_test_dialogues(body):
    assert count_dropped(make_template(body), [CHAT, CALLING]) == {}


# Real templates


def test_lfm_2_drops_tool_calls_and_reasoning():
    expected = {"assistant.tool_calls": 1, "assistant.reasoning_content": 1}
    assert count_dropped(read_template("trl/lfm2.jinja"), [CALLING]) == expected


def test_idefics_3_drops_no_content_because_it_gets_lists():
    assert count_dropped(read_template("trl/idefics3.jinja"), [CHAT]) == {}


def test_mistral_shows_the_system_message_in_the_prompt_of_each_turn():
    assert count_dropped(read_template("axolotl/mistral_v2v3.jinja"), [CHAT]) == {}


def test_deepseek_r1_drops_the_thinking():
    template = read_template("llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja")
    assert count_dropped(template, [THINKING]) == {"assistant.content.thinking": 1}


def test_gpt_oss_drops_all_calls_but_the_first():
    template = read_template("trl/gptoss.jinja")
    several = dialogue(
        say("user", "walrus"),
        {"role": "assistant", "tool_calls": calls("Oslo", "Rome")},
        tools=TOOLS,
    )
    assert count_dropped(template, [CALLING]) == {}
    assert count_dropped(template, [several]) == {"assistant.tool_calls": 1}


def test_glm_drops_arguments_only_if_they_are_wanted_as_text():
    template = read_template("llama.cpp/GLM-4.6.jinja")
    row = dialogue(
        say("user", "walrus"), say("assistant", "", tool_calls=calls("Oslo")), tools=TOOLS
    )
    assert count_dropped(template, [row]) == {}
    assert count_dropped(template, [row], "text") == {"assistant.tool_calls": 1}


# One test for each kind of message gives the same as one for each message


# They move the system message into a question: in the prompt of a turn, and so in its context,
# unless the question is blank.
MOVING = ("axolotl/mistral_v2v3.jinja", "axolotl/mistral_v3_tekken.jinja")


def by_role(row: Dialogue) -> Iterator[tuple[str, dict]]:
    return zip(row.roles, row.messages, strict=True)


def is_blank(message: dict) -> bool:
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return not "".join(texts).strip()


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_result_for_a_kind_is_that_for_each_of_its_messages(name):
    template = read_template(name)
    for row in make_random_dialogues(25):
        if name in MOVING and any(role == "user" and is_blank(m) for role, m in by_role(row)):
            continue
        row = find_forms(template, row.tools).apply(row)
        try:
            expected = Counter(find_dropped_one_by_one(template, row))
        except TemplateRaisedError:
            continue
        assert count_dropped(template, [row]) == expected


def render_served(template: ChatTemplate, messages: list[dict], tools: list | None) -> str:
    """Return what the model sees and writes at inference for the last message."""
    text = template.render(messages, tools)
    dialogue = make_dialogue(0, Origin("row", 1), messages, tools, range(len(messages) - 1))
    rendered = render_dialogue(template, TOKENS, dialogue, "never")
    return rendered.own[0].text if isinstance(rendered, RenderedDialogue) and rendered.own else text


def find_dropped_one_by_one(template: ChatTemplate, row: Dialogue) -> Iterator[str]:
    """Yield the dropped parts of each message, found by changing the dialogue itself."""
    messages = row.messages
    if row.tools:
        first = row.roles.index("assistant")
        changed = replace_word({"tools": row.tools}, "weather")["tools"]
        texts = [
            render_served(template, messages[: first + 1], tools) for tools in (row.tools, changed)
        ]
        if texts[0] == texts[1]:
            yield "tools"
    for index, message in enumerate(messages[: row.trained_messages()[-1] + 1]):
        end = row.roles.index("assistant", index)

        def seen(fields: dict, index: int = index, end: int = end) -> str:
            changed = messages[: end + 1]
            changed[index] = fields
            return render_served(template, changed, row.tools)

        text = seen(message)
        for part, words in find_words(message).items():
            if any(seen(replace_word(message, word)) == text for word in words):
                yield f"{message['role']}.{part}"


def find_words(fields: dict) -> dict[str, list[str]]:
    """Return the words of each part of a message; all words of a dialogue differ."""
    contents = fields.get("content") or ""
    if isinstance(contents, list):
        contents = " ".join(part["text"] for part in contents)
    thinking, _, answer = contents.rpartition("</think>")
    words = {"content": answer.split(), "content.thinking": thinking.replace("<think>", "").split()}
    words["reasoning_content"] = fields.get("reasoning_content", "").split()
    functions = [call.get("function", call) for call in fields.get("tool_calls", [])]
    words["tool_calls"] = [function["name"] for function in functions]
    for function in functions:
        arguments = function["arguments"]
        values = json.loads(arguments) if isinstance(arguments, str) else arguments
        words["tool_calls"] += values.values()
    return words


def replace_word(fields: dict, word: str) -> dict:
    return json.loads(json.dumps(fields).replace(word, "zebra"))


def make_random_dialogues(number: int) -> Iterator[Dialogue]:
    """Yield dialogues of all kinds, in which all words differ."""
    draw = random.Random(number)
    for _ in range(number):
        count = iter(range(100, 1000))

        def word(count: Iterator[int] = count) -> str:
            return f"word{next(count)}"

        messages = [say(draw.choice(["system", "developer"]), word())] * draw.choice([0, 1])
        for _ in range(draw.choice([1, 1, 2, 3])):
            if draw.random() < 0.1:
                messages.append(say("system", word()))
            parts = [{"type": "text", "text": word()} for _ in range(draw.choice([1, 2]))]
            if draw.random() < 0.9:
                messages.append(say("user", draw.choice([word(), word(), parts])))
            while draw.random() < 0.4:
                messages += make_random_calls(draw, word)
            thinking = f"<think>\n{word()}\n</think>\n\n"
            empty = "<think>\n\n</think>\n\n"
            answer = say("assistant", draw.choice(["", "", thinking, empty]) + word())
            messages.append(answer | draw.choice([{}, {}, {"reasoning_content": word()}]))
        yield dialogue(*messages, tools=draw.choice([None, TOOLS, [WEATHER]]))


def make_random_calls(draw: random.Random, word: Callable[[], str]) -> Iterator[dict]:
    made = calls(*(word() for _ in range(draw.choice([1, 1, 2]))), as_text=draw.random() < 0.3)
    for one in made:
        one["function"]["name"] = word()
    if draw.random() < 0.2:
        made = [{"id": one["id"], "type": "function", **one["function"]} for one in made]
    message = {"role": "assistant", "tool_calls": made}
    yield message | draw.choice([{}, {"content": ""}, {"content": word()}])
    yield from (result(word(), number) for number in range(len(made)))


# One test for each kind, in any order, with any number of workers


class CountingTemplate(ChatTemplate):
    """Counts how often it renders."""

    renders = 0

    def render(self, *arguments: Any, **more: Any) -> str:
        self.renders += 1
        return super().render(*arguments, **more)


def test_many_dialogues_of_the_same_kinds_need_no_more_renders_than_one():
    template = CountingTemplate({"default": "{{ messages }}"}, {}, "2026-01-01")
    find_forms(template, None)
    template.renders = 0
    count_dropped(template, [CHAT])
    renders = template.renders
    assert renders <= 100
    count_dropped(template, [CHAT] * 1000)
    assert template.renders == renders


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = []
    for row in make_random_dialogues(60):
        messages = [message for message in row.messages if message.get("content") is not None]
        lines.append(json.dumps({"messages": messages, "tools": row.tools}))
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


# It writes the names of calls, but not their arguments.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.name or c.function.name }}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pack(rows, output, **options):
    template = rows.with_name("chatml.jinja")
    template.write_text(CHATML, encoding="utf-8")
    return mtpack.pack(rows, output=output, chat_template=template, **options).tally


CONTENTS = ("", " \n", "cedar", "<think>ebony</think>cedar", [{"type": "text", "text": "cedar"}])


def test_dialogues_with_only_texts_are_counted_as_message_by_message():
    """An unused key makes a message more than a role and a text, so it is counted by itself."""
    template = make_template(
        "{{ (m.content | string).split('</think>')[-1] if m.role == 'assistant' and not tools }}"
    )
    plain, noted = [], []
    for prompt, answer, tools in product(CONTENTS, CONTENTS, (None, [], TOOLS)):
        for number in (1, 2):
            messages = [say("system", prompt), say("assistant", answer)] * number
            plain.append(dialogue(*messages, tools=tools))
            noted.append(dialogue(*({**message, "note": "x"} for message in messages), tools=tools))
    counts = count_dropped(template, plain)
    assert counts == count_dropped(template, noted)
    assert counts == sum((count_dropped(template, [one]) for one in plain), Counter())
    assert counts.keys() > {"system.content", "assistant.content.thinking", "tools"}


def test_the_counts_of_a_dialogue_do_not_depend_on_other_dialogues():
    together = list(make_random_dialogues(30))
    source = "{% for m in messages %}{{ m.content if m.role != 'tool' }}{% endfor %}"
    alone = [count_dropped(compile_source(source), [row]) for row in together]
    assert sum(alone, Counter()) == count_dropped(compile_source(source), together)


def test_the_counts_depend_on_neither_workers_nor_order(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 4096)
    alone = pack(rows, tmp_path / "alone", workers=1)
    assert {"assistant.tool_calls", "tools"} <= alone.content_dropped.keys()
    assert pack(rows, tmp_path / "shared", workers=2) == alone
    lines = rows.read_text(encoding="utf-8").split("\n")
    rows.write_text("\n".join(reversed(lines)), encoding="utf-8")
    assert pack(rows, tmp_path / "reversed", workers=1).content_dropped == alone.content_dropped


def test_the_manifest_has_the_counts_of_dropped_parts(rows, tmp_path):
    tally = pack(rows, tmp_path / "packed", workers=1)
    manifest = mtpack.open_shards(tmp_path / "packed").manifest
    assert manifest is not None
    assert manifest.report.tally.content_dropped == tally.content_dropped != {}
