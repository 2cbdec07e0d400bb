"""Turns are found in all the ways a template may write them, or the row is rejected."""

import pytest

from mtpack.input.dialogue import Origin, Reason, Reject, make_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.render_dialogue import finds_turns, render_dialogue
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.added_tokens import AddedToken, AddedTokens

TOKENS = AddedTokens(
    (
        AddedToken(number, content, content != "<think>", absorbs_space=False, cuts=True)
        for number, content in enumerate(("<s>", "<e>", "<eos>", "<answer>", "<think>"))
    ),
    ("<eos>",),
)
USER, OTTER = ("user", "walrus"), ("assistant", "otter")
BADGER, FERRET = ("user", "badger"), ("assistant", "ferret")
CONVERSATION = (USER, OTTER, BADGER, FERRET)

LINE = "<s>{{ message.role }}:{{ message.content }}<e>\n"
PROMPT = "{% if add_generation_prompt %}<s>assistant:{% endif %}"
PLAIN = f"{{% for message in messages %}}{LINE}{{% endfor %}}{PROMPT}"
WITHOUT_MESSAGE_LOOP = {
    "index": (
        "{% for i in range(messages | length) %}{% set message = messages[i] %}"
        f"{LINE}{{% endfor %}}{PROMPT}"
    ),
    "index, in a branch": (
        "{% for i in range(messages | length) %}{% if true %}{% set message = messages[i] %}"
        f"{LINE}{{% endif %}}{{% endfor %}}{PROMPT}"
    ),
    "index, with the message before it": (
        "{% for i in range(messages | length) %}{% set before = messages[i - 1] %}"
        f"{{% set message = messages[i] %}}{LINE}{{% endfor %}}{PROMPT}"
    ),
    "index, used in place": (
        "{% for i in range(messages | length) %}"
        + LINE.replace("message.", "messages[i].")
        + f"{{% endfor %}}{PROMPT}"
    ),
    "messages copied": (
        "{% set ns = namespace(rows=[]) %}{% for m in messages %}{% set ns.rows = ns.rows + "
        "[{'role': m.role, 'content': m.content}] %}{% endfor %}"
        f"{{% for message in ns.rows %}}{LINE}{{% endfor %}}{PROMPT}"
    ),
}


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, "2026-01-01")


def render(source: str, *turns: tuple[str, str], merge: str = "auto") -> RenderedDialogue | Reject:
    messages = [{"role": role, "content": content} for role, content in turns]
    dialogue = make_dialogue(0, Origin("here", 1), messages)
    return render_dialogue(template(source), TOKENS, dialogue, merge)


def find_trained(
    source: str, *turns: tuple[str, str], merge: str = "auto"
) -> list[tuple[int, str, bool]]:
    """Return each turn's message, its trained text, and whether it has its own document."""
    rendered = render(source, *turns, merge=merge)
    assert isinstance(rendered, RenderedDialogue), rendered
    return sorted(
        (turn.message, "".join(document.text[slice(*span)] for span in turn.spans), is_own)
        for is_own, documents in ((False, (rendered.merged,)), (True, rendered.own))
        for document in documents
        for turn in document.turns.to_list()
    )


@pytest.mark.parametrize("merge", ["auto", "always", "never"])
@pytest.mark.parametrize("source", WITHOUT_MESSAGE_LOOP.values(), ids=WITHOUT_MESSAGE_LOOP)
def test_turns_are_found_if_no_loop_is_over_the_messages(source, merge):
    for turns in (
        CONVERSATION,
        (USER, ("assistant", ""), USER, ("assistant", "")),
        (USER, OTTER, OTTER, USER, USER, OTTER),
    ):
        assert render(source, *turns, merge=merge) == render(PLAIN, *turns, merge=merge)


TWICE = "{% for message in messages %}{{ message.content }}{% endfor %}" * 2
BACKWARDS = (
    "{% for message in messages | reverse %}{% set ns = namespace(m=message) %}{% endfor %}"
    "{% for i in range(messages | length) %}{{ messages[-1 - i].content }}{% endfor %}"
)


@pytest.mark.parametrize("source", [TWICE, BACKWARDS])
def test_a_row_is_rejected_if_nothing_shows_where_the_template_writes_the_turn(source):
    for turns in (CONVERSATION, (USER, ("assistant", "walrus"))):
        rejected = render(source, *turns)
        assert isinstance(rejected, Reject)
        assert rejected.reason is Reason.TURN_NOT_FOUND
        assert "can't be found" in rejected.detail
    assert not finds_turns(template(source), TOKENS)


def test_generation_tags_are_used_if_a_template_copies_the_messages():
    tagged = WITHOUT_MESSAGE_LOOP["messages copied"].replace(
        "{{ message.content }}<e>",
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
        "{% endgeneration %}{% else %}{{ message.content }}{% endif %}<e>",
    )
    assert find_trained(tagged, *CONVERSATION) == [(1, "otter", False), (3, "ferret", False)]


