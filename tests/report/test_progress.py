"""The progress on standard error: what its lines say, and where they are written."""

import io

import pytest

from mtpack.counts import Counts
from mtpack.report.progress import Estimate, ProgressDisplay, StageLine, show_progress
from mtpack.running.callbacks import RunProgress

MIB = 2**20
SOME_BAD = Counts(rows_rejected={"bad_role": 3}, turns_dropped={"overlong": 12}, no_eot=1)


def progress(done: float, **more) -> RunProgress:
    """Return the progress after so many of 1,000 MiB."""
    return RunProgress(input_bytes=1000 * MIB, bytes_done=int(done * MIB), **more)


def texts_of(reports: dict[float, RunProgress], now: float) -> list[str]:
    """Return the lines at `now`, after reports at earlier times, in seconds."""
    estimate = Estimate()
    for seconds, report in reports.items():
        estimate.update(report, seconds)
    return [line.format(79) for line in estimate.describe(now)]


def test_a_stage_shows_its_share_its_rate_and_the_remaining_time():
    assert texts_of({0: progress(0), 16: progress(250)}, now=16) == [
        "tokenize   25% [####..............] 250.0 of 1,000.0 MiB, 15.6 MiB/s, 0:48 left"
    ]


def test_writing_is_shown_once_sequences_are_planned():
    reports = {
        0: progress(0),
        10: progress(500, sequences_planned=1000),
        14: progress(600, sequences_planned=1000, sequences_written=400),
        20: progress(1000, is_tokenized=True, sequences_planned=2000, sequences_written=1000),
    }
    lines = texts_of({key: reports[key] for key in (0, 10, 14)}, now=14)
    assert lines[1].split("] ")[1] == "400 of 1,000 sequences that are planned, 100/s"
    assert texts_of(reports, now=20) == [
        "tokenize  100% [########################] 1,000.0 MiB in 0:20",
        "write      50% [#########..........] 1,000 of 2,000 sequences, 100/s, 0:10 left",
    ]


def test_between_two_bursts_of_results_the_remaining_time_goes_on():
    reports = {0: progress(0), 60: progress(500)}
    for now, left in [(60, "1:00 left"), (75, "0:45 left"), (119, "0:01 left")]:
        assert texts_of(reports, now)[0].endswith(left)
    assert texts_of(reports, 300)[0].endswith("8.3 MiB/s")


def test_work_of_an_earlier_run_is_no_part_of_the_rate():
    reports = {0: progress(0), 1: progress(750, bytes_reused=750 * MIB)}
    assert "/s" not in texts_of(reports, 8)[0]
    reports[10] = progress(850, bytes_reused=750 * MIB)
    assert "10.0 MiB/s, 0:15 left" in texts_of(reports, 10)[0]


def test_a_second_attempt_begins_again():
    reports = {0: progress(0), 50: progress(900), 60: progress(0), 70: progress(100)}
    assert "10.0 MiB/s, 1:30 left" in texts_of(reports, 70)[0]


@pytest.mark.parametrize("width", [79, 60, 40, 20, 5])
def test_no_line_is_wider_than_the_terminal(width):
    line = StageLine("tokenize", 0.5, "1,023.9 of 1,023.9 MiB, 100.0 MiB/s, 10:00:00 left")
    assert len(line.format(width)) <= width


class Terminal(io.StringIO):
    """A stream that says that it is a terminal, and knows what its last lines show."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """The lines after everything that was written, with only the codes that are used here."""
        lines, row = [""], 0
        for part in self.getvalue().replace("\x1b[", "\0\x1b[").split("\0"):
            if part.startswith("\x1b["):
                code = next(index for index, one in enumerate(part) if one.isalpha())
                if part[code] == "A":
                    row -= int(part[2:code])
                elif part[code] == "J":
                    del lines[row + 1 :]
                    lines[row] = ""
                part = part[code + 1 :]
            for character in part:
                if character == "\n":
                    row += 1
                    lines += [""] * (row == len(lines))
                elif character != "\r":
                    lines[row] += character
        return lines


def test_on_a_terminal_warnings_stand_above_the_stages_and_the_last_state_stays():
    terminal = Terminal()
    with show_progress(shows_stages=True, stream=terminal) as callbacks:
        callbacks.status(progress(0))
        callbacks.warn("first\x1b[2J")
        callbacks.status(progress(500, counts=SOME_BAD, sequences_planned=4))
        callbacks.warn("second")
    assert terminal.lines == [
        "mtpack: first\\x1b[2J",
        "mtpack: second",
        "tokenize   50% [############............] 500.0 of 1,000.0 MiB",
        "write       0% [........................] 0 of 4 sequences that are planned",
        "problems so far: rows rejected 3 (bad_role), turns dropped 12 (overlong), turns no_eot 1"[
            :79
        ],
        "",
    ]


def test_lines_are_drawn_in_place():
    terminal = Terminal()
    display = ProgressDisplay(terminal, clock=lambda: 0.0)
    for done in range(0, 1001, 125):
        display.update(progress(done, sequences_planned=8, sequences_written=done // 125))
        display.draw()
    display.close()
    assert len(terminal.lines) == 3
    assert terminal.lines[1].startswith("write     100% ")


def test_elsewhere_a_short_run_shows_its_warnings_alone():
    stream = io.StringIO()
    with show_progress(shows_stages=True, stream=stream) as callbacks:
        callbacks.status(progress(500))
        callbacks.warn("a warning")
    assert stream.getvalue() == "mtpack: a warning\n"


def test_a_line_for_a_log_has_the_stages_and_the_problems():
    display = ProgressDisplay(io.StringIO(), clock=iter([0.0, 16.0, 16.0]).__next__)
    display.update(progress(0))
    display.update(progress(250, counts=SOME_BAD))
    assert display.describe() == (
        "tokenize 25%, 250.0 of 1,000.0 MiB, 15.6 MiB/s, 0:48 left; "
        "rows rejected 3 (bad_role), turns dropped 12 (overlong), turns no_eot 1"
    )
    display.close()


def test_a_terminal_that_is_gone_does_not_stop_a_run():
    terminal = Terminal()
    terminal.close()
    with show_progress(shows_stages=True, stream=terminal) as callbacks:
        callbacks.status(progress(500))
        callbacks.warn("a warning")
