"""Run tasks on a Ray cluster, and yield their results in order.

Tasks go to Ray in groups. The process that runs a group reports every few seconds what is done. A
group whose process is lost or silent is continued in another one, after what was reported. Ray's
own retries would do all of it again, so they are not used.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtpack.errors import MtpackError, SetupError, first_line
from mtpack.running import ray_entry
from mtpack.running.pipeline import Pipeline
from mtpack.running.ray_cluster import connect
from mtpack.running.ray_groups import GroupSizes
from mtpack.running.ray_worker import GroupCall, GroupReport
from mtpack.running.watchdog import UnitTimeout
from mtpack.running.worker import Result, Task, TaskFunction
from mtpack.storage.urls import is_url

# For each core: the groups that run or wait for a core, and all whose results are not taken yet.
_UNFINISHED_PER_CORE = 2
_GROUPS_PER_CORE = 3
_LOST_WORKERS_THAT_STOP_THE_RUN = 4  # one after the other, without a result of the group
_SILENCES_THAT_STOP_THE_RUN = 2
_LEAST_SECONDS_BETWEEN_REPORTS = 2.0
_MOST_SECONDS_BETWEEN_REPORTS = 15.0
_REPORTS_PER_SECOND = 200.0
_REPORTS_PER_TIMEOUT = 4
_SECONDS_BETWEEN_CHECKS = 1.0
_SECONDS_BETWEEN_COUNTS = 5.0
_LEAST_SECONDS_TO_BEGIN = 60.0
_MOST_INPUTS = 16
_SECONDS_TO_END = 5.0
_SECONDS_TO_KILL = 20.0  # another process starts for it


class RemoteTracebackError(Exception):
    """The cause of an error that is none of mtpack's: its text is where that arose."""