def test_a_turn_found_only_in_its_own_text_is_not_guessed_in_the_merged_text():
    rewriting = WITHOUT_MESSAGE_LOOP["messages copied"].replace(
        "{{ message.content }}", "{{ message.content if loop.last else message.content | upper }}"
    )
    # Before a question, the template writes the turn differently than in the turn's own text.
    assert isinstance(render(rewriting, *CONVERSATION, merge="always"), Reject)


def test_a_template_whose_turns_are_not_found_is_detected_with_a_simple_dialogue():
    misleading = (
        "{% for message in messages %}<s>{{ message.role }}{% endfor %}"
        "{% for i in range(messages | length) %}{{ messages[i].content }}{% endfor %}"
    )
    assert not finds_turns(template(misleading), TOKENS)
    assert finds_turns(template(PLAIN), TOKENS)
    assert finds_turns(template("{{ raise_exception('not so simple') }}"), TOKENS)


@pytest.mark.parametrize(
    "opening",
    ["<s>", "<s>system:Be brief.<e>\n", "Be brief.\n\n"],
)
def test_text_that_opens_a_conversation_is_not_trained_if_the_assistant_speaks_first(opening):
    inside = PLAIN.replace("<s>{{", f"{{% if loop.first %}}{opening}{{% endif %}}<s>{{{{", 1)
    assert find_trained(inside, OTTER, BADGER, FERRET) == [
        (0, "otter<e>", False),
        (2, "ferret<e>", False),
    ]


def test_the_role_header_is_found_if_only_the_prompt_has_a_scaffold():
    source = PLAIN.replace("<s>{{", "{% if loop.first %}<s>system:<e>{% endif %}<s>{{", 1)
    source = source.replace(PROMPT, PROMPT.replace("assistant:", "assistant:<think>\n"))
    assert find_trained(source, OTTER) == [(0, "otter<e>", False)]


def test_an_end_of_turn_token_that_is_written_with_the_next_message_is_trained():
    source = (
        "{% for message in messages %}{% if not loop.first %}<e>{% endif %}"
        "<s>{{ message.role }}:{{ message.content }}{% endfor %}<e>" + PROMPT
    )
    assert find_trained(source, *CONVERSATION) == [
        (1, "otter<e>", False),
        (3, "ferret<e>", False),
    ]


def test_a_token_that_closes_the_conversation_ends_a_turn_without_another_control_token():
    closing = "{% if not add_generation_prompt %}<eos>{% endif %}" + PROMPT
    open_ended = PLAIN.replace("<e>\n", "").replace(PROMPT, closing)
    assert find_trained(open_ended, *CONVERSATION) == [
        (1, "otter<eos>", True),
        (3, "ferret<eos>", False),
    ]
    assert find_trained(open_ended, *CONVERSATION, merge="always") == [
        (1, "otter", False),
        (3, "ferret<eos>", False),
    ]
    assert find_trained(PLAIN.replace(PROMPT, closing), *CONVERSATION) == [
        (1, "otter<e>", False),
        (3, "ferret<e>", False),
    ]


def test_nothing_is_trained_of_a_message_that_the_prompt_contains():
    source = (
        "{% for message in messages %}<s>{{ message.role }}{% if message.content %}:"
        "{{ message.content }}<e>{% endif %}{% endfor %}" + PROMPT
    )
    assert find_trained(source, USER, ("assistant", ""), BADGER, FERRET) == [
        (1, "", False),
        (3, "ferret<e>", False),
    ]


def test_a_bent_turn_ends_before_a_tool_answer_that_is_written_into_it():
    source = (
        "{% for message in messages %}{% if message.role != 'tool' %}<s>{{ message.role }}:"
        "{{ 'hm ' if loop.last }}{{ message.content }}"
        "{% for i in range(2, messages | length) if message.content == 'call' %}"
        "{% if messages[i].role == 'tool' %}{% set answer = messages[i] %}"
        "<answer>{{ answer.content }}{% endif %}{% endfor %}"
        "{{ '<answer>' if loop.last and message.content == 'call' else '<e>' }}{% endif %}"
        "{% endfor %}" + PROMPT
    )
    turns = (USER, ("assistant", "call"), ("tool", "badger"), FERRET)
    rendered = render(source, *turns, merge="always")
    call, answer = rendered.merged.turns.to_list()
    assert call.flags & TurnFlag.BENT
    assert find_trained(source, *turns, merge="always") == [
        (1, "call<answer>", False),
        (3, "hm ferret<e>", False),
    ]
    assert find_trained(source, *turns)[0] == (1, "hm call<answer>", True)
    assert answer.end == len(rendered.merged.text)


