"""Turns are found however a template writes them, or the row is refused by name."""

import pytest

from mtpack.input.dialogue import Dialogue, Message, Origin, Reason, Reject
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.turn_spans import RenderedDialogue, finds_turns, render_dialogue
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.added_tokens import AddedToken, AddedTokens

TOKENS = AddedTokens(
    (
        AddedToken(number, content, content != "<think>", swallows_space=False, cuts=True)
        for number, content in enumerate(("<s>", "<e>", "<eos>", "<answer>", "<think>"))
    ),
    "<eos>",
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
    "index, with a look at the one before": (
        "{% for i in range(messages | length) %}{% set before = messages[i - 1] %}"
        f"{{% set message = messages[i] %}}{LINE}{{% endfor %}}{PROMPT}"
    ),
    "index, used in place": (
        "{% for i in range(messages | length) %}"
        + LINE.replace("message.", "messages[i].")
        + f"{{% endfor %}}{PROMPT}"
    ),
    "messages made anew": (
        "{% set ns = namespace(rows=[]) %}{% for m in messages %}{% set ns.rows = ns.rows + "
        "[{'role': m.role, 'content': m.content}] %}{% endfor %}"
        f"{{% for message in ns.rows %}}{LINE}{{% endfor %}}{PROMPT}"
    ),
}


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, "2026-01-01")


def render(source: str, *turns: tuple[str, str], merge: str = "auto") -> RenderedDialogue | Reject:
    messages = tuple(
        Message(role, {"role": role, "content": content}, role == "assistant")
        for role, content in turns
    )
    dialogue = Dialogue(0, Origin("here", 1), messages, None)
    return render_dialogue(template(source), TOKENS, dialogue, merge)


def trained(
    source: str, *turns: tuple[str, str], merge: str = "auto"
) -> list[tuple[int, str, bool]]:
    """Return each turn's message, what it is trained on, and whether it stands alone."""
    rendered = render(source, *turns, merge=merge)
    assert isinstance(rendered, RenderedDialogue), rendered
    return sorted(
        (turn.message, "".join(document.text[slice(*span)] for span in turn.spans), alone)
        for alone, documents in ((False, (rendered.merged,)), (True, rendered.own))
        for document in documents
        for turn in document.turns
    )


@pytest.mark.parametrize("merge", ["auto", "always", "never"])
@pytest.mark.parametrize("source", WITHOUT_MESSAGE_LOOP.values(), ids=WITHOUT_MESSAGE_LOOP)
def test_turns_are_found_where_no_loop_goes_over_the_messages(source, merge):
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
CLOSED = WITHOUT_MESSAGE_LOOP["messages made anew"].replace(
    PROMPT, "{% if not add_generation_prompt %}<eos>{% endif %}" + PROMPT
)


@pytest.mark.parametrize("source", [TWICE, BACKWARDS, CLOSED])
def test_a_turn_that_prefixes_can_not_tell_is_refused_by_name(source):
    for turns in (CONVERSATION, (USER, ("assistant", "walrus"))):
        refused = render(source, *turns)
        assert isinstance(refused, Reject)
        assert refused.reason is Reason.TURN_NOT_FOUND
        assert "can't be found" in refused.detail
    assert not finds_turns(template(source), TOKENS)


def test_tags_count_where_messages_are_made_anew():
    tagged = WITHOUT_MESSAGE_LOOP["messages made anew"].replace(
        "{{ message.content }}<e>",
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
        "{% endgeneration %}{% else %}{{ message.content }}{% endif %}<e>",
    )
    assert trained(tagged, *CONVERSATION) == [(1, "otter", False), (3, "ferret", False)]


def test_a_turn_that_only_its_own_document_tells_is_not_guessed_in_another():
    rewriting = WITHOUT_MESSAGE_LOOP["messages made anew"].replace(
        "{{ message.content }}", "{{ message.content if loop.last else message.content | upper }}"
    )
    # What a question shows of the turn before it is not what the turn's own document has.
    assert isinstance(render(rewriting, *CONVERSATION, merge="always"), Reject)


def test_a_template_that_writes_its_words_elsewhere_is_told_before_the_first_row():
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
def test_what_opens_a_conversation_is_given_where_the_assistant_speaks_first(opening):
    inside = PLAIN.replace("<s>{{", f"{{% if loop.first %}}{opening}{{% endif %}}<s>{{{{", 1)
    assert trained(inside, OTTER, BADGER, FERRET) == [
        (0, "otter<e>", False),
        (2, "ferret<e>", False),
    ]


def test_a_scaffold_that_only_the_prompt_has_does_not_hide_the_header():
    source = PLAIN.replace("<s>{{", "{% if loop.first %}<s>system:<e>{% endif %}<s>{{", 1)
    source = source.replace(PROMPT, PROMPT.replace("assistant:", "assistant:<think>\n"))
    assert trained(source, OTTER) == [(0, "otter<e>", False)]


def test_a_token_that_closes_every_message_but_is_written_with_the_next_is_trained():
    source = (
        "{% for message in messages %}{% if not loop.first %}<e>{% endif %}"
        "<s>{{ message.role }}:{{ message.content }}{% endfor %}<e>" + PROMPT
    )
    assert trained(source, *CONVERSATION) == [
        (1, "otter<e>", False),
        (3, "ferret<e>", False),
    ]


def test_a_token_that_only_closes_the_conversation_ends_turns_that_have_no_other():
    closing = "{% if not add_generation_prompt %}<eos>{% endif %}" + PROMPT
    open_ended = PLAIN.replace("<e>\n", "").replace(PROMPT, closing)
    assert trained(open_ended, *CONVERSATION) == [
        (1, "otter<eos>", True),
        (3, "ferret<eos>", False),
    ]
    assert trained(open_ended, *CONVERSATION, merge="always") == [
        (1, "otter", False),
        (3, "ferret<eos>", False),
    ]
    assert trained(PLAIN.replace(PROMPT, closing), *CONVERSATION) == [
        (1, "otter<e>", False),
        (3, "ferret<e>", False),
    ]


def test_nothing_is_trained_of_a_message_that_the_prompt_says_already():
    source = (
        "{% for message in messages %}<s>{{ message.role }}{% if message.content %}:"
        "{{ message.content }}<e>{% endif %}{% endfor %}" + PROMPT
    )
    assert trained(source, USER, ("assistant", ""), BADGER, FERRET) == [
        (1, "", False),
        (3, "ferret<e>", False),
    ]


def test_a_bent_turn_ends_where_an_answer_is_written_into_it():
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
    call, answer = rendered.merged.turns
    assert call.flags & TurnFlag.BENT
    assert trained(source, *turns, merge="always") == [
        (1, "call<answer>", False),
        (3, "hm ferret<e>", False),
    ]
    assert trained(source, *turns)[0] == (1, "hm call<answer>", True)
    assert answer.end == len(rendered.merged.text)
