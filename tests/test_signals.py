"""Signals: at any moment, the command ends with its status and one line, or the output is complete.

The same command then completes the output, byte for byte as if nothing had happened.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE_DATA
from tests.running.test_pack import contents

SENDER = Path(__file__).parent / "support" / "send_signals.py"
LINE = "mtpack: interrupted; the output is incomplete"
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
POINTS = 60


@dataclass
class Plan:
    """Signals to send, and when."""

    at: int | str = -1
    """The number of an event, its name, the name of a module that is imported, `publishing` or
    `published` (before or after the manifest is put in place), or `teardown` (of Python)."""
    signals: tuple[int, ...] = (signal.SIGTERM,)
    group: bool = False
    """Whether the workers get them too, as after Ctrl-C in a terminal."""
    spawned: bool = False
    """Whether the workers are spawned."""
    count_to: str = ""
    """The file for the number of events."""
    start: str = "mtpack.cli"
    """The module with whose import the events begin."""


@dataclass
class Command:
    """`mtpack pack` of a small input, in a folder of its own."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "packed"

    def run(
        self,
        plan: Plan | None = None,
        arguments: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "mtpack"),
        before: Callable[[], object] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run it, and wait for the end of all its processes."""
        with self.start(plan, arguments, program, before) as process:
            out, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def start(
        self,
        plan: Plan | None = None,
        arguments: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "mtpack"),
        before: Callable[[], object] | None = None,
        errors: int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}"}
        if plan is not None:
            environment["SEND_SIGNALS"] = json.dumps(asdict(plan))
        arguments = arguments or ("pack", "rows.jsonl", "--quiet", "--shard-size", "100KiB")
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            preexec_fn=before or handle_all,
        )


def handle_all() -> None:
    """Undo what the caller of the tests ignores, such as Ctrl-C in the background of a shell."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def command(tmp_path) -> Command:
    lines = (SAMPLE_DATA / "conversations_en.jsonl").read_text(encoding="utf-8").splitlines(True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:20]), encoding="utf-8")
    shutil.copyfile(SENDER, tmp_path / "sitecustomize.py")
    return Command(tmp_path)


@dataclass
class Undisturbed:
    """A run without signals."""

    contents: dict[str, bytes]
    events: dict[bool, int]
    """Their number, by whether workers are spawned."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Undisturbed:
    events = {}
    for spawned in (False, True):
        run = command.__wrapped__(tmp_path_factory.mktemp("undisturbed"))
        count = run.folder / "count"
        done = run.run(Plan(spawned=spawned, count_to=str(count)))
        assert (done.returncode, done.stderr) == (0, "")
        events[spawned] = int(count.read_text())
    return Undisturbed(contents(run.output), events)


def assert_incomplete(done: subprocess.CompletedProcess[str], number: int) -> None:
    assert done.stderr.startswith(LINE)
    assert done.stderr.count("\n") == 1
    assert done.returncode == STATUS[signal.Signals(number)]


def assert_completes(command: Command, undisturbed: Undisturbed) -> None:
    again = command.run()
    assert (again.returncode, again.stderr) == (0, "")
    assert contents(command.output) == undisturbed.contents
    assert not (command.output / ".mtpack").exists()


@pytest.mark.oracle
@pytest.mark.parametrize("point", range(POINTS))
def test_a_signal_at_any_event_ends_the_command_or_the_output_is_complete(
    command, undisturbed, point
):
    choose = random.Random(point)
    number = choose.choice(list(STATUS))
    spawned = choose.random() < 0.3
    at = 1 + undisturbed.events[spawned] * point // POINTS
    signals = choose.choice([(number,), (number,) * 3])
    done = command.run(Plan(at, signals, choose.random() < 0.5, spawned))
    if done.returncode == 0:
        assert done.stderr == ""
        assert contents(command.output) == undisturbed.contents
    else:
        assert_incomplete(done, number)
    assert_completes(command, undisturbed)


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("module", ["click", "numpy", "multiprocessing", "mtpack.running.pack"])
def test_a_signal_during_an_import_ends_the_command(command, module, number):
    assert_incomplete(command.run(Plan(module, (number,))), number)
    assert not command.output.exists()


def test_the_installed_command_handles_signals_as_early(command):
    """The script that pip writes imports the function of the entry point and calls it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = scripts["project"]["scripts"]["mtpack"].partition(":")
    program = f"from {module} import {function} as main; import sys; sys.exit(main())"
    done = command.run(Plan("click", (signal.SIGINT,)), program=("-c", program))
    assert_incomplete(done, signal.SIGINT)


