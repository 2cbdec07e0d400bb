"""What tests share: where real material is, and how tests that need it are skipped."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from mtpack.options import PackOptions

ROOT = Path(__file__).parents[1]
SAMPLE_DATA = ROOT / "sample_data"
SHARED = ROOT.parent / "shared"

# The same examples in every run, so that a failure can be repeated; no deadline, since the
# machines that run the tests are of all speeds.
settings.register_profile("mtpack", derandomize=True, deadline=None)
settings.load_profile("mtpack")


def shared(path: str) -> Path:
    """Return a path below ../shared, or skip the test where it is missing."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs ../shared/{path}, which is not here")
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tokenizer-engine",
        choices=("auto", "tokenizers", "fastokens"),
        default="auto",
        help="what makes the ids in every run and test that does not say",
    )


def pytest_configure(config: pytest.Config) -> None:
    engine = config.getoption("--tokenizer-engine")
    if engine != "auto":  # the small inputs of tests are not worth loading fastokens for
        os.environ["MTPACK_PACK_TOKENIZER_ENGINE"] = engine
        PackOptions.__init__.__kwdefaults__["tokenizer_engine"] = engine
