"""`--overlong split`: a turn that does not fit gets its own document, a suffix of the dialogue.

A suffix is the system message and a run of messages that ends with the turn.
"""

from collections.abc import Callable
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpack.documents.control_tokens import load_renderer
from mtpack.documents.overlong import SuffixRenderer
from mtpack.input.dialogue import Dialogue, Origin, make_dialogue
from mtpack.options import PackOptions
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.loading import load_chat_template
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import examples
from tests.support.strategies import Document, Turn, as_documents

ROW = 7
TOKENIZER = load_tokenizer(None)
ENCODERS = Encoders(TOKENIZER, seed=0)
TEMPLATE = load_chat_template(TOKENIZER, None, (), "2026-01-31")
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"city": {"type": "string"}}},
    }
]


def say(role: str, content: str, **fields) -> dict:
    return {"role": role, "content": content, **fields}


def call_weather() -> dict:
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    return say("assistant", "", tool_calls=[{"type": "function", "function": function}])


def as_dialogue(*messages: dict, tools: list | None = None) -> Dialogue:
    return make_dialogue(ROW, Origin("rows.jsonl", ROW + 1), list(messages), tools)


def exchanges(number: int) -> list[dict]:
    """Return questions and answers; every pair has the same number of tokens."""
    return [say("user", "Why is the sky blue?"), say("assistant", "It scatters light.")] * number


def make_suffix_renderer(
    dialogue: Dialogue, seq_len: int, template: ChatTemplate = TEMPLATE
) -> SuffixRenderer:
    renderer = load_renderer(template, TOKENIZER, PackOptions(control_tokens="keep"))
    return SuffixRenderer(renderer, ENCODERS, {ROW: dialogue}.__getitem__, seq_len)


def load_suffix_renderer(
    dialogue: Dialogue, seq_len: int, template: ChatTemplate = TEMPLATE
) -> Callable[[int], Document | None]:
    """Return a function that renders the suffix for a message, as a readable document."""
    suffixes = make_suffix_renderer(dialogue, seq_len, template)

    def render_suffix(message: int) -> Document | None:
        batch = suffixes.render(ROW, message)
        if batch is None:
            return None
        (document,) = as_documents(batch)
        return document

    return render_suffix


def ids_of(text: str) -> list[int]:
    return TOKENIZER.backend.encode(text, add_special_tokens=False).ids


def run_from(dialogue: Dialogue, start: int, message: int) -> list[dict]:
    """Return the system message and the messages from `start` up to and including `message`."""
    opening = dialogue.messages[: dialogue.roles[0] in ("system", "developer")]
    return opening + dialogue.messages[start : message + 1]


def document_of(dialogue: Dialogue, start: int, message: int) -> Document:
    """Return the run as a document that ends with the turn and has loss only there."""
    run = run_from(dialogue, start, message)
    ids = ids_of(TEMPLATE.render(run, dialogue.tools).rstrip())
    prompt = ids_of(TEMPLATE.render(run[:-1], dialogue.tools, prompt=True))
    return Document(ROW, ids, [Turn(message, 0, [(len(prompt), len(ids))])])


def slow_suffix(dialogue: Dialogue, message: int, seq_len: int) -> Document | None:
    """Return the longest suffix that fits, by trying every user message in order."""
    for start in range(message):
        if dialogue.roles[start] == "user":
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
    | st.tuples(_users, _users, _answers)  # two questions
    | st.tuples(_users, _answers, _answers)  # two answers
    | st.tuples(_users, st.builds(call_weather), st.builds(say, st.just("tool"), _texts), _answers)
)
_openings = st.sampled_from([(), (say("system", "Be brief."),), (say("developer", "Be kind."),)])


@st.composite
def dialogues(draw) -> Dialogue:
    rounds = draw(st.lists(_rounds, min_size=1, max_size=6))
    messages = draw(_openings) + tuple(message for round_ in rounds for message in round_)
    return as_dialogue(*messages, tools=draw(st.sampled_from([None, TOOLS])))


