"""A step of TurnMeanTrainer on this device: its gradients, and its time against the stock Trainer.

    python -m benchmarks.trainers packed --attention flash_attention_2 --attention sdpa

Gradients: those of a step of two sequences against one sample per turn, in the dtype of training.
Time: seconds of a step against the stock Trainer, on the same batches and the same model, one after
the other in this process. So read the ratio, not the seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Subset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from mtpack.integrations.padding_free import MODEL_INPUTS, padding_free_batch
from mtpack.integrations.transformers import TurnMeanTrainer
from mtpack.shards.dataset import Row
from mtpack.torch_data import PackedDataset


class Gradients(TrainerCallback):
    """Stores the gradients of the last step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.last = flatten_gradients(model)


def flatten_gradients(model: Any) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()])


def split_into_samples(row: Row) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield, for every turn, the ids of its document up to its end, and its token positions."""
    ends = row["seq_lengths"].cumsum()
    positions = torch.from_numpy(row["loss_mask"].nonzero()[0])
    while len(positions):
        turn = positions[: int(row["loss_token_num"][positions[0]])]
        positions = positions[len(turn) :]
        start = int(max((end for end in ends if end <= turn[0]), default=0))
        yield torch.tensor(row["input_ids"][start : turn[-1] + 1]).long(), turn - start


def train_one_sample_per_turn(model: LlamaForCausalLM, rows: list[Row]) -> torch.Tensor:
    samples = [sample for row in rows for sample in split_into_samples(row)]
    model.zero_grad()
    for ids, positions in samples:
        logits = model(ids[None].to(model.device)).logits[0, positions - 1].float()
        loss = cross_entropy(logits, ids[positions].to(model.device))
        (loss / len(samples)).backward()
    return flatten_gradients(model)


def select_model_inputs(rows: list[Row]) -> dict[str, Any]:
    batch = padding_free_batch(rows)
    return {name: batch[name] for name in (*MODEL_INPUTS, "labels")}


@click.command()
@click.argument("packed", type=click.Path(exists=True, path_type=Path))
@click.option("--attention", multiple=True, default=("sdpa",), help="May be given several times.")
@click.option("--hidden", default=256, help="Hidden size of the random model.")
@click.option("--layers", default=4)
@click.option("--steps", default=10, help="Timed steps, of one sequence each.")
def main(packed: Path, attention: tuple[str, ...], hidden: int, layers: int, steps: int) -> None:
    """Print, for each attention, the error of the gradients and the ratio of the times."""
    cuda = torch.cuda.is_available()
    dataset = PackedDataset(packed, label_alignment="aligned")
    rows = [dataset[number] for number in range(min(2, len(dataset)))]
    vocabulary = 1 + max(int(row["input_ids"].max()) for row in dataset)
    print(f"{torch.cuda.get_device_name() if cuda else 'cpu'}, {len(rows[0]['input_ids'])} tokens")
    for implementation in attention:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
        )
        dtype = torch.bfloat16 if cuda else torch.float32
        model = LlamaForCausalLM._from_config(
            config, attn_implementation=implementation, dtype=dtype
        )
        difference, seconds, stock_seconds = compare_trainers(
            model.to("cuda" if cuda else "cpu"), dataset, rows, steps
        )
        print(
            f"{implementation}: gradients differ by {difference:.1e} ({dtype}); "
            f"{seconds:.3f} s a step, {seconds / stock_seconds:.2f} times the stock Trainer's"
        )


def compare_trainers(
    model: Any, dataset: Any, rows: list[Row], steps: int
) -> tuple[float, float, float]:
    """Return the error of the gradients, and the seconds per step of both trainers."""
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "use_cpu": model.device.type == "cpu",
            "per_device_train_batch_size": 1,
            "train_sampling_strategy": "sequential",
            "learning_rate": 0.0,
            "max_grad_norm": 0.0,
            "remove_unused_columns": False,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": model.device.type == "cuda",
        }
        gradients = Gradients()
        TurnMeanTrainer(
            model,
            TrainingArguments(**settings, gradient_accumulation_steps=len(rows), max_steps=1),
            train_dataset=Subset(dataset, range(len(rows))),
            callbacks=[gradients],
        ).train()
        reference = train_one_sample_per_turn(model, rows)
        timed = TrainingArguments(**settings, max_steps=steps)
        trainers = (
            Trainer(model, timed, data_collator=select_model_inputs, train_dataset=dataset),
            TurnMeanTrainer(model, timed, train_dataset=dataset),
        )
        stock_seconds, seconds = (
            trainer.train().metrics["train_runtime"] / steps for trainer in trainers
        )
    difference = float((gradients.last - reference).norm() / reference.norm())
    return difference, seconds, stock_seconds


if __name__ == "__main__":
    main()
