"""`inspect`: the overview answers in one screen of 80 columns and 24 lines what will be trained."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mtpack.cli import main
from mtpack.report.figures import Figures, count_figures
from mtpack.report.overview import show_overview
from mtpack.shards.dataset import Shards, open_shards
from tests.support.inspected import (
    ALIGNMENTS,
    Document,
    pack,
    plain_console,
    random_documents,
    tally_of,
    text_of,
    with_manifest,
)

GOLDEN_OVERVIEW = """\
data       3 dialogues, 5 turns, 4 documents, 31 tokens
sequences  3 of 16 tokens; at least 3 needed; labels aligned
each has   1 to 2 (mean 1.3) documents, 1 to 3 (mean 1.7) turns
filled      64.6% ████████████▉        of all positions hold a token
compute     41.7% ████████▍            of all positions carry loss
documents  min 4, median 8.5, mean 7.8, max 10 tokens
turns      min 1, median 4, mean 4.0, max 7 loss tokens
left out   rows: no_turns 2; turns: none
to know    own document (1) turns: each has a document of its own, because the …
           repeated (11) tokens: 31 in 3 sequences, 1.55 times as many as with …
           never shown (2) assistant messages: their tool calls, or some of them

Share of the gradient by turn length, under three means
  loss tokens  turns   turn mean      token mean       dialogue mean
            1      1   20.0% ██        5.0% ▌           4.2% ▍
          2-3      1   20.0% ██       15.0% █▌         25.0% ██▌
          4-7      3   60.0% ██████   80.0% ████████   70.8% ███████▏
  equal weight for: every turn; every loss token; every document
