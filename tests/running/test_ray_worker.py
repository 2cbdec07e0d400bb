"""A worker process of Ray keeps one child process for the groups of a run, and reports in time."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtpack.options import PackOptions
from mtpack.running import ray_worker
from mtpack.running.pipeline import load_pipeline
from mtpack.running.ray_worker import GroupCall, GroupReport
from tests.support import ray_tasks


@pytest.fixture(scope="module")
def contents() -> bytes:
    return pickle.dumps(load_pipeline(PackOptions()).contents)


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    yield
    ray_worker._end_kept()


def run(contents: bytes, call: GroupCall) -> Iterator[GroupReport]:
    """Run a group in this process, as a worker of Ray does."""
    return map(pickle.loads, ray_worker.run_group(contents, pickle.dumps(call)))


def run_in_child(contents: bytes, run_name: str) -> int:
    """Return the process that runs a task of a run."""
    (report,) = run(contents, GroupCall(run_name, ray_tasks.process_id, [0], 60))
    return report.results[0]


def wait_for_end(process: int) -> None:
    while Path(f"/proc/{process}").exists():
        os.sched_yield()


def test_groups_of_a_run_share_a_child_process(contents):
    child = run_in_child(contents, "one")
    assert child != os.getpid()
    assert run_in_child(contents, "one") == child


def test_the_child_process_of_another_run_ends(contents):
    child = run_in_child(contents, "one")
    assert run_in_child(contents, "two") != child
    wait_for_end(child)


def test_a_child_process_without_a_group_ends_after_a_while(contents, monkeypatch):
    monkeypatch.setattr(ray_worker, "_SECONDS_IDLE", 0.01)
    wait_for_end(run_in_child(contents, "one"))
    assert run_in_child(contents, "one")


def test_results_come_with_the_time_that_each_took(contents):
    (report,) = run(contents, GroupCall("one", ray_tasks.triple, [1, 2, 3], 60))
    assert report.results == [3, 6, 9]
    assert len(report.seconds) == 3
    assert all(seconds >= 0 for seconds in report.seconds)


def test_a_group_at_work_reports_even_if_nothing_is_done(contents, tmp_path):
    """This is its sign of life."""
    path = tmp_path / "process"
    reports = run(contents, GroupCall("one", ray_tasks.hang, [path], 0.01))
    for _ in range(3):
        assert next(reports) == GroupReport()


def test_the_results_before_an_error_come_with_it(contents):
    (report,) = run(contents, GroupCall("one", ray_tasks.refuse_some, [11, 12, 13, 14, 15], 60))
    assert report.results == [11, 12]
    assert str(report.error) == "row 13"
    assert report.traceback == ""


def test_a_cancelled_group_ends_its_child_process(contents, tmp_path):
    path = tmp_path / "process"
    reports = ray_worker.run_group(
        contents, pickle.dumps(GroupCall("one", ray_tasks.hang, [path], 0.01))
    )
    while not (path.exists() and path.read_text()):
        next(reports)
    with pytest.raises(KeyboardInterrupt):
        reports.throw(KeyboardInterrupt())
    assert not Path(f"/proc/{path.read_text().strip()}").exists()
