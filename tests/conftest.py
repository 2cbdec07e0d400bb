"""What tests share: where real material is, and how tests that need it are skipped."""

from pathlib import Path

import pytest
from hypothesis import settings

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
