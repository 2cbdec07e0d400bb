"""What is settled on tokens: edges inside a token, a first token, equal text with other ids."""

import pytest

from mtpack.documents.token_spans import encode_dialogues
from mtpack.input.dialogue import Dialogue, Message, Origin, Reject
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.turn_spans import render_dialogue
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.loading import load_tokenizer
from tests.support.encoders import encoder_of

# Nothing but the contents, one behind the other: no header, no end-of-turn token, no cut.
BARE = ChatTemplate(
    {"default": "{% for message in messages %}{{ message.content }}{% endfor %}"}, {}, "2026-01-01"
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(None)


def encode(tokenizer, *contents: str, first: str = "user", merge: str = "auto"):
    """Encode a dialogue of alternating roles; return the batch and the counts."""
    roles = [first, "user" if first == "assistant" else "assistant"] * len(contents)
    messages = tuple(
        Message(role, {"role": role, "content": content}, role == "assistant")
        for role, content in zip(roles, contents, strict=False)
    )
    dialogue = Dialogue(0, Origin("here", 1), messages, None)
    rendered = render_dialogue(BARE, tokenizer.added_tokens, dialogue, merge)
    return encode_dialogues(encoder_of(tokenizer), [rendered], merge)


def trained(tokenizer, batch) -> list[str]:
    """Return the text of the loss tokens of each span."""
    starts = batch.document_offsets[batch.turn_documents[batch.span_turns]]
    return [
        tokenizer.backend.decode(batch.ids[start + first : start + last].tolist())
        for start, first, last in zip(starts, batch.span_starts, batch.span_ends, strict=True)
    ]


def test_a_documents_first_token_has_no_predictor_and_carries_no_loss(tokenizer):
    batch, _ = encode(tokenizer, "Yes, of course.", first="assistant")
    assert batch.span_starts.tolist() == [1]
    assert trained(tokenizer, batch) == [", of course."]


def test_a_turn_of_one_first_token_has_no_loss_token_and_is_counted(tokenizer):
    batch, counts = encode(tokenizer, "Yes", "Go on.", first="assistant")
    assert batch.num_documents == 0
    assert counts["turns_dropped.no_loss_token"] == 1


def test_a_token_over_the_edge_of_a_turn_carries_no_loss_and_is_counted(tokenizer):
    assert len(tokenizer.backend.encode(" would you").ids) == 2
    batch, counts = encode(tokenizer, " wo", "uld you")
    assert trained(tokenizer, batch) == [" you"]
    assert counts["straddles"] == 1


@pytest.mark.parametrize("merge", ["auto", "always", "never"])
def test_equal_text_with_other_ids_is_not_merged_silently(tokenizer, merge):
    # Behind "wo", the turn's last token becomes part of a word of the next message.
    assert len(tokenizer.backend.encode(" would").ids) == 1
    batch, _ = encode(tokenizer, "Say:", " yes wo", "uld", " fine", merge=merge)
    flags = [TurnFlag(flag) for flag in batch.turn_flags.tolist()]
    assert all(flag & TurnFlag.NO_EOT for flag in flags)
    if merge == "auto":
        assert batch.num_documents == 2
        assert [bool(flag & TurnFlag.OWN_DOCUMENT) for flag in flags] == [False, True]
        assert trained(tokenizer, batch) == [" fine", " yes wo"]
    elif merge == "always":
        assert batch.num_documents == 1
        assert [bool(flag & TurnFlag.BENT) for flag in flags] == [True, False]
    else:
        assert trained(tokenizer, batch) == [" yes wo", " fine"]


def test_equal_ids_behind_no_control_token_are_merged(tokenizer):
    batch, _ = encode(tokenizer, "One?", " Two", " Three?", " Four")
    assert batch.num_documents == 1
    assert trained(tokenizer, batch) == [" Two", " Four"]


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, "2026-01-01")


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def spans_of(tokenizer, source: str, *messages: tuple[str, str]) -> list[str]:
    """Return the text of every turn's spans, by a template of one's own."""
    dialogue = Dialogue(
        0,
        Origin("here", 1),
        tuple(
            Message(role, {"role": role, "content": content}, role == "assistant")
            for role, content in messages
        ),
        None,
    )
    rendered = render_dialogue(template(source), tokenizer.added_tokens, dialogue, "auto")
    assert not isinstance(rendered, Reject), rendered
    return [
        document.text[start:end]
        for document in (rendered.merged, *rendered.own)
        for turn in document.turns
        for start, end in turn.spans
    ]


def test_a_comment_that_names_the_generation_tag_marks_nothing(tokenizer):
    source = "{# no {% generation %} tags here #}" + CHATML
    assert spans_of(tokenizer, source, ("user", "Hi"), ("assistant", "Yes.")) == ["Yes.<|im_end|>"]


def test_the_header_of_a_dialogue_that_the_assistant_opens_is_given(tokenizer):
    refusing = "{% if add_generation_prompt and messages[-1].role != 'user' %}"
    refusing += "{{ raise_exception('a prompt follows a question') }}{% endif %}" + CHATML
    for source in (CHATML, refusing):
        found = spans_of(tokenizer, source, ("assistant", "Hello."), ("user", "Hi"))
        assert found == ["Hello.<|im_end|>"]


def test_a_message_that_says_nothing_and_is_not_written_leaves_the_others_alone(tokenizer):
    source = "{% for message in messages %}{% if message.content %}"
    source += CHATML.removeprefix("{% for message in messages %}").replace(
        "{% endfor %}", "{% endif %}{% endfor %}"
    )
    messages = (("user", "Hi"), ("assistant", ""), ("user", "Hello?"), ("assistant", "Yes."))
    assert spans_of(tokenizer, source, *messages) == ["Yes.<|im_end|>"]


def test_a_last_message_that_says_nothing_does_not_hide_the_merged_length(tokenizer):
    source = "{% for message in messages %}{{ message.content }}{% endfor %}"
    roles = ("user", "assistant", "user", "assistant")
    contents = ("One?", " Two", " Three?", "")
    dialogue = Dialogue(
        0,
        Origin("here", 1),
        tuple(
            Message(role, {"role": role, "content": content}, role == "assistant")
            for role, content in zip(roles, contents, strict=True)
        ),
        None,
    )
    rendered = render_dialogue(template(source), tokenizer.added_tokens, dialogue, "auto")
    assert rendered.merged_end == len("".join(contents))


def test_a_templates_words_are_told_unless_they_quote_the_dialogue(tokenizer):
    for words, told in (("'no tools'", "no tools"), ("messages[0].content", "quotes the dialogue")):
        source = f"{{{{ raise_exception({words}) }}}}"
        message = Message("user", {"role": "user", "content": "my secret"}, False)
        dialogue = Dialogue(0, Origin("here", 1), (message,), None)
        rendered = render_dialogue(template(source), tokenizer.added_tokens, dialogue, "auto")
        assert told in rendered.detail
        assert "secret" not in rendered.detail
