"""The HTML report in Chromium: it works, loads nothing, and runs nothing from the data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtpack.report.decoding import Decoder
from mtpack.report.figures import count_figures
from mtpack.report.html_report import write_html_report
from tests.support.html_report import MARKUP, hand_made, pack_rows, write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (mtpack[dev])")

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}
LEAST_CONTRAST = 4.5  # of text with its background, as WCAG 2 demands


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start the Chromium of the system; playwright's own is not downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(pack_rows(tmp_path_factory.mktemp("browser")))


class Opened:
    """A report in a browser, with what it logs and requests."""

    def __init__(self, browser: Any, report: Path, **settings: Any) -> None:
        self.context = browser.new_context(**({"viewport": DESKTOP} | settings))
        self.page = self.context.new_page()
        self.logged: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    opened = Opened(browser, report)
    yield opened
    opened.context.close()


def use_everything(page: Any) -> None:
    """Show every sequence, every table and all filters."""
    for summary in page.locator("summary").all():
        summary.click()
    while page.locator("#next").is_enabled():
        page.locator("#next").click()
    page.locator("#boundaries").check()
    for box in page.locator("input[name=mark]:enabled").all():
        box.check()


def test_it_logs_no_error_and_requests_nothing(opened: Opened, report: Path) -> None:
    use_everything(opened.page)
    assert opened.logged == []
    assert opened.requests == [report.as_uri()]


def test_markup_in_a_dialogue_is_shown_and_not_run(opened: Opened) -> None:
    page = opened.page
    shown = []
    for number in range(page.locator("#pick option").count()):
        page.locator("#pick").select_option(str(number))
        shown += page.locator(".text").all_text_contents()
    assert any(MARKUP in text for text in shown)
    assert page.title().endswith("what will be trained")
    assert page.locator("main img, main iframe, main script").count() == 0


def test_a_token_that_is_markup_is_shown_and_not_run(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    shards = hand_made(tmp_path, 1, 8)
    decoder = Decoder(lambda ids: MARKUP * len(ids))
    write_html_report(file, shards, count_figures(shards), decoder)
    opened = Opened(browser, file)
    assert opened.page.locator(".tok").all_text_contents() == [MARKUP] * 8
    assert opened.page.locator("main img, main script").count() == 0
    assert opened.requests == [file.as_uri()]
    opened.context.close()


def test_a_script_that_got_into_the_page_would_not_run(browser: Any, report: Path) -> None:
    broken = report.with_name("broken.html")
    text = report.read_text(encoding="utf-8")
    broken.write_text(
        text.replace("</main>", "<script>document.title='run'</script></main>"), encoding="utf-8"
    )
    opened = Opened(browser, broken)
    assert opened.page.title() != "run"
    assert any("Content Security Policy" in line for line in opened.logged)
    opened.context.close()


def test_a_token_shows_its_id_and_weight(opened: Opened) -> None:
    page = opened.page
    token = page.locator(".tok.trained").first
    token.hover()
    note = page.locator(".text .note").first.text_content()
    size = int(note.split("1/")[1])
    description = page.locator("#token").text_content()
    assert f"id {token.get_attribute('data-ids')}" in description
    assert f"weight 1/{size} = {1 / size:#.3g}" in description
    page.locator(".tok:not(.trained)").first.hover()
    assert "not trained" in page.locator("#token").text_content()


def test_a_filter_leaves_the_sequences_with_the_problem(opened: Opened) -> None:
    page = opened.page
    everything = page.locator("#pick option").count()
    mark = "text cut at its start"
    label = page.locator("fieldset label", has_text=mark)
    page.get_by_role("checkbox", name=mark).check()
    assert label.locator("b").text_content() == f"({page.locator('#pick option').count()})"
    assert page.locator("#pick option").count() < everything
    assert mark in page.locator("#problems").text_content()
    assert page.locator(".note.problem", has_text=mark).count() > 0
    page.get_by_role("checkbox", name=mark).uncheck()
    assert page.locator("#pick option").count() == everything


def test_everything_can_be_reached_by_keyboard(opened: Opened) -> None:
    page = opened.page
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"pick", "next", "boundaries", "text"} <= reached
    title = page.locator("#title").text_content()
    page.keyboard.press("n")
    assert page.locator("#title").text_content() != title
    page.keyboard.press("p")
    assert page.locator("#title").text_content() == title


def test_the_arrow_keys_move_from_token_to_token(opened: Opened) -> None:
    page = opened.page
    page.locator(".text").first.focus()
    positions = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        positions.append(page.locator("#token").text_content().split(" · ")[0])
    assert positions == ["position 0", "position 1", "position 2", "position 1"]


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_is_wider_than_the_screen(
    browser: Any, report: Path, viewport: dict[str, int]
) -> None:
    opened = Opened(browser, report, viewport=viewport)
    use_everything(opened.page)
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= viewport["width"]
    small = opened.page.evaluate(
        """() => [...document.querySelectorAll("svg text")].filter((text) =>
            text.getBoundingClientRect().height < 10).length"""
    )
    assert small == 0
    opened.context.close()


# The contrast of each text with the background that is under it.
CONTRASTS = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = colour.map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const element of document.querySelectorAll("body *:not(script):not(option):not(title)")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const isDisabled = element.matches(":disabled, label:has(:disabled), label:has(:disabled) *");
    if (!hasText || isDisabled) continue;
    const style = getComputedStyle(element);
    const colour = parse(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(colour.slice(0, 3)), luminance(background(element))];
    found[`${element.tagName} ${element.getAttribute("class") ?? ""}`] =
      (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark_mode(browser: Any, report: Path, scheme: str) -> None:
    opened = Opened(browser, report, color_scheme=scheme)
    contrasts = opened.page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert {name: value for name, value in contrasts.items() if value < LEAST_CONTRAST} == {}
    page_colour = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (page_colour == "rgb(255, 255, 255)") == (scheme == "light")
    opened.context.close()


def test_without_scripts_the_figures_are_there_and_a_line_says_so(
    browser: Any, report: Path
) -> None:
    opened = Opened(browser, report, java_script_enabled=False)
    assert opened.page.locator("figure svg").count() == 7
    assert opened.page.locator("noscript").is_visible()
    assert not opened.page.locator("#browser").is_visible()
    opened.context.close()
