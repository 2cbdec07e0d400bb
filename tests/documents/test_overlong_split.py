"""`--overlong split`: a turn too far from the start gets a document with what fits before it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpack.documents.control_tokens import load_renderer
from mtpack.documents.overlong import suffix_renderer
from mtpack.input.dialogue import Dialogue, Message, Origin
from mtpack.options import PackOptions
from mtpack.template.chat_template import ChatTemplate, load_chat_template
from mtpack.tokenizer.loading import load_tokenizer
from tests.support.encoders import encoder_of
from tests.support.strategies import Document, Turn, as_documents

ROW = 7
TOKENIZER = load_tokenizer(None)
TEMPLATE = load_chat_template(TOKENIZER, None, (), "2026-01-31")
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"city": {"type": "string"}}},
    }
]


def say(role: str, content: str, **fields) -> Message:
    message = {"role": role, "content": content, **fields}
    return Message(role, message, trained=role == "assistant")


def call_weather() -> Message:
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    return say("assistant", "", tool_calls=[{"type": "function", "function": function}])


def as_dialogue(*messages: Message, tools: list | None = None) -> Dialogue:
    return Dialogue(ROW, Origin("rows.jsonl", ROW + 1), messages, tools)


def exchanges(number: int) -> list[Message]:
    """Questions and answers, all of the same number of tokens."""
    return [say("user", "Why is the sky blue?"), say("assistant", "It scatters light.")] * number


def pieces_of(
    dialogue: Dialogue, seq_len: int, template: ChatTemplate = TEMPLATE
) -> Callable[[int], Document | None]:
    """Return what makes the piece for a message, as a document that a reader can see."""
    renderer = load_renderer(template, TOKENIZER, PackOptions(control_tokens="keep"))
    render_suffix = suffix_renderer(
        renderer, encoder_of(TOKENIZER), {ROW: dialogue}.__getitem__, seq_len
    )

    def piece(message: int) -> Document | None:
        made = render_suffix(ROW, message)
        if made is None:
            return None
        (document,) = as_documents(made)
        return document

    return piece


def ids_of(text: str) -> list[int]:
    return TOKENIZER.backend.encode(text, add_special_tokens=False).ids


def run_from(dialogue: Dialogue, start: int, message: int) -> tuple[Message, ...]:
    """The system message, and the messages from `start` up to and with `message`."""
    opening = dialogue.messages[:1] if dialogue.messages[0].role in ("system", "developer") else ()
    return opening + dialogue.messages[start : message + 1]


def document_of(dialogue: Dialogue, start: int, message: int) -> Document:
    """The run as a document of its own: it ends with the turn, and nothing else is trained."""
    run = run_from(dialogue, start, message)
    ids = ids_of(TEMPLATE.render(run, dialogue.tools).rstrip())
    given = ids_of(TEMPLATE.render(run[:-1], dialogue.tools, prompt=True))
    return Document(ROW, ids, [Turn(message, 0, [(len(given), len(ids))])])


def slow_piece(dialogue: Dialogue, message: int, seq_len: int) -> Document | None:
    """Try every user message, the earliest first."""
    for start in range(message):
        if dialogue.messages[start].role == "user":
            document = document_of(dialogue, start, message)
            if len(document.ids) <= seq_len:
                return document
    return None


WORDS = ("why", " walrus", " the sky", " 42", "\n\nand", " because of light")
_texts = st.lists(st.sampled_from(WORDS), max_size=12).map(lambda words: "So " + "".join(words))
_users = st.builds(say, st.just("user"), _texts)
_answers = st.builds(say, st.just("assistant"), _texts)
_rounds = (
    st.tuples(_users, _answers)
    | st.tuples(_users, _users, _answers)  # asked twice
    | st.tuples(_users, _answers, _answers)  # answered twice
    | st.tuples(_users, st.builds(call_weather), st.builds(say, st.just("tool"), _texts), _answers)
)
_openings = st.sampled_from([(), (say("system", "Be brief."),), (say("developer", "Be kind."),)])


@st.composite
def dialogues(draw) -> Dialogue:
    rounds = draw(st.lists(_rounds, min_size=1, max_size=6))
    messages = draw(_openings) + tuple(message for round_ in rounds for message in round_)
    return as_dialogue(*messages, tools=draw(st.sampled_from([None, TOOLS])))


@given(dialogues(), st.integers(10, 300))
def test_a_piece_is_the_longest_run_from_a_user_message_that_fits(dialogue, seq_len):
    piece = pieces_of(dialogue, seq_len)
    for message in dialogue.trained_messages():
        found = piece(message)
        assert found == slow_piece(dialogue, message, seq_len)
        assert found is None or len(found.ids) <= seq_len


@settings(max_examples=30)
@given(dialogues())
def test_a_piece_may_fill_the_sequence_to_the_last_token(dialogue):
    message = dialogue.trained_messages()[-1]
    for start in range(message):
        if dialogue.messages[start].role == "user":
            whole = document_of(dialogue, start, message)
            assert pieces_of(dialogue, len(whole.ids))(message) == whole
            shorter = pieces_of(dialogue, len(whole.ids) - 1)(message)
            assert shorter is None or len(shorter.ids) < len(whole.ids)


def test_a_piece_reads_as_a_dialogue_of_its_own():
    dialogue = as_dialogue(
        say("system", "Be brief."),
        say("user", "First question"),
        say("assistant", "First answer"),
        say("user", "Second question"),
        say("assistant", "Second answer"),
        say("user", "Third question"),
        say("assistant", "Third answer"),
        say("user", "Never answered"),
    )
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nSecond question<|im_end|>\n"
        "<|im_start|>assistant\nSecond answer<|im_end|>\n"
        "<|im_start|>user\nThird question<|im_end|>\n"
        "<|im_start|>assistant\nThird answer<|im_end|>"
    )
    document = pieces_of(dialogue, len(ids_of(expected)))(6)
    assert document is not None
    assert TOKENIZER.backend.decode(document.ids, skip_special_tokens=False) == expected
    (turn,) = document.turns
    assert turn.message == 6
    trained = [document.ids[position] for position in turn.positions]
    assert TOKENIZER.backend.decode(trained, skip_special_tokens=False) == "Third answer<|im_end|>"


def test_a_turn_that_does_not_fit_with_its_own_question_has_no_piece():
    dialogue = as_dialogue(*exchanges(3))
    alone = len(document_of(dialogue, 4, 5).ids)
    assert pieces_of(dialogue, alone)(5) == document_of(dialogue, 4, 5)
    assert pieces_of(dialogue, alone - 1)(5) is None


def test_a_system_message_that_leaves_no_room_leaves_no_piece():
    dialogue = as_dialogue(say("system", "Be brief. " * 50), *exchanges(3))
    assert pieces_of(dialogue, 100)(6) is None


def test_a_turn_without_a_user_message_before_it_has_no_piece():
    dialogue = as_dialogue(say("system", "Greet."), say("assistant", "Hello!"), *exchanges(2))
    piece = pieces_of(dialogue, 1000)
    assert piece(1) is None
    assert piece(3) == document_of(dialogue, 2, 3)  # without the greeting


def test_a_piece_never_starts_with_a_tool_result_or_an_answer():
    dialogue = as_dialogue(
        *exchanges(1),
        say("user", "And the weather?"),
        call_weather(),
        say("tool", "3 degrees"),
        say("assistant", "It is cold."),
        tools=TOOLS,
    )
    with_question = document_of(dialogue, 2, 5)
    assert pieces_of(dialogue, len(with_question.ids))(5) == with_question
    assert pieces_of(dialogue, len(with_question.ids) - 1)(5) is None


def test_every_piece_of_a_dialogue_with_tools_tells_them():
    dialogue = as_dialogue(*exchanges(5), tools=TOOLS)
    system = (
        TEMPLATE.render(dialogue.messages[:1], TOOLS).partition("<|im_end|>")[0] + "<|im_end|>\n"
    )
    assert '"weather"' in system
    piece = pieces_of(dialogue, len(document_of(dialogue, 6, 9).ids))
    for message in (5, 7, 9):
        found = piece(message)
        assert found is not None
        text = TOKENIZER.backend.decode(found.ids, skip_special_tokens=False)
        assert text.startswith(system + "<|im_start|>user\n")
        assert text.count("<|im_start|>user") == 2


def test_turns_that_share_a_piece_get_one_each_with_their_own_loss():
    dialogue = as_dialogue(*exchanges(4))
    piece = pieces_of(dialogue, 10_000)
    assert [piece(message) for message in (1, 3, 5, 7)] == [
        document_of(dialogue, 0, message) for message in (1, 3, 5, 7)
    ]


def test_a_dialogue_is_left_as_it_is():
    dialogue = as_dialogue(say("system", "Be brief."), *exchanges(3))
    before = [message.trained for message in dialogue.messages]
    pieces_of(dialogue, 100)(6)
    assert [message.trained for message in dialogue.messages] == before


class CountingTemplate(ChatTemplate):
    """A template that counts the messages it is asked to render."""

    def __init__(self) -> None:
        sources = TOKENIZER.chat_templates
        super().__init__(sources, dict(TOKENIZER.special_tokens), "2026-01-31")
        self.lengths: list[int] = []

    def render(self, messages, tools, *, prompt=False) -> str:
        self.lengths.append(len(messages))
        return super().render(messages, tools, prompt=prompt)


def work_for_last_piece(num_exchanges: int, num_fitting: int) -> list[int]:
    """Return the lengths of the runs that are rendered while `num_fitting` exchanges fit."""
    dialogue = as_dialogue(*exchanges(num_exchanges))
    last = len(dialogue.messages) - 1
    fitting = document_of(dialogue, last + 1 - 2 * num_fitting, last)
    template = CountingTemplate()
    assert pieces_of(dialogue, len(fitting.ids), template)(last) == fitting
    return template.lengths


@pytest.mark.parametrize("num_fitting", [1, 2, 5, 16, 40])
def test_the_work_for_a_piece_does_not_grow_with_the_dialogue(num_fitting):
    """400 messages cost what 200 cost: nothing much longer than a sequence is ever rendered."""
    work = work_for_last_piece(200, num_fitting)
    assert work == work_for_last_piece(100, num_fitting)
    assert max(work) <= 2 * (2 * num_fitting + 1)


def test_all_pieces_of_a_long_dialogue_are_made_in_bounded_work():
    """400 messages, of which 10 fit: no turn costs more than the last one."""
    dialogue = as_dialogue(*exchanges(200))
    template = CountingTemplate()
    piece = pieces_of(dialogue, len(document_of(dialogue, 390, 399).ids), template)
    turns = range(9, 400, 2)
    for message in turns:
        found = piece(message)
        assert found is not None
        assert len(found.ids) == len(document_of(dialogue, 390, 399).ids)
    assert len(template.lengths) <= len(turns) * len(work_for_last_piece(200, 5))


def test_a_piece_that_is_nearly_the_whole_dialogue_takes_few_tries():
    """150 of 200 exchanges fit: some 2 * log2(200) starts are tried, not all of them."""
    work = work_for_last_piece(200, 150)
    assert 0 < len(work) <= 3 * (2 * 8)  # for each: the run, marked, and what prompts its turn
