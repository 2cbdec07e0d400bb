"""Probes find how a template ends a turn, writes a reasoning, and which switches it has."""

import pytest

from mtpack.template.chat_template import ChatTemplate
from mtpack.template.made_up_renders import MadeUpRenders, TurnKind
from mtpack.template.modes import Mode
from mtpack.template.reasoning import Scaffold, find_reasoning_mode
from mtpack.template.stop_tokens import Ending
from mtpack.template.turn_probes import TurnProbes
from mtpack.tokenizer.added_tokens import AddedToken, AddedTokens

CONTENTS = ("<e>", "<user>", "<tool>", "<call>", "<think>", "</think>")
STOPS = ("<user>", "<tool>", "<e>")
TOKENS = AddedTokens(
    (
        AddedToken(number, content, "think" not in content, absorbs_space=False, cuts=True)
        for number, content in enumerate(CONTENTS)
    ),
    STOPS,
)
ANSWER, CALL = TurnKind(has_tools=False, has_calls=False), TurnKind(has_tools=True, has_calls=True)
HEADS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls or '' }}"


def probe(source: str, tokens: AddedTokens = TOKENS, **variables: object) -> TurnProbes:
    return TurnProbes(ChatTemplate({"default": source}, variables, "2026-01-01"), tokens)


ENDINGS = {
    "a token after each message": (
        HEADS + "<e>\n{% endfor %}",
        Ending(in_message=True, trailing="\n", stop=""),
        Ending(in_message=True, trailing="\n", stop=""),
    ),
    "the head of the next message": (
        HEADS + "{% endfor %}",
        Ending(in_message=False, trailing="", stop="<user>"),
        Ending(in_message=False, trailing="", stop="<tool>"),
    ),
    "the head of the next message, on a new line": (
        HEADS + "\n{% endfor %}",
        Ending(in_message=False, trailing="\n", stop="\n<user>"),
        Ending(in_message=False, trailing="\n", stop="\n<tool>"),
    ),
    "a separator": (
        "{% for m in messages %}{% if not loop.first %}<e>{% endif %}{{ m.role }} {{ m.content }}"
        "{{ m.tool_calls or '' }}{% endfor %}",
        Ending(in_message=False, trailing="", stop="<e>"),
        Ending(in_message=False, trailing="", stop="<e>"),
    ),
    "a token after calls alone, which is no stop token": (
        HEADS + "{% if m.tool_calls %}<call>{% endif %}{% endfor %}",
        Ending(in_message=False, trailing="", stop="<user>"),
        Ending(in_message=True, trailing="", stop="<tool>"),
    ),
    "a token after the conversation": (
        HEADS + "{% endfor %}<e>",
        Ending(in_message=False, trailing="", stop=""),
        Ending(in_message=False, trailing="", stop=""),
    ),
    "the role header of the next answer, at every end": (
        HEADS.replace("<{{ m.role }}>", "{{ '<call>' if m.role == 'assistant' else '<user>' }}")
        + "{% endfor %}<call>",
        Ending(in_message=False, trailing="", stop="<user>"),
        Ending(in_message=False, trailing="", stop="<user>"),
    ),
    "text between the turn and the next head": (
        HEADS + "{% if not loop.last %}--{% endif %}{% endfor %}",
        Ending(in_message=False, trailing="", stop=""),
        Ending(in_message=False, trailing="", stop=""),
    ),
    "a template that refuses every dialogue": (
        "{{ raise_exception('no') }}",
        Ending(in_message=True, trailing="", stop=""),
        Ending(in_message=True, trailing="", stop=""),
    ),
}


@pytest.mark.parametrize(("source", "answer", "call"), ENDINGS.values(), ids=ENDINGS)
def test_the_end_of_a_turn_is_its_own_token_or_the_stop_token_that_follows(source, answer, call):
    probes = probe(source)
    assert probes.find_ending(ANSWER) == answer
    assert probes.find_ending(CALL) == call


def test_a_token_that_ends_every_turn_is_its_end_although_the_files_name_no_stop_token():
    tokens = AddedTokens(TOKENS.tokens, ("<user>",))
    source = HEADS + "<e>{% endfor %}"
    assert not probe(source, tokens).find_ending(ANSWER).stop
    assert not probe(source, tokens).find_ending(CALL).stop


