"""`inspect --row` and `--dialogue`: a sequence as a person reads it, also without colour."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import tokenizers
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from mtpack.cli import main
from mtpack.report.decoding import Decoder, decode_tokens, find_decoder
from mtpack.report.document_text import read_pieces
from mtpack.report.escaping import BOUNDARY
from mtpack.report.folding import fold
from mtpack.report.pieces import Piece, draw_pieces
from mtpack.report.row_view import view_row
from mtpack.report.sequence_view import show_row
from mtpack.report.turn_marks import TurnMark, find_marks
from mtpack.shards.dataset import Shards, open_shards
from tests.support.inspected import plain_console, text_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[U] {{ m.content }} [A] "
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def pack_text(
    folder: Path, *messages: str, template: str = CHATML, options: tuple[str, ...] = ()
) -> Shards:
    """Pack one dialogue of user and assistant in turn, with the tokenizer of mtpack."""
    roles = ("user", "assistant") * len(messages)
    row = {"messages": [{"role": r, "content": c} for r, c in zip(roles, messages, strict=False)]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "template.jinja").write_text(template)
    arguments = ["pack", str(folder / "rows.jsonl"), "-o", str(folder / "packed"), "--quiet"]
    arguments += ["--chat-template", str(folder / "template.jinja"), *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return open_shards(folder / "packed")


def decoder_of(shards: Shards) -> Decoder:
    decoder, _ = find_decoder(shards, None)
    assert decoder is not None
    return decoder


def shown(shards: Shards, *, with_tokens: bool = False, width: int = 80) -> str:
    """Return what `--row 0` shows."""
    view, decoder = view_row(shards, 0), decoder_of(shards)
    console = Console(width=width, force_terminal=False, file=io.StringIO())
    marks = find_marks(shards, view, decoder)
    show_row(view, decoder, console, marks=marks, with_tokens=with_tokens)
    return text_of(console)


def test_control_tokens_and_roles_are_dimmed_unless_they_are_trained(tmp_path: Path) -> None:
    shards = pack_text(tmp_path, "user\nhi", "system")
    view = view_row(shards, 0)
    pieces = read_pieces(view, view.documents[0], decoder_of(shards))
    assert [(piece.text, piece.is_header, piece.turn) for piece in pieces] == [
        ("<|im_start|>", True, None),
        ("user", True, None),
        ("\nuser\nhi", False, None),
        ("<|im_end|>", True, None),
        ("\n", False, None),
        ("<|im_start|>", True, None),
        ("assistant", True, None),
        ("\n", False, None),
        ("system<|im_end|>", False, 0),
    ]
    styles = {style.style for style in draw_pieces(pieces, {0: "note"}).spans}
    assert styles == {"dim", "green"}


def test_pieces_are_the_whole_text_with_and_without_tokens(tmp_path: Path) -> None:
    text = "où 数据 👩‍👩‍👧 ❤️\n\n\tx  y"
    shards = pack_text(tmp_path, text, text)
    view, decoder = view_row(shards, 0), decoder_of(shards)
    document = view.documents[0]
    whole = decoder(view.token_ids[: document.length].tolist())
    for with_tokens in (False, True):
        pieces = read_pieces(view, document, decoder, with_tokens=with_tokens)
        assert "".join(piece.text for piece in pieces) == whole
    assert sum(len(piece.tokens or ()) for piece in pieces) == document.length


def test_every_token_has_one_mark(tmp_path: Path) -> None:
    shards = pack_text(tmp_path, "où? ¦", "数据 😀\n\nthe fox¦\n")
    tokens = view_row(shards, 0).documents[0].length
    legend, text = shown(shards, with_tokens=True).split("\n\n", 1)
    assert text.count(BOUNDARY) == tokens
    assert BOUNDARY in legend
    assert r"\xa6" in text  # the data's own
    assert BOUNDARY not in shown(shards)


def test_tokens_of_one_character_are_marked_after_it() -> None:
    tokens = {1: b"a", 2: b"\xe6", 3: b"\x95", 4: b"\xb0", 5: b"b"}

    def decode(ids: object) -> str:
        return b"".join(tokens[number] for number in ids).decode(errors="replace")  # type: ignore

    assert decode_tokens(decode, [1, 2, 3, 4, 5], []) == ("a", "数", "", "", "b")
    assert decode_tokens(decode, [2, 3], [1]) == ("\ufffd", "\ufffd")  # a cut character
    drawn = draw_pieces([Piece("a数b", tokens=("a", "数", "", "", "b"))], {})
    assert drawn.plain == "a¦数¦¦¦b¦"


def test_a_space_after_a_character_of_several_tokens_is_kept() -> None:
    words = ["▁the", "▁", "<0xC3>", "<0xA9>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    assert decode_tokens(backend.decode, [0, 2, 3, 1, 0], []) == ("the", "é", "", " ", " the")


def test_a_turn_that_was_cut_is_marked(tmp_path: Path) -> None:
    options = ("--seq-len", "32", "--overlong", "truncate")
    shards = pack_text(tmp_path, "go on", "word " * 50, options=options)
    assert "×1/" in shown(shards)
    assert "; cut at the end of the sequence]" in shown(shards).replace("\n", " ")


def test_a_turn_without_an_end_is_marked_and_a_normal_one_is_not(tmp_path: Path) -> None:
    for folder in ("plain", "chatml"):
        (tmp_path / folder).mkdir()
    shards = pack_text(tmp_path / "plain", "a", "b", template=SPACED.replace("[A] ", "[A]"))
    assert find_marks(shards, view_row(shards, 0), decoder_of(shards)) == {0: (TurnMark.NO_END,)}
    shards = pack_text(tmp_path / "chatml", "a", "b", "c", "d")
    assert find_marks(shards, view_row(shards, 0), decoder_of(shards)) == {}


def test_marked_straddles_are_those_that_the_run_counted(tmp_path: Path) -> None:
    shards = pack_text(tmp_path, "x", "good", "y", " bad", "z", "fine", template=SPACED)
    marks = find_marks(shards, view_row(shards, 0), decoder_of(shards))
    straddles = [turn for turn, found in marks.items() if TurnMark.STRADDLE in found]
    assert shards.manifest is not None
    assert len(straddles) == shards.manifest.report.tally.straddles == 2
    assert "text cut at its start" in shown(shards).replace("\n", " ")


FORGETFUL = CHATML.replace(
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)
"""Drops the reasoning of all messages but the last one."""


def test_turns_that_are_merged_although_this_is_not_exact_are_marked(tmp_path: Path) -> None:
    messages = "a", "think</think>b", "c", "think</think>d", "e", "f"
    shards = pack_text(tmp_path, *messages, template=FORGETFUL, options=("--merge", "always"))
    assert shards.manifest is not None
    for decoder in (decoder_of(shards), None):
        marks = find_marks(shards, view_row(shards, 0), decoder)
        bent = [turn for turn, found in marks.items() if TurnMark.BENT in found]
        assert len(bent) == shards.manifest.report.tally.bent == 2
    assert "merging not exact" in shown(shards).replace("\n", " ")


def test_only_shards_that_can_hold_such_turns_have_a_column_for_them(tmp_path: Path) -> None:
    for merge in ("auto", "never", "always"):
        (tmp_path / merge).mkdir()
        shards = pack_text(tmp_path / merge, "a", "b", options=("--merge", merge))
        assert ("turn_bent" in shards[0]) == (merge == "always")


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("width", [40, 80])
def test_lines_with_wide_characters_and_emoji_fit(
    tmp_path: Path, with_tokens: bool, width: int
) -> None:
    text = WIDE * 8 + " 👩‍👩‍👧 ❤️ 🇩🇪 e\u0301 می‌خواهم " * 8
    shards = pack_text(tmp_path, text, text)
    lines = shown(shards, with_tokens=with_tokens, width=width).splitlines()
    assert max(map(cell_len, lines)) <= width


WIDE = "春风又绿江南岸，明月何时照我还。"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("to be or not to be", ["to be or", "not to be"]),
        (WIDE, ["春风又绿江", "南岸，明月", "何时照我", "还。"]),
        ("a bcdefghijklmn", ["a", "bcdefghijk", "lmn"]),
        ("1. **春风**又绿江南", ["1. **春风", "**又绿江南"]),
        ("👩‍👩‍👧" * 6, ["👩‍👩‍👧" * 5, "👩‍👩‍👧"]),
        ("🇩🇪" * 6, ["🇩🇪" * 5, "🇩🇪"]),
        ("e\u0301" * 11, ["e\u0301" * 10, "e\u0301"]),
        ("\tab\n\ncd", ["        ab", "", "cd"]),
    ],
)
def test_lines_fold_between_words_and_wide_characters(text: str, lines: list[str]) -> None:
    assert fold(Text(text), 10).plain.split("\n") == lines


@pytest.mark.parametrize("character", ["\u0301", "\u200d", "🇩", "\U0001f3fb", " "])
def test_long_runs_of_unusual_characters_are_folded_and_keep_them(character: str) -> None:
    text = "ab" * 10 + character * 100_000 + "cd" * 10
    shown = fold(Text(text), 10).plain
    assert shown.replace("\n", "").count(character) == (0 if character == " " else 100_000)
    assert max(map(cell_len, shown.split("\n"))) <= 10


def test_no_mark_depends_on_colour(tmp_path: Path) -> None:
    shards = pack_text(tmp_path, "a", "b", "c", "d")
    coloured = Console(
        width=80, force_terminal=True, color_system="standard", no_color=False, file=io.StringIO()
    )
    plain = plain_console()
    for console in (coloured, plain):
        show_row(view_row(shards, 0), decoder_of(shards), console)
    assert isinstance(coloured.file, io.StringIO)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured.file.getvalue()) == plain.file.getvalue()  # type: ignore[attr-defined]
    assert plain.file.getvalue().count("⟦") == 2 + 1  # type: ignore[attr-defined]