def find_contexts(source: str, *turns: tuple[str, str]) -> list[tuple[str, str, TurnFlag]]:
    """Return for each turn its context, its own text, and its flags, in message order."""
    rendered = render(source, *turns, merge="never")
    assert isinstance(rendered, RenderedDialogue), rendered
    found = []
    for document in rendered.own:
        (turn,) = document.turns.to_list()
        flags = turn.flags & ~(TurnFlag.OWN_DOCUMENT | TurnFlag.NOT_A_STOP | TurnFlag.NO_EOT)
        found.append((document.text[: turn.start], document.text[turn.start : turn.end], flags))
    return found


# The system's text is written into the last message if that is a question.
MOVED = (
    "{% set system = messages[0].content %}{% for message in messages[1:] %}"
    "<s>{{ message.role }}:{% if loop.last and message.role == 'user' %}{{ system }} {% endif %}"
    f"{{{{ message.content }}}}<e>\n{{% endfor %}}{PROMPT}"
)
SYSTEM = ("system", "marmot")
CLOSED = "<think>\n</think>"


def test_the_context_is_the_prompt_if_only_an_earlier_text_differs():
    assert find_contexts(MOVED, SYSTEM, *CONVERSATION) == [
        ("<s>user:marmot walrus<e>\n<s>assistant:", "otter<e>", TurnFlag.PROMPT_CONTEXT),
        (
            "<s>user:walrus<e>\n<s>assistant:otter<e>\n<s>user:marmot badger<e>\n<s>assistant:",
            "ferret<e>",
            TurnFlag.PROMPT_CONTEXT,
        ),
    ]


@pytest.mark.parametrize("content", ["s", "e", "user", "<e>"])
def test_the_context_is_the_prompt_whatever_the_last_content_is(content):
    (found,) = find_contexts(MOVED, SYSTEM, ("user", content), OTTER)
    context = f"<s>user:marmot {content}<e>\n<s>assistant:"
    assert found == (context, "otter<e>", TurnFlag.PROMPT_CONTEXT)


def test_the_context_is_the_prompt_if_that_ends_in_a_closed_reasoning():
    closed = PLAIN.replace("assistant:{% endif %}", f"assistant:{CLOSED}{{% endif %}}")
    assert find_contexts(closed, USER, OTTER) == [
        (f"<s>user:walrus<e>\n<s>assistant:{CLOSED}", "otter<e>", TurnFlag.PROMPT_CONTEXT)
    ]
    thought = ("assistant", "<think>hm</think>otter")
    assert find_contexts(closed, USER, thought) == [
        ("<s>user:walrus<e>\n<s>assistant:<think>", "hm</think>otter<e>", TurnFlag.PROMPT_DIFFERS)
    ]


def test_a_part_of_the_closed_reasoning_that_the_turn_has_is_not_trained_again():
    source = (
        "{% for message in messages %}<s>{{ message.role }}:"
        "{{ '</think>' if message.role == 'assistant' }}{{ message.content }}<e>\n{% endfor %}"
        f"{{% if add_generation_prompt %}}<s>assistant:{CLOSED}{{% endif %}}"
    )
    assert find_contexts(source, USER, OTTER) == [
        (f"<s>user:walrus<e>\n<s>assistant:{CLOSED}", "otter<e>", TurnFlag.PROMPT_CONTEXT)
    ]


def test_a_closed_reasoning_and_an_earlier_text_can_differ_at_once():
    closed = MOVED.replace("assistant:{% endif %}", f"assistant:{CLOSED}{{% endif %}}")
    assert find_contexts(closed, SYSTEM, USER, OTTER) == [
        (f"<s>user:marmot walrus<e>\n<s>assistant:{CLOSED}", "otter<e>", TurnFlag.PROMPT_CONTEXT)
    ]


def test_a_mode_that_drops_the_role_header_from_the_prompt_gives_no_start():
    source = PLAIN.replace(
        PROMPT,
        "{% if add_generation_prompt and thinking is undefined %}<s>assistant:<think>{% endif %}",
    )
    ((context, _, flags),) = find_contexts(source, USER, OTTER)
    assert context == "<s>user:walrus<e>\n<s>assistant:"
    assert flags == TurnFlag.PROMPT_DIFFERS


def test_a_role_header_that_is_always_written_is_no_end_of_turn():
    source = (
        "{% for message in messages %}{{ '<answer>' if message.role == 'assistant' else '<s>' }}"
        "{{ message.content }}{% endfor %}<answer>"
    )
    assert find_contexts(source, *CONVERSATION) == [
        ("<s>walrus<answer>", "otter", TurnFlag(0)),
        ("<s>walrus<answer>otter<s>badger<answer>", "ferret", TurnFlag(0)),
    ]
