"""Notices about the turns: what is counted, the reason, the cost and the remedy."""

import io
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.console import Console

import mtpack
from mtpack.cli import main
from mtpack.counts import OTHER_KEYS, Counts
from mtpack.report.notices import notices_of, turn_summary
from mtpack.report.pack_report import show_report
from mtpack.shards.manifest import PackReport, RunInfo, ShardRecord

ORDINARY = Counts(
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
    never_read={"id": 20, "messages.mood": 3, "source": 20},
)
GOLDEN_REPORT = """\
rows          20  all packed
turns         60  all packed
rendered       4  dialogues, by the chat template
replayed      16  dialogues, from recordings of the template: identical by
                  construction, and audited on a sample
documents     50  in sequences, each a dialogue or a piece of one
tokens     8,000  12.5% carry loss
sequences      4  of 2,048 tokens, 97.66% filled; at least 2 are needed

What to know about the turns
merging exact      27  turns: the merged document is proven to be, up to the end
                       of each, the same as the dialogue that ends with that
                       turn
own document       30  turns: each has a document of its own, because the chat
                       template rewrites history, so merging is not exact; a
                       template that keeps history avoids this, --merge always
                       merges anyway
repeated        4,000  tokens: 8,000 in 4 sequences, 2.00 times as many as with
                       one document per dialogue: 4,000 in about 2
bent                1  turns: merged although the chat template rewrites
                       history, so they are trained after a text that the model
                       does not get at inference; --merge auto avoids this
unproven            2  turns: merged without proof, because the chat template
                       can't render the dialogue up to them; another template
                       may be able to
prompt_differs      3  turns: they do not continue the prompt that the model
                       gets at inference; a template argument may avoid this,
                       such as --template-arg enable_thinking=false
no_eot              4  turns: no control token ends them, so the model does not
                       learn to stop; a template that writes one avoids this
never shown         7  assistant messages: their tool calls, or some of them
never shown        20  system messages: their content
never shown         9  rows: their tools
                       The chat template leaves this out, so the model never
                       sees it; possible remedies: another template, or the
                       system's text at the start of the first user message
never read         20  rows each: id, source
never read          3  rows: messages.mood
                       Neither mtpack nor the chat template reads these keys
                       (docs/rows.md)
given_trained       5  tokens: part of the prompt, but trained, because the
                       template's generation tags mark them
straddles           6  tokens: partly inside and partly outside a turn, so the
                       text is cut there, if that is the start of a turn, or
                       they carry no loss

packed: 1 shard, 0.1 MiB; packed in 1.5 s, after 0.5 s of loading
mtpack 0, tokenizer none, 0 input files

Next: mtpack inspect packed
"""


def report_of(tally: Counts) -> str:
    """Return the report of a run, as an 80 column terminal shows it."""
    about = RunInfo(
        mtpack_version="0",
        tokenizer="none",
        seconds={"start": 0.5, "total": 1.5},
        warnings=[],
        inputs=[],
        rendered=4,
        replayed=16,
    )
    shards = [ShardRecord("shard-00000.arrow", tally.sequences, 2**17, "0")]
    console = Console(width=80, force_terminal=False, file=io.StringIO())
    show_report(
        PackReport(output="packed", seq_len=2048, tally=tally, shards=shards, about=about), console
    )
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def test_the_output_for_a_report():
    assert report_of(EVERYTHING) == GOLDEN_REPORT


def test_an_ordinary_run_has_one_line_about_its_turns():
    assert notices_of(ORDINARY) == []
    (line,) = turn_summary(ORDINARY)
    assert (line.name, line.count) == ("merging exact", 60)


def test_a_count_of_zero_has_no_notice():
    names = [notice.name for notice in notices_of(replace(EVERYTHING, bent=0, unproven=0))]
    assert "own document" in names
    assert not {"bent", "unproven"} & set(names)


def test_keys_that_are_never_read_take_a_few_lines_however_many_they_are():
    keys = {f"key{number}": number for number in range(1, 41)} | {OTHER_KEYS: 9}
    notices = notices_of(replace(ORDINARY, never_read=keys))
    assert [notice.count for notice in notices] == [40, 39, 38, 37, 36, 35, 9]
    assert notices[0].text == "rows: key40"
    assert notices[5].text == "further keys, in fewer rows (--json has them all)"


def test_tokens_dropped_by_the_overlong_policy_are_not_a_negative_cost():
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
def test_the_summary_counts_every_packed_turn_once(rows, merge, expected):
    tally = pack(rows, merge).tally
    counts = {notice.name: notice.count for notice in turn_summary(tally)}
    assert {name: counts.get(name) for name in expected} == expected
    kinds = ("merging exact", "own document", "bent", "unproven")
    assert sum(counts.get(name, 0) for name in kinds) == tally.turns_packed == 6


def test_the_repeated_tokens_are_compared_with_the_merged_run(rows):
    auto, merged = pack(rows).tally, pack(rows, "always").tally
    assert auto.tokens_if_merged == merged.tokens
    (repeated,) = [notice for notice in notices_of(auto) if notice.name == "repeated"]
    assert repeated.count == auto.tokens - merged.tokens
    times = auto.tokens / merged.tokens
    assert f"{times:.2f} times as many as with one document per dialogue: {merged.tokens}" in (
        repeated.text
    )


def test_pack_and_inspect_show_the_same_text_and_figures(rows):
    report = pack(rows)
    folder = str(rows.with_name("auto"))
    arguments = ["pack", str(rows), "-o", folder, "--seq-len", "128"]
    arguments += ["--chat-template", str(rows.with_name("template.jinja"))]
    packed, inspected = (
        CliRunner().invoke(main, command) for command in (arguments, ["inspect", folder, "--full"])
    )
    for notice in turn_summary(report.tally):
        for output in (packed.stdout, inspected.stdout):
            words = " ".join(output.split())
            assert " ".join(f"{notice.name} {notice.count} {notice.text}".split()) in words
    for command in ([*arguments, "--json"], ["inspect", folder, "--json"]):
        printed = json.loads(CliRunner().invoke(main, command).stdout)
        figures = printed.get("tally", printed)
        assert figures["turns_own_document"] == 4
        assert figures["content_dropped"] == {"tools": 2}
