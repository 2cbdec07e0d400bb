"""Which added tokens a template writes, and which of them open or end a turn."""

import pytest

from mtpack.template.chat_template import ChatTemplate
from mtpack.template.limits import Limits
from mtpack.template.written_tokens import find_turn_tokens, find_written_tokens
from tests.conftest import shared

DATE = "2026-01-01"
THINK = {"<think>", "</think>"}
CALL = {"<tool_call>", "</tool_call>"}
RESPONSE = {"<tool_response>", "</tool_response>"}
ROLES = {"<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"}
CHATML = {"<|im_start|>", "<|im_end|>"}
LLAMA_3 = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}
DEEPSEEK = {"<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"}
MISTRAL = {"[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"}
GEMMA_4 = {"<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"}
HARMONY = {"<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|channel|>", "<|call|>"}
EVERY = THINK | CALL | RESPONSE | ROLES | CHATML | LLAMA_3 | DEEPSEEK | MISTRAL | GEMMA_4 | HARMONY

# By template: the tokens of EVERY that it writes, and those of them that open or end a turn.
TEMPLATES = {
    "trl/qwen3.jinja": (THINK | CALL | RESPONSE | CHATML, CHATML),
    "llama.cpp/Qwen3.5-4B.jinja": (THINK | CALL | RESPONSE | CHATML, CHATML),
    "trl/qwen2_5.jinja": (CALL | RESPONSE | CHATML, CHATML),
    "trl/nemotron_3_nano.jinja": (THINK | CALL | RESPONSE | CHATML, CHATML),
    "llama.cpp/GLM-4.6.jinja": (
        THINK | CALL | RESPONSE | ROLES,
        {"<|system|>", "<|user|>", "<|assistant|>"},
    ),
    "llama.cpp/GLM-5.2.jinja": (
        THINK | CALL | RESPONSE | ROLES,
        {"<|system|>", "<|user|>", "<|assistant|>"},
    ),
    "llama.cpp/deepseek-ai-DeepSeek-V3.2.jinja": (THINK | DEEPSEEK, DEEPSEEK),
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": (THINK | DEEPSEEK, DEEPSEEK),
    "trl/llama3_2.jinja": (LLAMA_3 - {"<|begin_of_text|>"}, LLAMA_3 - {"<|begin_of_text|>"}),
    "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407.jinja": (MISTRAL, MISTRAL - {"[TOOL_CALLS]"}),
    "llama.cpp/google-gemma-4-31B-it-interleaved.jinja": (GEMMA_4, {"<|turn>", "<turn|>"}),
    "llama.cpp/openai-gpt-oss-120b.jinja": (HARMONY, HARMONY - {"<|channel|>", "<|call|>"}),
    "llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja": (
        {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"},
        {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"},
    ),
    "trl/llava_next.jinja": ({"[INST]", "[/INST]"}, {"[INST]", "[/INST]"}),  # takes parts alone
    "llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja": (
        CALL | RESPONSE | CHATML,  # <tool_call> is in the system message of every dialogue
        CHATML,
    ),
}


def template_of(source: str, **others: str) -> ChatTemplate:
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatTemplate({"default": source, **others}, variables, DATE)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokens_of_well_known_templates(name):
    template = template_of(shared(f"templates/{name}").read_text(encoding="utf-8"))
    written, turn_tokens = TEMPLATES[name]
    assert find_written_tokens(template, EVERY) == written
    assert find_turn_tokens(template, EVERY, []) == turn_tokens


@pytest.mark.parametrize(
    ("source", "is_written"),
    [
        ("a<note>b", True),
        ("{{ '<note>' }}", True),
        ("{{ '\\u003cnote>' }}", True),
        ("{% set a = '<note>\\n' %}", True),
        ("{{ '<no' + 'te>' }}", True),
        ("<no{{ 'te' ~ '>' }}", True),
        ("{% if '<note>' in messages[0].content %}a{% endif %}", True),
        ("{{ {'a': ['<note>']} }}", True),
        ("{# <note> #}", False),
        ("<no te>", False),
        ("<no{{ messages[0].role }}te>", False),
        ("{{ '<no' }}{% if tools %}{{ 'te>' }}{% endif %}", False),
    ],
)
def test_a_token_is_written_if_it_stands_in_a_literal_text(source, is_written):
    assert (find_written_tokens(template_of(source), ["<note>"]) == {"<note>"}) is is_written


@pytest.mark.parametrize(
    "source",
    [
        "{{ '<|' + message.role + '|>' }}",
        "{{ '<|' ~ message['role'] ~ '|>\\n' ~ message.content }}",
        "<|{{ message.role }}|>{{ message.content }}",
    ],
)
def test_the_names_of_roles_stand_for_what_is_joined_with_literal_texts(source):
    tokens = ["<|user|>", "<|tool|>", "<|mask|>"]
    looped = template_of(f"{{% for message in messages %}}{source}{{% endfor %}}")
    assert find_written_tokens(looped, tokens) == {"<|user|>", "<|tool|>"}


def test_words_and_white_space_are_no_control_tokens():
    tokens = ["user", "\n\n", "  ", "--", ">", "assistant", "_a_", "<a>"]
    source = "user\n\n  assistant -- _a_ > <a>"
    assert find_written_tokens(template_of(source), tokens) == {"<a>"}


def test_all_templates_of_a_tokenizer_count_together():
    chat = "{% for m in messages %}<a>{{ m.content }}</a>{% endfor %}"
    template = template_of(chat, tool_use=chat.replace("a>", "b>"))
    tokens = {"<a>", "</a>", "<b>", "</b>", "<c>"}
    assert find_written_tokens(template, tokens) == tokens - {"<c>"}
    assert find_turn_tokens(template, tokens, []) == tokens - {"<c>"}


def test_stop_tokens_end_turns_even_if_the_template_does_not_write_them():
    template = template_of("{% for m in messages %}<a>{{ m.content }}{% endfor %}")
    assert find_turn_tokens(template, {"<a>", "<e>"}, ["<e>", "<f>"]) == {"<a>", "<e>"}


@pytest.mark.parametrize("reasoning", ["<mull>{}</mull>", "{}</mull>"])
def test_tokens_around_a_reasoning_are_no_turn_tokens_even_around_an_empty_one(reasoning):
    source = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.role == 'assistant' %}REASONING{% endif %}{{ m.content }}<e>{% endfor %}"
    ).replace("REASONING", reasoning.format("{{ m.reasoning_content or '' }}"))
    tokens = {"<|user|>", "<e>", "<mull>", "</mull>"}
    assert find_turn_tokens(template_of(source), tokens, []) == {"<|user|>", "<e>"}


