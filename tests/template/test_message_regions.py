"""Turns are found in the ways that templates of known families write their messages.

The templates are small and hand-made; each writes messages as the family that it is named after.
"""

from typing import Any

import pytest

from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject, make_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.render_dialogue import finds_turns, render_dialogue
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.tracing.replayer import Replayer
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.added_tokens import AddedToken, AddedTokens

TOKENS = AddedTokens(
    (
        AddedToken(number, content, content[0] == "<", absorbs_space=False, cuts=True)
        for number, content in enumerate(("<s>", "<e>", "<eos>", "<call>", "<result>", "<think>"))
    ),
    ("<eos>",),
)
USER, OTTER = ("user", "walrus"), ("assistant", "otter")
BADGER, FERRET = ("user", "badger"), ("assistant", "ferret")
CONVERSATION = (USER, OTTER, BADGER, FERRET)
MERGES = ("auto", "always", "never")

PROMPT = "{% if add_generation_prompt %}<s>assistant:{% endif %}"
LINE = "<s>{{ m.role }}:{{ m.content }}<e>\n"
PLAIN = f"{{% for m in messages %}}{LINE}{{% endfor %}}{PROMPT}"

# The last message of the assistant is taken out of the list, and written after the others.
LAST_APART = (
    "{% set ns = namespace(last='') %}"
    "{% for m in messages %}{% if '/no' in m.content %}{% set ns.off = true %}{% endif %}"
    "{% endfor %}"
    "{% if messages[-1].role == 'assistant' %}{% set ns.last = messages[-1].content %}"
    "{% set messages = messages[:-1] %}{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content.split('</t>')[-1] }}<e>\n{% endfor %}"
    "{% if add_generation_prompt or ns.last %}<s>assistant:{% endif %}"
    "{% if ns.last and not add_generation_prompt %}{{ ns.last }}<e>\n{% endif %}"
)
# The conversation is a part of one prompt; a verdict of the assistant may follow.
GUARD = (
    "<s>user:Is this safe?\n{% for m in messages %}{% if not (loop.last and m.role == 'assistant')"
    " %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}Answer.<e>\n<s>assistant:"
    "{% if messages[-1].role == 'assistant' %}{{ messages[-1].content }}<e>{% endif %}"
)
IN_A_STRING = (
    "{% set ns = namespace(text='') %}{% for m in messages %}"
    "{% set ns.text = ns.text + '<s>' + m.role + ':' + m.content + '<e>\n' %}{% endfor %}"
    f"{{{{ ns.text }}}}{PROMPT}"
)
CLOSED_LIST = (
    "{% set ns = namespace(rows=[]) %}{% for m in messages %}"
    "{% set ns.rows = ns.rows + [{'role': m.role, 'content': m.content}] %}{% endfor %}"
    f"{{% for m in ns.rows %}}{LINE}{{% endfor %}}"
    "{% if not add_generation_prompt %}<eos>{% endif %}" + PROMPT
)
WITH_PREVIOUS = (
    "{% for m in messages %}{% if loop.previtem is defined %}<e>\n{% endif %}"
    "<s>{{ m.role }}:{{ m.content }}{% if loop.nextitem is not defined and not "
    "add_generation_prompt %}<e>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<e>\n<s>assistant:{% endif %}"
)
SLICES = (
    "{% if messages[0].role == 'system' %}{% set first = 1 %}{{ messages[0].content }}"
    "{% else %}{% set first = 0 %}{% endif %}"
    "{% for i in range(messages[first:] | length) %}"
    + LINE.replace("m.", "messages[first:][i].")
    + f"{{% endfor %}}{PROMPT}"
)


def compile_template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, "2026-01-01")


def make_messages(*turns: Any) -> list[dict[str, Any]]:
    return [
        turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in turns
    ]


