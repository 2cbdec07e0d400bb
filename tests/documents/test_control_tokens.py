"""Control tokens spelled in texts are kept, encoded as ordinary text, or rejected.

The reference for `--control-tokens literal` works in another way than mtpack. Before rendering, it
replaces each spelled control token by private characters, one for each character. The rendered text
is split at its control tokens, which the template wrote. The spelled ones are put back into the
segments between them, and these are encoded by a tokenizer without control tokens.
"""

import json
import re
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import mtpack
from mtpack.cli import main
from mtpack.documents.control_tokens import load_renderer
from mtpack.documents.control_tokens_in_text import TokenPattern
from mtpack.documents.literal_tokens import NotLiteralError, build_literal_tokenizer
from mtpack.documents.overlong import SuffixRenderer
from mtpack.documents.token_spans import encode_dialogues
from mtpack.errors import SetupError
from mtpack.input.dialogue import Dialogue, Origin, Reject
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import read_dialogue
from mtpack.options import PackOptions
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.loading import load_chat_template
from mtpack.template.message_forms import find_forms
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, load_tokenizer
from tests.conftest import examples, shared
from tests.support import template_facts
from tests.support.encoders import encoder_of
from tests.support.reference import Reference, ReferenceDocument, ReferenceTurn, Token
from tests.support.strategies import as_documents
from tests.support.template_facts import FACTS, Facts
from tests.support.template_table import load_template

DATE = "2026-01-01"
ORIGIN = Origin("rows.jsonl", 1)
FIRST_HIDDEN = 0xE000
"""The private character that replaces the first control token; the others follow."""


