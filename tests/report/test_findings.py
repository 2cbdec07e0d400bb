"""The account of the turns: what is out of the ordinary, why, at what cost, and what avoids it."""

import io
import json
from collections import Counter
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.console import Console

import mtpack
from mtpack.cli import main
from mtpack.report.findings import notices_of, turn_summary
from mtpack.report.pack_report import show_report
from mtpack.shards.manifest import PackReport, RunInfo, ShardRecord, Tally

ORDINARY = Tally.of(
    Counter(
        rows_read=20,
        rows_packed=20,
        documents=20,
        turns_read=60,
        turns_packed=60,
        tokens=4000,
        tokens_if_merged=4000,
        loss_tokens=1000,
        sequences=2,
        sequences_lower_bound=2,
    )
)
EVERYTHING = replace(
    ORDINARY,
    documents=50,
    tokens=8000,
    sequences=4,
    turns_own_document=30,
    bent=1,
    unproven=2,
    prompt_differs=3,
    no_eot=4,
    given_trained=5,
    straddles=6,
    content_dropped={"assistant.tool_calls": 7, "system.content": 20, "tools": 9},
)
GOLDEN_REPORT = """\
rows          20  all packed
turns         60  all packed
rendered       0  dialogues; 0 filled in without that, exactly the same
documents     50
tokens     8,000  12.5% carry loss
sequences      4  of 2,048 tokens, 97.66% filled; no plan has fewer than 2

Turns, as the chat template writes them
merging exact      27  turns: proven, one by one, to be the same in one document
                       as alone
own document       30  turns: merging them is not exact, as the chat template
                       rewrites history; a template that keeps it avoids this,
                       --merge always accepts it
repeated        4,000  tokens: 8,000 in 4 sequences, 2.00 times what one
                       document a dialogue would have: 4,000 in about 2
bent                1  turns: merged though the chat template rewrites history,
                       so they are trained behind what the model won't see;
                       --merge auto avoids it
unproven            2  turns: merged unproven, as the chat template refuses the
                       dialogue up to them; another template may take it
prompt differs      3  turns: they start otherwise than the model's prompt ends;
                       --template-arg enable_thinking=false, say, may avoid it
no end of turn      4  turns: no control token ends them, so the model won't
                       learn to stop; a template that writes one avoids it
never shown         7  assistant messages: their tool calls, or some of them
never shown        20  system messages: their content
never shown         9  rows: their tools
                       The chat template leaves this out, so the model never
                       sees it; what may help: another template, or arguments
                       given as objects, or the system's words put into the
                       user's first message
given, trained      5  tokens: the prompt gives them, but the template's
                       generation tags have them trained
straddling          6  tokens: over the edge of a turn, so without loss

packed: 1 shard, 0.1 MiB, in 1.5 s after 0.5 s of loading
"""


def report_of(tally: Tally) -> str:
    """Return the report of a run, as an 80 column terminal shows it."""
    about = RunInfo(
        mtpack_version="0",
        tokenizer="none",
        seconds={"start": 0.5, "total": 1.5},
        warnings=[],
        inputs=[],
    )
    shards = [ShardRecord("shard-00000.arrow", tally.sequences, 2**17, "0")]
    console = Console(width=80, force_terminal=False, file=io.StringIO())
    show_report(
        PackReport(output="packed", seq_len=2048, tally=tally, shards=shards, about=about), console
    )
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def test_a_report_reads_like_this():
    assert report_of(EVERYTHING) == GOLDEN_REPORT


def test_a_run_out_of_which_nothing_stands_out_has_one_line_on_its_turns():
    assert notices_of(ORDINARY) == []
    (line,) = turn_summary(ORDINARY)
    assert (line.name, line.count) == ("merging exact", 60)


def test_a_count_of_zero_is_not_spoken_of():
    names = [finding.name for finding in notices_of(replace(EVERYTHING, bent=0, unproven=0))]
    assert "own document" in names
    assert not {"bent", "unproven"} & set(names)


def test_tokens_that_the_overlong_policy_left_out_are_no_negative_cost():
    assert notices_of(replace(ORDINARY, tokens=3000)) == []


# A template that rewrites history, as Qwen3's does: earlier turns lose their thinking.
FORGETTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.thinking if loop.last }}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "template.jinja").write_text(FORGETTING, encoding="utf-8")
    messages = []
    for number in range(3):
        messages.append({"role": "user", "content": f"question {number}"})
        answer = {"role": "assistant", "content": "answer", "reasoning_content": "thought"}
        messages.append(answer)
    row = json.dumps({"messages": messages, "tools": [{"name": "weather"}]})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    return tmp_path / "rows.jsonl"


def pack(rows, merge="auto") -> PackReport:
    return mtpack.pack(
        rows,
        output=rows.with_name(merge),
        chat_template=rows.with_name("template.jinja"),
        merge=merge,
        workers=1,
        seq_len=128,
    )


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        ("auto", {"merging exact": 2, "own document": 4}),
        ("always", {"merging exact": 2, "bent": 4}),
        ("never", {"merging exact": 2, "own document": 4}),
    ],
)
def test_every_packed_turn_is_accounted_for_once(rows, merge, expected):
    tally = pack(rows, merge).tally
    account = {finding.name: finding.count for finding in turn_summary(tally)}
    assert {name: account.get(name) for name in expected} == expected
    kinds = ("merging exact", "own document", "bent", "unproven")
    assert sum(account.get(name, 0) for name in kinds) == tally.turns_packed == 6


def test_the_cost_is_that_of_the_merged_run(rows):
    auto, merged = pack(rows).tally, pack(rows, "always").tally
    assert auto.tokens_if_merged == merged.tokens
    (repeated,) = [found for found in notices_of(auto) if found.name == "repeated"]
    assert repeated.count == auto.tokens - merged.tokens
    times = auto.tokens / merged.tokens
    assert f"{times:.2f} times what one document a dialogue would have: {merged.tokens}" in (
        repeated.text
    )


def test_pack_and_inspect_tell_the_same_in_words_and_in_figures(rows):
    report = pack(rows)
    folder = str(rows.with_name("auto"))
    arguments = ["pack", str(rows), "-o", folder, "--seq-len", "128"]
    arguments += ["--chat-template", str(rows.with_name("template.jinja"))]
    packed, inspected = (
        CliRunner().invoke(main, command) for command in (arguments, ["inspect", folder])
    )
    for finding in turn_summary(report.tally):
        for output in (packed.stdout, inspected.stdout):
            words = " ".join(output.split())
            assert " ".join(f"{finding.name} {finding.count} {finding.text}".split()) in words
    for command in ([*arguments, "--json"], ["inspect", folder, "--json"]):
        printed = json.loads(CliRunner().invoke(main, command).stdout)
        figures = printed.get("tally", printed)
        assert figures["turns_own_document"] == 4
        assert figures["content_dropped"] == {"tools": 2}
