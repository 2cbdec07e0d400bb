"""The reference: finds the loss tokens of a dialogue in the slow and obvious way.

It implements the definition (DESIGN.md, section 3; docs/turns.md) and shares no code with mtpack.
transformers renders every text, `tokenizers` computes every id and offset, and a person read in
the source of each template how it writes an assistant message (tests/support/template_facts.py).

Terms: for message `i`, an assistant message with loss,

    full      the whole dialogue, rendered
    own       the messages up to and including `i`, rendered
    prompt    the messages before `i`, rendered with the generation prompt
    mode      a switch of the template, set to true or false; most dialogues are rendered without
    served    what the model sees and writes at inference: a context, message `i`, a stop token
    header    the text before what an assistant message says, such as "<|im_start|>assistant\\n"
    region    message `i` in a text: from its header to the end of its end-of-turn token
    spans     the parts of the region that are trained

In most cases `served` is `own`. Its context is `prompt` if `own` does not start with it, but the
model can see only that; its stop token is one that the template writes before the next message.

A position in a text counts characters; a position in a document counts tokens.

The reference is valid for dialogues that contain no control tokens in their own text.
"""

import json
import re
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from tests.support.template_facts import Facts

Message = dict[str, Any]
Range = tuple[int, int]
Mode = tuple[str, bool] | None

# What the report counts: the names of members of `mtpack.token_batch.TurnFlag`.
FLAGS = ("PROMPT_OTHER_MODE", "PROMPT_CONTEXT", "PROMPT_DIFFERS", "NO_EOT", "NOT_A_STOP")

# A private-use character: not in any template or dialogue, and not white space.
OTHER = "\ue000"


