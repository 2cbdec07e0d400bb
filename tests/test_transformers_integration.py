"""The trainers against the definition: one sample per turn, each alone, the mean over turns.

The real libraries train a tiny random model in float64 with a learning rate of zero, so that every
step is that of the same model; the gradients are taken before the optimizer would use them.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

from mtpack.assembling import Layout
from mtpack.integrations.transformers import TurnMeanTrainer
from mtpack.torch_data import PackedDataset
from tests.builders import (
    PAD_ID,
    SEQ_LEN,
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    write_output,
)
from tests.strategies import Document, Turn

torch.set_num_threads(1)

SEQUENCES = [
    *hand_made_sequences(),
    [Document(8, [*range(100, 130)], [Turn(1, 0, [(3, 4)]), Turn(3, 0, [(9, 30)])])],
    [Document(9, [*range(50, 56)], [Turn(1, 0, [(2, 6)])])],
]
"""Five rows of 3, 4, 2, 2 and 1 turns; turns of 1 to 21 tokens."""

TOLERANCE = 1e-12  # of the norm of a gradient in float64, through two layers and ~100 tokens


@pytest.fixture
def packed(tmp_path) -> Path:
    return pack(tmp_path / "packed")


def pack(folder: Path, label_alignment: str = "aligned") -> Path:
    columns = columns_of_sequences(SEQUENCES, Layout(SEQ_LEN, label_alignment, 1, PAD_ID))
    return write_output(folder, [columns], metadata_of(label_alignment))


def tiny_model(**options: Any) -> GPT2LMHeadModel:
    """GPT-2, since most others compute norms and rotary embeddings in float32, whatever they are."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=150,
        n_positions=SEQ_LEN,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,  # so that what a token sees makes a difference
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel._from_config(config, dtype=torch.float64, **options)


def mean_over_turns(model: GPT2LMHeadModel, rows: list[int]) -> torch.Tensor:
    """The definition: every turn alone behind its own context, the mean of its token losses."""
    turns = [
        (document.ids[: turn.end], turn.positions)
        for row in rows
        for document in SEQUENCES[row]
        for turn in document.turns
    ]
    losses = []
    for ids, positions in turns:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        before = torch.tensor(positions) - 1
        losses.append(cross_entropy(logits[before], torch.tensor(ids)[positions]))
    return torch.stack(losses).mean()


def gradients_of(model: GPT2LMHeadModel) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def expected(rows: list[int]) -> tuple[float, torch.Tensor]:
    """Return the loss and the gradients of a step of these rows."""
    model = tiny_model()
    loss = mean_over_turns(model, rows)
    loss.backward()
    return loss.item(), gradients_of(model)


@dataclass
class Steps(TrainerCallback):
    """What a run gave: the gradients and the logged loss of every step."""

    gradients: list[torch.Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(gradients_of(model))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []


def arguments(folder: Path, batch_size: int = 1, accumulation: int = 1, **options: Any) -> dict:
    return {
        "output_dir": str(folder / "trainer"),
        "use_cpu": True,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **options,
    }


def train(trainer) -> Steps:
    steps = Steps()
    trainer.add_callback(steps)
    trainer.train()
    return steps


def assert_steps(steps: Steps, rows_of_steps: list[list[int]]) -> None:
    assert len(steps.gradients) == len(rows_of_steps)
    for loss, gradients, rows in zip(steps.losses, steps.gradients, rows_of_steps, strict=True):
        expected_loss, expected_gradients = expected(rows)
        difference = (gradients - expected_gradients).norm() / expected_gradients.norm()
        assert difference < TOLERANCE, rows
        assert loss == pytest.approx(expected_loss, rel=1e-6)  # the log is in float32


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "rows_of_steps"),
    [
        (1, 1, [[0], [1], [2], [3], [4]]),
        (1, 2, [[0, 1], [2, 3], [4]]),
        (1, 4, [[0, 1, 2, 3], [4]]),
        (2, 2, [[0, 1, 2, 3], [4]]),
        (4, 1, [[0, 1, 2, 3], [4]]),
    ],
)
def test_a_step_is_the_mean_over_its_turns(
    packed, tmp_path, batch_size, accumulation, rows_of_steps
):
    trainer = TurnMeanTrainer(
        tiny_model(),
        TrainingArguments(**arguments(tmp_path, batch_size, accumulation)),
        train_dataset=PackedDataset(packed),
    )
    assert_steps(train(trainer), rows_of_steps)
