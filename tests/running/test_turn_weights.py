"""`--turn-weights`: each turn has its own part in the mean, wherever it is packed."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mtpack
from mtpack.verify.structure import check_structure
from tests.conftest import SAMPLE_DATA

THINKING = (  # rewrites history: a thinking is shown in the last answer only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = [
    json.loads(line)
    for path in sorted(SAMPLE_DATA.glob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()[:6]
]
WEIGHTS = (0.5, 0.3, 2, 1.25, 0.1, 7)


def pack(folder: Path, rows: list[dict], name: str = "packed", **options) -> mtpack.PackReport:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"seq_len": 512, "workers": 1, **options}
    return mtpack.pack(path, output=folder / name, **settings)


def read_turns(output: Path) -> dict[tuple[int, int], float]:
    """Return the weight of every turn by dialogue and message, as a trainer finds them."""
    found = {}
    for row in mtpack.open_shards(output):
        ends = row["seq_lengths"].cumsum()
        for start, message, weight in zip(
            row["turn_starts"], row["turn_messages"], row["turn_weights"], strict=True
        ):
            dialogue = int(row["dialogue_ids"][(ends <= start).sum()])
            found[dialogue, int(message)] = float(weight)
    return found


def weigh_by_definition(rows: list[dict]) -> dict[tuple[int, int], float]:
    """Return what the weights of the turns of rows must be."""
    turns = {}
    for number, row in enumerate(rows):
        for index, message in enumerate(row["messages"]):
            weight = message.get("weight", 1)
            units = round(Fraction(weight) * 1024)
            if message["role"] == "assistant" and units and message.get("train", True):
                turns[number, index] = units / 1024
    return turns


def add_weights(rows: list[dict]) -> list[dict]:
    """Return rows in which two of three answers have a weight."""
    weights = iter(WEIGHTS * 1000)
    weighted = []
    for row in rows:
        messages = [dict(message) for message in row["messages"]]
        for index, message in enumerate(messages):
            if message["role"] == "assistant" and index % 3:
                message["weight"] = next(weights)
        weighted.append({"messages": messages})
    return weighted


PLAIN = [
    {"messages": row["messages"]}
    for row in ROWS
    if all(set(message) == {"role", "content"} for message in row["messages"])
]
WEIGHTED = add_weights(PLAIN)

SHORT = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]}

texts = st.sampled_from(["So.", "A cat is an animal.", "<think>Hm.</think>Yes.", "No"])
some_weights = st.one_of(
    st.none(), st.sampled_from([0, 1, 0.0004]), st.floats(0, 16384), st.integers(0, 16384)
)


@st.composite
def dialogues(draw) -> dict:
    messages = []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(texts)})
        answer = {"role": "assistant", "content": draw(texts)}
        weight = draw(some_weights)
        messages.append(answer if weight is None else {**answer, "weight": weight})
    return {"messages": messages}


@given(
    rows=st.lists(dialogues(), min_size=1, max_size=4),
    merge=st.sampled_from(["auto", "always", "never"]),
    overlong=st.sampled_from(["turns", "split", "truncate"]),
    template=st.booleans(),
    alignment=st.sampled_from(["aligned", "shifted"]),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_packed_turn_has_the_weight_of_its_message(
    tmp_path_factory, rows, merge, overlong, template, alignment
):
    folder = tmp_path_factory.mktemp("weights")
    options = {"merge": merge, "overlong": overlong, "label_alignment": alignment}
    if template:
        options["chat_template"] = folder / "template.jinja"
        options["chat_template"].write_text(THINKING, encoding="utf-8")
    expected = weigh_by_definition(rows)
    expected[len(rows), 1] = 1.0
    rows = [*rows, SHORT]  # so that there is something to pack
    report = pack(folder, rows, seq_len=64, turn_weights=True, **options)
    found = read_turns(folder / "packed")
    assert found == {turn: expected[turn] for turn in found}
    assert len(expected) == report.tally.turns_read
    assert sum(found.values()) * 1024 == report.tally.weight_units
    assert check_structure(mtpack.open_shards(folder / "packed")).violation is None


def test_weights_change_nothing_but_their_column(tmp_path):
    pack(tmp_path, PLAIN, "plain")
    pack(tmp_path, WEIGHTED, "weighted", turn_weights=True)
    plain, weighted = (mtpack.open_shards(tmp_path / name) for name in ("plain", "weighted"))
    assert (plain.metadata.format_version, weighted.metadata.format_version) == (1, 2)
    for row, other in zip(plain, weighted, strict=True):
        assert other.keys() - row.keys() == {"turn_weights"}
        assert all((row[name] == other[name]).all() for name in row.keys() - {"turn_num"})
    assert set(read_turns(tmp_path / "weighted").values()) > {0.5, 1.0}


def test_without_the_option_the_shards_have_no_weights(tmp_path):
    ones = [
        {"messages": [{**m, "weight": 1} if m["role"] == "assistant" else m for m in r["messages"]]}
        for r in PLAIN
    ]
    report, same = pack(tmp_path, PLAIN, "plain"), pack(tmp_path, ones, "ones")
    assert [shard.sha256 for shard in report.shards] == [shard.sha256 for shard in same.shards]
    assert report.tally.weight_units == 0
    with pytest.raises(mtpack.MtpackError, match="other weights need --turn-weights"):
        pack(tmp_path, WEIGHTED, "refused")


def test_shards_of_rows_without_weights_have_the_weight_1_everywhere(tmp_path):
    report = pack(tmp_path, PLAIN, turn_weights=True)
    assert set(read_turns(tmp_path / "packed").values()) == {1.0}
    assert report.tally.weight_units == 1024 * report.tally.turns_packed


def test_a_weight_that_is_rounded_to_0_is_the_same_as_a_loss_switch(tmp_path):
    def with_last_answer(row: dict, **fields) -> dict:
        messages = [dict(message) for message in row["messages"]]
        last = max(n for n, m in enumerate(messages) if m["role"] == "assistant")
        messages[last] |= fields
        return {"messages": messages}

    small = pack(tmp_path, [with_last_answer(row, weight=1e-6) for row in PLAIN], "small",
                 turn_weights=True)  # fmt: skip
    off = pack(tmp_path, [with_last_answer(row, weight=0) for row in PLAIN], "off",
               turn_weights=True)  # fmt: skip
    assert [shard.sha256 for shard in small.shards] == [shard.sha256 for shard in off.shards]
    assert (small.tally.weight_too_small, off.tally.weight_too_small) == (len(PLAIN), 0)
    assert small.tally.turns_read == off.tally.turns_read


def test_any_number_of_workers_and_a_token_store_give_the_same_shards(tmp_path):
    expected = pack(tmp_path, WEIGHTED, "one", turn_weights=True)
    store = tmp_path / "tokens"
    for name, options in {
        "two": {"workers": 2},
        "stored": {"token_store": store},
        "reused": {"token_store": store},
    }.items():
        found = pack(tmp_path, WEIGHTED, name, turn_weights=True, **options)
        assert [s.sha256 for s in found.shards] == [s.sha256 for s in expected.shards]
        assert found.tally == expected.tally
    assert found.about.splits_reused == found.about.splits


def test_splits_of_runs_with_and_without_weights_are_kept_apart(tmp_path):
    store = tmp_path / "tokens"
    pack(tmp_path, PLAIN, "plain", token_store=store)
    found = pack(tmp_path, PLAIN, "weighted", token_store=store, turn_weights=True)
    assert found.about.splits_reused == 0


def test_datasets_reads_the_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    pack(tmp_path, WEIGHTED, turn_weights=True)
    table = datasets.load_from_disk(str(tmp_path / "packed"))
    rows = mtpack.open_shards(tmp_path / "packed")
    assert [row["turn_weights"] for row in table] == [row["turn_weights"].tolist() for row in rows]


@pytest.mark.parametrize("options", [{"ipc_format": "file"}, {"compression": "zstd"}])
def test_every_kind_of_shard_has_the_column(tmp_path, options):
    pack(tmp_path, WEIGHTED, "usual", turn_weights=True)
    pack(tmp_path, WEIGHTED, "other", turn_weights=True, **options)
    assert read_turns(tmp_path / "other") == read_turns(tmp_path / "usual")