def render_both_ways(source: str, dialogue: Dialogue, merge: str) -> RenderedDialogue | Reject:
    """Render a dialogue with Jinja, and check that a replay gives the same."""
    template = compile_template(source)
    rendered = render_dialogue(template, TOKENS, dialogue, merge)
    replayer = Replayer(template, TOKENS, merge)
    for _ in range(2):
        assert replayer.render_dialogue(dialogue) == rendered
    return rendered


def find_trained(source: str, *turns: Any, merge: str = "auto") -> list[tuple[int, str]]:
    """Return each turn's message and its trained text; "" if there is none."""
    messages = make_messages(*turns)
    rendered = render_both_ways(source, make_dialogue(0, Origin("here", 1), messages), merge)
    assert isinstance(rendered, RenderedDialogue), rendered
    return sorted(
        (turn.message, "".join(document.text[slice(*span)] for span in turn.spans))
        for document in (rendered.merged, *rendered.own)
        for turn in document.turns.to_list()
    )


# The answer after the prompt


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("source", [LAST_APART, IN_A_STRING, CLOSED_LIST, WITH_PREVIOUS, SLICES])
def test_turns_are_found_if_no_plain_loop_writes_them(source, merge):
    assert finds_turns(compile_template(source), TOKENS)
    trained = find_trained(source, *CONVERSATION, merge=merge)
    assert trained == [(1, "otter<e>"), (3, "ferret<e>")]


def test_an_answer_that_follows_one_prompt_for_the_whole_conversation_is_found():
    for merge in ("auto", "never"):
        trained = find_trained(GUARD, *CONVERSATION, merge=merge)
        assert trained == [(1, "otter<e>"), (3, "ferret<e>")]


def test_an_answer_is_not_guessed_if_the_template_writes_it_before_the_prompts_text():
    backwards = (
        "{% for i in range(messages | length) %}{{ messages[-1 - i].content }}{% endfor %}"
        "{% for m in messages %}{% set ns = namespace(m=m) %}{% endfor %}"
    )
    twice = "{% for m in messages %}{{ m.content }}{% endfor %}" * 2
    for source in (backwards, twice):
        dialogue = make_dialogue(0, Origin("here", 1), make_messages(USER, ("assistant", "walrus")))
        rejected = render_both_ways(source, dialogue, "auto")
        assert isinstance(rejected, Reject)
        assert rejected.reason is Reason.TURN_NOT_FOUND


# A message that other passes write, too

CALLING = (
    {"role": "user", "content": "walrus"},
    {"role": "assistant", "content": "", "calls": [{"id": "1", "name": "f"}]},
    {"role": "tool", "content": "badger", "id": "1"},
    {"role": "assistant", "content": "", "calls": [{"id": "1", "name": "g"}]},
    {"role": "tool", "content": "beaver", "id": "1"},
    {"role": "assistant", "content": "ferret"},
)
CALLS = "{% for c in m.calls or [] %}<call>{{ c.name }}{% endfor %}"
# Each result looks up the name of its call in all messages, by the id of the call.
NAME_LOOKED_UP = (
    f"{{% for m in messages %}}<s>{{{{ m.role }}}}:{CALLS}"
    "{% if m.role == 'tool' %}{% for x in messages %}{% for c in x.calls or [] %}"
    "{% if c.id == m.id %}({{ c.name }}){% endif %}{% endfor %}{% endfor %}{% endif %}"
    f"{{{{ m.content }}}}<e>\n{{% endfor %}}{PROMPT}"
)
# Each call looks up its results in the messages after it, which have no pass of their own.
RESULTS_LOOKED_UP = (
    "{% for m in messages %}{% set i = loop.index %}{% if m.role != 'tool' %}<s>{{ m.role }}:"
    f"{CALLS}"
    "{% for x in messages[i:] %}{% if m.calls and x.role == 'tool' and x.id == m.calls[0].id %}"
    "<result>{{ x.content }}{% endif %}{% endfor %}"
    f"{{{{ m.content }}}}<e>\n{{% endif %}}{{% endfor %}}{PROMPT}"
)


