"""What tests share: where real material is, and how tests that need it are skipped."""

import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

from mtpack.options import PackOptions

ROOT = Path(__file__).parents[1]
SAMPLE_DATA = ROOT / "sample_data"
SHARED = ROOT.parent / "shared"

# One in so many of the comparisons marked `oracle` runs by default, and one in so many of the
# examples that hypothesis draws; `--full` runs all.
ORACLE_SHARE = 10
EXAMPLE_SHARE = 4

# The same examples in every run, so that a failure can be repeated; no deadline, since the
# machines that run the tests are of all speeds.
settings.register_profile("full", derandomize=True, deadline=None, max_examples=100)
settings.register_profile(
    "default", settings.get_profile("full"), max_examples=100 // EXAMPLE_SHARE
)


def shared(path: str) -> Path:
    """Return a path below ../shared, or skip the test where it is missing."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs ../shared/{path}, which is not here")
    return found


@pytest.fixture(autouse=True, scope="session")
def _workers_are_forked() -> Iterator[None]:
    """Fork the workers of every run, so that they too run what a test has patched.

    The test program may have threads, but they are idle at that time, so they hold no lock.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtpack.running.runner.may_fork", lambda: True)
        yield


@pytest.fixture(autouse=True)
def _cache_is_empty(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> None:
    """Give each test a cache folder of its own, which is there once something is kept."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{uuid4().hex}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture
def learn_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record all dialogues that can be, so that replays don't depend on the machine's speed."""
    monkeypatch.setattr(
        "mtpack.template.tracing.budget.LearningBudget.affords", lambda *arguments: True
    )


def examples(number: int) -> int:
    """Return how many examples a test with its own number of them draws, by default its share."""
    return max(1, number * settings.default.max_examples // 100)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tokenizer-engine",
        choices=("auto", "tokenizers", "fastokens"),
        default="auto",
        help="what makes the ids in every run and test that does not say",
    )
    parser.addoption(
        "--full",
        action="store_true",
        help="run every comparison with a slow reference, and draw all examples",
    )
    parser.addoption(
        "--update-cases",
        action="store_true",
        help="write the output of tests/cases/*.txt anew (read the diff)",
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("full" if config.getoption("--full") else "default")
    engine = config.getoption("--tokenizer-engine")
    if engine != "auto":  # the small inputs of tests are not worth loading fastokens for
        os.environ["MTPACK_PACK_TOKENIZER_ENGINE"] = engine
        PackOptions.__init__.__kwdefaults__["tokenizer_engine"] = engine


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a fixed share of the parameters of each test marked `oracle`, one of each at least."""
    if config.getoption("--full"):
        return
    compared: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("oracle"):
            compared.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for alike in compared.values():
        alike.sort(key=lambda item: zlib.crc32(item.name.encode()))
        left_out.update(alike[math.ceil(len(alike) / ORACLE_SHARE) :])
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
