"""The reference: finds the loss tokens of a dialogue in the slow and obvious way.

It implements the definition (DESIGN.md, section 3; docs/turns.md) and shares no code with mtpack.
transformers renders every text, `tokenizers` computes every id and offset, and a person read in
the source of each template how it writes an assistant message (tests/support/template_facts.py).

Terms: for message `i`, an assistant message with loss,

    full      the whole dialogue, rendered
    own       the messages up to and including `i`, rendered
    prompt    the messages before `i`, rendered with the generation prompt
    header    the text before what an assistant message says, such as "<|im_start|>assistant\\n"
    region    message `i` in a text: from its header to the end of its end-of-turn token
    spans     the parts of the region that are trained

A position in a text counts characters; a position in a document counts tokens.

The reference is valid for dialogues that contain no control tokens in their own text.
"""

import json
import re
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from tests.support.template_facts import Facts

Message = dict[str, Any]
Range = tuple[int, int]

# A private-use character: not in any template or dialogue, and not white space.
OTHER = "\ue000"


@dataclass(frozen=True)
class ReferenceTurn:
    """One trained assistant message: its index in the dialogue, its loss tokens in the document."""

    message: int
    loss_positions: tuple[int, ...]  # indices of the document's ids, ascending


@dataclass(frozen=True)
class ReferenceDocument:
    """The ids of a document, and the turns that are trained in it, in message order."""

    ids: tuple[int, ...]
    turns: tuple[ReferenceTurn, ...]


@dataclass(frozen=True)
class Turn:
    """The start, the trained spans and the end of message `message` in a text, in characters."""

    message: int
    start: int
    spans: tuple[Range, ...]
    end: int


@dataclass(frozen=True)
class Token:
    """One token of a text, and the characters [start, end) that it covers."""

    id: int
    start: int
    end: int
    added: bool


class TemplateRaised(Exception):
    """The chat template refuses these messages, or transformers does before it."""


