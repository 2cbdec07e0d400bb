"""Groups of tasks for Ray: about a minute of work each, and enough of them for all cores."""

from collections.abc import Iterator

import pytest

from mtpack.errors import InputError
from mtpack.running.ray_groups import GroupSizes

CORES = 10


def take_all(sizes: GroupSizes, tasks: Iterator, seconds: float) -> list[int]:
    """Return the sizes of all groups, if each task takes so long."""
    taken = []
    while True:
        group, error = sizes.take(tasks, CORES)
        assert error is None
        if not group:
            return taken
        taken.append(len(group))
        for task in group:
            sizes.add(task, seconds)


def test_groups_begin_with_one_task_and_grow_to_a_minute():
    sizes = take_all(GroupSizes(), iter(range(100_000)), 0.5)
    assert sizes[: 8 * CORES] == [1] * 8 * CORES
    assert max(sizes) == 120
    assert sum(sizes) == 100_000
    assert len(sizes) < 100_000 / 120 + 1000


def test_a_long_task_is_a_group_of_its_own():
    assert take_all(GroupSizes(), iter(range(500)), 90.0) == [1] * 500


def test_no_group_is_a_large_part_of_a_core_s_share():
    """So a small input has work for all cores, and they end at about the same time."""
    for number in (10, 100, 1_000, 10_000):
        sizes = take_all(GroupSizes(), iter(range(number)), 0.001)
        assert max(sizes) <= 1 + number / CORES / 8


def test_each_kind_of_task_has_its_own_time():
    sizes = GroupSizes()
    take_all(sizes, iter(range(5_000)), 0.1)
    take_all(sizes, iter(["long"] * 5_000), 20.0)
    assert len(sizes.take(iter([0] * 100), CORES)[0]) == 100
    assert len(sizes.take(iter(["long"] * 100), CORES)[0]) == 3


def test_an_error_of_the_reader_comes_with_the_tasks_before_it():
    def read() -> Iterator[int]:
        yield from range(3)
        raise InputError("the file is damaged")

    sizes = GroupSizes(taken=10_000)
    sizes.add(0, 0.1)
    group, error = sizes.take(read(), CORES)
    assert group == [0, 1, 2]
    assert str(error) == "the file is damaged"


def test_groups_are_read_no_further_than_they_need():
    tasks = iter(range(10))
    assert GroupSizes().take(tasks, CORES)[0] == [0]
    assert next(tasks) == 1


@pytest.mark.parametrize("num_cores", [0, 1])
def test_a_cluster_that_has_no_core_yet_gets_a_task(num_cores):
    assert GroupSizes().take(iter([7]), num_cores)[0] == [7]
