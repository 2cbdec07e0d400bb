"""How a run on Ray starts, and how it is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtpack.errors import SetupError
from mtpack.options import PackOptions
from tests.conftest import ROOT, SAMPLE_DATA

SOURCE = str(SAMPLE_DATA / "conversations_en.jsonl")


def run(
    code: str, *arguments: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess:
    """Run a program in a folder, without the Ray that this environment may name."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


PACK = "from mtpack.__main__ import main; main()"


def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['ray'] = None; " + PACK
    done = run(code, "pack", SOURCE, "--executor", "ray", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "mtpack: --executor ray needs Ray; install the extra: pip install 'mtpack[ray]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_local_executor_does_not_import_ray(tmp_path):
    code = "import sys, mtpack; mtpack.pack(sys.argv[1]); print('ray' in sys.modules)"
    assert run(code, SOURCE, folder=tmp_path).stdout == "False\n"


def test_an_address_without_the_executor_is_refused():
    with pytest.raises(SetupError, match=r"^--ray-address has no meaning with --executor local"):
        PackOptions(ray_address="auto")


def test_executor_and_address_are_no_part_of_what_counts_as_the_same_run():
    default, chosen = PackOptions(), PackOptions(executor="ray", ray_address="auto")
    assert default.output_options() == chosen.output_options()
    assert default.split_options() == chosen.split_options()


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "no address", "127.0.0.1:9"])
def test_an_address_that_can_not_be_used_is_refused_in_one_line(address, tmp_path):
    pytest.importorskip("ray", reason="needs mtpack[ray]")
    command = ["pack", SOURCE, "--executor", "ray", "--ray-address", address]
    done = run(PACK, *command, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"mtpack: --ray-address {address}: ")
    assert len(done.stderr.splitlines()) == 2  # the first one names the tokenizer
    assert list(tmp_path.iterdir()) == []


def test_without_an_address_a_ray_on_this_machine_starts_and_ends_with_the_run(tmp_path):
    """The user sees the lines of any run, and nothing of Ray."""
    pytest.importorskip("ray", reason="needs mtpack[ray]")
    local = run(PACK, "pack", SOURCE, "-o", "local", folder=tmp_path)
    command = ["pack", SOURCE, "--executor", "ray", "--workers", "1", "-o", "ray", "--json"]
    done = run(PACK, *command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")
    assert done.stdout.count("\n") == 1
    assert done.stderr == local.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"
    }
