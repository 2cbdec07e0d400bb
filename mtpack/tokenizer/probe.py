"""The probe: texts on which two engines are likely to differ if they differ at all.

An engine is used, for a tokenizer and a run, if it gives the ids of the reference for all of them.
That is evidence, not proof, so a sample of the rows of the run is encoded by both as well
(docs/engines.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from mtpack.tokenizer.added_tokens import AddedToken, AddedTokens
from mtpack.tokenizer.engines import Engine, FlatTokens, find_first_difference

_TOKENS_IN_DETAIL = 64
_TOKENS = 1000
_SAMPLE_CHARS = 40_000  # of 110,000 in all, which `tokenizers` encodes in 40 ms
# Engines have special code for long pieces, cut texts of 16 KiB or more into parts, and cache what
# a text of 4 KiB has in common with the one before.
_RUN = 2500

# About one character of each script block, and those on whose class Unicode and libraries disagree:
# separators that some treat as spaces (U+180E, U+200B, U+FEFF), digits that are not numbers,
# letters without case or with two, marks, composed and not, jamo, emoji and their joiners,
# controls, private use, noncharacters, recently assigned characters, the last code point.
_STRIDE = range(0xA1, 0x32000, 397)
_SURROGATES = range(0xD800, 0xE000)
_CHARACTERS = (
    "\0\x01\x08\t\n\x0b\x0c\r\x1b\x1c\x1d\x1e\x1f !'/_~\x7f\x80\x85\x9f\xa0\xad\xaa\xb2\xb5\xba\xbc"
    "\xc5\xd7\xdf\xe9\u0130\u0131\u0149\u017f\u01c5\u01f0\u02bc\u0300\u0301\u0315\u0340\u0344\u0345"
    "\u0374\u037e\u0387\u03c2\u0483\u0488\u05b0\u05d0\u0600\u0627\u064b\u0660\u06dd\u06e5\u070f"
    "\u0900\u0903\u0915\u093c\u0958\u0966\u09f4\u0a33\u0b94\u0bcb\u0e01\u0e33\u0e50\u0f0b\u0f43"
    "\u0f73\u1100\u1160\u1161\u11a8\u11ff\u1369\u1680\u16ee\u17b4\u17d2\u180b\u180e\u1c89\u1d2c"
    "\u1dbf\u1e9b\u1e9e\u1f71\u1fbe\u1fef\u2000\u2003\u2007\u2009\u200b\u200c\u200d\u200e\u2010"
    "\u2014\u2018\u2019\u2028\u2029\u202a\u202e\u202f\u2044\u205f\u2060\u2066\u2070\u2074\u20ac"
    "\u20dd\u20e3\u2102\u2126\u212a\u212b\u2160\u2183\u2188\u2207\u2329\u23e9\u2460\u24b6\u24d0"
    "\u2581\u2603\u2764\u2adc\u2c2f\u2cef\u2d6f\u2e2f\u2fff\u3000\u3001\u3005\u3007\u3021\u302a"
    "\u3031\u3042\u304c\u3099\u309b\u30a2\u30fb\u30fc\u3105\u3131\u3164\u31f0\u3220\u3400\u4e00"
    "\u9fa5\u9fff\ua015\ua4d0\ua66f\ua6e6\ua717\ua7cb\ua8e0\ua92f\uaa7a\uab30\uab70\uabf0\uac00"
    "\uac01\ud7a3\ud7b0\ue000\uf8ff\uf900\ufa0e\ufb00\ufb1d\ufb4f\ufbb2\ufdd0\ufdfa\ufe0e\ufe0f"
    "\ufe33\ufe6b\ufeff\uff07\uff10\uff21\uff41\uff70\uff9e\uffa0\uffda\uffe0\ufff9\ufffc\ufffd"
    "\uffff\U00010107\U00010140\U00010400\U00010428\U00010a33\U00010d40\U000110bb\U0001109a"
    "\U00012400\U00016af0\U0001b001\U0001bca0\U0001d15e\U0001d165\U0001d400\U0001d7ce\U0001da00"
    "\U0001e030\U0001e900\U0001e950\U0001ee00\U0001f100\U0001f1e9\U0001f1ea\U0001f3fb\U0001f44d"
    "\U0001f600\U0001f9d1\U0001fa70\U0001fbf0\U0001fffe\U00020000\U0002a6df\U0002ebf0\U0002f800"
    "\U0002fa1d\U000310a0\U000323af\U000e0001\U000e0061\U000e0100\U000f0000\U0010ffff"
)
_WORDS = (
    "Hello, world! The quick brown fox jumps over the lazy dog. It's 3.14 or 1,234,567.89 (50%).",
    "I'm you're he'll we've they'd don't 'tis rock'n'roll O'Neill I'M YOU'RE HE'LL WE'VE THEY'D",
    "'s'S's 'ſ 'reve 'llama ''s ' s \u2019s \u2019RE 'S's\n's\t's",
    "0 1 12 123 1234 12345 123456 1234567 12345678901234567890 1e10 0x1F 1_000 \u0663\u0664 ½",
    "a  b   c    d\te\t\tf \t g\t \th\ni\n\nj\n \nk \n l\r\nm\r\n\r\nn\ro\r\rp\n\rq ",
    " leading", "trailing ", "  two", "two  ", "\n", "\n\n", " \n", "\n ", "\r\n", "\t", " ", "   ",
    "a\u00a0b\u00a0 c \u00a0d\u2003 e\u3000\u3000f\u2028g\u2029h\x85i\u200bj\ufeffk\u180el",
    "x!\n/\n/y end.\n/usr b\n/b's !!!\r\n??\n\n...   \n   ---\n***\t\n",
    "def f(x: int) -> str:\n    return f'{x!r}' if x >= 0 else ''  # -1\n\n\nclass A(B):\n\tpass\n",
    "for (int i=0;i<n;++i){a[i]|=b[i]<<2;}\r\n#include <stdio.h>\r\n\t\tif(x&&!y)||z;//~^%@`$",
    '{"a": [1, 2.5, null, true], "b\\n": {"c": "\\u00e9\\"\\\\"}, "":[],"d":{}}',
    "https://user@example.com:8080/a/b.c?d=e&f=%20g#h www.x.org C:\\dir\\file.txt ~/.x a@b.co",
    "SGVsbG8sIHdvcmxkISAxMjM0NTY3ODkwKy8=QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo0NTY3ODkrLw==",
    "camelCaseAndPascalCase HTTPServer snake_case SCREAMING_CASE kebab-case iPhone15Pro ÄÖÜäöüß",
    "<p class='a'>b&nbsp;c</p> <|x|> <||> [INST] [/INST] <<SYS>> <s></s> <0x41> \u2581a\u2581",
    "你好，世界！今天天气很好。１２３ＡＢＣ「日本語」のテキスト、カタカナｶﾀｶﾅ "
    "한국어 텍스트입니다. 中文English123",
    "Привет, мир! Γειά σου ΚΌΣΜΕ مرحبا بالعالم ١٢٣ שָׁלוֹם עולם नमस्ते दुनिया สวัสดีชาวโลก "
    "Xin chào thế giới გამარჯობა Բարեւ",
    "cafe\u0301 e\u0301\u0301 A\u030a \u212b \u1e9b\u0323 a\u0315\u0300 \u1100\u1161\u11a8 "
    "\u0958 \u0344 \u03b1\u0345\u0301 \u0301x \u0301",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd "
    "\U0001f1e9\U0001f1ea\U0001f1eb 1\ufe0f\u20e3 \u2764\ufe0f\u200d\U0001f525 \U0001f600!",
    "",
)  # fmt: skip


def find_wrong_text(fast: Engine, texts: Sequence[str], expected: FlatTokens) -> int | None:
    """Return the index of the first text with other ids than expected; None if there is none.

    `fast` encodes them in a batch, and also one by one. Raises FastPathFailedError if it fails.
    """
    if (differing := find_first_difference(expected, fast.encode(texts))) is not None:
        return differing
    for number, text in enumerate(texts):
        if not np.array_equal(fast.encode([text]).ids, expected.of(number)):
            return number
    return None


def build_probe_texts(added_tokens: AddedTokens) -> list[str]:
    """Return the texts of the probe that depend on the tokenizer alone, with its added tokens."""
    return [*_WORDS, *_vary_characters(), *_vary_tokens(added_tokens.tokens), *_make_long_texts()]


def choose_sample(texts: Iterable[str]) -> list[str]:
    """Return the first 40,000 characters of some texts of the input, which are probed as well."""
    sample: list[str] = []
    room = _SAMPLE_CHARS
    for text in texts:
        sample.append(text[:room])
        room -= len(text)
        if room <= 0:
            break
    return sample


def _vary_characters() -> Iterator[str]:
    """Yield each character next to spaces, digits, letters, quotes and newlines."""
    sampled = (chr(number) for number in _STRIDE if number not in _SURROGATES)
    for c in (*_CHARACTERS, *sampled):
        yield f"  {c}12{c}34'{c}s\n{c}\n the{c} {c}{c}re"


def _vary_tokens(tokens: Sequence[AddedToken]) -> Iterator[str]:
    """Yield added tokens alone, next to each other and to all kinds of text, and truncated."""
    odd_first = sorted(tokens, key=lambda token: token.cuts and not token.absorbs_space)
    contents = [token.content for token in odd_first[:_TOKENS]]
    yield "".join(contents)
    yield " ".join(contents)
    for content in contents[:_TOKENS_IN_DETAIL]:
        yield content
        yield content * 2
        yield f"a{content}b {content} \n{content}\n\n{content}\t{content}1{content}'s  {content}  é"
        yield f"{content[:-1]} {content[1:]}{content[:-1]}{content} {content.swapcase()} {content}."
    for first, second in pairwise(contents[:_TOKENS_IN_DETAIL]):
        yield f"{first}{second} {second}\n{first[:-1]}{second}{first}"


def _make_long_texts() -> Iterator[str]:
    """Yield a text of long runs, and one with the same start that ends inside a run."""
    runs = ("a", " ", "!", "\n", "1", "é", "的", "ab ")
    long = "".join(unit * (_RUN // len(unit)) for unit in runs)
    yield long
    yield long[: 2 * _RUN - 3] + "b"
