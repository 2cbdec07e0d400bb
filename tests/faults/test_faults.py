"""Whatever call fails, the output is complete and right, or the same command completes it.

A shim counts the calls of a run and its workers that change files (open for writing, write, fsync,
rename, unlink, mkdir) and makes one of them fail: machine.py has the modes, points.py what must
hold after each. By default a few calls are tried. `--full` tries eight of every mode and scenario,
`-m slow` each call: 7,000 of them, about three quarters of an hour with `-n 2` on two free cores.
"""

import sys
from collections.abc import Iterator

import pytest

from tests.conftest import examples
from tests.faults.machine import MODES, Kind, Machine
from tests.faults.points import SCENARIOS, Bench

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux")

# A variant breaks a function with one of broken.py. It is found in this mode, at such a call.
BROKEN_VARIANTS = {
    "no rename": ("os:replace", "copy_and_remove", "torn write", Kind.WRITE),
    "no sync": ("os:fsync", "sync_nothing", "power", Kind.UNLINK),
    "ignored error": ("os:replace", "ignore_errors_of_renames", "I/O error", Kind.RENAME),
}

every_scenario = pytest.mark.parametrize(
    ("scenario", "workers"),
    [
        (scenario, workers)
        for scenario in SCENARIOS.values()
        for workers in ((1,) if scenario.from_stdin else (1, 2))
    ],
    ids=lambda value: getattr(value, "name", value),
)
every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    try:
        machine = Machine(tmp_path_factory.mktemp("machine"))
    except FileNotFoundError:
        pytest.skip("needs a C compiler (cc or gcc) for the shim that makes calls fail")
    yield machine
    machine.close()


def check_calls(bench: Bench, mode: str, numbers: Iterator[int] | range) -> None:
    points = [bench.try_point(mode, number) for number in numbers]
    failed = [str(point) for point in points if point.problems]
    assert not failed, "\n".join([f"{len(failed)} of {len(points)} calls:", *failed])


def spread(total: int, number: int) -> list[int]:
    """Return `number` calls of 1 to `total`, each from the middle of an equal share."""
    return sorted({1 + (2 * i + 1) * total // (2 * number) for i in range(number)})


@pytest.mark.oracle
@every_scenario
@every_mode
def test_a_run_that_fails_at_some_calls_is_completed_by_the_same_command(
    machine, tmp_path, scenario, workers, mode
):
    bench = Bench(machine, tmp_path / "bench", scenario, workers)
    check_calls(bench, mode, spread(bench.count_calls(mode), examples(8)))


@pytest.mark.slow
@every_scenario
@every_mode
def test_a_run_that_fails_at_any_call_is_completed_by_the_same_command(
    machine, tmp_path, scenario, workers, mode
):
    bench = Bench(machine, tmp_path / "bench", scenario, workers)
    check_calls(bench, mode, range(1, bench.count_calls(mode) + 2))  # at the last, none fails


@pytest.mark.parametrize("variant", BROKEN_VARIANTS)
def test_a_broken_variant_is_found(machine, tmp_path, variant):
    name, broken, mode, kind = BROKEN_VARIANTS[variant]
    whole = Bench(machine, tmp_path / "whole", SCENARIOS["fresh"], 1)
    bench = Bench(machine, tmp_path / "broken", SCENARIOS["fresh"], 1, {name: broken})
    bench.restore()
    calls = bench.run(mode).calls
    numbers = [number for number, call in enumerate(calls, 1) if call.kind == kind]
    for number in reversed(numbers):  # most is lost at the end
        if bench.try_point(mode, number).problems and not whole.try_point(mode, number).problems:
            return
    pytest.fail(f"{len(numbers)} calls, and nothing is found")


def test_a_run_has_several_splits_shards_and_windows(machine, tmp_path):
    bench = Bench(machine, tmp_path / "bench", SCENARIOS["token store"], 2)
    assert sum(name.startswith("packed/shard-") for name in bench.expected) >= 3
    assert sum(name.endswith(".json") for name in bench.expected if name[:6] == "store/") >= 3
    assert len({call.process for call in bench.calls}) == 3  # the command and two workers
