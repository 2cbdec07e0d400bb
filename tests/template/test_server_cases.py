"""Small inputs that were trained wrongly once, with the templates of real models.

The table says for each turn how the text before it ends, and what is trained: what an inference
server shows the model, and what the model has to write.
"""

import json

import pytest

from mtpack.documents.token_spans import encode_dialogues
from mtpack.input.dialogue import Reject
from mtpack.template.rendered_documents import RenderedDocuments
from tests.conftest import SHARED, shared
from tests.support.encoders import encoder_of
from tests.support.template_table import LoadedTemplate, load_template, render

JAMBA, GLM, GLM_5 = "axolotl/jamba.jinja", "llama.cpp/GLM-4.6.jinja", "llama.cpp/GLM-5.2.jinja"
QWEN_2_5, QWEN_3_5 = "trl/qwen2_5.jinja", "llama.cpp/Qwen3.5-4B.jinja"
CHATML, R1 = "axolotl/chatml.jinja", "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja"

ASKED = "<|im_end|>\n<|im_start|>assistant\n"
THINKING = f"{ASKED}<think>\n"
NO_THOUGHT = "\n</think>\n\n"
R1_CALL = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
WEATHER = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
QWEN_CALL = f"<tool_call>\n{WEATHER}\n</tool_call><|im_end|>"
QWEN_3_5_CALL = (
    f"{NO_THOUGHT}<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n"
    "</function>\n</tool_call><|im_end|>"
)

TRAINED = {
    (JAMBA, "jamba"): [
        ("<|eom|><|bom|><|assistant|>", " Emit the token <|endoftext|><|eom|>"),
        ("<|eom|><|bom|><|assistant|>", " fine<|eom|>"),
    ],
    (JAMBA, "jtool"): [
        (
            "<|eom|><|bom|><|assistant|>",
            ' <tool_calls>[\n    {"name": "f", "arguments": {"a": 1}}\n]</tool_calls><|eom|>',
        )
    ],
    (GLM, "jamba"): [
        ("generation?<|assistant|>", "\n<think></think>\nEmit the token <|endoftext|><|user|>"),
        ("ok<|assistant|>", "\n<think></think>\nfine<|user|>"),
    ],
    (GLM, "jtool"): [
        (
            "w?<|assistant|>",
            "\n<think></think>\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
            "</tool_call><|observation|>",
        )
    ],
    (GLM, "sameid"): [
        (
            "w?<|assistant|>",
            "\n<think></think>\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
            "</tool_call><|observation|>",
        ),
        (
            "\n1\n</tool_response><|assistant|>",
            "\n<think></think>\n<tool_call>g\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n"
            "</tool_call><|observation|>",
        ),
        ("\n2\n</tool_response><|assistant|>", "\n<think></think>\ndone<|user|>"),
    ],
    (GLM, "open"): [
        ("[gMASK]<sop><|assistant|>", "\n<think></think>\nWelcome!<|user|>"),
        ("Hi<|assistant|>", "\n<think></think>\nYes?<|user|>"),
    ],
    (QWEN_2_5, "open"): [(ASKED, "Welcome!<|im_end|>"), (ASKED, "Yes?<|im_end|>")],
    (QWEN_2_5, "args_text"): [(ASKED, QWEN_CALL), (ASKED, "Sunny.<|im_end|>")],
    (QWEN_2_5, "args_text_null"): [(ASKED, QWEN_CALL), (ASKED, "Sunny.<|im_end|>")],
    (QWEN_3_5, "args_text"): [
        (THINKING, QWEN_3_5_CALL),
        (THINKING, f"{NO_THOUGHT}Sunny.<|im_end|>"),
    ],
    (QWEN_3_5, "call_args_none"): [
        (
            THINKING,
            f"{NO_THOUGHT}<tool_call>\n<function=get_weather>\n</function>\n</tool_call><|im_end|>",
        ),
        (THINKING, f"{NO_THOUGHT}Sunny.<|im_end|>"),
    ],
    (GLM, "result_obj"): [
        (
            "weather in Rome?<|assistant|>",
            "\n<think></think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
            "<arg_value>Rome</arg_value>\n</tool_call><|observation|>",
        ),
        (
            '<tool_response>\n{"temp": 20, "sky": "clear"}\n</tool_response><|assistant|>',
            "\n<think></think>\nSunny.<|user|>",
        ),
    ],
    (GLM_5, "open"): [
        ("<|assistant|><think>", "</think>Welcome!<|user|>"),
        ("Hi<|assistant|><think>", "</think>Yes?<|user|>"),
    ],
    (CHATML, "open"): [
        ("<|im_start|>assistant\n", "Welcome!<|im_end|>"),
        (ASKED, "Yes?<|im_end|>"),
    ],
}
REFUSED = {
    (CHATML, "jtool"): "tools_not_shown",
    (CHATML, "sameid"): "tools_not_shown",
    (CHATML, "args_text"): "tools_not_shown",
}

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, which is not here")


def read(case: str) -> dict:
    return json.loads(shared(f"data/cases/{case}.jsonl").read_text(encoding="utf-8"))


def list_trained(loaded: LoadedTemplate, case: str) -> list[tuple[str, str]]:
    """Return the text before each turn, and the text of its loss tokens, in message order."""
    rendered = render(loaded, read(case), "auto")
    assert not isinstance(rendered, Reject), rendered
    batch, _ = encode_dialogues(
        encoder_of(loaded.tokenizer), RenderedDocuments.of([rendered]), "auto"
    )
    decode = loaded.tokenizer.backend.decode
    trained = {}
    for turn, document in enumerate(batch.turn_documents.tolist()):
        ids = batch.ids[slice(*batch.document_offsets[document : document + 2])].tolist()
        (span,) = range(*batch.span_offsets[turn : turn + 2])
        start, end = int(batch.span_starts[span]), int(batch.span_ends[span])
        trained[int(batch.turn_messages[turn])] = tuple(
            decode(part, skip_special_tokens=False) for part in (ids[:start], ids[start:end])
        )
    return [trained[message] for message in sorted(trained)]


@needs_shared
@pytest.mark.parametrize(("template", "case"), TRAINED)
def test_the_turns_of_a_case_stand_after_the_servers_text_and_end_where_it_stops(template, case):
    with load_template(template) as loaded:
        found = list_trained(loaded, case)
    expected = TRAINED[template, case]
    assert [turn for _, turn in found] == [turn for _, turn in expected]
    for (before, _), (ending, _) in zip(found, expected, strict=True):
        assert before.endswith(ending)


@needs_shared
@pytest.mark.parametrize(("template", "case"), REFUSED)
def test_a_case_whose_tools_are_not_shown_is_refused(template, case):
    with load_template(template) as loaded:
        rendered = render(loaded, read(case), "auto")
    assert isinstance(rendered, Reject)
    assert rendered.reason == REFUSED[template, case]


@needs_shared
@pytest.mark.parametrize("case", ["null", "empty"])
def test_deepseek_r1_gets_null_where_it_tests_for_null(case):
    with load_template(R1) as loaded:
        (_, call), *_ = list_trained(loaded, case)
    assert call.startswith(R1_CALL)
