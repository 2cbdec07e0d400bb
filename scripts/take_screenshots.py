"""Make the pictures of the README: what `mtpack inspect` shows of the sample data.

    python scripts/take_screenshots.py

It writes into docs/pictures: the overview and a sequence as a terminal of 80 columns shows them
(SVG, made by rich from the real output of the command), and the report for browsers (PNG, taken by
a headless Chromium; left out with a message if there is none). Run it when the output of `inspect`
changes; tests/test_screenshots.py says when.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 80
PACK = [
    "pack",
    *sorted(map(str, (ROOT / "sample_data").glob("*.jsonl"))),
    "--quiet",
    "-o",
    "packed",
]
TERMINAL_VIEWS = {
    "inspect.svg": (["inspect", "packed"], 80),
    "sequence.svg": (["inspect", "packed", "--row", "30"], 34),
}
"""For each picture: the arguments of the command, and how many lines are shown at most."""
REPORT = ["inspect", "packed", "--html", "report.html"]
WINDOW = (1100, 1500)
"""Width and height of the browser, in pixels."""


def main() -> None:
    """Pack the sample data, and take all pictures of it."""
    PICTURES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        run_mtpack(PACK, Path(folder))
        for name in TERMINAL_VIEWS:
            (PICTURES / name).write_text(take_terminal(name, Path(folder)), encoding="utf-8")
        if browser := shutil.which("chromium"):
            run_mtpack(REPORT, Path(folder))
            take_report(browser, Path(folder) / "report.html", PICTURES / "report.png")
        else:
            print("there is no chromium, so docs/pictures/report.png stays as it is")


def run_mtpack(arguments: list[str], folder: Path) -> str:
    """Return what the command prints on a terminal with colours."""
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    done = subprocess.run(
        [sys.executable, "-m", "mtpack", *arguments],
        cwd=folder,
        env=os.environ | terminal,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def take_terminal(name: str, folder: Path) -> str:
    """Return the picture of this name, as SVG, for the output in a folder."""
    arguments, lines = TERMINAL_VIEWS[name]
    return draw_terminal(f"mtpack {' '.join(arguments)}", run_mtpack(arguments, folder), lines)


def draw_terminal(title: str, output: str, most_lines: int) -> str:
    """Return an SVG picture of a terminal that shows the first lines of an output."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    lines = Text.from_ansi(output).split("\n")
    for line in lines[:most_lines]:
        console.print(line, soft_wrap=True)
    if len(lines) > most_lines:
        console.print("…")
    picture = console.export_svg(title=title, unique_id="terminal")
    # A picture in a page can't fetch fonts, and should not.
    return re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)


def take_report(browser: str, report: Path, picture: Path) -> None:
    """Take a picture of the top of a report."""
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",  # in containers, root has to say so
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            f"--window-size={WINDOW[0]},{WINDOW[1]}",
            f"--screenshot={picture}",
            report.as_uri(),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    main()