SWITCHES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<e>{% endfor %}"
    "{% if keep_thinking %}{% endif %}"  # it changes no text
    "{% if add_generation_prompt %}<assistant>"
    "{% if thinking %}<think>{% elif enable_thinking is false %}<think></think>{% endif %}"
    "{% if name %}{{ name }}{% endif %}{% endif %}"
)
THINKING = Mode("thinking", value=True)
NO_THINKING = Mode("enable_thinking", value=False)


def test_modes_are_the_switches_that_change_the_prompts_end_in_the_order_of_the_template():
    assert probe(SWITCHES).list_modes(ANSWER) == (THINKING, NO_THINKING)


def test_a_switch_that_the_user_set_is_no_mode():
    assert probe(SWITCHES, thinking=False).list_modes(ANSWER) == (NO_THINKING,)


@pytest.mark.parametrize("constant", ["10 ** 100000", "1 // 0", "'x' * 10**18"])
def test_no_constant_of_a_template_is_computed_to_find_its_modes(constant):
    source = "{% if messages[0].content == 'now' %}{{ " + constant + " }}{% endif %}" + SWITCHES
    assert probe(source).list_modes(ANSWER) == probe(SWITCHES).list_modes(ANSWER)


def reasoning_template(written: str, prompts: str) -> str:
    return (
        "{% for m in messages %}<{{ m.role }}>"
        f"{{% if m.reasoning_content %}}{written}{{% endif %}}"
        f"{{{{ m.content }}}}<e>{{% endfor %}}{{% if add_generation_prompt %}}<assistant>{prompts}"
        "{% endif %}"
    )


WRITTEN = "<think>{{ m.reasoning_content }}</think>\n"
REASONING_MODES = {
    "the default mode writes it": (reasoning_template(WRITTEN, ""), None),
    "the default mode drops it": (
        reasoning_template("{% if thinking %}" + WRITTEN + "{% endif %}", ""),
        None,  # all modes have the same prompt
    ),
    "another mode writes it and its prompt opens it": (
        reasoning_template(
            "{% if thinking %}" + WRITTEN + "{% endif %}", "{% if thinking %}<think>{% endif %}"
        ),
        THINKING,
    ),
    "the default prompt closes it, and another mode has the same text": (
        reasoning_template(WRITTEN, "{% if not thinking %}<think></think>{% endif %}"),
        None,
    ),
    "no mode writes it": (reasoning_template("", "{% if thinking %}<think>{% endif %}"), None),
}


@pytest.mark.parametrize(("source", "mode"), REASONING_MODES.values(), ids=REASONING_MODES)
def test_a_reasoning_needs_a_mode_if_the_default_drops_it_and_the_mode_does_not(source, mode):
    renders = MadeUpRenders(probe(source).template)
    assert find_reasoning_mode(renders, ANSWER, after_result=False) == mode


def test_a_scaffold_is_what_the_template_writes_around_a_reasoning_without_white_space():
    found = probe(reasoning_template("<think>\n{{ m.reasoning_content }}\n</think>\n\n", ""))
    assert found.scaffolds == (Scaffold("<think>", "</think>"),)


def test_a_scaffold_can_be_a_text_of_several_tokens():
    source = reasoning_template("<call>thought\n{{ m.reasoning_content }}<e>", "")
    assert probe(source).scaffolds == (Scaffold("<call>thought", "<e>"),)


def test_a_part_of_the_scaffold_in_turns_without_reasoning_belongs_to_it():
    source = reasoning_template("<think>{{ m.reasoning_content }}", "").replace(
        "{{ m.content }}<e>", "{% if m.role == 'assistant' %}</think>{% endif %}{{ m.content }}<e>"
    )
    assert probe(source).scaffolds == (Scaffold("<think>", "</think>"),)


def test_think_tags_are_the_scaffold_of_a_template_that_writes_no_reasoning():
    assert probe(HEADS + "<e>{% endfor %}").scaffolds == (Scaffold("<think>", "</think>"),)
