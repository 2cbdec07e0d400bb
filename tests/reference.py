"""The reference: which tokens of a dialogue carry loss, found the slow and obvious way.

It follows the definition (DESIGN.md, section 3) and shares no code with mtpack. Every text is
rendered by transformers, every id and offset comes from `tokenizers`, and nothing is cached.

Words: for message `i`, an assistant message with loss,

    full      the whole dialogue, rendered
    own       the messages up to and with `i`, rendered
    prompt    the messages before `i`, rendered with the generation prompt behind them
    header    what the template writes before an assistant message, "<|im_start|>assistant\\n" say
    region    message `i` inside a text: from its header to the end of its end-of-turn token
    span      the part of the region that the model writes itself: what is trained

A position in a text counts characters; a position in a document counts tokens.

It holds for templates that write every assistant message as header, words, end-of-turn token, and
for dialogues that do not spell such control tokens in their own text.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

Message = dict[str, Any]


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
class Span:
    """The characters of a text that message `message` is trained on: [start, end)."""

    message: int
    start: int
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
    """The definition, for one tokenizer and its chat template."""

    def __init__(
        self, folder: Path, header: str, end_of_turn: str, chat_template: str | None = None
    ) -> None:
        """Load both libraries' tokenizers from `folder`; `chat_template` overrides its template."""
        self.header = header
        self.end_of_turn = end_of_turn
        self.chat_template = chat_template
        self.renderer = AutoTokenizer.from_pretrained(folder)
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
        messages = [prepared(message) for message in row["messages"]]
        tools = row.get("tools")
        full = self.render(messages, tools)

        merged: list[Span] = []
        alone: list[tuple[str, Span]] = []
        for index, message in enumerate(row["messages"]):
            if not is_trained(message):
                continue
            try:
                own = self.render(messages[: index + 1], tools)
            except TemplateRaised:
                # No own document to compare with or to write: merged, whatever `merge` says.
                merged.append(self.span_in_full(messages, tools, index, full))
                continue
            span = self.span_in_own(messages, tools, index, own)
            # Merging is exact if the model sees, up to the turn's end, what it sees at inference.
            # The turn ends in an added token, so that equal text also means equal ids.
            equivalent = full[: span.end] == own[: span.end]
            if merge == "never" or (merge == "auto" and not equivalent):
                alone.append((own, span))
            elif equivalent:
                merged.append(span)
            else:
                merged.append(self.span_in_full(messages, tools, index, full))

        candidates = [self.document(full, merged)]
        candidates += [self.document(own, [span]) for own, span in alone]
        return [document for document in candidates if document.turns]

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
            )
        except Exception as error:  # a template fails in as many ways as Python does
            raise TemplateRaised(str(error)) from error
        return str(text)

    def span_in_own(self, messages: list[Message], tools: Any, index: int, own: str) -> Span:
        """Find the span of the last message, number `index`, in its own document's text."""
        # The last end-of-turn token is this message's. What may follow is not the turn's: white
        # space, and a token that closes the whole conversation (phi-3's <|endoftext|>).
        end = own.rindex(self.end_of_turn) + len(self.end_of_turn)
        region = self.region_in_own(messages, tools, index, own, end)
        return Span(index, self.start(messages, tools, index, own, region), end)

    def region_in_own(
        self, messages: list[Message], tools: Any, index: int, own: str, end: int
    ) -> int:
        """Find where the header of message `index` stands in its own document's text."""
        with suppress(TemplateRaised):
            before = self.render(messages[:index], tools)
            if own.startswith(before + self.header):
                return len(before)
        # Nothing stands before it, or the template writes that otherwise once this one follows.
        return own.rindex(self.header, 0, end)

    def span_in_full(self, messages: list[Message], tools: Any, index: int, full: str) -> Span:
        """Find the span of message `index` in the whole dialogue's text, by counting headers."""
        headers = [match.start() for match in re.finditer(re.escape(self.header), full)]
        assistants = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(headers) != len(assistants):
            raise ValueError("the headers in this text are not one for each assistant message")
        region = headers[assistants.index(index)]
        end = full.index(self.end_of_turn, region) + len(self.end_of_turn)
        return Span(index, self.start(messages, tools, index, full, region), end)

    def start(self, messages: list[Message], tools: Any, index: int, text: str, region: int) -> int:
        """Find where the model begins to write message `index`, whose region starts at `region`."""
        behind_header = region + len(self.header)
        try:
            prompt = self.render(messages[:index], tools, prompt=True)
        except TemplateRaised:
            # A dialogue that the assistant opens, say: transformers renders no empty dialogue.
            # What the prompt would have given is what it gives behind this message.
            prompt = self.render(messages[: index + 1], tools, prompt=True)
            generation_prompt = prompt[prompt.rindex(self.header) :]
            return region + self.shared(generation_prompt, text[region:])
        if text.startswith(prompt):
            return len(prompt)
        # The prompt ends in something that the text has not got. What they share is given.
        start = self.shared(prompt, text)
        if start >= behind_header:
            return start
        # They differ before the message even begins: the template writes earlier messages in
        # another way here. That is not this turn's business; compare from the header on alone.
        if self.header not in prompt:
            return behind_header
        generation_prompt = prompt[prompt.rindex(self.header) :]
        return region + self.shared(generation_prompt, text[region:])

    def shared(self, prompt: str, text: str) -> int:
        """Give the length of the common prefix, cut back to an edge of an added token of `prompt`.

        A prompt that `text` starts with is shared as a whole.
        """
        length = 0
        while length < min(len(prompt), len(text)) and prompt[length] == text[length]:
            length += 1
        if length == len(prompt):
            return length
        edges = [0]
        for token in self.tokens(prompt):
            if token.added:
                edges += [token.start, token.end]
        return max(edge for edge in edges if edge <= length)

    # Tokens: which of them lie in a span

    def document(self, text: str, spans: list[Span]) -> ReferenceDocument:
        """Make the document of `text` in which `spans` are trained."""
        tokens = self.tokens(text)
        turns = []
        for span in spans:
            positions = tuple(
                position
                for position, token in enumerate(tokens)
                # Position 0 has no token before it that could predict it.
                if position > 0 and span.start <= token.start < token.end <= span.end
            )
            if positions:
                turns.append(ReferenceTurn(span.message, positions))
        # What follows the last loss token would train nothing.
        length = max((turn.loss_positions[-1] + 1 for turn in turns), default=0)
        return ReferenceDocument(tuple(token.id for token in tokens[:length]), tuple(turns))

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
    """Give the message as the template sees it: no nulls, no loss switches, content one string."""
    switches = ("train", "loss", "weight")
    kept = {key: value for key, value in message.items() if value is not None}
    kept = {key: value for key, value in kept.items() if key not in switches}
    if isinstance(kept.get("content"), list):
        kept["content"] = "".join(part["text"] for part in kept["content"])
    return kept


def is_trained(message: Message) -> bool:
    """Say whether this is an assistant message whose loss is not switched off."""
    if message["role"] != "assistant":
        return False
    switched_off = message.get("train") is False or message.get("loss") is False
    return not switched_off and message.get("weight") != 0
