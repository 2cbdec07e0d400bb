"""What the pages say is so: their commands run, their links lead somewhere, their options exist."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from math import sqrt
from pathlib import Path

import pytest
from click.testing import CliRunner

import mtpack
import mtpack.tokenizer
from mtpack.cli import main
from mtpack.cli_help import EXAMPLES, OPTION_GROUPS
from mtpack.options import PackOptions, flag
from tests.conftest import ROOT, SAMPLE_DATA

EMBEDDED = Path(mtpack.tokenizer.__file__).parent / "embedded"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs", ROOT / "mtpack")
    for path in (folder.rglob("*.md") if folder.name == "mtpack" else folder.glob("*.md"))
)
# Commands that no page can run here, and who runs what they are about.
RUN_ELSEWHERE = {
    "python3": "the test of an installation is tests/test_packaging.py",
    ".": "the same",
    "pip": "the same",
    "uv": "the same",
    "pipx": "the same",
    "eval": "the test of completion, below",
    "torchrun": "tests/test_training_recipe.py and tests/integrations run the scripts",
    "python": "tests/test_benchmarks.py runs the benchmarks; .ci/run runs the tests",
    "ruff": ".ci/run",
    "mypy": ".ci/run",
}
PAGES_RUN_ELSEWHERE = {"docs/scaling.md"}  # they need a cluster, which tests/running have
STORES = re.compile(r"\b(s3|gs|hf)://")  # tests/storage has servers for these
EXAMPLE_COMMANDS = [command for examples in EXAMPLES.values() for _, command in examples]
VERIFY = re.compile(r"mtpack verify (\w*packed)")  # takes long, so each way to call it runs once


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands_of(page: str) -> list[str]:
    """Return the commands of a page, each in one line."""
    lines = "".join(blocks("bash", page)).replace("\\\n", " ").splitlines()
    commands = [command for line in lines for command in line.split(" && ")]
    return [command for command in commands if shlex.split(command, comments=True)]


def commands_to_run(page: str) -> list[str]:
    """Return the commands of a page that its test runs."""
    if page in PAGES_RUN_ELSEWHERE:
        return []
    return [
        command
        for command in commands_of(page)
        if command.split()[0] not in RUN_ELSEWHERE
        and not STORES.search(command)
        and not VERIFY.match(command)
    ]


def run(commands: list[str], folder: Path) -> str:
    """Run commands in a shell, as a person would in this folder, and return what they print."""
    done = subprocess.run(
        ["bash", "-ec", "set -x\n" + "\n".join(commands)],
        cwd=folder,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with everything that the commands of the pages name."""
    (tmp_path / "sample_data").symlink_to(SAMPLE_DATA)
    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_bytes().splitlines(keepends=True)
    for name in ("data", "train", "eval"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "some.jsonl").write_bytes(b"".join(rows[:20]))
    (tmp_path / "data" / "more.jsonl.gz").write_bytes(gzip.compress(b"".join(rows[20:40])))
    shutil.copytree(EMBEDDED, tmp_path / "path" / "to" / "model")
    return tmp_path


def add_model(folder: Path) -> None:
    """Make path/to/model the folder of a small language model."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,  # so that losses and gradients depend on the tokens
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "path" / "to" / "model")


def test_the_first_command_packs_the_sample_data_and_shows_it(folder):
    commands = commands_to_run("README.md")[:2]
    assert [shlex.split(command)[1] for command in commands] == ["pack", "inspect"]
    assert "320" in run(commands, folder)


def write_recipes(page: str, folder: Path) -> None:
    """Write the recipes of a page; the first line of each names its file."""
    for recipe in blocks("toml", page):
        path = folder / recipe.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(recipe, encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if commands_to_run(page)])
def test_the_commands_of_a_page_run(page, folder):
    write_recipes(page, folder)
    run(commands_to_run(page), folder)


def test_the_recipes_give_outputs_that_are_made_again_from_their_own_recipes(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write_recipes("docs/recipes.md", folder)
    recipes = sorted((folder / "runs").iterdir())
    assert len(recipes) == 3
    for path in recipes:
        report = mtpack.pack(config=path, workers=1)
        counts = [source.counts for source in report.sources]
        assert len(counts) > 1
        assert all(each.turns_packed for each in counts)
        assert sum(each.rows_read for each in counts) == report.tally.rows_read
        again = mtpack.pack(config=f"{report.output}/recipe.toml", output=f"{path.stem}_again")
        assert again.shards == report.shards


def test_the_examples_in_help_texts_run(folder):
    run([command for command in EXAMPLE_COMMANDS if not VERIFY.match(command)], folder)


def test_the_commands_that_verify_run(folder):
    add_model(folder)
    commands = [command for page in PAGES for command in commands_of(page)] + EXAMPLE_COMMANDS
    calls = {
        " ".join(shlex.split(VERIFY.sub("mtpack verify packed", command), comments=True))
        for command in commands
        if VERIFY.match(command)
    }
    assert len(calls) == 2
    run(["mtpack pack data/some.jsonl", *sorted(calls)], folder)


def test_every_command_has_examples_in_its_help():
    for name in ("mtpack", *main.commands):
        shown = CliRunner().invoke(main, ["--help"] if name == "mtpack" else [name, "--help"])
        for purpose, command in EXAMPLES[name]:
            assert f"  # {purpose}\n  {command}\n" in shown.stdout


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_a_page_about_the_code_names_only_what_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = set(re.findall(r"`(?:\w+\.)*(_?[A-Za-z]\w*)(?:\(\))?`", text))
    names = {name for name in named if "_" in name or not (name.islower() or name.isupper())}
    sources = [*ROOT.glob("mtpack/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / "pyproject.toml"]
    source = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert names
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", source)) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_options_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    in_line = re.findall(r"`((?:mtpack|python -m benchmarks)[^`]*)`", text)
    indented = re.findall(r"^ {4}((?:mtpack|python) .*(?:\\\n.*)*)", text, re.MULTILINE)
    for line in in_line + indented + commands_of(page):
        if program := re.search(r"\bmtpack (pack|inspect|verify)\b(.*)", line, re.DOTALL):
            command = main.commands[program[1]]
        elif program := re.search(r"\bbenchmarks[./](\w+)(.*)", line, re.DOTALL):
            command = import_module(f"benchmarks.{program[1].removesuffix('.py')}").main
        else:
            continue
        known = {name for param in command.params for name in param.opts} | {"--help"}
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", program[2])) <= known, line


def test_the_python_of_the_quick_start_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (code,) = blocks("python", "docs/quick-start.md")
    exec(code, {})
    assert re.fullmatch(r"\d+ \d+ \[.*\]\n", capsys.readouterr().out)


def slug(heading: str) -> str:
    """Return the anchor that a forge gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            if anchor:
                headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
                assert anchor in map(slug, headings), link


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == pages


