"""On a Ray cluster: the same results in the same order, whatever happens to nodes and workers."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mtpack.errors import InputError, MtpackError, SetupError
from mtpack.options import PackOptions
from mtpack.running.pipeline import Pipeline, load_pipeline
from tests.support import ray_tasks
from tests.support.ray_tasks import Visit

pytest.importorskip("ray", reason="needs mtpack[ray]")
from mtpack.running.ray_cluster import connect
from mtpack.running.ray_runner import RayRunner, ray_runner

pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all of them


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(PackOptions(executor="ray"))


@pytest.fixture
def runner(cluster, pipeline, tmp_path) -> Iterator[RayRunner]:
    with ray_runner(pipeline, 1, tmp_path) as runner:
        yield runner


@pytest.fixture
def impatient(cluster, pipeline, tmp_path) -> Iterator[RayRunner]:
    """A runner that gives up what is silent for three seconds."""
    options = replace(pipeline.options, unit_timeout=3)
    with ray_runner(replace(pipeline, options=options), 1, tmp_path) as runner:
        yield runner


@pytest.fixture
def visits(tmp_path) -> list[Visit]:
    (tmp_path / "visits").mkdir()
    return [Visit(tmp_path / "visits", number) for number in range(12)]


def is_alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# Results and errors


def test_results_come_in_the_order_of_the_tasks(runner):
    assert list(runner.run(ray_tasks.triple, range(100))) == [3 * n for n in range(100)]
    assert list(runner.run(ray_tasks.triple, range(5))) == [0, 3, 6, 9, 12]


def test_the_first_error_in_the_order_of_the_tasks_is_raised(runner):
    results = runner.run(ray_tasks.refuse_some, range(40))
    assert [next(results) for _ in range(13)] == list(range(13))
    with pytest.raises(InputError, match=r"^row 13$"):
        next(results)


def test_an_error_of_the_reader_is_raised_after_the_results_of_earlier_tasks(runner):
    def tasks() -> Iterator[int]:
        yield from (1, 2)
        raise InputError("the file is damaged")

    results = runner.run(ray_tasks.triple, tasks())
    assert [next(results), next(results)] == [3, 6]
    with pytest.raises(InputError, match="the file is damaged"):
        next(results)


def test_an_unexpected_error_has_the_traceback_of_the_worker(runner):
    with pytest.raises(ZeroDivisionError) as raised:
        list(runner.run(ray_tasks.fail_unexpectedly, range(2)))
    assert "in fail_unexpectedly" in str(raised.value.__cause__)


def test_tasks_are_read_little_by_little(runner):
    read = 0

    def tasks() -> Iterator[int]:
        nonlocal read
        for number in range(300):
            read += 1
            yield number

    for taken, _ in enumerate(runner.run(ray_tasks.triple, tasks()), 1):
        assert read <= taken + 3 * 3 * (1 + taken // 8)


def test_workers_limits_the_groups_that_run_at_a_time(cluster, pipeline, tmp_path):
    options = replace(pipeline.options, workers=1)
    with ray_runner(replace(pipeline, options=options), 1, tmp_path) as runner:

        def tasks() -> Iterator[int]:
            for number in range(20):
                assert not runner._running
                yield number

        assert len(list(runner.run(ray_tasks.triple, tasks()))) == 20


def test_the_pipeline_travels_by_value(cluster, tmp_path, pipeline):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in pipeline.tokenizer.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    options = PackOptions(executor="ray", tokenizer=str(folder))
    own = load_pipeline(options)
    with ray_runner(own, 1, tmp_path) as runner:
        for path in folder.iterdir():
            path.unlink()
        assert set(runner.run(ray_tasks.describe, range(9))) == {
            (own.tokenizer.sha256, own.template.sha256, str(folder))
        }


# Workers that are lost


def test_the_group_of_a_killed_worker_is_continued_in_another(runner, visits):
    assert list(runner.run(ray_tasks.kill_the_ray_worker_at_four, visits)) == list(range(12))
    assert [len(visit.workers()) for visit in visits] == [1] * 4 + [2] + [1] * 7


def test_a_task_that_kills_its_child_process_twice_stops_the_run_and_is_named(runner, visits):
    with pytest.raises(MtpackError) as stopped:
        list(runner.run(ray_tasks.always_be_killed_at_four, visits))
    said = str(stopped.value)
    assert said.startswith("rows.jsonl line 4: rendering ended the worker process (SIGKILL)")
    assert len(visits[4].workers()) == 2


def test_a_task_at_which_workers_are_lost_again_and_again_stops_the_run(runner, visits):
    with pytest.raises(MtpackError, match=r"^visit 4: 4 Ray workers were lost at it") as stopped:
        list(runner.run(ray_tasks.always_kill_the_ray_worker_at_four, visits))
    assert "\n" not in str(stopped.value)
    assert len(visits[4].workers()) == 4


def test_the_group_of_a_stopped_worker_is_continued_in_another(impatient, visits):
    assert list(impatient.run(ray_tasks.stop_the_ray_worker_at_four, visits)) == list(range(12))
    first, second = visits[4].workers()
    assert second != first
    while is_alive(first):  # another process has to start to kill it
        os.sched_yield()


def test_a_task_at_which_two_workers_are_silent_stops_the_run_and_is_named(impatient, visits):
    with pytest.raises(MtpackError) as stopped:
        list(impatient.run(ray_tasks.always_stop_the_ray_worker_at_four, visits))
    said = str(stopped.value)
    assert said.startswith("visit 4 was at work in two Ray workers that were silent for ")
    assert "\n" not in said
    while any(map(is_alive, visits[4].workers())):
        os.sched_yield()


def test_a_group_whose_worker_stops_before_it_begins_is_done_in_another(
    impatient, visits, monkeypatch
):
    monkeypatch.setattr("mtpack.running.ray_runner._LEAST_SECONDS_TO_BEGIN", 3.0)
    list(impatient.run(ray_tasks.visit, visits))
    stopped = visits[0].workers()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert list(impatient.run(ray_tasks.visit, visits)) == list(range(12))
        assert stopped not in {visit.workers()[-1] for visit in visits}
    finally:
        os.kill(stopped, signal.SIGKILL)


def test_nothing_is_written_after_the_run_has_ended(cluster, pipeline, visits, tmp_path):
    written = visits[0].folder / "0-written"

    def tasks() -> Iterator[Visit]:
        yield visits[0]
        while "\n" not in (written.read_text() if written.exists() else ""):
            os.sched_yield()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ray_runner(pipeline, 1, tmp_path) as runner:
        list(runner.run(ray_tasks.write_until_killed, tasks()))
    writer = int(written.read_text().split()[0])
    assert not is_alive(writer)
    assert [path.name for path in tmp_path.iterdir()] == ["visits"]


# Nodes that can't take part


def test_a_node_with_another_version_is_refused_by_name(cluster, pipeline, tmp_path, monkeypatch):
    here = sys.modules["mtpack.version"].__version__
    monkeypatch.setattr("mtpack.version.__version__", "99.0")
    with pytest.raises(SetupError) as refused, ray_runner(pipeline, 1, tmp_path) as runner:
        list(runner.run(ray_tasks.triple, range(3)))
    assert str(refused.value) == (
        f"Ray node {os.uname().nodename}: mtpack is {here} there and 99.0 here; "
        "install the same version on all nodes"
    )


def test_a_node_that_does_not_see_the_work_area_is_refused_by_name(runner, tmp_path):
    for token in tmp_path.glob("ray-*"):
        token.unlink()
    with pytest.raises(SetupError) as refused:
        list(runner.run(ray_tasks.triple, range(3)))
    assert str(refused.value) == (
        f"Ray node {os.uname().nodename}: does not see {tmp_path}; "
        "put it into a folder that all nodes share"
    )


def test_a_node_that_does_not_see_an_input_is_refused_by_name(cluster, pipeline, tmp_path):
    inputs = [str(tmp_path / name) for name in ("one.jsonl", "two.jsonl")]
    Path(inputs[1]).touch()
    with (
        pytest.raises(SetupError, match=f"does not see {inputs[0]}; put it into a folder that"),
        ray_runner(pipeline, 1, tmp_path, ["s3://bucket/rows.jsonl", *inputs]) as runner,
    ):
        list(runner.run(ray_tasks.triple, range(3)))


def test_ray_changes_no_handler_of_a_signal(disconnected):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with connect(None, 1):
        assert [signal.getsignal(number) for number in numbers] == before


def test_an_address_of_another_cluster_is_refused(cluster, pipeline, tmp_path):
    options = replace(pipeline.options, ray_address="192.0.2.7:6379")
    with (
        pytest.raises(SetupError, match=r"connected to another Ray; leave it out$"),
        ray_runner(replace(pipeline, options=options), 1, tmp_path),
    ):
        pass


# What it takes


def test_the_memory_of_the_main_process_does_not_grow_with_the_number_of_tasks(runner, request):
    number_of_tasks = 100_000 if request.config.getoption("--full") else 20_000

    def grown() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    for number, result in enumerate(runner.run(ray_tasks.triple, range(number_of_tasks))):
        assert result == 3 * number
        if number == 5_000:
            before = grown()
    assert grown() - before < 30 * 2**20