@given(dialogues(), st.integers(10, 300))
def test_a_suffix_is_the_longest_run_that_fits_and_starts_at_a_user_message(dialogue, seq_len):
    render_suffix = load_suffix_renderer(dialogue, seq_len)
    for message in dialogue.trained_messages():
        found = render_suffix(message)
        assert found == slow_suffix(dialogue, message, seq_len)
        assert found is None or len(found.ids) <= seq_len


@settings(max_examples=examples(30))
@given(dialogues())
def test_a_suffix_may_fill_the_sequence_completely(dialogue):
    message = dialogue.trained_messages()[-1]
    for start in range(message):
        if dialogue.roles[start] == "user":
            whole = document_of(dialogue, start, message)
            assert load_suffix_renderer(dialogue, len(whole.ids))(message) == whole
            shorter = load_suffix_renderer(dialogue, len(whole.ids) - 1)(message)
            assert shorter is None or len(shorter.ids) < len(whole.ids)


@settings(max_examples=examples(30))
@given(dialogues())
def test_the_shortest_run_that_does_not_fit_is_the_sequence_length_that_a_suffix_needs(dialogue):
    turns = dialogue.trained_messages()
    suffixes = make_suffix_renderer(dialogue, 2)
    assert not any(suffixes.render(ROW, turn) for turn in turns)
    needed = suffixes.shortest
    assert needed
    enough, too_short = (make_suffix_renderer(dialogue, needed - less) for less in (0, 1))
    assert any(enough.render(ROW, turn) for turn in turns)
    assert not any(too_short.render(ROW, turn) for turn in turns)


def test_a_suffix_is_rendered_like_a_dialogue():
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
    document = load_suffix_renderer(dialogue, len(ids_of(expected)))(6)
    assert document is not None
    assert TOKENIZER.backend.decode(document.ids, skip_special_tokens=False) == expected
    (turn,) = document.turns
    assert turn.message == 6
    trained = [document.ids[position] for position in turn.positions]
    assert TOKENIZER.backend.decode(trained, skip_special_tokens=False) == "Third answer<|im_end|>"


def test_a_turn_that_does_not_fit_with_its_question_has_no_suffix():
    dialogue = as_dialogue(*exchanges(3))
    shortest = len(document_of(dialogue, 4, 5).ids)
    assert load_suffix_renderer(dialogue, shortest)(5) == document_of(dialogue, 4, 5)
    assert load_suffix_renderer(dialogue, shortest - 1)(5) is None


def test_a_system_message_that_leaves_no_room_leaves_no_suffix():
    dialogue = as_dialogue(say("system", "Be brief. " * 50), *exchanges(3))
    assert load_suffix_renderer(dialogue, 100)(6) is None


def test_a_turn_without_a_user_message_before_it_has_no_suffix():
    dialogue = as_dialogue(say("system", "Greet."), say("assistant", "Hello!"), *exchanges(2))
    render_suffix = load_suffix_renderer(dialogue, 1000)
    assert render_suffix(1) is None
    assert render_suffix(3) == document_of(dialogue, 2, 3)  # without the greeting


def test_a_suffix_never_starts_with_a_tool_result_or_an_answer():
    dialogue = as_dialogue(
        *exchanges(1),
        say("user", "And the weather?"),
        call_weather(),
        say("tool", "3 degrees"),
        say("assistant", "It is cold."),
        tools=TOOLS,
    )
    with_question = document_of(dialogue, 2, 5)
    assert load_suffix_renderer(dialogue, len(with_question.ids))(5) == with_question
    assert load_suffix_renderer(dialogue, len(with_question.ids) - 1)(5) is None


