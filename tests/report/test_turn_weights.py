"""What `inspect` shows of shards whose turns have weights (`--turn-weights`)."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mtpack.cli import main
from mtpack.errors import InputError
from mtpack.report.extreme_turns import find_extreme_turns
from mtpack.report.figures import count_figures
from mtpack.report.row_view import view_row
from mtpack.report.sequence_view import show_row
from mtpack.shards.dataset import Shards, map_shards
from tests.support.builders import (
    columns_of_sequences,
    metadata_of,
    open_sequences,
    write_columns,
)
from tests.support.inspected import plain_console, text_of
from tests.support.strategies import Document, Turn

DOCUMENT = Document(
    row=0,
    ids=[*range(30)],
    turns=[
        Turn(1, 0, [(1, 5)], units=512),  # 0.5/4 for each token
        Turn(3, 0, [(6, 8)], units=2048),  # 2/2
        Turn(5, 0, [(10, 20)], units=20480),  # 20/10
        Turn(7, 0, [(22, 30)], units=307),  # 0.2998/8
    ],
)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return open_sequences(tmp_path, [[DOCUMENT]])


def test_a_turn_shows_its_weight_divided_by_its_loss_tokens(shards):
    console = plain_console()
    show_row(view_row(shards, 0), None, console)
    shown = text_of(console)
    assert "×w/n is the weight of each token" in shown
    for note in ("×0.5/4", "×2/2", "×20/10", "×0.2998/8"):
        assert f"{note}]" in shown


def test_the_weights_of_the_tokens_of_a_turn_add_up_to_its_own(shards):
    for turn, packed in zip(view_row(shards, 0).turns, DOCUMENT.turns, strict=True):
        assert turn.weight * turn.loss_token_num == pytest.approx(packed.units / 1024)
        assert turn.as_dict()["turn_weight"] == packed.units / 1024


def test_turns_are_listed_by_the_weight_of_their_tokens(shards):
    found = find_extreme_turns(shards, 2)
    assert [turn.message for turn in found.shortest] == [5, 3]
    assert [turn.message for turn in found.longest] == [7, 1]
    own = [turn.units / 1024 for turn in DOCUMENT.turns]
    assert found.weigh(found.shortest[0])["turn_mean"] == pytest.approx(20 / sum(own) * 4)
    tokens = sum(
        weight * len(turn.positions) for weight, turn in zip(own, DOCUMENT.turns, strict=True)
    )
    assert found.weigh(found.longest[0])["token_mean"] == pytest.approx(own[3] * 8 * 4 / tokens)


def test_the_share_of_the_gradient_is_that_of_the_weights(shards):
    shares = {each.low: each.weights for each in count_figures(shards).weight_by_length}
    own = {2: 2, 4: 0.5, 8: 20 + 307 / 1024}
    for low, weight in own.items():
        assert shares[low]["turn_mean"] == pytest.approx(weight / sum(own.values()))


def test_the_command_shows_weights(shards, tmp_path):
    output = str(tmp_path / "out")
    run = CliRunner().invoke
    turns = run(main, ["inspect", output, "--turns"]).output
    assert "20/10" in turns
    assert "where a turn of weight w has" in turns
    assert ": the shortest" not in turns
    row = json.loads(run(main, ["inspect", output, "--row", "0", "--json"]).output)
    assert [turn["turn_weight"] for turn in row["turns"]] == [0.5, 2.0, 20.0, 307 / 1024]
    page = tmp_path / "report.html"
    assert run(main, ["inspect", output, "--html", str(page)]).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "of a turn of weight w has the weight w/n" in text
    assert '"weight":20.0' in text


def test_a_page_of_turns_without_weights_says_that_all_are_equal(tmp_path):
    plain = Document(0, [*range(8)], [Turn(1, 0, [(1, 8)])])
    open_sequences(tmp_path, [[plain]])
    page = tmp_path / "report.html"
    CliRunner().invoke(main, ["inspect", str(tmp_path / "out"), "--html", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "Each of its n tokens has the weight 1/n" in text
    assert '"weight":' not in text


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, 1e9])
def test_damaged_weights_are_refused(tmp_path, weight):
    metadata = metadata_of(extra_columns=("turn_weights",))
    columns = columns_of_sequences([[DOCUMENT]], metadata)
    columns.turn_weights[1] = weight
    write_columns(tmp_path / "shard.arrow", columns, metadata)
    damaged = map_shards(tmp_path / "shard.arrow")
    for show in (lambda: view_row(damaged, 0), lambda: count_figures(damaged)):
        with pytest.raises(InputError, match="turn_weights has no weight of a turn"):
            show()
