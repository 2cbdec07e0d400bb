"""Loss tokens: turn edges inside a token, first tokens, and equal text with different ids."""

from collections.abc import Iterable

import pytest

from mtpack.documents.token_spans import encode_dialogues
from mtpack.input.dialogue import Dialogue, Origin, Reject, make_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.loading import load_tokenizer
from tests.support.encoders import encoder_of

# Only the contents, one after another: no role header, and no end-of-turn token between them.
BARE = ChatTemplate(
    {"default": "{% for message in messages %}{{ message.content }}{% endfor %}"}, {}, "2026-01-01"
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(None)


def make_dialogue_of(messages: Iterable[tuple[str, str]]) -> Dialogue:
    """Make a dialogue of pairs: the role and the content of each message."""
    chat = [{"role": role, "content": content} for role, content in messages]
    return make_dialogue(0, Origin("here", 1), chat)


def encode(tokenizer, *contents: str, first: str = "user", merge: str = "auto"):
    """Encode a dialogue of alternating roles; return the batch and the counts."""
    roles = [first, "user" if first == "assistant" else "assistant"] * len(contents)
    dialogue = make_dialogue_of(zip(roles, contents, strict=False))
    rendered = render_dialogue(BARE, tokenizer.added_tokens, dialogue, merge)
    return encode_dialogues(encoder_of(tokenizer), RenderedDocuments.of([rendered]), merge)


def trained_texts(tokenizer, batch) -> list[str]:
    """Return the text of the loss tokens of each span."""
    starts = batch.document_offsets[batch.turn_documents[batch.span_turns]]
    return [
        tokenizer.backend.decode(batch.ids[start + first : start + last].tolist())
        for start, first, last in zip(starts, batch.span_starts, batch.span_ends, strict=True)
    ]


def test_the_first_token_of_a_document_carries_no_loss(tokenizer):
    batch, _ = encode(tokenizer, "Yes, of course.", first="assistant")
    assert batch.span_starts.tolist() == [1]
    assert trained_texts(tokenizer, batch) == [", of course."]


def test_a_turn_without_a_loss_token_is_dropped_and_counted(tokenizer):
    batch, counts = encode(tokenizer, "Yes", "Go on.", first="assistant")
    assert batch.num_documents == 0
    assert counts.turns_dropped == {"no_loss_token": 1}


def test_a_token_across_the_start_of_a_turn_is_cut_and_counted(tokenizer):
    assert len(tokenizer.backend.encode(" would you").ids) == 2
    batch, counts = encode(tokenizer, " wo", "uld you")
    assert trained_texts(tokenizer, batch) == ["uld you"]
    assert counts.straddles == 1


@pytest.mark.parametrize("merge", ["auto", "always", "never"])
def test_equal_text_with_different_ids_is_not_merged_silently(tokenizer, merge):
    # In the merged text, the turn's last token " wo" and the next message "uld" are one token.
    assert len(tokenizer.backend.encode(" would").ids) == 1
    batch, _ = encode(tokenizer, "Say:", " yes wo", "uld", " fine", merge=merge)
    flags = [TurnFlag(flag) for flag in batch.turn_flags.tolist()]
    assert all(flag & TurnFlag.NO_EOT for flag in flags)
    if merge == "auto":
        assert batch.num_documents == 2
        assert [bool(flag & TurnFlag.OWN_DOCUMENT) for flag in flags] == [False, True]
        assert trained_texts(tokenizer, batch) == [" fine", " yes wo"]
    elif merge == "always":
        assert batch.num_documents == 1
        assert [bool(flag & TurnFlag.BENT) for flag in flags] == [True, False]
    else:
        assert trained_texts(tokenizer, batch) == [" yes wo", " fine"]


def test_a_turn_without_an_end_of_turn_token_is_merged_if_its_ids_are_equal(tokenizer):
    batch, _ = encode(tokenizer, "One?", " Two", " Three?", " Four")
    assert batch.num_documents == 1
    assert trained_texts(tokenizer, batch) == [" Two", " Four"]


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, "2026-01-01")


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def spans_of(tokenizer, source: str, *messages: tuple[str, str]) -> list[str]:
    """Render messages by the template `source`; return the text of every span of a turn."""
    dialogue = make_dialogue_of(messages)
    rendered = render_dialogue(template(source), tokenizer.added_tokens, dialogue, "auto")
    assert not isinstance(rendered, Reject), rendered
    return [
        document.text[start:end]
        for document in (rendered.merged, *rendered.own)
        for turn in document.turns.to_list()
        for start, end in turn.spans
    ]


def test_a_generation_tag_in_a_comment_has_no_effect(tokenizer):
    source = "{# no {% generation %} tags here #}" + CHATML
    assert spans_of(tokenizer, source, ("user", "Hi"), ("assistant", "Yes.")) == ["Yes.<|im_end|>"]


def test_the_role_header_carries_no_loss_if_the_assistant_speaks_first(tokenizer):
    refusing = "{% if add_generation_prompt and messages[-1].role != 'user' %}"
    refusing += "{{ raise_exception('a prompt follows a question') }}{% endif %}" + CHATML
    for source in (CHATML, refusing):
        found = spans_of(tokenizer, source, ("assistant", "Hello."), ("user", "Hi"))
        assert found == ["Hello.<|im_end|>"]


def test_an_empty_message_that_the_template_leaves_out_does_not_change_other_turns(tokenizer):
    source = "{% for message in messages %}{% if message.content %}"
    source += CHATML.removeprefix("{% for message in messages %}").replace(
        "{% endfor %}", "{% endif %}{% endfor %}"
    )
    messages = (("user", "Hi"), ("assistant", ""), ("user", "Hello?"), ("assistant", "Yes."))
    assert spans_of(tokenizer, source, *messages) == ["Yes.<|im_end|>"]


def test_the_merged_length_is_right_if_the_last_message_is_empty(tokenizer):
    source = "{% for message in messages %}{{ message.content }}{% endfor %}"
    roles = ("user", "assistant", "user", "assistant")
    contents = ("One?", " Two", " Three?", "")
    dialogue = make_dialogue_of(zip(roles, contents, strict=True))
    rendered = render_dialogue(template(source), tokenizer.added_tokens, dialogue, "auto")
    assert rendered.merged_end == len("".join(contents))


def test_the_error_of_a_template_is_reported_unless_it_quotes_the_dialogue(tokenizer):
    for words, expected in (
        ("'no tools'", "no tools"),
        ("messages[0].content", "quotes the dialogue"),
    ):
        source = f"{{{{ raise_exception({words}) }}}}"
        dialogue = make_dialogue_of([("user", "my secret")])
        rendered = render_dialogue(template(source), tokenizer.added_tokens, dialogue, "auto")
        assert expected in rendered.detail
        assert "secret" not in rendered.detail
