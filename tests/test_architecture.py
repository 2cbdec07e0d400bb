"""The structure of the package, as docs/architecture.md draws it: data and imports flow one way."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# In the order in which data flows: a module may import only what stands above it.
LAYERS = """
    errors
    one_thread
    options
    dialogue
    turns
    patterns
    lower_bounds
    planning
    assembling
    alignment
    ---- pure above: integers, text and numpy; effects below
    audit
    strict_json
    formats.refusal
    formats.tools
    formats.message
    formats.messages
    formats.sharegpt
    formats.alpaca
    formats.shapes
    formats.rows
    inputs
    splits
    reading
    tokenizer.added_tokens
    tokenizer.declared_tokens
    tokenizer.loading
    tokenizer.engines
    tokenizer.probe
    tokenizer.byte_level
    tokenizer.encode
    tokenizer.encoders
    tokenizer.spelled_tokens
    tokenizer.literal_tokens
    template.limits
    template.guards
    template.metering
    template.environment
    template.marking
    template.chat_template
    template.dropped
    template.spans
    template.plain_turns
    template.replay.operations
    template.replay.stand_ins
    template.replay.recorder
    template.replay.rewriting
    template.replay.filters
    template.replay.closed_macros
    template.replay.instrument
    template.replay.automaton
    template.replay.sheet
    template.replay.walk
    template.replay.known_renders
    template.replay.outline
    template.replay.plan
    template.replay.rehearsal
    template.replay.replayer
    rendering
    encoding
    overlong
    atomic_file
    shard
    manifest
    shards
    token_store
    stopwatch
    activity
    pipeline
    tokenizing
    split_store
    work
    writing
    windows
    runners.watching
    runners.messages
    runners.worker
    runners.starting
    runners.pool
    runners.local
    syncing
    output
    told_formats
    run
    findings
    reporting
    inspecting.figures
    inspecting.row
    inspecting.decoding
    inspecting.terminal
    linear_loss
    loss
    torch_data
    context_parallel
    integrations.megatron
    integrations.padding_free
    integrations.transformers
    integrations.trl
    verifying.batch
    verifying.token_laws
    verifying.list_laws
    verifying.structure
    verifying.weights
    verifying.check
    verifying.model
    verifying.causal_model
    verifying.padding
    verifying.sampling
    verifying.steps
    verifying.equivalence
    verifying.invariance
    verifying.ranks
    verifying.isolation
    verifying.computing
    verifying.speed
    verifying.verify
    verifying.terminal
    tokenizer.train_embedded
    cli
    __main__
"""
MODULES = [line.split()[0] for line in LAYERS.split("\n") if line.strip() and "----" not in line]
PURE = [line.strip() for line in LAYERS.split("----")[0].split("\n") if line.strip()]
HEAVY = (
    "torch",
    "transformers",
    "megatron",
    "ray",
    "datasets",
    "pyarrow",
    "tokenizers",
    "numpy",
    "rich",
)


def imports_of(module: str) -> set[str]:
    """Return the names of the modules that a module's source names in its imports."""
    tree = ast.parse((ROOT / "mtpack" / f"{module.replace('.', '/')}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_place():
    files = (ROOT / "mtpack").rglob("*.py")
    names = {".".join(path.relative_to(ROOT / "mtpack").with_suffix("").parts) for path in files}
    assert {name for name in names if not name.endswith("__init__")} == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module):
    above = MODULES[: MODULES.index(module)]
    own = {name.removeprefix("mtpack.") for name in imports_of(module) if "mtpack." in name}
    homes = {
        use: next((name for name in MODULES if f"{use}.".startswith(f"{name}.")), use)
        for use in own
    }
    assert set(homes.values()) - {"__version__"} <= set(above)


@pytest.mark.parametrize("module", PURE)
def test_the_pure_core_knows_no_file_format_and_no_tokenizer(module):
    outside = {name.split(".")[0] for name in imports_of(module)} - set(sys.stdlib_module_names)
    assert outside <= {"mtpack", "numpy"}


def test_the_loss_needs_torch_and_nothing_else():
    imported = imports_of("loss") | imports_of("linear_loss")
    own = {name for name in imported if name.startswith("mtpack.linear_loss.")}
    assert {name.split(".")[0] for name in imported - own} - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_held_in_the_head(module):
    lines = (ROOT / "mtpack" / f"{module.replace('.', '/')}.py").read_text().splitlines()
    assert len(lines) <= 400


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


def test_architecture_page_names_every_module_in_this_order():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = [name.replace("/", ".") for name in re.findall(r"`([a-z_/]+)\.py`", page)]
    assert [name for name in named if name in MODULES] == MODULES[:-1]


def test_public_names_are_what_the_package_says():
    import mtpack

    assert set(mtpack._HOMES) | {"__version__"} == set(mtpack.__all__)
    for name in mtpack.__all__:
        assert getattr(mtpack, name) is not None
