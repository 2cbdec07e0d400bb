"""The PyTorch recipe of docs/training.md against one unpacked sample per turn.

Two processes train a tiny random model on packed sample data. Parameters and gradients are stored
before every step of the optimizer, and compared with those of the definition for the same
parameters.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DistributedSampler
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import mtpack
from mtpack.shards.dataset import Row
from mtpack.torch_data import PackedDataset
from tests.conftest import ROOT, SAMPLE_DATA
from tests.support.one_sample_per_turn import compute_mean_over_turns

torch.set_num_threads(1)

RANKS = 2
MICRO_BATCHES = 3  # so that the 4 sequences of a rank are a step of 3 and a step of 1
TOLERANCE = 1e-5  # of the norm of a gradient, in float32


def read_recipes() -> dict[str, str]:
    """Return `train.py` of the page, and the same with the `forward` that saves memory."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.split("## PyTorch\n")[1].split("\n## ")[0]
    script, saving_memory = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for shown, smaller in (
        ("MICRO_BATCHES = 8 ", f"MICRO_BATCHES = {MICRO_BATCHES} "),
        ("MAX_NORM = 1.0", "MAX_NORM = torch.inf"),
    ):
        assert script.count(shown) == 1
        script = script.replace(shown, smaller)
    forward = re.search(r"    def forward\(.*?\n(?=\n\n)", script, re.DOTALL)[0]
    return {
        "logits": script,
        "hidden_states": script.replace(forward, saving_memory).replace(
            "import turn_mean_loss", "import linear_turn_mean_loss"
        ),
    }


def save_tiny_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,  # so that the context of a token has a clear effect
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def train_as_one_rank(rank: int, ports: dict[str, int], folder: Path) -> None:
    """Run the recipes, and write the results of each to its own folder."""
    steps: list[dict[str, Any]] = []

    def keep(optimizer: Any, *_: Any) -> None:
        parameters = optimizer.param_groups[0]["params"]
        steps.append(
            {
                "parameters": [parameter.detach().clone() for parameter in parameters],
                "gradients": torch.cat([parameter.grad.flatten() for parameter in parameters]),
            }
        )

    register_optimizer_step_pre_hook(keep)
    for name, script in read_recipes().items():
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(ports[name]),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "CUDA_VISIBLE_DEVICES": "",
        }
        os.chdir(folder / name)
        steps.clear()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(script, {"__name__": "__main__"})
        torch.save((steps, printed.getvalue()), f"rank-{rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return a folder for each recipe, with its data, its model and the results of two ranks."""
    folder = tmp_path_factory.mktemp("recipes")
    dialogues = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    save_tiny_model(folder / "model")
    for name, rows in (("packed", dialogues[:10]), ("packed_eval", dialogues[10:15])):
        (folder / "rows.jsonl").write_text("".join(rows))
        mtpack.pack(
            folder / "rows.jsonl", output=str(folder / "data" / name), seq_len=512, workers=1
        )
    ports = {}
    for name in read_recipes():
        shutil.copytree(folder / "data", folder / name)
        shutil.copytree(folder / "model", folder / name / "path/to/model")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports[name] = free.getsockname()[1]
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        train_as_one_rank, (ports, folder), nprocs=RANKS, start_method="forkserver"
    )
    return folder


def list_rows_of_steps(dataset: PackedDataset) -> list[list[Row]]:
    """Return the sequences of every step of two epochs, on both ranks together."""
    steps = []
    for epoch in range(2):
        samplers = [DistributedSampler(dataset, RANKS, rank, drop_last=True) for rank in range(2)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        numbers = list(zip(*samplers, strict=True))
        for first in range(0, len(numbers), MICRO_BATCHES):
            micro_batches = numbers[first : first + MICRO_BATCHES]
            steps.append([dataset[row] for rows in micro_batches for row in rows])
    return steps


def find_printed(name: str, output: str) -> list[float]:
    return [float(loss) for loss in re.findall(rf" {name} (\S+)", output)]


@pytest.mark.parametrize("name", read_recipes())
def test_every_step_has_the_gradients_of_the_mean_over_its_turns(trained, name):
    of_ranks = [torch.load(trained / name / f"rank-{rank}.pt") for rank in range(RANKS)]
    dataset = PackedDataset(trained / name / "packed")
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    losses = []
    for rows, *steps in zip(
        list_rows_of_steps(dataset), *(steps for steps, _ in of_ranks), strict=True
    ):
        model.zero_grad()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), steps[0]["parameters"], strict=True):
                parameter.copy_(value)
        loss = compute_mean_over_turns(model, rows)
        loss.backward()
        losses.append(loss.item())
        expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        for step in steps:
            assert (step["gradients"] - expected).norm() < TOLERANCE * expected.norm()
    assert find_printed("loss", of_ranks[0][1]) == pytest.approx(losses, abs=1e-4)
    assert of_ranks[1][1] == ""


@pytest.mark.parametrize("name", read_recipes())
def test_the_evaluation_is_the_mean_over_all_turns_of_the_trained_model(trained, name):
    _, output = torch.load(trained / name / "rank-0.pt")
    dataset = PackedDataset(trained / name / "packed_eval")
    assert len(dataset) % RANKS == 1  # the ranks have unequal numbers of sequences
    model = AutoModelForCausalLM.from_pretrained(trained / name / "trained")
    with torch.no_grad():
        loss = compute_mean_over_turns(model, [dataset[row] for row in range(len(dataset))])
    assert find_printed("eval_loss", output)[-1] == pytest.approx(loss.item(), abs=1e-4)
