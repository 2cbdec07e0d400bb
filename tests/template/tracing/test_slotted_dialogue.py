"""The turns found in texts with slots are those of every dialogue whose texts fill them."""

from dataclasses import dataclass
from itertools import product
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpack.input.dialogue import Dialogue, Origin, make_dialogue
from mtpack.template.chat_template import TemplateRaisedError
from mtpack.template.environment import GENERATION_END, GENERATION_START
from mtpack.template.made_up_renders import TurnKind
from mtpack.template.markers import REGION_END, MarkedText, open_region, read_marks
from mtpack.template.message_regions import TurnNotFoundError
from mtpack.template.modes import Mode
from mtpack.template.reasoning import Scaffold
from mtpack.template.renders import Render
from mtpack.template.slots import SLOT, UndecidedError, make_slot, slot_number
from mtpack.template.stop_tokens import Ending
from mtpack.template.tracing.slotted_dialogue import SlottedDialogue, SlottedLocatedTurns
from mtpack.template.turn_spans import TurnFinder
from mtpack.tokenizer.added_tokens import AddedTokens
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import examples

ADDED_TOKENS = load_tokenizer(None).added_tokens
NUM_SLOTS = 3
PIECES = ("a", "E", "<|im_end|>", "\n", " ", "<|im_start|>", "H:", "<think>\n")
FILLINGS = ("a", "E", " ", "", "aE", "<|im_end|>", "H:")
MODE = Mode("think", True)
HEADERS = ("H:", "<|im_start|>", "H:a", "")


@dataclass
class FixedProbes:
    """What probes find about a template, chosen at random."""

    ending: Ending
    modes: tuple[Mode, ...]
    mode: Mode | None
    scaffolds: tuple[Scaffold, ...]
    added_tokens: AddedTokens = ADDED_TOKENS

    @classmethod
    def choose(cls, choose: Random) -> "FixedProbes":
        return cls(
            Ending(
                in_message=choose.random() < 0.7,
                trailing=choose.choice(("", "", "\n")),
                stop=choose.choice(("", "", "<|im_start|>", "\n<|im_end|>")),
            ),
            choose.choice(((), (MODE,))),
            choose.choice((None, None, MODE)),
            choose.choice(((), (Scaffold("<think>", "E"), Scaffold("a", "<|im_start|>")))),
        )

    def list_modes(self, kind: TurnKind) -> tuple[Mode, ...]:
        return self.modes

    def choose_mode(self, dialogue: Dialogue) -> Mode | None:
        return self.mode

    def find_ending(self, kind: TurnKind) -> Ending:
        return self.ending


@dataclass
class FixedRenders:
    """Renders of a dialogue that are given as marked texts; None for one that is refused."""

    texts: dict[Render, str | None]
    tagged: bool
    have_slots: bool

    def text(self, render: Render) -> str:
        return self.marked(render).text

    def marked(self, render: Render) -> MarkedText:
        if self.have_slots and render.question:
            raise UndecidedError
        text = self.texts.get(render)
        if text is None:
            raise TemplateRaisedError("refused")
        return read_marks(text, has_generations=self.tagged)

    def fill(self, filling: list[str]) -> "FixedRenders":
        texts = {
            render: None
            if text is None
            else SLOT.sub(lambda slot: filling[slot_number(slot[0])], text)
            for render, text in self.texts.items()
        }
        return FixedRenders(texts, self.tagged, have_slots=False)


def write(choose: Random, most: int = 3, share_of_slots: float = 0.15) -> str:
    """Return a few pieces of literal text and slots."""
    return "".join(
        make_slot(choose.randrange(NUM_SLOTS))
        if choose.random() < share_of_slots
        else choose.choice(PIECES)
        for _ in range(choose.randint(0, most))
    )


def tag(choose: Random, text: str) -> str:
    first, last = sorted(choose.randint(0, len(text)) for _ in range(2))
    return text[:first] + GENERATION_START + text[first:last] + GENERATION_END + text[last:]


def write_renders(choose: Random, dialogue: Dialogue) -> FixedRenders:
    """Write all renders of a dialogue: nearly as a template would, but any text may differ."""
    tagged = choose.random() < 0.2
    differing = choose.choice((0, 0.1, 0.3))
    endings = ("<|im_end|>", "<|im_end|>\n", "E", "")
    messages = [
        choose.choice(HEADERS) + write(choose) + choose.choice(endings) for _ in dialogue.roles
    ]
    head, tail, generation_prompt = write(choose, 1), write(choose, 1), choose.choice(HEADERS)

    def vary(text: str) -> str:
        """Return the text, or one with another piece in place of a character."""
        if choose.random() >= differing:
            return text
        place = choose.randint(0, len(text))
        return text[:place] + write(choose, 1, share_of_slots=0.5) + text[place + 1 :]

    def write_message(number: int) -> str:
        text = vary(messages[number])
        if tagged and dialogue.roles[number] == "assistant":
            text = tag(choose, text)
        is_marked = choose.random() < 0.97
        return f"{open_region(number)}{text}{REGION_END}" if is_marked else text

    texts: dict[Render, str | None] = {}
    scaffolds = {None: "", MODE: choose.choice(HEADERS)}
    for num_messages in range(len(messages) + 1):
        for prompt, mode in product((False, True), scaffolds):
            body = "".join(map(write_message, range(num_messages)))
            end = (generation_prompt + scaffolds[mode]) * prompt
            text = vary(head) + body + vary(tail) + end
            is_refused = not num_messages or choose.random() < 0.05
            texts[Render(num_messages, prompt, mode=mode)] = None if is_refused else text
            texts[Render(num_messages, prompt, question=True, mode=mode)] = text + "?"
    return FixedRenders(texts, tagged, have_slots=True)


def write_dialogue(roles: list[str], contents: list[str]) -> Dialogue:
    messages = [
        {"role": role, "content": contents[number % NUM_SLOTS]} for number, role in enumerate(roles)
    ]
    return make_dialogue(0, Origin("here", 1), messages)


@settings(max_examples=examples(15_000), suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), merge=st.sampled_from(["auto", "always", "never"]))
def test_turns_found_in_texts_with_slots_are_those_of_every_filled_text(seed, merge):
    choose = Random(seed)
    roles = choose.choices(("user", "assistant", "assistant"), k=choose.randint(0, 3))
    roles.append("assistant")
    dialogue = write_dialogue(roles, ["c"] * NUM_SLOTS)
    renders = write_renders(choose, dialogue)
    probes = FixedProbes.choose(choose)
    finder = TurnFinder(renders, probes, dialogue)
    indices = list(range(NUM_SLOTS))
    located = divided = None
    try:
        located = finder.locate_turns()
        divided = finder.divide(located, merge)
    except (UndecidedError, TemplateRaisedError, TurnNotFoundError):
        if located is None:
            return
    for _ in range(4):
        filling = choose.choices(FILLINGS, k=NUM_SLOTS)
        reference = TurnFinder(renders.fill(filling), probes, write_dialogue(roles, filling))
        expected = reference.locate_turns()
        assert SlottedLocatedTurns.of(located, indices).fill(filling) == expected
        if divided is not None:
            filled = SlottedDialogue.of(divided, indices).fill(filling, dialogue.row)
            assert filled == reference.divide(expected, merge)
