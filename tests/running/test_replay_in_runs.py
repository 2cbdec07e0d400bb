"""Replay in runs: its counts, its audit, and what happens if it is wrong."""

import pickle
from dataclasses import replace
from itertools import count

import pytest

import mtpack
from mtpack.fast_path import Audit, FastPathFailedError
from mtpack.running.pack import Callbacks
from mtpack.template.tracing import replayer
from mtpack.template.tracing.budget import LearningBudget
from mtpack.template.tracing.slotted_dialogue import SlottedText
from tests.conftest import SAMPLE_DATA

ROWS = sorted(SAMPLE_DATA.glob("*.jsonl"))

pytestmark = pytest.mark.usefixtures("learn_everything")


def pack(folder, **options):
    warnings: list[str] = []
    settings = {"workers": 1, **options}
    report = mtpack.pack(ROWS, output=folder, callbacks=Callbacks(warn=warnings.append), **settings)
    return report, warnings


def test_every_accepted_dialogue_is_replayed_or_rendered(tmp_path):
    report, _ = pack(tmp_path / "packed")
    accepted = report.tally.rows_read - sum(report.tally.rows_rejected.values())
    assert report.about.replayed + report.about.rendered == accepted
    assert report.about.replayed > accepted * 0.8
    assert report.about.audit_mismatches == 0


def test_every_recorded_dialogue_is_compared_with_its_render(tmp_path):
    report, _ = pack(tmp_path / "packed")
    assert 0 < report.about.rendered <= report.about.audited


def break_replay(monkeypatch, is_wrong) -> None:
    """Make replayed texts begin with an extra space as soon as `is_wrong()`."""
    right, right_plans = SlottedText.fill, replayer.fill_plans

    def fill(slotted, values):
        text, lengths = right(slotted, values)
        return " " * is_wrong() + text, lengths

    def fill_plans(plans, chosen, rows):
        found = right_plans(plans, chosen, rows)
        return replace(found, texts=[" " * is_wrong() + text for text in found.texts])

    monkeypatch.setattr(SlottedText, "fill", fill)
    monkeypatch.setattr(replayer, "fill_plans", fill_plans)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"merge": "never", "overlong": "split", "seq_len": 96},  # suffixes are replayed too
    ],
)
def test_a_wrong_replay_discards_all_replays_of_the_run(tmp_path, monkeypatch, options):
    right, _ = pack(tmp_path / "right", **options)
    break_replay(monkeypatch, lambda: True)
    found, warnings = pack(tmp_path / "found", **options)
    assert found.shards == right.shards
    assert found.tally == right.tally
    assert found.about.audit_mismatches > 0
    assert found.about.replayed == 0
    assert sum("differs from its render" in line for line in warnings) == 1


def test_the_failure_of_a_fast_path_can_be_sent_to_another_process():
    failed = pickle.loads(pickle.dumps(FastPathFailedError("replay", "it is wrong")))
    assert (failed.fast_path, str(failed)) == ("replay", "it is wrong")


def test_the_seeded_sample_detects_a_replay_that_becomes_wrong_later(tmp_path, monkeypatch):
    right, _ = pack(tmp_path / "right")
    drawn = []
    draw = Audit.draw
    monkeypatch.setattr(
        Audit, "draw", lambda audit, rows: drawn.extend(rows.tolist()) or draw(audit, rows)
    )
    break_replay(monkeypatch, lambda: len(drawn) > 100)
    found, _ = pack(tmp_path / "found")
    assert found.about.audit_mismatches > 0
    assert found.shards == right.shards


def test_the_sample_depends_on_the_seed_and_its_time_is_limited(tmp_path):
    def sample(seed: int) -> list[int]:
        audit = Audit(seed)
        return [row for row in range(3200) if audit.is_due(row)]

    assert sample(1) == sample(1) != sample(2)
    assert 100 < len(sample(1)) < 300
    audit = Audit(1)
    audit.spent = 1e9  # far above its share
    assert not any(audit.is_due(row) for row in range(3200))


def test_a_process_knows_about_how_many_rows_it_gets(tmp_path, monkeypatch):
    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows) * 20)
    estimates = tmp_path / "estimates"

    def affords(budget, *_):
        with estimates.open("a") as file:
            file.write(f"{budget.num_dialogues}\n")
        return True

    monkeypatch.setattr(LearningBudget, "affords", affords)
    for workers in (1, 2):
        estimates.write_text("")
        mtpack.pack(tmp_path / "rows.jsonl", output=tmp_path / f"packed-{workers}", workers=workers)
        estimated = max(map(int, estimates.read_text().split()))
        assert 0.8 < estimated * workers / (20 * len(rows)) < 1.3


@pytest.mark.parametrize("merge", ["auto", "always", "never"])
def test_a_run_gives_the_same_whatever_is_recorded(tmp_path, monkeypatch, merge):
    everything, _ = pack(tmp_path / "everything", merge=merge)
    calls = count()
    monkeypatch.setattr(LearningBudget, "affords", lambda *_: next(calls) % 3 == 0)
    some, _ = pack(tmp_path / "some", merge=merge)
    monkeypatch.setattr(LearningBudget, "affords", lambda *_: False)
    nothing, _ = pack(tmp_path / "nothing", merge=merge)
    assert nothing.about.replayed == 0 < some.about.replayed < everything.about.replayed
    assert nothing.shards == some.shards == everything.shards
    assert nothing.tally == some.tally == everything.tally