def test_the_tokens_of_a_reasoning_and_of_a_call_are_none_even_in_every_system_message():
    source = (
        "<|system|>Write <mull>, </mull>, <do> and </do>.<e>{% for m in messages %}"
        "<|{{ m.role }}|>{% if m.reasoning_content %}<mull>{{ m.reasoning_content }}</mull>"
        "{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}"
        "<do>{{ call.function.name }}</do>{% endfor %}<e>{% endfor %}"
    )
    tokens = {
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<e>",
        "<mull>",
        "</mull>",
        "<do>",
        "</do>",
    }
    expected = {"<|system|>", "<|user|>", "<|assistant|>", "<e>"}
    assert find_turn_tokens(template_of(source), tokens, []) == expected


def test_the_header_before_a_call_without_tokens_of_its_own_opens_a_turn():
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content if not m.tool_calls }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}<e>{% endfor %}"
    )
    tokens = {"<|user|>", "<|assistant|>", "<e>"}
    assert find_turn_tokens(template_of(source), tokens, []) == tokens


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}<a>",
        "{{ 1 / 0 }}<a>",
        "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}<a>",
        "<a>{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_hostile_template_has_no_turn_tokens(source):
    template = ChatTemplate({"default": source}, {}, DATE, Limits(iterations=1000))
    assert find_written_tokens(template, ["<a>"]) == {"<a>"}
    assert find_turn_tokens(template, ["<a>", "<e>"], ["<e>"]) == {"<e>"}
