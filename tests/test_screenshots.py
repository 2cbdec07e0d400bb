"""The pictures of the README show what the command prints today."""

import html
import re

import pytest

from scripts.take_screenshots import (
    PACK,
    PICTURES,
    TERMINAL_VIEWS,
    draw_terminal,
    run_mtpack,
    take_terminal,
)


def read_words(picture: str) -> list[str]:
    """Return the words of a picture in their order."""
    texts = re.findall(r"<text[^>]*>(.*?)</text>", picture, re.DOTALL)
    return " ".join(html.unescape(text) for text in texts).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the packed sample data."""
    folder = tmp_path_factory.mktemp("screenshots")
    run_mtpack(PACK, folder)
    return folder


@pytest.mark.parametrize("name", TERMINAL_VIEWS)
def test_a_picture_shows_what_the_command_prints(name, folder):
    kept = (PICTURES / name).read_text(encoding="utf-8")
    taken = take_terminal(name, folder)
    assert read_words(kept) == read_words(taken), "run python scripts/take_screenshots.py"


@pytest.mark.parametrize("name", TERMINAL_VIEWS)
def test_a_picture_fetches_nothing(name):
    picture = (PICTURES / name).read_text(encoding="utf-8")
    assert not re.search(r"href|src=|@import|@font-face|url\((?!#)", picture.replace('"', ""))


def test_a_picture_has_the_colours_of_the_terminal_and_no_markup_of_its_text():
    picture = draw_terminal("mtpack", "plain\n\x1b[32mgreen\x1b[0m\n<script>", 80)
    fills = dict(re.findall(r"\.(terminal-r\d+) \{ fill: (#\w+)", picture))
    classes = re.findall(r'<text class="(terminal-r\d+)"[^>]*>(plain|green)<', picture)
    colours = {word: fills[name] for name, word in classes}
    assert len(set(colours.values())) == 2
    assert "<script>" not in picture
