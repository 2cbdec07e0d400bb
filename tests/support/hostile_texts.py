"""Short random texts that are difficult for tokenizers: all of Unicode, white space, tokens."""

import random
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

PROSE = (
    "the I'm don't 'S 'Re 'LL we've 1234567890 3.14 http://a.b/c?d=e&f=%20 def f(x): return x -> "
    "_ __ -- ... !!! {'a':[1,2,null]} <s></s> <|x|> ſ ſs 'ſ K ß İ ı ǅ ﬁ ½ Å Ω 각 "
    "\u1100\u1161\u11a8 é e\u0301 ệ ά a\u0300\u0315 a\u0315\u0300 \u0344 \u0958 "
    "中文，。日本語ひらがなｶﾞ العربية שָׁלוֹם हिन्दी ไทย 👩\u200d👩\u200d👧 👍🏽 🇩🇪 1\ufe0f\u20e3 ▁ "
    "\x00 \x1f \x7f \ufffd \ue000 \ufdd0 \uffff \U0010ffff "
)
WHITE_SPACE = [character for character in map(chr, range(0x3001)) if character.isspace()]
WHITE_SPACE += ["\r\n", "\u180e", "\u200b", "\ufeff"]
MIXED = "abcXYZ '\n019.,ſé"


@cache
def characters_by_category() -> list[list[str]]:
    """Return all characters except half surrogates, one list per general category."""
    found: dict[str, list[str]] = {}
    for character in map(chr, range(sys.maxunicode + 1)):
        found.setdefault(unicodedata.category(character), []).append(character)
    del found["Cs"]
    return list(found.values())


def hostile_texts(number: int, added_tokens: Sequence[str], seed: int = 0) -> list[str]:
    """Return `number` texts of up to ten random parts each."""
    draw = random.Random(seed)
    tokens = added_tokens or [PROSE]

    def draw_part(text: str) -> str:
        start = draw.randrange(len(text))
        return text[start : start + draw.randint(1, 9)]

    parts = (
        lambda: draw.choice(draw.choice(characters_by_category())) * draw.choice((1, 1, 1, 2, 5)),
        lambda: draw.choice(WHITE_SPACE) * draw.choice((1, 1, 2, 3, 7)),
        lambda: "".join(draw.choices(MIXED, k=draw.randint(1, 8))),
        lambda: " ",
        lambda: draw_part(PROSE),
        lambda: draw.choice(tokens),
        lambda: draw_part(draw.choice(tokens)),
    )
    return [
        "".join(draw.choice(parts)() for _ in range(draw.randint(0, 10))) for _ in range(number)
    ]
