"""What people install is the repository's own: a clean source distribution and wheel."""

import email
import email.message
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLE_DATA

NOT_DISTRIBUTED = {".gitignore", ".ci/run"}
MADE_BY_THE_BUILD = {"PKG-INFO"}


def build(target: str, source: Path, folder: Path) -> Path:
    """Build a distribution without a network, and return its path."""
    pytest.importorskip("hatchling", reason="needs hatchling, which comes with mtpack[dev]")
    code = f"from hatchling.build import build_{target}; print(build_{target}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True
    )
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory) -> Path:
    """The folder that a source distribution of this repository unpacks to."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(build("sdist", ROOT, folder)) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = [path for path in folder.iterdir() if path.is_dir()]
    return unpacked


@pytest.fixture(scope="module")
def site(source_tree, tmp_path_factory) -> Path:
    """The folder that a wheel of the source distribution is installed to."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", source_tree, folder)) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def metadata(site) -> email.message.Message:
    """The metadata of the wheel, which a package index shows; its payload is the readme."""
    (path,) = site.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def address_of_the_source(metadata) -> str:
    addresses = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert all(address.startswith(addresses["Source"]) for address in addresses.values())
    return addresses["Source"]


def test_the_source_distribution_holds_the_files_of_the_repository_and_no_others(source_tree):
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs a clone of the repository")
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert files_below(source_tree) == files - NOT_DISTRIBUTED | MADE_BY_THE_BUILD


def test_the_wheel_holds_the_package_its_metadata_and_the_licence(source_tree, site):
    package, others = set(), set()
    for name in files_below(site):
        (package if name.startswith("mtpack/") else others).add(name)
    assert package == {f"mtpack/{name}" for name in files_below(source_tree / "mtpack")}
    assert {name.partition(".dist-info/")[2] for name in others} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_wheel_packs_without_the_repository(site, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mtpack", "pack", SAMPLE_DATA / "conversations_en.jsonl", "--quiet"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "packed" / "manifest.json").is_file()


def test_links_and_pictures_of_the_readme_lead_to_files_of_the_version(metadata):
    source, tag = address_of_the_source(metadata), f"v{metadata['Version']}"
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", metadata.get_payload())
    assert len(links) > 10
    for is_picture, link in links:
        if link.startswith((source, "#")) or "://" not in link:
            prefix = f"{source}/{'raw' if is_picture else 'blob'}/{tag}/"
            assert link.startswith(("#", prefix)), link
            assert (ROOT / link.partition("#")[0].removeprefix(prefix)).exists(), link


def test_a_distribution_with_placeholders_for_addresses_can_not_be_published(metadata):
    is_placeholder = address_of_the_source(metadata).endswith(".invalid")
    assert ("Private :: Do Not Upload" in metadata.get_all("Classifier")) == is_placeholder


def test_every_python_version_that_may_be_installed_is_named(metadata):
    oldest = metadata["Requires-Python"].removeprefix(">=")
    named = [
        name.rpartition(" ")[2]
        for name in metadata.get_all("Classifier")
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
    ]
    assert named == [f"3.{minor}" for minor in range(11, 11 + len(named))]
    assert oldest == named[0]


def test_where_it_can_not_run_it_says_so_in_one_line():
    code = "import sys; sys.platform = 'win32'; from mtpack.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"mtpack: .*Linux.*\n", done.stderr)
