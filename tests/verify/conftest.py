"""Fixtures of the numeric checks."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that the last digits are the same each time."""
    from mtpack.verify.steps import set_exact_arithmetic

    with set_exact_arithmetic(threads=1):
        yield
