"""A turn's tokens, and those of its context, are those of a server that encodes the prompt alone.

Each test encodes the prompt and the turn with `tokenizers`, and joins the ids.
"""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from mtpack.documents.token_spans import encode_dialogues
from mtpack.fast_path import FastPathFailedError
from mtpack.input.dialogue import Dialogue, Origin, make_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.tokenizer.encode import TextEncoder, encode_with_offsets
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.loading import LoadedTokenizer, load_tokenizer
from tests.conftest import examples, shared
from tests.support.strategies import as_documents

BYTE_LEVEL = ("embedded", "qwen3", "gpt2", "minimind", "falcon")
OTHERS = ("phi-3-mini", "t5-small-unigram", "bert-base-uncased-wordpiece")
HEADERS = {
    # By what the prompt ends in; the first is Vicuna's. No control token ends these turns.
    "space": "USER: {{ m.content }} ASSISTANT: |{{ m.content }}<|end|>\n",
    "newline": "<|user|>{{ m.content }}\nASSISTANT:\n|{{ m.content }}<|end|>\n",
    "bare": "{{ m.content }}|{{ m.content }}",
}


def template_of(header: str) -> ChatTemplate:
    """Return a template from what it writes for a question with its prompt, and for an answer."""
    question, answer = HEADERS[header].split("|{{")
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}"
        + question
        + "{% else %}{{"
        + answer
        + "{% endif %}{% endfor %}"
    )
    return ChatTemplate({"default": source}, {}, "2026-01-01")


@cache
def load(name: str) -> tuple[LoadedTokenizer, Encoders]:
    """Load a tokenizer; Falcon's form spells bytes first, and cuts digits after that."""
    if name == "falcon":
        return load_falcon_form()
    tokenizer = load_tokenizer(None if name == "embedded" else str(shared(f"tokenizers/{name}")))
    return tokenizer, Encoders(tokenizer, seed=0)


def load_falcon_form() -> tuple[LoadedTokenizer, Encoders]:
    gpt2, _ = load("gpt2")
    backend = Tokenizer.from_str(gpt2.backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(),
            pre_tokenizers.Split("[0-9][0-9][0-9]", "isolated"),
        ]
    )
    tokenizer = replace(gpt2, load_backend=lambda: backend, is_as_stored=False)
    return tokenizer, Encoders(tokenizer, seed=0)


def dialogue_of(contents: list[str]) -> Dialogue:
    """Return questions and answers in turn."""
    roles = ("user", "assistant")
    chat = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return make_dialogue(0, Origin("here", 1), chat)


def render(tokenizer: LoadedTokenizer, header: str, contents: list[str], merge: str):
    rendered = render_dialogue(
        template_of(header), tokenizer.added_tokens, dialogue_of(contents), merge
    )
    assert isinstance(rendered, RenderedDialogue), rendered
    return rendered


def encode(encoder: TextEncoder, rendered: RenderedDialogue, merge: str):
    """Return the documents of a dialogue, and how many tokens straddle an edge."""
    batch, counts = encode_dialogues(encoder, RenderedDocuments.of([rendered]), merge)
    return as_documents(batch), counts.straddles


def encode_parts(tokenizer: LoadedTokenizer, text: str, cuts: list[int]) -> list[int]:
    parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    encodings = tokenizer.backend.encode_batch(parts, add_special_tokens=False)
    return [number for encoding in encodings for number in encoding.ids]


def is_straddled(tokenizer: LoadedTokenizer, text: str, start: int) -> bool:
    """Return whether a token of the whole text has characters on both sides of `start`."""
    (whole,) = encode_with_offsets(tokenizer, [text])
    return bool(np.any((whole.starts < start) & (start < whole.ends)))