class ToolsNotShown(Exception):
    """The template writes nothing of a tool's call or result before a trained message."""


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
        # Removed, since a post-processor may trim white space off the offsets, and may add special
        # tokens; those must come from the template only.
        self.tokenizer.post_processor = None
        steps = json.loads(self.tokenizer.to_str())["pre_tokenizer"] or {"type": None}
        last = steps.get("pretokenizers", [steps])[-1]
        self.is_byte_level = last["type"] == "ByteLevel" and not last["add_prefix_space"]
        self.added_tokens = {
            number: token.content
            for number, token in self.tokenizer.get_added_tokens_decoder().items()
        }

    def documents(self, row: dict[str, Any], merge: str) -> list[ReferenceDocument]:
        """Return the merged document, if it has a turn, then the own documents in message order.

        merge: "auto", "always" or "never". Raises TemplateRaised if the whole dialogue can't be
        rendered, and ToolsNotShown.
        """
        tools = row.get("tools")
        messages = self.bring_into_form([prepare(message) for message in row["messages"]], tools)
        full = self.render(messages, tools)
        self.require_shown_tools(row, messages, tools)

        merged: list[Turn] = []
        alone: list[tuple[str, Turn]] = []
        to_compare: dict[int, str] = {}
        for index, message in enumerate(row["messages"]):
            if not is_trained(message):
                continue
            try:
                own = self.render(messages[: index + 1], tools)
            except TemplateRaised:
                # There is no own document to compare or write: merged under every `merge`.
                merged.append(self.find_turn_in_full(messages, tools, index, full, None))
                continue
            turn = self.find_turn_in_own(messages, tools, index, own)
            if merge != "never" and full[: turn.end] == own[: turn.end]:
                merged.append(turn)
                to_compare[index] = own
            elif merge == "always":
                own_turn = None if self.has_tags else own[turn.spans[0][0] : turn.end]
                merged.append(self.find_turn_in_full(messages, tools, index, full, own_turn))
            else:
                alone.append((own, turn))

        cuts = self.find_cuts(full, merged)
        if merge == "auto":
            for turn in merged.copy():
                own = to_compare.get(turn.message, full)
                if not self.same_ids(turn, own, full, cuts):
                    merged.remove(turn)
                    alone.append((own, turn))
        # Own documents in message order, whether text or ids showed that merging is not exact.
        alone.sort(key=lambda document: document[1].message)
        candidates = [self.make_document(full, cuts, merged)]
        candidates += [
            self.make_document(own, self.find_cuts(own, [turn]), [turn]) for own, turn in alone
        ]
        return [document for document in candidates if document.turns]

    def require_shown_tools(self, row: dict[str, Any], messages: list[Message], tools: Any) -> None:
        """Raise ToolsNotShown if changing all calls of a message, or a result, changes nothing."""
        trained = [index for index, message in enumerate(row["messages"]) if is_trained(message)]
        for index, message in enumerate(messages[: max(trained, default=-1) + 1]):
            if message.get("tool_calls"):
                last = index
            elif message["role"] == "tool":
                roles = [later["role"] for later in messages]
                last = roles.index("assistant", index)
            else:
                continue
            other = [*messages[:index], change_tools(message), *messages[index + 1 : last + 1]]
            with suppress(TemplateRaised):
                if self.render(other, tools) == self.render(messages[: last + 1], tools):
                    raise ToolsNotShown(index)

    def same_ids(self, turn: Turn, own: str, full: str, cuts: list[int]) -> bool:
        """Return whether `full` and `own`, of equal text up to the end of the turn, agree in ids.

        cuts: where `full` is cut. Earlier turns are no reason to cut `own`; to compare the two, it
        is cut there as well.
        """
        if own[: turn.end].endswith(tuple(self.added_tokens.values())):
            return True  # no token crosses the edge of an added token

        def tokens(text: str, cuts: list[int]) -> list[tuple[int, int, bool]]:
            before = [token for token in self.cut_tokens(text, cuts) if token.start < turn.end]
            return [(token.id, token.start, token.end <= turn.end) for token in before]

        earlier = [cut for cut in cuts if cut < turn.start]
        return tokens(own, earlier + self.find_cuts(own, [turn])) == tokens(full, cuts)

    # Texts: the start and the end of a turn

    def render(self, messages: list[Message], tools: Any, prompt: bool = False) -> str:
        """Return the text that transformers renders; with `prompt`, with the generation prompt."""
        variables = {"tools": tools, "add_generation_prompt": prompt, **self.variables}
        try:
            if any(message["content"] is None for message in messages):
                # `apply_chat_template` drops keys that are null.
                template = chat_template_utils._compile_jinja_template(self.chat_template)
                return str(
                    template.render(
                        messages=messages,
                        documents=None,
                        **self.renderer.special_tokens_map,
                        **variables,
                    )
                )
            text = self.renderer.apply_chat_template(
                messages, chat_template=self.chat_template, tokenize=False, **variables
            )
        except Exception as error:  # a template can raise anything
            raise TemplateRaised(str(error)) from error
        return str(text)

    def bring_into_form(self, messages: list[Message], tools: Any) -> list[Message]:
        """Return the messages in the form that the template takes, as a person read in it."""
        formed = [deepcopy(m) for m in self.join_unread_parts(messages, tools)]
        written = set(self.facts.values_as_json)
        for message in formed:
            if message["role"] == "tool" and type(message["content"]).__name__ not in written:
                message["content"] = write_json(message["content"])
            if self.facts.null_content and message.get("tool_calls"):
                message["content"] = message["content"] or None
            if message["role"] in self.facts.only_parts and isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
            for call in message.get("tool_calls", ()) if self.facts.arguments_as_text else ():
                call["function"]["arguments"] = write_json(call["function"]["arguments"])
        return formed

    def join_unread_parts(self, messages: list[Message], tools: Any) -> list[Message]:
        """Join the text parts of every role for which the template does not read parts."""
        return [
            message
            if message["role"] != "tool" and self.reads_parts(messages, message["role"], tools)
            else join_parts(message)
            for message in messages
        ]

    def reads_parts(self, messages: list[Message], role: str, tools: Any) -> bool:
        """Return whether the template writes all parts of this role, and not the list itself."""
        texts = [
            part["text"]
            for message in messages
            if message["role"] == role and isinstance(message.get("content"), list)
            for part in message["content"]
        ]
        others_as_text = [m if m["role"] == role else join_parts(m) for m in messages]
        for tried in (messages, others_as_text):
            with suppress(TemplateRaised):
                text = self.render(tried, tools)
                if all(part in text for part in texts) and not re.search("[\"']text[\"']: ", text):
                    return True
        return not texts

    def find_turn_in_own(self, messages: list[Message], tools: Any, index: int, own: str) -> Turn:
        """Return the turn of the last message, number `index`, in the text `own`."""
        end = self.find_end_in_own(own, has_content(messages[index]))
        region = self.find_region(messages[: index + 1], tools, index, own)
        start = self.find_start(messages, tools, index, own, region, end)
        return self.make_turn(messages[: index + 1], tools, index, (region, len(own)), (start, end))

    def find_end_in_own(self, own: str, content: bool) -> int:
        """Return the end of the last message: before white space and a closing text.

        content: whether the message has any content or calls.
        """
        own = self.remove_closing(own).rstrip()
        if self.facts.ends and self.facts.ends_last and content:
            assert own.endswith(self.facts.ends), "contradicts template_facts.py"
        return len(own)

    def remove_closing(self, text: str) -> str:
        """Return `text` without the closing text, which belongs to no message."""
        start = text.rfind(self.facts.closing) if self.facts.closing else -1
        return text if start < 0 else text[:start]

    def find_turn_in_full(
        self, messages: list[Message], tools: Any, index: int, full: str, own_turn: str | None
    ) -> Turn:
        """Return the turn of message `index` in the text `full`.

        own_turn: its text in its own document; if `full` has the same text, the turn ends there.
        """
        region = self.find_region(messages, tools, index, full)
        end = self.find_end_in_full(messages, tools, index, full, region)
        start = self.find_start(messages, tools, index, full, region, end)
        if own_turn and full.startswith(own_turn, start):
            end = start + len(own_turn)
        last = self.find_next_region(messages, tools, index, full) if self.has_tags else end
        return self.make_turn(messages, tools, index, (region, last), (start, end))

    def find_end_in_full(
        self, messages: list[Message], tools: Any, index: int, full: str, region: int
    ) -> int:
        """Return the end of the first end-of-turn token after the content, or another end."""
        _, content_end = self.find_content(messages, tools, index, full)
        if index + 1 < len(messages) and messages[index + 1]["role"] == "tool":
            answer, _ = self.find_content(messages, tools, index + 1, full)
            if answer < content_end:  # the tool's answer is inside the message, and ends it
                ends = [full.rfind(end, region, answer) + len(end) for end in self.facts.ends]
                return max(ends)
        ends = [
            full.index(text, content_end) + (len(text) if text in self.facts.ends else 0)
            for text in (*self.facts.ends, *self.facts.next_headers)
            if text in full[content_end:]
        ]
        last = self.find_next_region(messages, tools, index, full)
        return len(full[: min([*ends, last])].rstrip())

    def find_next_region(self, messages: list[Message], tools: Any, index: int, full: str) -> int:
        """Return the start of the next assistant message, or the end of the conversation."""
        for later in range(index + 1, len(messages)):
            if messages[later]["role"] == "assistant":
                return self.find_region(messages, tools, later, full)
        return len(self.remove_closing(full))

    def find_region(self, messages: list[Message], tools: Any, index: int, text: str) -> int:
        """Return the position of the header of message `index` in the text of `messages`."""
        with suppress(TemplateRaised):
            before = self.remove_closing(self.render(messages[:index], tools))
            if text.startswith(before):
                return len(before)
        # It is the first message, or the template writes earlier messages differently before it.
        content, _ = self.find_content(messages, tools, index, text)
        region = self.find_last_header(text[:content])
        if index:
            _, previous_end = self.find_content(messages, tools, index - 1, text)
            region = max(region, previous_end)
        return content if region < 0 else region

    def find_content(self, messages: list[Message], tools: Any, index: int, text: str) -> Range:
        """Return the range of `text` that changes if the content of the message changes."""
        changed = change_content(messages[index])
        other = self.render([*messages[:index], changed, *messages[index + 1 :]], tools)
        if other == text:  # only calls changed, and they are not written
            changed["content"] = OTHER
            other = self.render([*messages[:index], changed, *messages[index + 1 :]], tools)
        first = common_prefix_length(text, other)
        last = len(text) - common_prefix_length(text[first:][::-1], other[first:][::-1])
        return first, last

    def make_turn(
        self, messages: list[Message], tools: Any, index: int, region: Range, span: Range
    ) -> Turn:
        """Return the turn: the tagged spans in `region` if the template has tags, else `span`."""
        if not self.has_tags:
            return Turn(index, span[0], (span,), span[1])
        _, marked = render_jinja_template(
            [deepcopy(messages)],
            tools=tools,
            chat_template=self.chat_template,
            return_assistant_tokens_mask=True,
            **self.renderer.special_tokens_map,
            **self.variables,
        )
        closing = len(self.remove_closing(self.render(messages, tools)))
        spans = tuple(
            (start, end)
            for start, end in marked[0]
            if end > region[0] and start < min(region[1], closing)
        )
        return Turn(index, span[0], spans, max((end for _, end in spans), default=span[1]))

    def find_start(
        self, messages: list[Message], tools: Any, index: int, text: str, region: int, end: int
    ) -> int:
        """Return the start of the turn of message `index`, which extends from `region` to `end`."""
        prompt = None
        with suppress(TemplateRaised):
            prompt = self.render(messages[:index], tools, prompt=True)
        opens = {message["role"] for message in messages[:index]} <= {"system", "developer"}
        if prompt is None or (opens and prompt == self.render(messages[:index], tools)):
            # The assistant speaks first, for example: transformers renders no empty dialogue.
            # Use the generation prompt that the template writes in another context.
            return self.find_header_end(
                text[:end], region, self.find_generation_prompt(messages, tools, index)
            )
        if text.startswith(prompt):
            return len(prompt)
        if prompt.startswith(text[:end]):
            return end  # nothing is left to train
        # The prompt contains something that the text lacks. The turn starts after what they share.
        start = self.find_common_end(prompt, text)
        if start > region:
            return start
        # They differ before the message: the template writes earlier messages differently here.
        # That does not change this turn, so compare only from the header on.
        return self.find_header_end(
            text[:end], region, prompt[max(0, self.find_last_header(prompt)) :]
        )

    def find_generation_prompt(self, messages: list[Message], tools: Any, index: int) -> str:
        """Return the generation prompt after a question, or else after message `index`."""
        question = self.bring_into_form([{"role": "user", "content": "?"}], tools)
        for tried in (question, messages[: index + 1]):
            with suppress(TemplateRaised):
                prompt = self.render(tried, tools, prompt=True)
                return prompt[max(0, self.find_last_header(prompt)) :]
        return ""

    def find_header_end(self, text: str, region: int, generation_prompt: str) -> int:
        """Return the end of what the generation prompt and the text share from the header on."""
        starts = [text.find(header, region) for header in self.facts.headers]
        region = min((start for start in starts if start >= 0), default=region)
        return region + self.find_common_end(generation_prompt, text[region:])

    def find_last_header(self, text: str) -> int:
        """Return the position of the last assistant header in `text`; -1 if there is none."""
        return max(text.rfind(header) for header in self.facts.headers)

    def find_common_end(self, prompt: str, text: str) -> int:
        """Return the end of the common prefix, moved back to an added token's edge in `prompt`.

        If `text` starts with `prompt`, that is the end of `prompt`.
        """
        length = common_prefix_length(prompt, text)
        if length == len(prompt):
            return length
        edges = [0]
        for token in self.tokens(prompt):
            if token.added:
                edges += [token.start, token.end]
        return max(edge for edge in edges if edge <= length)

    # Tokens: those that lie in a span

    def make_document(self, text: str, cuts: list[int], turns: list[Turn]) -> ReferenceDocument:
        """Return the document of `text`, cut at `cuts`, in which `turns` are trained."""
        tokens = self.cut_tokens(text, cuts)
        trained = []
        for turn in turns:
            positions = tuple(
                position
                for position, token in enumerate(tokens)
                # The first token has no predictor.
                if position > 0
                and any(start <= token.start < token.end <= end for start, end in turn.spans)
            )
            if positions:
                trained.append(ReferenceTurn(turn.message, positions))
        # Tokens after the last loss token train nothing.
        length = max((turn.loss_positions[-1] + 1 for turn in trained), default=0)
        return ReferenceDocument(tuple(token.id for token in tokens[:length]), tuple(trained))

    def find_cuts(self, text: str, turns: list[Turn]) -> list[int]:
        """Return the starts of turns inside a token of `text`: a server encodes the prompt alone.

        A text in parts has the same characters only if the vocabulary is byte-level.
        """
        if not self.is_byte_level:
            return []
        return [
            turn.start
            for turn in turns
            if turn.spans and turn.start < turn.end
            if any(token.start < turn.start < token.end for token in self.tokens(text))
        ]

    def cut_tokens(self, text: str, cuts: list[int]) -> list[Token]:
        """Return the tokens of `text` whose parts between `cuts` are encoded apart."""
        return [
            replace(token, start=first + token.start, end=first + token.end)
            for first, last in pairwise([0, *cuts, len(text)])
            for token in self.tokens(text[first:last])
        ]

    def tokens(self, text: str) -> list[Token]:
        """Return the tokens of `text`, encoded as a whole."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = []
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            content = self.added_tokens.get(number)
            if content is not None and content in text[start:end]:
                # Some added tokens include the white space around them (phi-3's do); such a token
                # counts as its own text only.
                start = text.index(content, start)
                end = start + len(content)
            tokens.append(Token(number, start, end, added=content is not None))
        return tokens


def prepare(message: Message) -> Message:
    """Return the message as servers hand it over: without nulls, loss switches and JSON text."""
    switches = ("train", "loss", "weight")
    kept = {key: value for key, value in deepcopy(message).items() if value is not None}
    kept = {key: value for key, value in kept.items() if key not in switches}
    kept.setdefault("content", "")
    if not kept.get("tool_calls"):
        kept.pop("tool_calls", None)
    for call in kept.get("tool_calls", ()):
        arguments = call["function"].get("arguments") or {}
        is_text = isinstance(arguments, str)
        call["function"]["arguments"] = json.loads(arguments) if is_text else arguments
    return kept


def write_json(value: Any) -> str:
    """Return a text as it is, and any other value as JSON text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def join_parts(message: Message) -> Message:
    """Return the message with its content as one string."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def has_content(message: Message) -> bool:
    """Return whether the message has content or tool calls."""
    return any(message.get(key) for key in ("content", "tool_calls"))


def change_tools(message: Message) -> Message:
    """Return the message with its result, or all names and arguments of its calls, replaced."""
    other = deepcopy(message)
    if other["role"] == "tool":
        other["content"] = OTHER
    for tool_call in other.get("tool_calls", ()):
        function = tool_call["function"]
        function["name"] = OTHER
        as_text = isinstance(function["arguments"], str)
        function["arguments"] = f'{{"{OTHER}": 1}}' if as_text else {OTHER: 1}
    return other


def change_content(message: Message) -> Message:
    """Return the message with its content, reasoning and call arguments replaced."""
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


def common_prefix_length(one: str, other: str) -> int:
    """Return the length of the common prefix, in characters."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


def is_trained(message: Message) -> bool:
    """Return whether this is an assistant message whose loss is not switched off."""
    if message["role"] != "assistant":
        return False
    switched_off = message.get("train") is False or message.get("loss") is False
    return not switched_off and message.get("weight") != 0