@pytest.mark.parametrize("group", [False, True])
def test_of_several_signals_the_first_decides(command, group):
    """Python handles signals that arrive together in the order of their numbers."""
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    assert_incomplete(command.run(Plan("mtpack.running.pool", signals, group)), signal.SIGHUP)


@pytest.mark.parametrize("number", STATUS)
def test_before_the_manifest_is_put_in_place_a_signal_ends_the_run(command, undisturbed, number):
    assert_incomplete(command.run(Plan("publishing", (number,))), number)
    assert_completes(command, undisturbed)


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("at", ["published", "teardown"])
def test_after_the_manifest_is_in_place_the_run_finishes(command, undisturbed, at, number):
    done = command.run(Plan(at, (number,) * 3, group=True))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rows")
    assert contents(command.output) == undisturbed.contents
    assert not (command.output / ".mtpack").exists()


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(command, undisturbed, number):
    """As SIGHUP is after nohup; in the workers too."""

    def ignore() -> None:
        handle_all()
        signal.signal(number, signal.SIG_IGN)

    for spawned in (False, True):
        shutil.rmtree(command.output, ignore_errors=True)
        at = undisturbed.events[spawned] * 3 // 4
        done = command.run(Plan(at, (number,), group=True, spawned=spawned), before=ignore)
        assert (done.returncode, done.stderr) == (0, "")
        assert contents(command.output) == undisturbed.contents


def test_an_earlier_output_that_is_still_complete_is_named(command, undisturbed):
    assert command.run().returncode == 0
    arguments = ("pack", "rows.jsonl", "--quiet", "--overwrite", "--seed", "1")
    done = command.run(Plan("os.fork"), arguments)
    assert_incomplete(done, signal.SIGTERM)
    assert "the earlier one is still there" in done.stderr
    for name, content in undisturbed.contents.items():
        assert (command.output / name).read_bytes() == content


def test_the_second_signal_ends_a_command_that_cannot_print_the_line(command):
    """Nobody reads the pipe that it prints to."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    with command.start(errors=writer) as process:
        wait_for_the_command(process)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "packed"),
        ("verify", "packed"),
        ("pack", "rows.jsonl", "--dry-run"),
        ("pack", "rows.jsonl", "--print-config"),
        ("--help",),
    ],
    ids=" ".join,
)
def test_a_command_without_an_output_ends_without_a_word_about_it(command, arguments, number):
    done = command.run(Plan("click", (number,)), arguments)
    assert (done.returncode, done.stderr) == (STATUS[number], "mtpack: interrupted\n")


IN_A_PROGRAM = """
import signal
import mtpack
numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
before = [signal.getsignal(number) for number in numbers]
try:
    mtpack.pack("rows.jsonl", output="packed")
except KeyboardInterrupt:
    print("KeyboardInterrupt")
print([signal.getsignal(number) for number in numbers] == before)
"""


def test_in_a_program_pack_raises_keyboard_interrupt_and_sets_no_handler(command):
    plan = Plan("fcntl.flock", (signal.SIGINT,), start="mtpack")
    done = command.run(plan, program=("-c", IN_A_PROGRAM))
    assert (done.stdout, done.stderr, done.returncode) == ("KeyboardInterrupt\nTrue\n", "", 0)


def test_a_signal_at_a_random_time_ends_the_command_or_the_output_is_complete(
    command, undisturbed, request
):
    """Before the command sets its handlers, Python itself ends; nothing is written then."""
    choose = random.Random(0)
    for _ in range(40 if request.config.getoption("--full") else 2):
        number = choose.choice(list(STATUS))
        started = time.monotonic()
        with command.start() as process:
            wait_for_the_command(process)
            until = started + choose.random() * 1.5
            while time.monotonic() < until and process.poll() is None:
                os.sched_yield()
            if process.poll() is None:
                os.killpg(process.pid, number)
            out, errors = process.communicate()
        done = subprocess.CompletedProcess(process.args, process.returncode, out, errors)
        if done.returncode:
            assert_incomplete(done, number)
        assert_completes(command, undisturbed)
        shutil.rmtree(command.output)


def wait_for_the_command(process: subprocess.Popen) -> None:
    """Wait until it has set its handler of SIGTERM (see proc(5), `SigCgt`)."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc to see which signals a process handles")
    bit = 1 << (signal.SIGTERM - 1)
    while True:
        caught = status.read_text().partition("SigCgt:")[2].split()
        if process.poll() is not None or (caught and int(caught[0], 16) & bit):
            return
        os.sched_yield()