@pytest.mark.parametrize("merge", MERGES)
def test_a_call_is_found_if_results_with_the_same_id_look_it_up(merge):
    trained = find_trained(NAME_LOOKED_UP, *CALLING, merge=merge)
    assert trained == [(1, "<call>f<e>"), (3, "<call>g<e>"), (5, "ferret<e>")]


@pytest.mark.parametrize("merge", MERGES)
def test_a_result_that_two_calls_write_is_not_trained(merge):
    trained = find_trained(RESULTS_LOOKED_UP, *CALLING, merge=merge)
    ends = "" if merge == "always" else "<e>"
    assert trained == [(1, f"<call>f{ends}"), (3, f"<call>g{ends}"), (5, "ferret<e>")]


# An assistant that opens the dialogue

DEFAULT = "{% if loop.first and m.role != 'system' %}<s>system:Be kind.<e>\n{% endif %}"
OPENING = {
    # The last message ends only where the generation prompt follows (Qwen1.5).
    "default, closed by the prompt": (
        f"{{% for m in messages %}}{DEFAULT}<s>{{{{ m.role }}}}:{{{{ m.content }}}}"
        "{% if not loop.last or add_generation_prompt %}<e>\n{% endif %}{% endfor %}"
        + PROMPT.replace("_prompt", "_prompt and messages[-1].role != 'assistant'")
    ),
    "closed by the prompt": (
        "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}"
        "{% if not loop.last or add_generation_prompt %}<e>\n{% endif %}{% endfor %}"
        + PROMPT.replace("_prompt", "_prompt and messages[-1].role != 'assistant'")
    ),
    "default, with a scaffold in the prompt": (
        f"{{% for m in messages %}}{DEFAULT}<s>{{{{ m.role }}}}\n{{{{ m.content }}}}<e>\n"
        "{% endfor %}{% if add_generation_prompt %}<s>assistant\n<think>\n{% endif %}"
    ),
    "default, with a scaffold in the header's line": (
        f"{{% for m in messages %}}{DEFAULT}{LINE}{{% endfor %}}"
        + PROMPT.replace("assistant:", "assistant:<think>")
    ),
    "prompt after a question only": (
        "{% for m in messages %}{% if loop.first %}[gMASK]<s>{% endif %}<s>{{ m.role }}:"
        "{{ m.content }}{% endfor %}"
        + PROMPT.replace("_prompt", "_prompt and messages[-1].role == 'user'")
    ),
    "opened before the loop": f"[gMASK]<s>{PLAIN}",
    "prompt in the loop": (
        f"{{% for m in messages %}}{DEFAULT}{LINE}"
        "{% if loop.last and add_generation_prompt %}<s>assistant:{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("source", OPENING.values(), ids=OPENING)
@pytest.mark.parametrize("opening", [(), (("system", "marmot"),)], ids=["alone", "after a system"])
def test_no_header_is_trained_if_the_assistant_opens(source, opening):
    trained = find_trained(source, *opening, OTTER, BADGER, FERRET)
    assert [text.removesuffix("<e>") for _, text in trained] == ["otter", "ferret"]


def test_the_name_of_the_role_is_not_trained_if_the_scaffold_after_it_is_ordinary_text():
    source = (
        f"{{% for m in messages %}}{DEFAULT}<s>{{{{ m.role }}}}\n{{{{ m.content }}}}<e>\n"
        "{% endfor %}{% if add_generation_prompt %}<s>assistant\n(think)\n{% endif %}"
    )
    assert find_trained(source, OTTER) == [(0, "otter<e>")]


# The role header of an answer belongs to the question before it (DeepSeek).
HEADER_AFTER_QUESTIONS = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>user:{{ m.content }}"
    "{% if add_generation_prompt or not loop.last %}<s>assistant:{% endif %}"
    "{% else %}{{ m.content }}{{ '<e>' if m.role == 'assistant' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("source", [PLAIN.removesuffix(PROMPT), HEADER_AFTER_QUESTIONS])
def test_a_turn_that_continues_a_text_without_generation_prompt_does_not_differ_from_it(source):
    messages = make_messages(("system", "marmot"), OTTER, BADGER, FERRET)
    rendered = render_both_ways(source, make_dialogue(0, Origin("here", 1), messages), "auto")
    assert isinstance(rendered, RenderedDialogue)
    flags = [turn.flags for turn in rendered.merged.turns.to_list()]
    assert not any(flag & TurnFlag.PROMPT_DIFFERS for flag in flags)


# A message that the template does not write

SKIPPING = {
    "skips empty messages": PLAIN.replace(LINE, f"{{% if m.content %}}{LINE}{{% endif %}}"),
    "skips an assistant that opens": (
        "{% if messages[0].role == 'assistant' %}{% set messages = messages[1:] %}{% endif %}"
        + PLAIN
    ),
    "skips messages with notes": PLAIN.replace(LINE, f"{{% if not m.note %}}{LINE}{{% endif %}}"),
}


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("source", "turns", "unwritten"),
    [
        ("skips empty messages", (USER, ("assistant", ""), BADGER, FERRET), 1),
        ("skips empty messages", (USER, OTTER, BADGER, ("assistant", "")), 3),
        ("skips an assistant that opens", (OTTER, BADGER, FERRET), 0),
        (
            "skips messages with notes",
            (USER, {"role": "assistant", "content": "otter", "note": "x"}, BADGER, FERRET),
            1,
        ),
    ],
)
def test_a_turn_that_is_not_written_has_no_text_and_the_others_are_found(
    source, turns, unwritten, merge
):
    for closing in ("", "{% if not add_generation_prompt %}<eos>{% endif %}"):
        trained = dict(find_trained(SKIPPING[source] + closing, *turns, merge=merge))
        assert trained.pop(unwritten) == ""
        assert [text.removesuffix("<e>") for text in trained.values()] in (["otter"], ["ferret"])


def test_a_turn_that_is_not_written_needs_no_document():
    source = SKIPPING["skips empty messages"] + "{% if not add_generation_prompt %}<eos>{% endif %}"
    messages = make_messages(USER, ("assistant", ""), BADGER, FERRET)
    rendered = render_both_ways(source, make_dialogue(0, Origin("here", 1), messages), "auto")
    assert isinstance(rendered, RenderedDialogue)
    assert rendered.own == ()


def test_an_end_without_its_answer_is_not_trained():
    source = (
        "{% for i in range(messages | length) %}{% if messages[i].role == 'user' %}"
        + LINE.replace("m.", "messages[i].")
        + "{% endif %}{% endfor %}<s>assistant:"
        "{% if messages[-1].role == 'assistant' %}<e>{% endif %}"
    )
    assert find_trained(source, USER, OTTER) == [(1, "")]


def test_what_follows_the_prompt_in_the_merged_text_is_not_the_turn():
    source = (
        "{% for i in range(messages | length) %}{% set last = i == messages | length - 1 %}"
        "<s>{{ messages[i].role }}:{{ messages[i].content if last or messages[i].role == 'user' "
        "else messages[i].content | upper }}<e>\n{% endfor %}" + PROMPT
    )
    assert find_trained(source, *CONVERSATION) == [(1, "otter<e>"), (3, "ferret<e>")]
    dialogue = make_dialogue(0, Origin("here", 1), make_messages(*CONVERSATION))
    assert isinstance(render_both_ways(source, dialogue, "always"), Reject)


def test_a_template_that_writes_no_answer_is_refused():
    users_alone = PLAIN.replace(LINE, f"{{% if m.role == 'user' %}}{LINE}{{% endif %}}")
    assert not finds_turns(compile_template(users_alone), TOKENS)