pieces = st.sampled_from(
    (
        *(" ", "  ", "\n", "\n\n", "\t", "Yes", " no", "uld", " wo", "1", "234", "'s", "."),
        *("é", "e\u0301", "\u0301", "北京", "，", "🙂", "\u00a0", "\u1161", "\u1100"),
    )
)
contents_of_dialogues = st.integers(1, 3).flatmap(
    lambda num_turns: st.lists(
        st.lists(pieces, max_size=4).map("".join), min_size=2 * num_turns, max_size=2 * num_turns
    )
)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_straddled_start_divides_a_document_into_the_prompt_and_the_turn(name, header):
    tokenizer, encoders = load(name)

    @settings(max_examples=examples(60))
    @given(contents_of_dialogues)
    def check(contents):
        rendered = render(tokenizer, header, contents, "never")
        documents, _ = encode(encoders.reference, rendered, "never")
        found = {document.turns[0].message: document for document in documents}
        for text, turns, _ in rendered.own:
            (turn,) = turns.to_list()
            if turn.message not in found:
                continue
            document = found[turn.message]
            if is_straddled(tokenizer, text, turn.start):
                num_given = len(encode_parts(tokenizer, text[: turn.start], []))
                expected = encode_parts(tokenizer, text, [turn.start])
                assert document.turns[0].spans[0][0] == max(num_given, 1)
            else:
                expected = encode_parts(tokenizer, text, [])
            assert document.ids == expected[: len(document.ids)]

    check()


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_merged_document_is_cut_at_each_straddled_start(name):
    tokenizer, encoders = load(name)

    @settings(max_examples=examples(60))
    @given(contents_of_dialogues)
    def check(contents):
        rendered = render(tokenizer, "space", contents, "always")
        text = rendered.merged.text
        cuts = [
            turn.start
            for turn in rendered.merged.turns.to_list()
            if turn.start < turn.end and is_straddled(tokenizer, text, turn.start)
        ]
        for document in encode(encoders.reference, rendered, "always")[0]:
            assert document.ids == encode_parts(tokenizer, text, cuts)[: len(document.ids)]

    check()


@pytest.mark.parametrize("name", OTHERS)
def test_texts_of_other_vocabularies_stay_whole(name):
    tokenizer, encoders = load(name)
    rendered = render(tokenizer, "space", ["Hi", "Yes", "Why?", "\n\nSo"], "never")
    documents, _ = encode(encoders.reference, rendered, "never")
    for document, (text, _, _) in zip(documents, rendered.own, strict=True):
        assert document.ids == encode_parts(tokenizer, text, [])[: len(document.ids)]


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_both_engines_cut_alike(name):
    tokenizer, encoders = load(name)
    try:
        fast = encoders.fast
    except FastPathFailedError:
        pytest.skip("fastokens can't load this tokenizer")

    @settings(max_examples=examples(40))
    @given(contents_of_dialogues, st.sampled_from(tuple(HEADERS)))
    def check(contents, header):
        rendered = render(tokenizer, header, contents, "auto")
        assert encode(fast, rendered, "auto") == encode(encoders.reference, rendered, "auto")

    check()


def test_a_turn_that_is_cut_earlier_in_the_merged_document_is_merged():
    # No control token ends these turns, so ids decide. Only the second turn's own text has the
    # first one uncut: "Say: yes, of course" is context there.
    tokenizer, encoders = load("embedded")
    rendered = render(tokenizer, "bare", ["Say wo", "uld yes", " Go on.", " Fine"], "auto")
    assert rendered.to_compare
    documents, straddles = encode(encoders.reference, rendered, "auto")
    assert [[turn.message for turn in document.turns] for document in documents] == [[1, 3]]
    assert straddles == 1
    (document,) = documents
    text = rendered.merged.text
    cut = len("Say wo")
    assert document.ids == encode_parts(tokenizer, text, [cut]) != encode_parts(tokenizer, text, [])


def test_a_turn_without_text_is_no_reason_to_cut():
    tokenizer, encoders = load("embedded")
    rendered = render(tokenizer, "bare", ["Say wo", "", "uld you", " yes"], "auto")
    (document,) = encode(encoders.reference, rendered, "auto")[0]
    assert document.ids == encode_parts(tokenizer, "Say would you yes", [])


def test_a_text_with_tags_is_cut_at_the_end_of_the_prompt_too():
    # The tags mark the header as well, so no edge of a span lies inside the token ":\n\n".
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}"
        "{% else %}{% generation %}ASSISTANT:\n{{ m.content }}{% endgeneration %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
    )
    tokenizer, encoders = load("embedded")
    template = ChatTemplate({"default": source}, {}, "2026-01-01")
    dialogue = dialogue_of(["Hi\n", "\nYes"])
    rendered = render_dialogue(template, tokenizer.added_tokens, dialogue, "auto")
    batch, counts = encode_dialogues(encoders.reference, RenderedDocuments.of([rendered]), "auto")
    (document,) = as_documents(batch)
    assert document.ids == encode_parts(tokenizer, "Hi\nASSISTANT:\n\nYes", [14])
    given = encode_parts(tokenizer, "ASSISTANT:\n", [])
    answer = encode_parts(tokenizer, "\nYes", [])
    assert len(document.turns[0].positions) == len(given) + len(answer)
    assert (counts.straddles, counts.given_trained) == (1, len(given))
