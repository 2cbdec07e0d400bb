"""By default a fixed share of the comparisons with slow references runs, and `--full` runs all."""

import subprocess
import sys

from tests.conftest import ORACLE_SHARE, ROOT

FILE = "tests/packing/test_cutting_stock.py"


def collect(*options: str) -> list[str]:
    """Return the names of the tests of a file that would run."""
    command = [sys.executable, "-m", "pytest", FILE, "--collect-only", "-q", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line.rpartition("::")[2] for line in done.stdout.splitlines() if "::" in line]


def test_the_default_run_leaves_out_parameters_but_no_test():
    default, full = collect(), collect("--full")
    assert set(default) < set(full)
    functions = {name.partition("[")[0] for name in full}
    assert {name.partition("[")[0] for name in default} == functions
    of_oracle = [name for name in full if name.startswith("test_plans_are_near_the_bound")]
    left_out = set(full) - set(default)
    assert len(of_oracle) - len(left_out) == -(-len(of_oracle) // ORACLE_SHARE)