@dataclass(frozen=True)
class ReferenceTurn:
    """One trained assistant message: its index in the dialogue, its loss tokens in the document."""

    message: int
    loss_positions: tuple[int, ...]  # indices of the document's ids, ascending
    flags: frozenset[str] = field(default=frozenset(), compare=False)  # some of FLAGS


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
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Start:
    """Where a turn starts in the text of its message, and the text that precedes it."""

    position: int
    context: str | None = None  # if it is not the text before `position`
    flags: frozenset[str] = frozenset()


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
        self.stops = self.read_stops(folder)
        self.control_tokens = self.stops | {
            token.content
            for token in self.tokenizer.get_added_tokens_decoder().values()
            if token.special
        }
        # The current dialogue, as the template gets it, the variables that its row sets, and its
        # mode.
        self.arguments: dict[str, Any] = {}
        self.messages: list[Message] = []
        self.tools: Any = None
        self.mode: Mode = None

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes of the current dialogue: its row sets none of these switches."""
        switches = [switch for switch in self.facts.switches if switch not in self.arguments]
        return (None, *((switch, value) for switch in switches for value in (True, False)))

    def read_stops(self, folder: Path) -> set[str]:
        """Return the tokens at which generation stops: those that the files call eos."""
        stops = {self.renderer.eos_token}
        path = folder / "generation_config.json"
        if path.is_file():
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id", [])
            ids = ids if isinstance(ids, list) else [ids]
            stops |= {self.tokenizer.id_to_token(number) for number in ids}
        return stops - {None}

    def documents(self, row: dict[str, Any], merge: str) -> list[ReferenceDocument]:
        """Return the merged document, if it has a turn, then the own documents in message order.

        merge: "auto", "always" or "never". Raises TemplateRaised if the whole dialogue can't be
        rendered, and ToolsNotShown.
        """
        self.mode = None
        self.arguments = row.get("chat_template_kwargs", {})
        tools = row.get("tools")
        messages = self.bring_into_form([prepare(message) for message in row["messages"]], tools)
        self.messages, self.tools = messages, tools
        trained = [index for index, message in enumerate(row["messages"]) if is_trained(message)]
        self.mode = self.find_mode(messages, tools, trained)
        full = self.render(messages, tools)
        self.require_shown_tools(row, messages, tools)
        # The last turn ends in its stop token, even if no next message writes it.
        document = full
        if messages and len(messages) - 1 in trained and self.find_stop(messages[-1]):
            document = self.remove_closing(full) + self.find_stop(messages[-1])

        merged: list[Turn] = []
        alone: list[tuple[str, Turn]] = []
        to_compare: dict[int, str] = {}
        for index in trained:
            try:
                own = self.render(messages[: index + 1], tools)
            except TemplateRaised:
                # There is no own document to compare or write: merged under every `merge`.
                merged.append(self.find_turn_in_full(messages, tools, index, full, document))
                continue
            served, turn = self.find_turn_in_own(messages, tools, index, own)
            if merge != "never" and document[: turn.end] == served[: turn.end]:
                merged.append(turn)
                to_compare[index] = served
            elif merge == "always":
                merged.append(self.find_bent(messages, tools, served, turn, full, document))
            else:
                alone.append((served, turn))

        cuts = self.find_cuts(document, merged)
        if merge == "auto":
            for turn in merged.copy():
                served = to_compare.get(turn.message, document)
                if not self.same_ids(turn, served, document, cuts):
                    merged.remove(turn)
                    alone.append((served, turn))
        # Own documents in message order, whether text or ids showed that merging is not exact.
        alone.sort(key=lambda served: served[1].message)
        candidates = [self.make_document(document, cuts, merged)]
        candidates += [
            self.make_document(served, self.find_cuts(served, [turn]), [turn])
            for served, turn in alone
        ]
        return [document for document in candidates if document.turns]

    def find_bent(
        self,
        messages: list[Message],
        tools: Any,
        served: str,
        turn: Turn,
        full: str,
        document: str,
    ) -> Turn:
        """Return a turn of `served` in the merged document, where its text or context differs."""
        own_turn = "" if self.has_tags else served[turn.spans[0][0] : turn.end]
        bent = self.find_turn_in_full(messages, tools, turn.message, full, document, own_turn)
        ends = bent.flags & {"NO_EOT", "NOT_A_STOP"}
        for token in self.added_tokens.values():
            if served[: turn.end].endswith(token) and document[: bent.end].endswith(token):
                ends = frozenset()  # it ends in the same token
        return replace(bent, flags=turn.flags | ends)

    def prompts(self, index: int) -> set[str]:
        """Return what a server may prompt with for message `index` of the current dialogue."""
        prompts = set()
        for mode in self.modes:
            with suppress(TemplateRaised):
                prompts.add(self.render(self.messages[:index], self.tools, prompt=True, mode=mode))
        return prompts

    def find_mode(self, messages: list[Message], tools: Any, trained: list[int]) -> Mode:
        """Return the mode of a dialogue: not None if the reasoning field of a turn needs it."""
        for index in trained:
            reasoning = (messages[index].get("reasoning_content") or "").strip()
            if not reasoning:
                continue
            with suppress(TemplateRaised):
                default = self.render(messages[: index + 1], tools, mode=None)
                for mode in self.modes:
                    own = self.render(messages[: index + 1], tools, mode=mode)
                    prompt = self.render(messages[:index], tools, prompt=True, mode=mode)
                    if own.startswith(prompt) and reasoning in own[len(prompt) :]:
                        if own == default:  # the turn needs at most the prompt of that mode
                            break
                        return mode
        return None

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

    def render(
        self,
        messages: list[Message],
        tools: Any,
        prompt: bool = False,
        mode: Mode | Literal["of the dialogue"] = "of the dialogue",
    ) -> str:
        """Return the text that transformers renders; with `prompt`, with the generation prompt."""
        variables = {"tools": tools, "add_generation_prompt": prompt, **self.variables}
        variables |= self.arguments
        mode = self.mode if mode == "of the dialogue" else mode
        variables.update([mode] if mode else [])
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
        texts = [OTHER, "\ue001"]  # parts of a row may be empty
        parts = {"content": [{"type": "text", "text": text} for text in texts]}
        if not any(m["role"] == role and isinstance(m.get("content"), list) for m in messages):
            return True
        messages = [m | parts if m["role"] == role else m for m in messages]
        others_as_text = [m if m["role"] == role else join_parts(m) for m in messages]
        for tried in (messages, others_as_text):
            with suppress(TemplateRaised):
                text = self.render(tried, tools)
                if all(part in text for part in texts) and not re.search("[\"']text[\"']: ", text):
                    return True
        return False

    def find_turn_in_own(
        self, messages: list[Message], tools: Any, index: int, own: str
    ) -> tuple[str, Turn]:
        """Return `served` for message `index`, which is the last one in `own`, and its turn."""
        messages = messages[: index + 1]
        stop = self.find_stop(messages[index])
        if stop:  # white space before it is a part of the turn
            end = len(self.remove_closing(own))
        else:
            end = self.find_end_in_own(own, has_content(messages[index]))
        region = self.find_region(messages, tools, index, own)
        start = self.find_start(messages, tools, index, own, region, end)
        if self.has_tags:
            span = (start.position, end)
            return own, self.make_turn(
                messages, tools, index, (region, len(own)), span, start.flags
            )

        flags = start.flags
        if not stop:
            flags |= self.find_end_flags(messages, tools, index, own, end)
        context = own[: start.position] if start.context is None else start.context
        own_turn = own[start.position : end] + stop
        after = "" if stop else own[end:]
        end = len(context + own_turn)
        return context + own_turn + after, Turn(
            index, len(context), ((len(context), end),), end, flags
        )

    def find_stop(self, message: Message) -> str:
        """Return the stop token that the template writes after a message, with space before it."""
        after_answer, after_call = self.facts.next_stops
        stop = after_call if message.get("tool_calls") else after_answer
        return "" if self.has_tags or stop.strip() not in self.stops else stop

    def find_end_flags(
        self, messages: list[Message], tools: Any, index: int, text: str, end: int
    ) -> frozenset[str]:
        """Return the flag of a turn that does not end in a stop token of the template."""
        content, content_end = self.find_content(messages, tools, index, text)
        if content == len(text):  # it is not written
            content_end = 0
        end = len(text[:end].rstrip())
        tokens = [
            token
            for token in self.control_tokens
            if text.endswith(token, 0, end) and end - len(token) >= content_end
        ]
        if not tokens:
            return frozenset({"NO_EOT"})
        return frozenset() if self.stops & set(tokens) else frozenset({"NOT_A_STOP"})

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
        self,
        messages: list[Message],
        tools: Any,
        index: int,
        full: str,
        document: str,
        own_turn: str = "",
    ) -> Turn:
        """Return the turn of message `index` in the text `full`.

        document: `full`, up to the stop token of its last turn.
        own_turn: the trained text in `served`; if it is here too, it is the turn.
        """
        region = self.find_region(messages, tools, index, full)
        last = self.find_next_region(messages, tools, index, full)
        end = self.find_end_in_full(messages, tools, index, full, region)
        start = self.find_start(messages, tools, index, full, region, end)
        position = start.position
        if self.has_tags:
            return self.make_turn(messages, tools, index, (region, last), (position, end))
        flags, stop = start.flags, self.find_stop(messages[index])
        if own_turn and not document.startswith(own_turn, position):
            found = document.find(own_turn, region, last + len(stop))
            position = position if found < 0 else found
        if own_turn and document.startswith(own_turn, position):
            end = position + len(own_turn)
        elif stop and document[end:].lstrip().startswith(stop.strip()):
            end = document.index(stop.strip(), end) + len(stop.strip())
        else:
            flags |= self.find_end_flags(messages, tools, index, full, end)
        return Turn(index, position, ((position, end),), end, flags)

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
            previous, previous_end = self.find_content(messages, tools, index - 1, text)
            if previous < len(text):  # it is written
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
        self,
        messages: list[Message],
        tools: Any,
        index: int,
        region: Range,
        span: Range,
        flags: frozenset[str] = frozenset(),
    ) -> Turn:
        """Return the turn: the tagged spans in `region` if the template has tags, else `span`."""
        if not self.has_tags:
            return Turn(index, span[0], (span,), span[1], flags)
        _, marked = render_jinja_template(
            [deepcopy(messages)],
            tools=tools,
            chat_template=self.chat_template,
            return_assistant_tokens_mask=True,
            **self.renderer.special_tokens_map,
            **self.variables | self.arguments,
            **dict([self.mode] if self.mode else []),
        )
        closing = len(self.remove_closing(self.render(messages, tools)))
        spans = tuple(
            (start, end)
            for start, end in marked[0]
            if end > region[0] and start < min(region[1], closing)
        )
        end = max((end for _, end in spans), default=span[1])
        text = self.render(messages, tools)
        flags |= self.find_end_flags(messages, tools, index, text, end)
        return Turn(index, span[0], spans, end, flags)

    def find_start(
        self, messages: list[Message], tools: Any, index: int, text: str, region: int, end: int
    ) -> Start:
        """Return the start of the turn of message `index`, which extends from `region` to `end`."""
        of_mode = frozenset({"PROMPT_OTHER_MODE"} if self.mode else ())
        content, _ = self.find_content(messages, tools, index, text)
        prompt = None
        with suppress(TemplateRaised):
            prompt = self.render(messages[:index], tools, prompt=True)
        opens = {message["role"] for message in messages[:index]} <= {"system", "developer"}
        if prompt is None or (opens and prompt == self.render(messages[:index], tools)):
            # The assistant speaks first, for example: transformers renders no empty dialogue.
            # Use the generation prompt that the template writes in another context.
            given = self.find_generation_prompt(messages, tools, index)
            position = self.find_header_end(text[:end], region, content, given)
            is_whole = bool(given) and text.endswith(given, 0, position)
            is_whole = is_whole or (prompt is not None and text[:position] == prompt)
            return Start(position, flags=frozenset(() if is_whole else {"PROMPT_DIFFERS"}))
        if text.startswith(prompt):
            return Start(len(prompt), flags=of_mode)
        if prompt.startswith(text[:end]):  # at most a stop token is left to train
            return Start(end, flags=frozenset({"PROMPT_DIFFERS"}))
        start = (
            self.find_start_in_other_mode(messages, tools, index, text)
            or self.find_start_after_same_header(messages, tools, index, text, prompt)
            or self.find_start_after_scaffold(messages, tools, index, text, prompt)
        )
        if start:
            return start
        # The prompt contains something that the text lacks. The turn starts after what they share.
        common = self.find_common_end(prompt, text)
        if common <= region:
            # They differ before the message: the template writes earlier messages differently
            # here. That does not change this turn, so compare only from the header on.
            common = self.find_header_end(
                text[:end], region, content, prompt[max(0, self.find_last_header(prompt)) :]
            )
        return Start(common, flags=frozenset({"PROMPT_DIFFERS"}))

    def find_start_in_other_mode(
        self, messages: list[Message], tools: Any, index: int, text: str
    ) -> Start | None:
        """Return the end of the prompt of a mode that writes the same text; None without one."""
        for mode in self.modes:
            with suppress(TemplateRaised):
                same = self.render(messages, tools, mode=mode)
                prompt = self.render(messages[:index], tools, prompt=True, mode=mode)
                if mode != self.mode and same == text and text.startswith(prompt):
                    return Start(len(prompt), flags=frozenset({"PROMPT_OTHER_MODE"}))
        return None

    def find_start_after_same_header(
        self, messages: list[Message], tools: Any, index: int, text: str, prompt: str
    ) -> Start | None:
        """Return the end of the prompt if the text has it from the last content on."""
        since = self.remove_until_last_content(messages, tools, index, text)
        header = self.remove_until_last_content(messages, tools, index, prompt)
        if self.has_tags or since is None or header is None or not since.startswith(header):
            return None
        position = len(text) - len(since) + len(header)
        return Start(position, prompt, frozenset({"PROMPT_CONTEXT"}))

    def find_start_after_scaffold(
        self, messages: list[Message], tools: Any, index: int, text: str, prompt: str
    ) -> Start | None:
        """Return the end of the header and of the closing part of the prompt's empty reasoning."""
        if self.has_tags or self.facts.scaffold is None:
            return None
        opening, closing = map(re.escape, self.facts.scaffold)
        scaffold = re.search(rf"{opening}\s*({closing}\s*)$", prompt)
        if scaffold is None:
            return None
        header = prompt[: scaffold.start()]
        if not text.startswith(header):
            since = self.remove_until_last_content(messages, tools, index, text)
            before = self.remove_until_last_content(messages, tools, index, prompt)
            if since is None or before is None:
                return None
            header = before[: len(before) - len(scaffold[0])]
            if not since.startswith(header):
                return None
            position = len(text) - len(since) + len(header)
        else:
            position = len(header)
        for part in (scaffold[1], scaffold[1].strip()):
            if text.startswith(part, position):
                position += len(part)
                break
        if re.match(rf"\s*{opening}", text[position:]):
            return None  # a reasoning follows
        return Start(position, prompt, frozenset({"PROMPT_CONTEXT"}))

    def remove_until_last_content(
        self, messages: list[Message], tools: Any, index: int, text: str
    ) -> str | None:
        """Return `text` from the content of the message before `index` on.

        text: the messages rendered up to `index`, or the prompt of `index`. None if that message
        is not written.
        """
        if not index:
            return None
        other = deepcopy(messages)
        in_parts = isinstance(other[index - 1].get("content"), list)
        other[index - 1]["content"] = [{"type": "text", "text": OTHER}] if in_parts else OTHER
        try:
            if text == self.render(messages[:index], tools, prompt=True):
                changed = self.render(other[:index], tools, prompt=True)
            else:
                changed = self.render(other, tools)
        except TemplateRaised:
            return None
        first = common_prefix_length(text, changed)
        return None if first == len(text) else text[first:]

    def find_generation_prompt(self, messages: list[Message], tools: Any, index: int) -> str:
        """Return the generation prompt after a question, or else after message `index`."""
        question = self.bring_into_form([{"role": "user", "content": "?"}], tools)
        for tried in (question, messages[: index + 1]):
            with suppress(TemplateRaised):
                prompt = self.render(tried, tools, prompt=True)
                return prompt[max(0, self.find_last_header(prompt)) :]
        return ""

    def find_header_end(self, text: str, region: int, content: int, generation_prompt: str) -> int:
        """Return the end of what the generation prompt and the text share from the header on.

        region, content: where the message and its content start.
        """
        starts = [text.find(header, region, content) for header in self.facts.headers]
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
                trained.append(ReferenceTurn(turn.message, positions, turn.flags))
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