"""
EVERYTHING = {
    "rows_dropped": {"no_turn": 10**6, "no_turn_left": 10**6},
    "rows_rejected": {"invalid_message": 10**6, "template_raised": 10**6, "unknown_role": 10**6},
    "turns_dropped": {"overlong": 10**6, "no_loss_token": 10**6},
    "bent": 1,
    "unproven": 2,
    "prompt_differs": 3,
    "no_eot": 4,
    "given_trained": 5,
    "straddles": 6,
}


def overview_text(figures: Figures) -> str:
    console = plain_console()
    show_overview(figures, console)
    return text_of(console)


def counted(shards: Shards, **counts: object) -> Figures:
    tally = tally_of(shards, sequences=3, sequences_lower_bound=3, **counts)
    return count_figures(with_manifest(shards, tally))


def test_the_overview(tmp_path: Path) -> None:
    figures = counted(
        pack(tmp_path),
        rows_read=6,
        rows_dropped={"no_turns": 2},
        turns_own_document=1,
        tokens_if_merged=20,
        content_dropped={"assistant.tool_calls": 2},
    )
    assert overview_text(figures) == GOLDEN_OVERVIEW


def test_without_a_manifest_the_overview_says_what_is_not_known(tmp_path: Path) -> None:
    shown = overview_text(count_figures(pack(tmp_path)))
    assert "left out   not known: a single shard has no manifest\n" in shown
    assert "needed" not in shown


def test_an_ordinary_output_has_nothing_to_know(tmp_path: Path) -> None:
    assert "to know    nothing: all turns are merged exactly\n" in overview_text(
        counted(pack(tmp_path), tokens_if_merged=31)
    )


def many_lengths(folder: Path, exponents: int) -> Shards:
    """Pack one turn for each power of two, which fill a sequence of their own each."""
    seq_len = 2 * 2**exponents
    documents = [
        Document(number, [1] * (2**number + 1), [(1, [(1, 2**number + 1)])])
        for number in range(exponents)
    ]
    return pack(folder, documents, [1] * exponents, seq_len=seq_len)


@pytest.mark.parametrize("exponents", [1, 9, 12, 16])
@pytest.mark.parametrize("counts", [{}, EVERYTHING], ids=["ordinary", "everything"])
def test_the_overview_fits_in_one_screen(
    tmp_path: Path, exponents: int, counts: dict[str, object]
) -> None:
    lines = overview_text(counted(many_lengths(tmp_path, exponents), **counts)).splitlines()
    assert len(lines) <= 24 - 1
    assert max(map(len, lines)) <= 80


def test_merged_lengths_keep_all_turns_and_shares(tmp_path: Path) -> None:
    figures = counted(many_lengths(tmp_path, 16), **EVERYTHING)
    table = overview_text(figures).partition("loss tokens  turns   turn mean")[2]
    rows = re.findall(r"^ +([\d,]+)(?:-([\d,]+))? +(\d+) +([\d.]+)% ", table, re.MULTILINE)
    assert sum(int(turns) for _, _, turns, _ in rows) == figures.turns
    assert sum(float(share) for *_, share in rows) == pytest.approx(100, abs=1)
    numbers = [[int(one.replace(",", "")) for one in (low, high or low)] for low, high, *_ in rows]
    assert all(end + 1 == start for (_, end), (start, _) in pairwise(numbers))
    assert (numbers[0][0], numbers[-1][1]) == (1, 2**16 - 1)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_every_figure_of_the_overview_equals_a_naive_one(tmp_path: Path, alignment: str) -> None:
    documents, sequences = random_documents()
    shards = pack(tmp_path, documents, sequences, alignment=alignment, seq_len=64)
    shown = re.sub(r"[ █▏▎▍▌▋▊▉]+", " ", overview_text(count_figures(shards)))
    lengths = [len(document.ids) for document in documents]
    spans = [span for document in documents for _, turn in document.turns for span in turn]
    turns = [int(end - start) for start, end in spans]
    in_document = [
        sum(end - start for _, turn in document.turns for start, end in turn)
        for document in documents
        for _ in document.turns
    ]
    positions = 64 * len(sequences)
    assert (
        f"data {len({document.dialogue for document in documents})} dialogues, {len(turns)} "
        f"turns, {len(documents)} documents, {sum(lengths):,} tokens\n"
        f"sequences {len(sequences)} of 64 tokens; labels {alignment}\n"
    ) in shown
    assert f"filled {sum(lengths) / positions:.1%} of all" in shown
    assert f"compute {sum(turns) / positions:.1%} of all" in shown
    assert f"turns min {min(turns)}, " in shown
    assert f"mean {sum(turns) / len(turns):.1f}, max {max(turns)} loss tokens" in shown
    each = (
        [1 / len(turns)] * len(turns),
        [length / sum(turns) for length in turns],
        [one / whole / len(documents) for one, whole in zip(turns, in_document, strict=True)],
    )
    for exponent in range(max(turns).bit_length()):
        low, high = 2**exponent, 2 ** (exponent + 1) - 1
        inside = [number for number, length in enumerate(turns) if low <= length <= high]
        shares = " ".join(f"{sum(mean[number] for number in inside):.1%}" for mean in each)
        label = f"{low}-{high}" if high > low else f"{low}"
        assert f" {label} {len(inside)} {shares}" in shown


def test_colour_adds_nothing_to_the_text(tmp_path: Path) -> None:
    figures = counted(pack(tmp_path), **EVERYTHING)
    console = Console(
        width=80, force_terminal=True, color_system="standard", no_color=False, file=io.StringIO()
    )
    show_overview(figures, console)
    assert isinstance(console.file, io.StringIO)
    without_styles = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())
    assert "".join(f"{line.rstrip()}\n" for line in without_styles.splitlines()) == (
        overview_text(figures)
    )


def test_names_in_the_counts_cannot_control_the_terminal(tmp_path: Path) -> None:
    hostile = {"a\x1b[2J\n\u202e": 3}
    shown = overview_text(counted(pack(tmp_path), never_read=hostile, rows_dropped=hostile))
    assert not any(one in shown for one in "\x1b\u202e")
    assert r"a\x1b[2J\x0a\u202e" in shown


def test_the_command_shows_the_overview_and_with_full_every_reason(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"id": 1, "messages": [{"role": "user", "content": "a"}, '
        '{"role": "assistant", "content": "b"}]}\n'
    )
    folder = str(tmp_path / "packed")
    packed = CliRunner().invoke(main, ["pack", str(rows), "-o", folder, "--quiet"])
    assert packed.exit_code == 0, packed.output
    short, full = (
        CliRunner().invoke(main, ["inspect", folder, *more]).stdout for more in ([], ["--full"])
    )
    figures = count_figures(open_shards(folder))
    assert short.startswith("data       1 dialogue, 1 turn, 1 document")
    assert "never read (1) rows: id" in short
    assert "Neither mtpack nor the chat template reads these keys" in full
    assert f"{figures.loss_tokens:,}" in full