class OrdinaryText:
    """Encodes text with a tokenizer that has no control tokens."""

    def __init__(self, folder: Path, written: frozenset[str]) -> None:
        """written: the tokens that the template writes, special or not."""
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.control = {
            token["content"]: token
            for token in stored["added_tokens"]
            if token["special"] or token["content"] in written
        }
        stored["added_tokens"] = [
            token for token in stored["added_tokens"] if token["content"] not in self.control
        ]
        stored["post_processor"] = None
        self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(stored))
        whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.ids = whole.get_vocab()
        self.tags = self.tokenizer.get_added_tokens_decoder()

    def tokens(self, text: str, first: int) -> list[Token]:
        """Encode a segment of a text; it starts at the character `first` of that text."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        found = []
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            tag = self.tags.get(number)
            if tag is not None:
                start = text.index(tag.content, start)
                end = start + len(tag.content)
                number = self.ids[tag.content]
            found.append(Token(number, first + start, first + end, tag is not None))
        return found

    def tokens_around(self, segments: list[tuple[bool, str]]) -> list[Token]:
        """Encode segments of a text: control tokens (true), and text between them (false)."""
        found: list[Token] = []
        first = 0
        absorbs_space = False
        for is_control, segment in segments:
            if is_control:
                found.append(Token(self.ids[segment], first, first + len(segment), True))
                absorbs_space = self.control[segment]["rstrip"]
                assert not self.control[segment]["lstrip"]
            elif segment:
                left = segment.lstrip() if absorbs_space else segment
                found += self.tokens(left, first + len(segment) - len(left))
            first += len(segment)
        return found


@cache
def ordinary_text(name: str) -> OrdinaryText:
    return OrdinaryText(folder_of(name), WRITTEN.get(name, frozenset()))


def folder_of(name: str) -> Path:
    return EMBEDDED_FOLDER if name == "embedded" else shared(f"tokenizers/{name}")


TAGS = frozenset({"<tool_call>", "</tool_call>", "<think>", "</think>"})
RESPONSE = frozenset({"<tool_response>", "</tool_response>"})
# The tokens in the source of the tokenizer's own template that are not special.
WRITTEN = {"embedded": TAGS, "qwen3": TAGS | RESPONSE, "minimind": TAGS | RESPONSE}
# Those that open or end a turn.
TURN_TOKENS = {
    "embedded": {"<|im_start|>", "<|im_end|>"},
    "qwen3": {"<|im_start|>", "<|im_end|>"},
    "minimind": {"<|im_start|>", "<|im_end|>"},
    "phi-3-mini": {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"},
    "gpt2": {"<|endoftext|>"},
}
TOKENIZERS = ("embedded", "qwen3", "phi-3-mini", "gpt2", "minimind", "bert-base-uncased-wordpiece")


@cache
def load(name: str):
    tokenizer = load_tokenizer(str(folder_of(name)))
    return tokenizer, build_literal_tokenizer(tokenizer, sorted(ordinary_text(name).control))


def texts_around(control: list[str]) -> st.SearchStrategy[str]:
    """Draw text with control tokens: whole, cut off, and inside each other."""
    some = st.sampled_from(control)
    cut_off = st.tuples(some, st.integers(1, 12)).map(lambda drawn: drawn[0][: drawn[1]])
    tails = st.tuples(some, st.integers(1, 12)).map(lambda drawn: drawn[0][drawn[1] :])
    words = st.sampled_from(
        (
            " ",
            "  ",
            "\n",
            "end",
            " of",
            "s",
            "<",
            "|",
            ">",
            "</s>",
            "<think>",
            "é",
            "e\u0301",
            "北",
        )
    )
    others = st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=3)
    return st.lists(some | cut_off | tails | words | others, max_size=8).map("".join)


@pytest.mark.oracle
@pytest.mark.parametrize("name", TOKENIZERS)
def test_spelled_control_tokens_get_the_ids_of_a_tokenizer_without_them(name):
    ordinary = ordinary_text(name)
    _, literal = load(name)
    control = sorted(ordinary.control)
    spelled = TokenPattern(control)

    @settings(max_examples=examples(200))
    @given(st.lists(st.tuples(texts_around(control), st.sampled_from(control)), max_size=5))
    def check(drawn):
        segments = [
            (is_control, segment)
            for text, token in drawn
            for is_control, segment in ((False, text), (True, token))
        ]
        text = "".join(segment for _, segment in segments)
        spelled_at, first = [], 0
        for is_control, segment in segments:
            if not is_control:
                spelled_at += [first + start for start in spelled.find_starts(segment)]
            first += len(segment)
        expected = ordinary.tokens_around(segments)
        found = literal.encode(text, spelled_at)
        assert found.ids.tolist() == [token.id for token in expected]
        assert found.starts.tolist() == [token.start for token in expected]
        assert found.ends.tolist() == [token.end for token in expected]

    check()


class LiteralReference(Reference):
    """The reference, with spelled control tokens as ordinary text."""

    def __init__(self, name: str, facts: Facts, template: str | None) -> None:
        super().__init__(folder_of(name), facts, template)
        self.ordinary = ordinary_text(name)
        self.loops_over_parts = name == "embedded"
        control = sorted(self.ordinary.control, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, control)))
        turn_tokens = sorted(TURN_TOKENS[name], key=len, reverse=True)
        self.turn_tokens = re.compile("|".join(map(re.escape, turn_tokens)))
        self.hidden = {token: chr(FIRST_HIDDEN + index) for index, token in enumerate(control)}

    def documents(self, row: dict, merge: str) -> list[ReferenceDocument]:
        messages = [
            self.hide(
                message | {"content": self.join_parts(message)},
                self.turn_tokens if message["role"] == "assistant" else self.control,
            )
            for message in row["messages"]
        ]
        tools = self.hide(row["tools"], self.control)
        return super().documents({"messages": messages, "tools": tools}, merge)

    def join_parts(self, message: dict) -> str:
        content = message["content"]
        loops = self.loops_over_parts and message["role"] != "tool"
        separator = "" if loops else "\n"
        return content if isinstance(content, str) else separator.join(p["text"] for p in content)

    def hide(self, value, tokens: re.Pattern[str]):
        if isinstance(value, str):
            return tokens.sub(lambda found: self.hidden[found[0]] * len(found[0]), value)
        if isinstance(value, list):
            return [self.hide(item, tokens) for item in value]
        if isinstance(value, dict):
            return {self.hide(key, tokens): self.hide(item, tokens) for key, item in value.items()}
        return value

    def unhide(self, text: str) -> str:
        for token, character in self.hidden.items():
            text = text.replace(character * len(token), token)
        return text

    def tokens(self, text: str) -> list[Token]:
        edges = [0, *(edge for found in self.control.finditer(text) for edge in found.span())]
        segments = [text[start:end] for start, end in pairwise([*edges, len(text)])]
        return self.ordinary.tokens_around(
            [(index % 2 == 1, self.unhide(segment)) for index, segment in enumerate(segments)]
        )


CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The only control token ends every message; no message has a role header with control tokens.
GPT_2 = (
    "{% if tools %}{{ tools | tojson }}<|endoftext|>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}<|endoftext|>"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
DIALECTS = {
    "embedded": (template_facts.CHATML, None),
    "qwen3": (template_facts.QWEN_3, None),
    "minimind": (template_facts.MINIMIND, None),
    "phi-3-mini": (replace(template_facts.PHI, closing="<|endoftext|>"), None),
    "gpt2": (Facts(("assistant: ",), ("<|endoftext|>",)), GPT_2),
}
ANSWERS = ("Yes.", "No < 5", "", "\n\n北京\n", "<think>\nHm.\n</think>\n\nYes.")


def contents(texts: st.SearchStrategy[str]) -> st.SearchStrategy:
    """Draw text, or content parts that are the text together."""

    def cut(drawn: tuple[str, list[int]]) -> list[dict]:
        text, cuts = drawn
        edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
        return [{"type": "text", "text": text[start:end]} for start, end in pairwise(edges)]

    return texts | st.tuples(texts, st.lists(st.integers(0, 60), max_size=3)).map(cut)


def tools_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy:
    properties = st.dictionaries(texts, st.fixed_dictionaries({"type": texts}), max_size=2)
    function = st.fixed_dictionaries(
        {
            "name": texts,
            "description": texts,
            "parameters": st.fixed_dictionaries(
                {"properties": properties, "enum": st.lists(texts)}
            ),
        }
    )
    tool = st.fixed_dictionaries({"type": st.just("function"), "function": function})
    return st.none() | st.lists(tool, min_size=1, max_size=2)


@st.composite
def rows(
    draw, texts: st.SearchStrategy[str], answers: st.SearchStrategy[str], roles: tuple[str, ...]
):
    """Draw a row: an optional system message, then questions (or results of tools) and answers."""

    def say(role: str) -> dict:
        return {"role": role, "content": draw(contents(texts))}

    messages = [say("system")] if draw(st.booleans()) else []
    for role in draw(st.lists(st.sampled_from(roles), min_size=1, max_size=3)):
        messages += [say(role), {"role": "assistant", "content": draw(answers)}]
    return {"messages": messages, "tools": draw(tools_of(texts)) if "tool" in roles else None}


def dialogue_of(row: dict, template: ChatTemplate | None = None) -> Dialogue:
    """Read a row; with a template, bring it into the forms that the template takes."""
    text = json.dumps({key: value for key, value in row.items() if value is not None})
    dialogue = read_dialogue(0, ORIGIN, text.encode(), LINE_LIMIT)
    assert isinstance(dialogue, Dialogue), dialogue
    return find_forms(template, dialogue.tools).apply(dialogue) if template else dialogue


def encode_documents(tokenizer, rendered, merge: str) -> list[ReferenceDocument]:
    batch, _ = encode_dialogues(encoder_of(tokenizer), RenderedDocuments.of([rendered]), merge)
    return [
        ReferenceDocument(
            tuple(document.ids),
            tuple(ReferenceTurn(turn.message, tuple(turn.positions)) for turn in document.turns),
        )
        for document in as_documents(batch)
    ]


@pytest.mark.oracle
@pytest.mark.parametrize("name", DIALECTS)
def test_documents_under_literal_equal_the_reference(name):
    facts, source = DIALECTS[name]
    reference = LiteralReference(name, facts, source)
    tokenizer, _ = load(name)
    template = (
        load_chat_template(tokenizer, None, (), DATE)
        if source is None
        else ChatTemplate({"default": source}, {}, DATE)
    )
    renderer = load_renderer(template, tokenizer, PackOptions(control_tokens="literal"))
    texts = texts_around(sorted(reference.ordinary.control))
    in_answers = [f"{token}{text}" for token in sorted(TURN_TOKENS[name]) for text in ANSWERS]
    answers = st.sampled_from((*ANSWERS, *in_answers, *(f"So: {text}!" for text in in_answers)))
    roles = ("user",) if name == "phi-3-mini" else ("user", "tool")

    @settings(max_examples=examples(60))
    @given(rows(texts, answers, roles), st.sampled_from(("auto", "always", "never")))
    def check(row, merge):
        rendered = renderer.render(dialogue_of(row, template), merge)
        assert not isinstance(rendered, Reject), rendered
        assert encode_documents(tokenizer, rendered, merge) == reference.documents(row, merge)

    check()


# Templates and tokenizers that change or inspect such text


EMBEDDED, _ = load("embedded")
TEMPLATE = load_chat_template(EMBEDDED, None, (), DATE)
EOT = "<|im_end|>"


def template_of(content: str) -> ChatTemplate:
    """Return a ChatML template that writes the expression `content` for every message."""
    return ChatTemplate({"default": CHATML.replace("{{ message.content }}", content)}, {}, DATE)


def row_of(*texts: str, tools: list | None = None, **fields) -> dict:
    """Return a row of questions and answers; `fields` are added to every question."""
    messages = [
        {"role": "user", "content": text, **fields}
        if index % 2 == 0
        else {"role": "assistant", "content": text}
        for index, text in enumerate(texts)
    ]
    return {"messages": messages, "tools": tools}


def render(row: dict, policy: str = "literal", template: ChatTemplate = TEMPLATE):
    return load_renderer(template, EMBEDDED, PackOptions(control_tokens=policy)).render(
        dialogue_of(row), "auto"
    )


def ids_of(rendered) -> list[int]:
    assert not isinstance(rendered, Reject), rendered
    (document,) = encode_documents(EMBEDDED, rendered, "auto")
    return list(document.ids)


@pytest.mark.parametrize(
    "content",
    [
        f"{{{{ message.content.split('{EOT}')[0] }}}}",
        f"{{{{ message.content.replace('{EOT}', '') }}}}",
        f"{{{{ 'quoted' if '{EOT}' in message.content else message.content }}}}",
        "{{ message.content | length }}",
        "{{ message.content[:9] }}",
    ],
)
def test_literal_rejects_a_row_if_the_template_inspects_the_text(content):
    refused = render(row_of(f"Why?{EOT} my secret", "So."), template=template_of(content))
    assert isinstance(refused, Reject)
    assert refused.reason == "not_literal"
    assert "message 0 (user)" in refused.detail
    assert EOT in refused.detail
    assert "secret" not in refused.detail


@pytest.mark.parametrize(
    "content",
    [
        "{{ message.content | trim }}",
        "{{ message.content | escape }}",
        "{{ message.content | upper }}",
        "{{ message.content | tojson }}",
        "{% if message.role == 'assistant' %}{{ message.content }}{% endif %}",
        "{{ message.content }}{{ message.content }}",
    ],
)
def test_literal_accepts_a_template_that_only_transforms_the_text(content):
    row = row_of(f" {EOT}Why?{EOT} ", "So.")
    template = template_of(content)
    control = ids_of(render(row, template=template)).count(EMBEDDED.backend.token_to_id(EOT))
    assert control == 2  # those of the template: one for each message


@pytest.mark.parametrize("spelled", [f"a{EOT}", "a"])
def test_a_mark_character_in_the_data_changes_no_encoding(spelled):
    rendered = render(row_of(f"{spelled} <\ufdd5|im_end|> {spelled}", "So."))
    if spelled == "a":
        assert ids_of(rendered) == ids_of(render(row_of("a <\ufdd5|im_end|> a", "So."), "keep"))
    else:
        assert rendered.reason == "not_literal"


def word_tokenizer(folder: Path, vocabulary: dict[str, int], control=("<s>", "<e>")):
    """Make a tokenizer with whole words as tokens."""
    model = tokenizers.models.WordLevel(vocabulary, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(control))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_tokenizer(str(folder))


def literal_of(tokenizer):
    return build_literal_tokenizer(tokenizer, list(tokenizer.added_tokens.control.values()))


def test_no_control_token_is_encoded_inside_another_that_is_text(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "w", {"?": 0, "a": 1}, ("<s>", "s><", "><e>", "<e>"))
    control = list(tokenizer.added_tokens.control.values())
    spelled = TokenPattern(control).find_starts("a<s><e>a")
    encoded = build_literal_tokenizer(tokenizer, control).encode("a<s><e>a <s>", spelled)
    assert encoded.ids.tolist() == [0, tokenizer.backend.token_to_id("<s>")]


def test_a_control_token_is_found_after_the_start_of_one_that_is_text(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "w", {"?": 0}, ("<s>", "<s><e>", "<e>"))
    encoded = literal_of(tokenizer).encode("<s><e>", [0])
    assert encoded.ids.tolist() == [0, tokenizer.backend.token_to_id("<e>")]


def test_literal_rejects_text_that_the_vocabulary_itself_encodes_as_the_control_token(tmp_path):
    literal = literal_of(word_tokenizer(tmp_path / "w", {"?": 0, "a": 1, "<s>": 2}))
    assert literal.encode("a<s>a<e>", [1]).ids.tolist() == [0, 3]
    with pytest.raises(NotLiteralError):
        literal.encode("a <s> a", [2])


SETTINGS = ("normalized", "single_word", "lstrip", "rstrip")


@pytest.mark.parametrize("name", ["embedded", "phi-3-mini", "t5-small-unigram"])
def test_tokens_that_are_not_special_can_be_text_whatever_their_settings(name, tmp_path):
    # Where they are not text, they get the ids of the tokenizer as it is: those of the tokens, or
    # of text where the tokenizer does not find them (inside of words, or after a line break).
    backend = tokenizers.Tokenizer.from_file(str(folder_of(name) / "tokenizer.json"))
    for each in SETTINGS:
        settings = {"normalized": False, each: True}
        backend.add_tokens([tokenizers.AddedToken(f"<{each}>", special=False, **settings)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    literal = build_literal_tokenizer(tokenizer, [f"<{each}>" for each in SETTINGS])
    for each in SETTINGS:
        number = tokenizer.backend.token_to_id(f"<{each}>")
        for around in ("a {} b", "a{}b", "{}", " \n{}\n ", "{0}{0}"):
            text = around.format(f"<{each}>")
            plain = tokenizer.backend.encode(text, add_special_tokens=False).ids
            assert literal.encode(text, []).ids.tolist() == plain
            starts = [found.start() for found in re.finditer(f"<{each}>", text)]
            assert number not in literal.encode(text, starts).ids


def test_literal_refuses_a_tokenizer_with_a_gap_in_its_vocabulary_and_names_a_remedy(tmp_path):
    # Ids of added tokens start at the size of the vocabulary, where a word has an id already.
    tokenizer = word_tokenizer(tmp_path / "w", {"?": 0, "<s>": 1, "<e>": 2, "a": 4})
    with pytest.raises(SetupError, match=r"choose --control-tokens keep or error") as error:
        literal_of(tokenizer)
    assert len(str(error.value).splitlines()) == 1


def test_rows_without_spelled_control_tokens_are_rendered_alike_by_all_policies():
    row = row_of("Why?", "<think>So.</think> <tool_call>", "And <thought>?", "So <|im_end| too.")
    for policy in ("keep", "literal", "error"):
        expected = render_dialogue(TEMPLATE, EMBEDDED.added_tokens, dialogue_of(row), "auto")
        assert render(row, policy) == expected


def test_literal_changes_a_tag_in_the_text_of_a_user_but_not_in_that_of_an_assistant():
    rendered = render(row_of("Why <think>?", f"<think>So {EOT}</think>", "Oh </think>?", "Yes."))
    assert [
        EMBEDDED.backend.id_to_token(number)
        for number in ids_of(rendered)
        if number in EMBEDDED.backend.get_added_tokens_decoder()
    ] == [
        *("<|im_start|>", EOT, "<|im_start|>", "<think>", "</think>", EOT),
        *("<|im_start|>", EOT, "<|im_start|>", EOT),
    ]


TAGGED = "{% generation %}{{ message.role }}: {{ message.content }}{% endgeneration %}"


@pytest.mark.parametrize("content", ["{{ message.content }}", TAGGED, "{{ message.content }} . "])
def test_literal_changes_no_turn_and_leaves_no_mark_in_the_text(content):
    row = row_of(f"Why?{EOT}", "So.", f"{EOT}Oh?", "Yes.", tools=[{"name": EOT}])
    kept, found = (render(row, policy, template_of(content)) for policy in ("keep", "literal"))

    assert found.merged.encoded is not None
    without_ids = found._replace(
        merged=found.merged._replace(encoded=None),
        own=tuple(document._replace(encoded=None) for document in found.own),
        to_compare=tuple(
            (turn, document._replace(encoded=None)) for turn, document in found.to_compare
        ),
    )
    assert without_ids == kept


def test_equal_text_with_different_ids_is_not_merged_silently_under_literal():
    bare = "{% for message in messages %}{{ message.content }}{% endfor %}"
    template = ChatTemplate({"default": bare}, {}, DATE)
    row = row_of(f"Say{EOT}:", " yes wo", f"uld{EOT}", " fine")
    rendered = load_renderer(template, EMBEDDED, PackOptions(control_tokens="literal")).render(
        dialogue_of(row), "auto"
    )
    whole = f"Say{EOT}: yes would{EOT} fine"
    ordinary = ordinary_text("embedded")
    expected = [
        [token.id for token in ordinary.tokens(text, 0)] for text in (whole, f"Say{EOT}: yes wo")
    ]
    found = encode_documents(EMBEDDED, rendered, "auto")
    assert [list(document.ids) for document in found] == expected
    assert [[turn.message for turn in document.turns] for document in found] == [[3], [1]]


def test_literal_also_applies_to_the_suffixes_of_a_long_dialogue():
    turns = [f"Why {EOT} {number}?" if number % 2 == 0 else "So." for number in range(12)]
    row = row_of(*turns)
    renderer = load_renderer(TEMPLATE, EMBEDDED, PackOptions(control_tokens="literal"))
    suffixes = SuffixRenderer(
        renderer, Encoders(EMBEDDED, seed=0), {0: dialogue_of(row)}.__getitem__, 60
    )
    reference = LiteralReference("embedded", template_facts.CHATML, None)
    (suffix,) = as_documents(suffixes.render(0, 11))
    runs = [{"messages": row["messages"][start:], "tools": None} for start in range(0, 11, 2)]
    whole = [reference.documents(run, "never")[-1] for run in runs]
    (expected,) = [document for document in whole if len(document.ids) == len(suffix.ids)]
    assert tuple(suffix.ids) == expected.ids
    assert tuple(suffix.turns[0].positions) == expected.turns[0].loss_positions


# Every template of ../shared, with a tokenizer that knows the tokens in its source


def spell(token: str, in_answer: bool) -> dict:
    """Return a row of two turns, with a token in a question or an answer."""
    texts = ["walrus", "otter", "badger", "ferret"]
    texts[int(in_answer)] = f"mar {token} mot"
    return row_of(*texts)


# They refuse the rows also without a token, or get text where they take content parts alone.
REFUSING = {
    "llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "trl/llava_next.jinja",
    "trl/llava_next_training.jinja",
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted({*FACTS} - REFUSING))
def test_literal_makes_every_token_of_a_template_ordinary_text(name):
    with load_template(name) as loaded:
        tokenizer = loaded.tokenizer
        kept, literal, error = (
            load_renderer(loaded.template, tokenizer, PackOptions(control_tokens=policy))
            for policy in ("keep", "literal", "error")
        )
        numbers = tokenizer.backend.get_vocab()
        for token in kept.control_tokens:
            for in_answer in (False, True):
                dialogue = dialogue_of(spell(token, in_answer))
                is_spelled = [found.content for found in kept.spelled.find(dialogue)] == [token]
                if not is_spelled:
                    assert in_answer  # the others are the assistant's own to write
                    continue
                expected, found = (each.render(dialogue, "auto") for each in (kept, literal))
                assert error.render(dialogue, "auto").reason == "control_token"
                assert found.merged.text == expected.merged.text
                assert found.merged.turns == expected.merged.turns
                # The token is where the template writes it, and nowhere else.
                without = render_dialogue(
                    loaded.template,
                    tokenizer.added_tokens,
                    dialogue_of(spell("", in_answer)),
                    "auto",
                )
                assert count(numbers[token], tokenizer, found) == count(
                    numbers[token], tokenizer, without
                )


def count(number: int, tokenizer, rendered) -> int:
    return sum(doc.ids.count(number) for doc in encode_documents(tokenizer, rendered, "auto"))


# Which text is searched, and what is reported


@pytest.mark.parametrize(
    ("where", "row"),
    [
        ("message 0 (user)", row_of(f"Why?{EOT}", "So.")),
        ("message 2 (user)", row_of("Why?", "So.", EOT, "So.")),
        ("message 0 (user)", row_of("Why?", "So.", name=f"me{EOT}")),
        ("message 0 (user)", row_of("Why?", "So.", extra=[{f"a{EOT}": 1}])),
        ("the tools", row_of("Why?", "So.", tools=[{"name": "f", "about": {"a": [EOT]}}])),
        ("the tools", row_of("Why?", "So.", tools=[{"name": "f", EOT: True}])),
        (
            "message 0 (system)",
            {
                "messages": [
                    {
                        "role": "system",
                        "content": [
                            {"type": "text", "text": "my secret <|im_"},
                            {"type": "text", "text": "end|>"},
                        ],
                    },
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": "So."},
                ],
                "tools": None,
            },
        ),
    ],
)
def test_error_names_the_message_and_the_token_but_does_not_quote_the_row(where, row):
    refused = render(row, "error")
    assert isinstance(refused, Reject)
    assert refused.reason == "control_token"
    assert refused.detail.startswith(f"{where}: ")
    assert EOT in refused.detail
    assert "secret" not in refused.detail


@pytest.mark.parametrize(
    "row",
    [
        row_of("Why?", "<think>\n</think>\n\n<tool_call>\n</tool_call>"),
        row_of("<|im_", "So.", "end|>", "So."),
        row_of("<|im_end |> <|im|> <thinking>", "So."),
    ],
)
def test_error_accepts_the_tags_of_assistants_and_text_that_only_resembles_a_token(row):
    assert not isinstance(render(row, "error"), Reject)


CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": [f"b{EOT}"]}}}


@pytest.mark.parametrize(
    "answer",
    [
        {"content": f"my secret {EOT}"},
        {"content": [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]},
        {"content": "So.", "reasoning_content": f"Hm.{EOT}"},
        {"content": "", "tool_calls": [CALL]},
        {"content": "", "tool_calls": [{"function": {"name": EOT, "arguments": {}}}]},
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {EOT: 1}}}]},
    ],
)
def test_tokens_that_end_a_turn_count_wherever_an_assistant_spells_them(answer):
    answers = [{"role": "assistant", **answer}, {"role": "assistant", "content": "So."}]
    question = {"role": "user", "content": "Why?"}
    row = {"messages": [question, answers[0], question, answers[1]], "tools": None}
    refused = render(row, "error")
    assert isinstance(refused, Reject)
    assert refused.detail.startswith(
        f"message 1 (assistant): the text spells the control token {EOT}"
    )
    assert "secret" not in refused.detail

    kept, literal = render(row, "keep"), render(row, "literal")
    end = EMBEDDED.backend.token_to_id(EOT)
    assert ids_of(literal).count(end) == 4  # those of the template: one for each message
    assert ids_of(kept).count(end) == 5
    assert literal.merged.text == kept.merged.text
    assert literal.merged.turns == kept.merged.turns
    assert (literal.own, literal.merged_end) == (kept.own, kept.merged_end)


def test_the_eos_token_is_a_control_token_even_if_it_is_not_marked_as_special(tmp_path):
    stored = json.loads((EMBEDDED_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    (token,) = [token for token in stored["added_tokens"] if token["content"] == EOT]
    token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOT}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert EOT in tokenizer.added_tokens.control.values()
    rendered = load_renderer(TEMPLATE, tokenizer, PackOptions(control_tokens="literal")).render(
        dialogue_of(row_of(f"Why?{EOT}", "So.")), "auto"
    )
    assert encode_documents(tokenizer, rendered, "auto") == encode_documents(
        EMBEDDED, render(row_of(f"Why?{EOT}", "So.")), "auto"
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [row_of(f"Why?{EOT}" * (number % 2), "So.") for number in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*arguments: str | Path):
    return CliRunner().invoke(main, ["pack", *map(str, arguments), "--workers", "1"])


def test_keep_is_the_default_and_the_report_names_count_and_remedy(file, tmp_path):
    result = run(file, "-o", tmp_path / "packed")
    assert result.exit_code == 0, result.output
    report = " ".join(result.stdout.split())
    assert "control tokens 3 rows: text of users, systems or tools contains" in report
    assert "--control-tokens literal makes them ordinary text" in report
    tally = mtpack.open_shards(tmp_path / "packed").manifest.report.tally
    assert (tally.control_tokens, tally.control_tokens_literal) == (3, 0)


def test_literal_has_its_own_count_and_is_another_output(file, tmp_path):
    assert run(file, "-o", tmp_path / "packed", "--control-tokens", "literal").exit_code == 0
    report = mtpack.open_shards(tmp_path / "packed").manifest.report
    assert (report.tally.control_tokens, report.tally.control_tokens_literal) == (0, 3)
    refused = run(file, "-o", tmp_path / "packed")
    assert refused.exit_code == 2
    assert "its control_tokens is literal, not keep" in refused.stderr


def test_error_stops_at_the_first_such_row_or_skips_all(file, tmp_path):
    arguments = (file, "-o", tmp_path / "packed", "--control-tokens", "error")
    stopped = run(*arguments)
    assert stopped.exit_code == 1
    assert "line 2: control_token: message 0 (user): " in stopped.stderr
    assert run(*arguments, "--on-error", "skip").exit_code == 0
    tally = mtpack.open_shards(tmp_path / "packed").manifest.report.tally
    assert tally.rows_rejected == {"control_token": 3}
    assert (tally.control_tokens, tally.control_tokens_literal) == (0, 0)