def test_the_example_of_the_means_is_computed_right():
    page = (ROOT / "docs" / "normalization.md").read_text(encoding="utf-8")
    lengths = [5, 500, 50]  # the first two in one document
    weights = {
        "turn_mean": [1, 1, 1],
        "token_mean": lengths,
        "dialogue_mean": [5 / 505, 500 / 505, 1],
        "square_root": [sqrt(length) for length in lengths],
    }
    for name, parts in weights.items():
        cells = " | ".join(f"{part / sum(parts):.1%}" for part in parts)
        assert f"| `{name}` | {cells} |" in page


def test_every_option_of_pack_is_shown_under_one_heading():
    grouped = [name for names in OPTION_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(["config", *(option.name for option in fields(PackOptions))])


def test_every_option_is_documented_and_has_a_help_text():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(main, ["pack", "--help"]).stdout
    for option in fields(PackOptions):
        assert f"`{flag(option.name)}`" in page or f", {flag(option.name)}`" in page
        assert flag(option.name) in shown
        assert option.metadata["help"].split()[0] in shown


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("mtpack ins", ["inspect"]),
        ("mtpack pack --overl", ["--overlong"]),
        ("mtpack pack --merge al", ["always"]),
        ("mtpack pack sam", ["sample_data"]),
        ("mtpack pack --tokenizer pa", ["path"]),
        ("mtpack inspect sam", ["sample_data"]),
        ("mtpack verify --model pa", ["path"]),
    ],
)
def test_a_shell_completes_commands_options_values_and_files(typed, completed, folder):
    (setup,) = [command for command in commands_of("docs/quick-start.md") if "eval" in command]
    words = " ".join(map(shlex.quote, typed.split()))
    ask = [
        "compopt() { while read -r name; do COMPREPLY+=($name); done < <(compgen -f -- $word); }",
        setup,
        f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))",
        "word=${COMP_WORDS[COMP_CWORD]}",
        "_mtpack_completion mtpack; printf '%s\\n' \"${COMPREPLY[@]}\"",
    ]
    assert run(ask, folder).split() == completed


def test_an_option_can_be_set_by_environment(tmp_path):
    arguments = [
        "pack",
        str(SAMPLE_DATA / "conversations_en.jsonl"),
        "-o",
        str(tmp_path / "packed"),
    ]
    result = CliRunner().invoke(main, arguments, env={"MTPACK_PACK_SEQ_LEN": "512"})
    assert result.exit_code == 0, result.output
    assert mtpack.open_shards(tmp_path / "packed").metadata.seq_len == 512


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # no GPU
def test_the_trainer_logs_the_mean_over_the_turns_of_a_step(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.support.one_sample_per_turn import compute_mean_over_turns

    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:8]))
    monkeypatch.chdir(tmp_path)
    mtpack.pack("rows.jsonl", output="my_packed", seq_len=1024, workers=1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,  # so that turns differ in their loss
    )
    model = transformers.LlamaForCausalLM(config)
    sequences = mtpack.open_shards("my_packed")
    assert 2 < len(sequences) <= 8  # several micro-batches, and no more than a step takes
    with torch.no_grad():
        expected = compute_mean_over_turns(model, list(sequences)).item()
    (training,) = [block for block in blocks("python") if "TurnMeanTrainer" in block]
    names = {"model": model}
    exec(training.replace('"trained", ', '"trained", use_cpu=True, '), names)
    assert names["trainer"].state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
