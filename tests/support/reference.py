"""The reference: which tokens of a dialogue carry loss, found the slow and obvious way.

It follows the definition (DESIGN.md, section 3) and shares no code with mtpack. Every text is
rendered by transformers, every id and offset comes from `tokenizers`, and how a template writes an
assistant message is what a person read in its source (tests/support/template_facts.py).

Words: for message `i`, an assistant message with loss,

    full      the whole dialogue, rendered
    own       the messages up to and with `i`, rendered
    prompt    the messages before `i`, rendered with the generation prompt behind them
    header    what the template writes before an assistant message, "<|im_start|>assistant\\n" say
    region    message `i` inside a text: from its header to the end of its end-of-turn token
    spans     the parts of the region that are trained

A position in a text counts characters; a position in a document counts tokens.

It holds for dialogues that do not spell control tokens in their own text.
"""

import re
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from tests.support.template_facts import Facts

Message = dict[str, Any]
Range = tuple[int, int]

# A private-use character: in no template and in no dialogue, and no white space.
OTHER = "\ue000"


@dataclass(frozen=True)
class ReferenceTurn:
    """One trained assistant message: its index in the dialogue, its loss tokens in the document."""

    message: int
    loss_positions: tuple[int, ...]  # positions in the document's ids, ascending


@dataclass(frozen=True)
class ReferenceDocument:
    """The ids of a document, and the turns that are trained in it, in message order."""

    ids: tuple[int, ...]
    turns: tuple[ReferenceTurn, ...]


@dataclass(frozen=True)
class Turn:
    """Where message `message` stands in a text, in characters, and what of it is trained."""

    message: int
    spans: tuple[Range, ...]
    end: int


@dataclass(frozen=True)
class Token:
    """One token of a text, with the characters [start, end) that it stands for."""

    id: int
    start: int
    end: int
    added: bool


class TemplateRaised(Exception):
    """The chat template, or transformers on its behalf, refuses these messages."""