def test_every_suffix_of_a_dialogue_with_tools_contains_the_tools():
    dialogue = as_dialogue(*exchanges(5), tools=TOOLS)
    system = (
        TEMPLATE.render(dialogue.messages[:1], TOOLS).partition("<|im_end|>")[0] + "<|im_end|>\n"
    )
    assert '"weather"' in system
    render_suffix = load_suffix_renderer(dialogue, len(document_of(dialogue, 6, 9).ids))
    for message in (5, 7, 9):
        found = render_suffix(message)
        assert found is not None
        text = TOKENIZER.backend.decode(found.ids, skip_special_tokens=False)
        assert text.startswith(system + "<|im_start|>user\n")
        assert text.count("<|im_start|>user") == 2


def test_turns_that_fit_into_one_document_still_get_a_suffix_each():
    dialogue = as_dialogue(*exchanges(4))
    render_suffix = load_suffix_renderer(dialogue, 10_000)
    assert [render_suffix(message) for message in (1, 3, 5, 7)] == [
        document_of(dialogue, 0, message) for message in (1, 3, 5, 7)
    ]


def test_rendering_suffixes_does_not_change_the_dialogue():
    dialogue = as_dialogue(say("system", "Be brief."), *exchanges(3))
    before = deepcopy(dialogue)
    load_suffix_renderer(dialogue, 100)(6)
    assert dialogue == before


class CountingTemplate(ChatTemplate):
    """A template that records how many messages each call renders."""

    def __init__(self) -> None:
        sources = TEMPLATE.sources
        super().__init__(sources, dict(TOKENIZER.special_tokens), "2026-01-31")
        self.lengths: list[int] = []

    def render(self, messages, tools, **wanted) -> str:
        self.lengths.append(len(messages))
        return super().render(messages, tools, **wanted)


def load_counted_renderer(
    dialogue: Dialogue, seq_len: int
) -> tuple[Callable[[int], Document | None], list[int]]:
    """Return what `load_suffix_renderer` returns, and the lengths of all runs that it renders."""
    template = CountingTemplate()
    render_suffix = load_suffix_renderer(dialogue, seq_len, template)
    render_suffix(1)  # the first call also runs the probes of the template
    template.lengths.clear()
    return render_suffix, template.lengths


def work_for_last_suffix(num_exchanges: int, num_fitting: int) -> list[int]:
    """Return the lengths of all runs that are rendered if `num_fitting` exchanges fit."""
    dialogue = as_dialogue(*exchanges(num_exchanges))
    last = len(dialogue.messages) - 1
    fitting = document_of(dialogue, last + 1 - 2 * num_fitting, last)
    render_suffix, lengths = load_counted_renderer(dialogue, len(fitting.ids))
    assert render_suffix(last) == fitting
    return lengths


@pytest.mark.parametrize("num_fitting", [1, 2, 5, 16, 40])
def test_the_work_for_a_suffix_does_not_grow_with_the_dialogue(num_fitting):
    """400 messages cost the same as 200: no run much longer than a sequence is rendered."""
    work = work_for_last_suffix(200, num_fitting)
    assert work == work_for_last_suffix(100, num_fitting)
    assert max(work) <= 2 * (2 * num_fitting + 1)


def test_the_work_for_all_suffixes_of_a_long_dialogue_is_limited():
    """If 10 of 400 messages fit, no turn costs more than the last one."""
    dialogue = as_dialogue(*exchanges(200))
    seq_len = len(document_of(dialogue, 390, 399).ids)
    render_suffix, lengths = load_counted_renderer(dialogue, seq_len)
    turns = range(9, 400, 2)
    for message in turns:
        found = render_suffix(message)
        assert found is not None
        assert len(found.ids) == seq_len
    assert len(lengths) <= len(turns) * len(work_for_last_suffix(200, 5))


def test_a_suffix_that_is_nearly_the_whole_dialogue_takes_few_tries():
    """If 150 of 200 exchanges fit, about 2 * log2(200) starts are tried, not all."""
    work = work_for_last_suffix(200, 150)
    assert 0 < len(work) <= 3 * (2 * 8)  # each start renders the run and the prompt of its turn
