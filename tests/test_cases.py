"""Golden cases: one page each, a dialogue and what is trained in it (`tests/cases/*.txt`).

A case holds an explanation, `# options` of `mtpack pack`, perhaps a `# template` and the model's
`# generation_config`, `# rows` as JSON, and `# output`: each document as text with its loss tokens
in ⟦brackets⟧, the turns with the weight of each of their loss tokens, and what the report counts.
The output is written by

    python -m pytest tests/test_cases.py --update-cases

so a change of behaviour is a change of these files: read the diff before you commit it. The cases
use the tokenizer that comes with mtpack, which knows `<|im_start|>`, `<|im_end|>`, `<|endoftext|>`,
`<think>`, `</think>`, `<tool_call>` and `</tool_call>` as single tokens.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import mtpack
from mtpack.cli import main
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, load_tokenizer
from tests.conftest import ROOT
from tests.support.packed_texts import bracket_text, iterate_documents

CASES = sorted((ROOT / "tests" / "cases").glob("*.txt"))
HEADINGS = ("options", "generation_config", "template", "rows", "output")
# What a report counts of rows, turns and tokens beyond a plain run; shown where it is not 0.
COUNTS = (
    "rows_dropped",
    "never_read",
    "rows_rejected",
    "turns_dropped",
    "turns_own_document",
    "bent",
    "unproven",
    "prompt_other_mode",
    "prompt_context",
    "prompt_differs",
    "no_eot",
    "not_a_stop",
    "rows_in_mode",
    "reasoning_missing",
    "reasoning_empty",
    "weight_too_small",
    "weight_units",
    "given_trained",
    "straddles",
    "content_dropped",
    "control_tokens",
    "control_tokens_in_answers",
    "control_tokens_literal",
)


def sections_of(case: str) -> dict[str, str]:
    """Return the sections of a case by heading; the explanation has the heading ''."""
    parts = re.split(rf"^# ({'|'.join(HEADINGS)})\n", case, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def lines_of(rows: str) -> str:
    """Return JSON values, each over as many lines as it likes, as JSONL."""
    decoder, lines, start = json.JSONDecoder(), [], 0
    while start < len(rows.rstrip()):
        start = re.compile(r"\s*").match(rows, start).end()
        end = decoder.raw_decode(rows, start)[1]
        lines.append(re.sub(r"\n\s*", " ", rows[start:end]) + "\n")
        start = end
    return "".join(lines)


def run_case(sections: dict[str, str], folder: Path) -> Iterator[str]:
    """Pack the rows of a case with the command's own options; yield what comes out, as lines."""
    (folder / "rows.jsonl").write_text(lines_of(sections["rows"]), encoding="utf-8")
    arguments = ["rows.jsonl", *shlex.split(sections["options"])]
    if "generation_config" in sections:
        shutil.copytree(EMBEDDED_FOLDER, folder / "tokenizer")
        config = folder / "tokenizer" / "generation_config.json"
        config.write_text(sections["generation_config"], encoding="utf-8")
        arguments += ["--tokenizer", "tokenizer"]
    if "template" in sections:
        (folder / "template.jinja").write_text(sections["template"][:-1], encoding="utf-8")
        arguments += ["--chat-template", "template.jinja"]
    with click.Context(main), main.commands["pack"].make_context("pack", arguments) as context:
        options = {name: value for name, value in context.params.items() if name != "inputs"}
    for name in ("as_json", "quiet", "dry_run", "print_config", "config"):
        del options[name]
    warnings: list[str] = []
    callbacks = mtpack.Callbacks(warn=warnings.append)
    try:
        report = mtpack.pack("rows.jsonl", callbacks=callbacks, **options | {"workers": 1})
    except mtpack.MtpackError as error:
        yield f"error, exit status {error.exit_status}: {error}"
        return
    yield from documents_of(mtpack.open_shards("packed"))
    for line in Path("packed/rejects.jsonl").read_text(encoding="utf-8").splitlines():
        reject = json.loads(line)
        yield f"rejected: row {reject['row']}, {reject['reason']}: {reject['detail']}"
    for warning in warnings:
        if "small tokenizer" not in warning:
            yield warning
    figures = report.as_dict()
    counted = {name: figures[name] for name in COUNTS if figures[name]}
    yield "counted: " + (json.dumps(counted)[1:-1].replace('"', "") or "nothing unusual")


def documents_of(shards: mtpack.Shards) -> Iterator[str]:
    """Yield every document, in the order of its dialogue and its turns."""
    documents = []
    for number, row in enumerate(shards):
        for dialogue, start, end in iterate_documents(row):
            inside = (start <= row["turn_starts"]) & (row["turn_starts"] < end)
            turns = list(zip(row["turn_starts"][inside], row["turn_messages"][inside], strict=True))
            key = (dialogue, -len(turns), int(turns[0][1]))
            documents.append((key, number, list(document_of(row, start, end, turns))))
    for key, number, lines in sorted(documents):
        yield f"--- dialogue {key[0]}, in sequence {number}: {lines[0]}"
        yield from lines[1:]


def document_of(row, start: int, end: int, turns: list[tuple[int, int]]) -> Iterator[str]:
    """Yield a document's length, its text, and its turns."""
    heads = [int(turn) for turn, _ in turns]
    text = bracket_text(row, start, end, heads, load_tokenizer(None).backend.decode)
    yield f"{end - start} tokens"
    yield re.sub(r" (?=\n|$)", "␣", text)
    for head, message in turns:
        number, weight = row["loss_token_num"][head], 1
        if "turn_weights" in row:
            weight = float(row["turn_weights"][row["turn_starts"].tolist().index(head)])
        assert (row["labels"][head], row["loss_mask"][head]) == (row["input_ids"][head], 1)
        tokens = "1 loss token" if number == 1 else f"{number} loss tokens, each"
        yield f"turn: message {message}, {tokens} with weight {weight:g}/{number}"


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_a_case_gives_what_its_page_says(path, tmp_path, monkeypatch, request):
    case = path.read_text(encoding="utf-8")
    sections = sections_of(case)
    monkeypatch.chdir(tmp_path)
    output = "\n".join(run_case(sections, tmp_path)) + "\n"
    if request.config.getoption("--update-cases"):
        before = case.partition("# output\n")[0]
        path.write_text(f"{before.rstrip()}\n\n# output\n{output}", encoding="utf-8")
    else:
        assert output.splitlines() == sections["output"].splitlines()


def test_every_case_explains_itself_and_is_an_example_in_the_docs():
    assert len(CASES) >= 25
    page = (ROOT / "docs" / "turns.md").read_text(encoding="utf-8")
    for path in CASES:
        sections = sections_of(path.read_text(encoding="utf-8"))
        assert sections[""].strip(), path
        assert page.count(f"[{path.stem}]") == 2, f"docs/turns.md does not link {path.name}"
        found = [name for name in sections if name]
        assert found == [name for name in HEADINGS if name in found], path
        assert {"options", "rows", "output"}.issubset(found), path