class Reference:
    """The definition, for one tokenizer and one chat template."""

    def __init__(self, folder: Path, facts: Facts, chat_template: str | None = None) -> None:
        """Load both libraries' tokenizers from `folder`; `chat_template` overrides its template."""
        self.facts = facts
        self.variables = dict(facts.variables)
        self.renderer = AutoTokenizer.from_pretrained(folder)
        self.chat_template = chat_template or self.renderer.chat_template
        self.has_tags = "{% generation" in self.chat_template.replace("{%-", "{%")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # A post-processor would trim white space off the offsets, so it goes. It could also add
        # special tokens, which are not wanted: those come from the template only.
        self.tokenizer.post_processor = None
        self.added_tokens = {
            number: token.content
            for number, token in self.tokenizer.get_added_tokens_decoder().items()
        }

    def documents(self, row: dict[str, Any], merge: str) -> list[ReferenceDocument]:
        """Give the merged document, if it has a turn, then the own documents in message order.

        `merge` is "auto", "always" or "never". Raises TemplateRaised if the whole dialogue cannot
        be rendered.
        """
        tools = row.get("tools")
        messages = self.readable([prepared(message) for message in row["messages"]], tools)
        full = self.render(messages, tools)

        merged: list[Turn] = []
        alone: list[tuple[str, Turn]] = []
        for index, message in enumerate(row["messages"]):
            if not is_trained(message):
                continue
            try:
                own = self.render(messages[: index + 1], tools)
            except TemplateRaised:
                # No own document to compare with or to write: merged, whatever `merge` says.
                merged.append(self.turn_in_full(messages, tools, index, full, None))
                continue
            turn = self.turn_in_own(messages, tools, index, own)
            if merge != "never" and self.same_up_to(turn.end, own, full):
                merged.append(turn)
            elif merge == "always":
                words = None if self.has_tags else own[turn.spans[0][0] : turn.end]
                merged.append(self.turn_in_full(messages, tools, index, full, words))
            else:
                alone.append((own, turn))

        # Own documents in message order, whatever told that merging is not exact.
        candidates = [self.document(full, merged)]
        candidates += [self.document(own, [turn]) for own, turn in alone]
        return [document for document in candidates if document.turns]

    def same_up_to(self, end: int, own: str, full: str) -> bool:
        """Say whether the model sees in `full`, up to the turn's end, what it sees at inference."""
        if full[:end] != own[:end]:
            return False
        if own[:end].endswith(tuple(self.added_tokens.values())):
            return True  # nothing is merged across the edge of an added token

        def tokens(text: str) -> list[tuple[int, int, bool]]:
            before = [token for token in self.tokens(text) if token.start < end]
            return [(token.id, token.start, token.end <= end) for token in before]

        return tokens(own) == tokens(full)

    # Texts: where a turn starts and ends

    def render(self, messages: list[Message], tools: Any, prompt: bool = False) -> str:
        """Render what transformers renders; with `prompt`, the generation prompt behind it."""
        try:
            text = self.renderer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.variables,
            )
        except Exception as error:  # a template fails in as many ways as Python does
            raise TemplateRaised(str(error)) from error
        return str(text)

    def readable(self, messages: list[Message], tools: Any) -> list[Message]:
        """Join the text parts of every role whose content the template does not read in parts."""
        return [
            message if self.reads_parts(messages, message["role"], tools) else with_text(message)
            for message in messages
        ]

    def reads_parts(self, messages: list[Message], role: str, tools: Any) -> bool:
        """Say whether all words in parts of this role come out, and not as a list shows itself."""
        words = [
            part["text"]
            for message in messages
            if message["role"] == role and isinstance(message.get("content"), list)
            for part in message["content"]
        ]
        others_as_text = [m if m["role"] == role else with_text(m) for m in messages]
        for asked in (messages, others_as_text):
            with suppress(TemplateRaised):
                text = self.render(asked, tools)
                if all(word in text for word in words) and not re.search("[\"']text[\"']: ", text):
                    return True
        return not words

    def turn_in_own(self, messages: list[Message], tools: Any, index: int, own: str) -> Turn:
        """Find the turn of the last message, number `index`, in its own document's text."""
        said = says_something(messages[index])
        end = self.end_in_own(own, said)
        region = self.region(messages[: index + 1], tools, index, own)
        start = self.start(messages, tools, index, own, region, end)
        return self.turn(messages[: index + 1], tools, index, (region, len(own)), (start, end))

    def end_in_own(self, own: str, said: bool) -> int:
        """Find where the last message of a text ends: white space and a closing text excepted."""
        own = self.without_closing(own).rstrip()
        if self.facts.ends and self.facts.ends_last and said:
            assert own.endswith(self.facts.ends), "otherwise than in template_facts.py"
        return len(own)

    def without_closing(self, text: str) -> str:
        """Cut off what is written behind a conversation and belongs to no message."""
        place = text.rfind(self.facts.closing) if self.facts.closing else -1
        return text if place < 0 else text[:place]

    def turn_in_full(
        self, messages: list[Message], tools: Any, index: int, full: str, own_words: str | None
    ) -> Turn:
        """Find the turn of message `index` in the whole dialogue's text.

        own_words: what its own document has of it, which ends it where it stands here as well.
        """
        region = self.region(messages, tools, index, full)
        end = self.end_in_full(messages, tools, index, full, region)
        start = self.start(messages, tools, index, full, region, end)
        if own_words and full.startswith(own_words, start):
            end = start + len(own_words)
        last = self.next_region(messages, tools, index, full) if self.has_tags else end
        return self.turn(messages, tools, index, (region, last), (start, end))

    def end_in_full(
        self, messages: list[Message], tools: Any, index: int, full: str, region: int
    ) -> int:
        """Find the first end-of-turn token behind what the message says, or what else ends it."""
        _, said = self.words(messages, tools, index, full)
        if index + 1 < len(messages) and messages[index + 1]["role"] == "tool":
            answer, _ = self.words(messages, tools, index + 1, full)
            if answer < said:  # the tool's answer stands inside the message: it ends before that
                ends = [full.rfind(end, region, answer) + len(end) for end in self.facts.ends]
                return max(ends)
        ends = [
            full.index(text, said) + (len(text) if text in self.facts.ends else 0)
            for text in (*self.facts.ends, *self.facts.next_headers)
            if text in full[said:]
        ]
        last = self.next_region(messages, tools, index, full)
        return len(full[: min([*ends, last])].rstrip())

    def next_region(self, messages: list[Message], tools: Any, index: int, full: str) -> int:
        """Find where the next assistant message stands, or where the conversation ends."""
        for later in range(index + 1, len(messages)):
            if messages[later]["role"] == "assistant":
                return self.region(messages, tools, later, full)
        return len(self.without_closing(full))

    def region(self, messages: list[Message], tools: Any, index: int, text: str) -> int:
        """Find where the header of message `index` stands in the text of `messages`."""
        with suppress(TemplateRaised):
            before = self.without_closing(self.render(messages[:index], tools))
            if text.startswith(before):
                return len(before)
        # Nothing stands before it, or the template writes that otherwise once this one follows.
        said, _ = self.words(messages, tools, index, text)
        region = self.last_header(text[:said])
        if index:
            _, said_before = self.words(messages, tools, index - 1, text)
            region = max(region, said_before)
        return said if region < 0 else region

    def words(self, messages: list[Message], tools: Any, index: int, text: str) -> Range:
        """Find what changes in the text if the message says something else."""
        changed = saying_something_else(messages[index])
        other = self.render([*messages[:index], changed, *messages[index + 1 :]], tools)
        if other == text:  # only its calls were changed, and the template does not write them
            changed["content"] = OTHER
            other = self.render([*messages[:index], changed, *messages[index + 1 :]], tools)
        first = common_prefix(text, other)
        last = len(text) - common_prefix(text[first:][::-1], other[first:][::-1])
        return first, last

    def turn(
        self, messages: list[Message], tools: Any, index: int, region: Range, span: Range
    ) -> Turn:
        """Take the marked spans inside `region` where the template has tags, else `span`."""
        if not self.has_tags:
            return Turn(index, (span,), span[1])
        _, marked = render_jinja_template(
            [deepcopy(messages)],
            tools=tools,
            chat_template=self.chat_template,
            return_assistant_tokens_mask=True,
            **self.renderer.special_tokens_map,
            **self.variables,
        )
        closing = len(self.without_closing(self.render(messages, tools)))
        spans = tuple(
            (start, end)
            for start, end in marked[0]
            if end > region[0] and start < min(region[1], closing)
        )
        return Turn(index, spans, max((end for _, end in spans), default=span[1]))

    def start(
        self, messages: list[Message], tools: Any, index: int, text: str, region: int, end: int
    ) -> int:
        """Find where the model begins to write message `index`, at `region` up to `end`."""
        try:
            prompt = self.render(messages[:index], tools, prompt=True)
        except TemplateRaised:
            # A dialogue that the assistant opens, say: transformers renders no empty dialogue.
            # What the prompt would have given is what it gives behind this message.
            return self.behind_header(
                text[:end], region, self.generation_prompt(messages, tools, index)
            )
        if text.startswith(prompt):
            return len(prompt)
        if prompt.startswith(text[:end]):
            return end  # nothing is left for the model to write
        # The prompt ends in something that the text has not got. What they share is given.
        start = self.shared(prompt, text)
        if start > region:
            return start
        # They differ before the message even begins: the template writes earlier messages in
        # another way here. That is not this turn's business; compare from the header on alone.
        return self.behind_header(text[:end], region, prompt[max(0, self.last_header(prompt)) :])

    def generation_prompt(self, messages: list[Message], tools: Any, index: int) -> str:
        """Give the generation prompt that is written behind a question, or message `index`."""
        for asked in ([{"role": "user", "content": "?"}], messages[: index + 1]):
            with suppress(TemplateRaised):
                prompt = self.render(asked, tools, prompt=True)
                return prompt[max(0, self.last_header(prompt)) :]
        return ""

    def behind_header(self, text: str, region: int, generation_prompt: str) -> int:
        """Find what a header and a generation prompt share, from where the header stands."""
        places = [text.find(header, region) for header in self.facts.headers]
        region = min((place for place in places if place >= 0), default=region)
        return region + self.shared(generation_prompt, text[region:])

    def last_header(self, text: str) -> int:
        """Find the last header of an assistant message in `text`; -1 if there is none."""
        return max(text.rfind(header) for header in self.facts.headers)

    def shared(self, prompt: str, text: str) -> int:
        """Give the length of the common prefix, cut back to an edge of an added token of `prompt`.

        A prompt that `text` starts with is shared as a whole.
        """
        length = common_prefix(prompt, text)
        if length == len(prompt):
            return length
        edges = [0]
        for token in self.tokens(prompt):
            if token.added:
                edges += [token.start, token.end]
        return max(edge for edge in edges if edge <= length)

    # Tokens: which of them lie in a span

    def document(self, text: str, turns: list[Turn]) -> ReferenceDocument:
        """Make the document of `text` in which `turns` are trained."""
        tokens = self.tokens(text)
        trained = []
        for turn in turns:
            positions = tuple(
                position
                for position, token in enumerate(tokens)
                # Position 0 has no token before it that could predict it.
                if position > 0
                and any(start <= token.start < token.end <= end for start, end in turn.spans)
            )
            if positions:
                trained.append(ReferenceTurn(turn.message, positions))
        # What follows the last loss token would train nothing.
        length = max((turn.loss_positions[-1] + 1 for turn in trained), default=0)
        return ReferenceDocument(tuple(token.id for token in tokens[:length]), tuple(trained))

    def tokens(self, text: str) -> list[Token]:
        """Encode `text` as a whole."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = []
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            content = self.added_tokens.get(number)
            if content is not None and content in text[start:end]:
                # Some added tokens swallow the white space beside them (phi-3's do); such a token
                # stands for its own text only.
                start = text.index(content, start)
                end = start + len(content)
            tokens.append(Token(number, start, end, added=content is not None))
        return tokens


def prepared(message: Message) -> Message:
    """Give the message as the template sees it: no nulls, no loss switches."""
    switches = ("train", "loss", "weight")
    kept = {key: value for key, value in message.items() if value is not None}
    kept = {key: value for key, value in kept.items() if key not in switches}
    return kept


def with_text(message: Message) -> Message:
    """Give the message with its content as one string."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def says_something(message: Message) -> bool:
    """Say whether there is anything in the message for the template to write."""
    return any(message.get(key) for key in ("content", "tool_calls"))


def saying_something_else(message: Message) -> Message:
    """Give the message with other words in all that it says."""
    other = deepcopy(message)
    if other.get("content") or not other.get("tool_calls"):
        in_parts = isinstance(other.get("content"), list)
        other["content"] = [{"type": "text", "text": OTHER}] if in_parts else OTHER
    if "reasoning_content" in other:
        other["reasoning_content"] = OTHER
    for tool_call in other.get("tool_calls", ()):
        function = tool_call["function"]
        as_text = isinstance(function["arguments"], str)
        function["arguments"] = f'{{"city": "{OTHER}"}}' if as_text else {"city": OTHER}
    return other


def common_prefix(one: str, other: str) -> int:
    """Give the number of characters that both start with."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


def is_trained(message: Message) -> bool:
    """Say whether this is an assistant message whose loss is not switched off."""
    if message["role"] != "assistant":
        return False
    switched_off = message.get("train") is False or message.get("loss") is False
    return not switched_off and message.get("weight") != 0