@dataclass(slots=True, eq=False)
class _Group:
    """Consecutive tasks, and what is known of them."""

    function: TaskFunction[Any, Any]
    tasks: list[Any]
    results: deque[Any] = field(default_factory=deque)
    """Those that are not taken yet."""
    num_done: int = 0
    """The number of tasks whose results have come."""
    error: Exception | None = None
    """That of the task after those."""
    number: int = 0
    """That of its call: later calls have larger ones."""
    process: tuple[str, int, str | None] | None = None
    """The node, the number and the start of the process that runs it; None until it has begun."""
    silent_seconds: float = 0.0
    """Since its last report."""
    num_lost: int = 0
    num_silences: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether all results, or an error, have come."""
        return self.error is not None or self.num_done == len(self.tasks)

    @property
    def name(self) -> str:
        """The first task without a result."""
        return str(self.tasks[self.num_done])


class RayRunner:
    """Runs tasks in the workers of a Ray cluster and yields their results in order."""

    sends_rows = False

    def __init__(
        self,
        pipeline: Pipeline,
        token: Path,
        inputs: Sequence[str] = (),
        max_running: int | None = None,
    ) -> None:
        """Send the pipeline to Ray, to which this process is connected.

        token: a file in the work area. All nodes must see it, and the inputs. max_running: the most
        groups that run at a time; by default, that is decided by the cores of the cluster.
        """
        self._run = uuid4().hex
        self._timeout = UnitTimeout(pipeline.options.unit_timeout or None)
        self._max_running = max_running
        self._sizes = GroupSizes()
        self._arguments = (
            ray_entry.list_versions(),
            (str(token.absolute()), token.read_text(encoding="ascii")),
            inputs,
            ray.put(pickle.dumps(pipeline.contents)),
        )
        ray.cloudpickle.register_pickle_by_value(ray_entry)
        self._run_group = ray.remote(max_retries=0, num_returns="streaming")(ray_entry.run_group)
        self._kill_process = ray.remote(max_retries=0, num_cpus=0)(ray_entry.kill_process)
        self._running: dict[Any, _Group] = {}
        """The groups that are not finished, by the generator from which their reports come."""
        self._num_calls = 0
        self._last_check = time.monotonic()
        self._num_cores = 0
        self._counted_at = float("-inf")

    def run(self, function: TaskFunction[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Call `function` on each task and yield the results in the order of the tasks.

        Raises the error of the first task that fails, in that order. Raises MtpackError if several
        workers are lost at the same task, or two are silent, which `str(task)` names then, and
        SetupError if a node can't take part in the run.
        """
        tasks = iter(tasks)
        groups: deque[_Group] = deque()
        failed: MtpackError | None = None
        there_are_more = True
        try:
            while groups or there_are_more:
                while there_are_more and self._has_room(len(groups)):
                    taken, failed = self._sizes.take(tasks, self._num_cores)
                    there_are_more = bool(taken) and failed is None
                    if taken:
                        groups.append(_Group(function, taken))
                        self._call(groups[-1])
                if groups:
                    yield from self._take_results(groups)
        finally:
            self.cancel()
        if failed is not None:
            raise failed

    def _take_results(self, groups: deque[_Group]) -> Iterator[Any]:
        """Yield the results of the first group that are there; if there are none, wait a moment."""
        first = groups[0]
        if not first.results and not first.is_finished:
            self._wait()
        while first.results:
            yield first.results.popleft()
        if first.is_finished:
            groups.popleft()
            if first.error is not None:
                raise first.error

    def _has_room(self, num_groups: int) -> bool:
        now = time.monotonic()
        if now - self._counted_at > _SECONDS_BETWEEN_COUNTS:  # nodes may join and leave
            self._num_cores = max(1, int(ray.cluster_resources().get("CPU", 0)))
            self._counted_at = now
        most = self._max_running or _UNFINISHED_PER_CORE * self._num_cores
        return len(self._running) < most and num_groups < _GROUPS_PER_CORE * self._num_cores

    def _call(self, group: _Group) -> None:
        """Submit what is left of a group."""
        tasks = group.tasks[group.num_done :]
        call = GroupCall(self._run, group.function, tasks, self._choose_interval())
        self._num_calls += 1
        group.number, group.process, group.silent_seconds = self._num_calls, None, 0.0
        self._running[self._run_group.remote(*self._arguments, pickle.dumps(call))] = group

    def _choose_interval(self) -> float:
        """Return the seconds between two reports of a group.

        The main process reads some thousands of reports in a second.
        """
        most = min(_MOST_SECONDS_BETWEEN_REPORTS, self._timeout.seconds / _REPORTS_PER_TIMEOUT)
        return min(most, max(_LEAST_SECONDS_BETWEEN_REPORTS, self._num_cores / _REPORTS_PER_SECOND))

    def _wait(self) -> None:
        """Wait until a report comes, but not for long, and handle all that are there."""
        calls = list(self._running)
        ready, _ = ray.wait(calls, timeout=_SECONDS_BETWEEN_CHECKS, fetch_local=False)
        if ready:
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0, fetch_local=False)
        for call in ready:
            self._read_report(call, self._running[call])
        self._check_silence({self._running[call].number for call in ready if call in self._running})

    def _read_report(self, call: Any, group: _Group) -> None:
        try:
            kind, value = ray.get(next(call))
        except RayTaskError:
            raise
        except (RayError, StopIteration) as error:
            group.num_lost += 1
            if group.num_lost == _LOST_WORKERS_THAT_STOP_THE_RUN:
                raise MtpackError(
                    f"{group.name}: {group.num_lost} Ray workers were lost at it, one after the "
                    f"other ({first_line(error)})"
                ) from error
            del self._running[call]
            self._call(group)
            return
        if kind == ray_entry.REFUSED:
            raise SetupError(value)
        if kind == ray_entry.BEGUN:
            group.process = value
        else:
            self._add_report(group, pickle.loads(value))
        if group.is_finished:
            del self._running[call]

    def _add_report(self, group: _Group, report: GroupReport) -> None:
        for result, seconds in zip(report.results, report.seconds, strict=True):
            self._sizes.add(group.tasks[group.num_done], seconds)
            group.results.append(result)
            group.num_done += 1
            group.num_lost = group.num_silences = 0
        if report.error is not None:
            group.error = report.error
            if report.traceback:
                group.error.__cause__ = RemoteTracebackError(report.traceback)

    def _check_silence(self, reported: Collection[int]) -> None:
        """Give up the groups that are silent for too long.

        reported: the numbers of those that are not. A group that has not begun may rightly wait for
        a core, or its process starts. It is silent if a later one has begun, since they begin in
        this order, or if none is running. Then it goes to the end of the queue, which does no harm.
        """
        now = time.monotonic()
        seconds = min(now - self._last_check, _SECONDS_BETWEEN_CHECKS)
        self._last_check = now
        begun = [group.number for group in self._running.values() if group.process is not None]
        for call, group in list(self._running.items()):
            if group.number in reported:
                group.silent_seconds = 0.0
            elif group.process is not None or not begun or group.number < max(begun):
                group.silent_seconds += seconds
                least = 0.0 if group.process is not None else _LEAST_SECONDS_TO_BEGIN
                if group.silent_seconds > max(self._timeout.seconds, least):
                    self._give_up(call, group)

    def _give_up(self, call: Any, group: _Group) -> None:
        if group.process is not None:
            group.num_silences += 1
        if group.num_silences == _SILENCES_THAT_STOP_THE_RUN:
            raise MtpackError(
                f"{group.name} was at work in two Ray workers that were silent for "
                f"{group.silent_seconds:,.3g} s; they were stopped, or their nodes wait for a file "
                "system or the network: repair that and run again, or choose a larger "
                "--unit-timeout"
            )
        del self._running[call]
        with suppress(RayError):
            ray.cancel(call, force=True)
            if group.process is not None:  # one that is stopped does not hear that
                self._kill(*group.process)
        self._call(group)

    def cancel(self) -> None:
        """End all that runs; afterwards, no worker of this runner writes anything.

        A worker that is interrupted ends its child process first. One that does not do so in a few
        seconds is killed.
        """
        running, self._running = self._running, {}
        if not running or not ray.is_initialized():
            return
        with suppress(RayError):
            for call in running:
                ray.cancel(call)
            ends = {call.completed(): group for call, group in running.items()}
            _, left = ray.wait(list(ends), num_returns=len(ends), timeout=_SECONDS_TO_END)
            kills = []
            for end in left:
                ray.cancel(end, force=True)
                process = ends[end].process
                if process is not None:
                    kills.append(self._kill(*process))
            if kills:
                ray.wait(kills, num_returns=len(kills), timeout=_SECONDS_TO_KILL)

    def _kill(self, node: str, process: int, start: str | None) -> Any:
        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        return self._kill_process.options(scheduling_strategy=on_node).remote(process, start)


@contextmanager
def ray_runner(
    pipeline: Pipeline, num_workers: int, area: Path, inputs: Iterable[str] = ()
) -> Iterator[RayRunner]:
    """Provide a runner on Ray; all that it runs ends with the `with` block.

    num_workers: the processes of a Ray that is started on this machine. area: the work area, which
    all nodes must see. inputs: those of the run; all nodes look for one of each folder or store.
    Raises SetupError if there is no Ray to connect to.
    """
    options = pipeline.options
    token = area / f"ray-{uuid4().hex}"
    by_place: dict[str, str] = {}
    for name in inputs:
        path = name if is_url(name) else os.path.abspath(name)
        bucket = path.partition("://")[2].partition("/")[0]
        by_place.setdefault(bucket or os.path.dirname(path), path)
    chosen = sorted(by_place.values())[:_MOST_INPUTS]
    with connect(options.ray_address, num_workers) as is_started_here:
        token.write_text(uuid4().hex, encoding="ascii")
        try:
            limit = None if is_started_here else options.workers or None
            runner = RayRunner(pipeline, token, chosen, limit)
            try:
                yield runner
            finally:
                runner.cancel()
        finally:
            token.unlink(missing_ok=True)
