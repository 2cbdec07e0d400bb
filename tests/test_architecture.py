"""The structure of the package, as the README draws it: data and imports flow one way."""

import ast
import functools
import graphlib
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "mtpack"

# Folders, and the modules next to them, in the order in which data flows: each imports only from
# those before it.
ROOMS = [
    *("version", "errors", "option_values", "options", "option_arguments"),
    *("token_batch", "turn_weight", "counts", "fast_path", "user_cache"),
    *("storage", "recipe", "input", "tokenizer", "template", "template.tracing", "documents"),
    *("packing", "shards", "running"),
    *("linear_loss", "loss", "context_parallel", "torch_data", "integrations"),
    *("verify", "report"),
    *("__init__", "exit_signals", "cli_help", "cli", "__main__"),
]

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
)
PURE = [
    "errors",
    "option_values",
    "options",
    "turn_weight",
    "token_batch",
    "counts",
    "fast_path",
    "input.dialogue",
    *(module for module in MODULES if module.startswith("packing.")),
]
HEAVY = (
    "torch",
    "transformers",
    "megatron",
    "ray",
    "fsspec",
    "datasets",
    "pyarrow",
    "tokenizers",
    "numpy",
    "rich",
)


def source_of(module: str) -> str:
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def room_of(module: str) -> str:
    """Return the folder that a module lies in; a module next to the folders is a room itself."""
    return module.rpartition(".")[0] or module


@functools.cache
def imports_of(module: str) -> set[str]:
    """Return the names that a module's source imports."""
    found = set()
    for node in ast.walk(ast.parse(source_of(module))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def own_imports_of(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    names = {name.removeprefix("mtpack.") for name in imports_of(module) if "mtpack." in name}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


@functools.cache
def floor_of(room: str) -> int:
    """Return how many rooms stand on each other up to this one; an import circle never ends."""
    modules = [module for module in MODULES if room_of(module) == room]
    below = {room_of(name) for module in modules for name in own_imports_of(module)} - {room}
    return 1 + max(map(floor_of, below), default=0)


def test_every_module_has_its_room():
    assert {room_of(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_room_and_those_before_it(module):
    room = room_of(module)
    allowed = ROOMS[: ROOMS.index(room) + 1]
    assert {room_of(name) for name in own_imports_of(module)} <= set(allowed)


def test_no_modules_import_each_other_in_a_circle():
    import_order = graphlib.TopologicalSorter({name: own_imports_of(name) for name in MODULES})
    assert len(list(import_order.static_order())) == len(MODULES)


def test_the_package_has_at_most_eleven_floors():
    assert max(map(floor_of, ROOMS)) <= 11


@pytest.mark.parametrize("module", PURE)
def test_the_pure_core_knows_no_file_format_and_no_tokenizer(module):
    outside = {name.split(".")[0] for name in imports_of(module)} - set(sys.stdlib_module_names)
    assert outside <= {"mtpack", "numpy"}
    assert own_imports_of(module) <= set(PURE)


def test_the_loss_needs_torch_and_nothing_else():
    imported = imports_of("loss") | imports_of("linear_loss")
    own = {name for name in imported if name.startswith("mtpack.linear_loss.")}
    assert {name.split(".")[0] for name in imported - own} - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_at_most_400_lines_and_its_functions_50(module):
    source = source_of(module)
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name


def test_import_and_help_load_nothing_heavy():
    code = f"""
import sys
import mtpack
from mtpack.cli import main
main(["--help"], standalone_mode=False)
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_readme_shows_the_tree_and_the_architecture_page_every_room():
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith(("_", "."))}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("    mtpack/\n") :].split("\n\n")[0]
    named = set(re.findall(r"([a-z_]+(?:\.py|/))(?=\s)", tree)) - {"mtpack/"}
    assert {name.rstrip("/") for name in named} >= entries - {"py.typed"}
    for name in named:
        assert list(PACKAGE.rglob(name.rstrip("/"))), f"{name} is not there"
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [room.replace(".", "/") for room in ROOMS]
    folders = [room for room in rooms if (PACKAGE / room).is_dir()]
    assert re.findall(r"^\| `([a-z_/]+)` \|", page, re.MULTILINE) == folders


def test_public_names_are_what_the_package_says():
    import mtpack

    assert set(mtpack._MODULES) | {"__version__"} == set(mtpack.__all__)
    for name in mtpack.__all__:
        assert getattr(mtpack, name) is not None
