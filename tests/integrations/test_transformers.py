"""The trainers against the definition of the mean over turns: one separate sample per turn.

The real libraries train a tiny random model in float64. The learning rate is zero, so that every
step has the same model; the gradients are read before the optimizer step.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import IterableDataset, Subset
from transformers import (
    AttentionInterface,
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig

from benchmarks.trainers import compare_trainers
from mtpack.errors import InputError, SetupError
from mtpack.integrations.padding_free import MODEL_INPUTS, padding_free_batch
from mtpack.integrations.transformers import TurnMeanTrainer
from mtpack.integrations.trl import TurnMeanSFTTrainer
from mtpack.shards.dataset import Row
from mtpack.torch_data import PackedDataset
from tests.conftest import ROOT
from tests.support.builders import (
    SEQ_LEN,
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    weigh_turns,
    write_output,
)
from tests.support.strategies import Document, Turn
from tests.test_architecture import imports_of

torch.set_num_threads(1)

SEQUENCES = [
    *hand_made_sequences(),
    [Document(8, [*range(100, 130)], [Turn(1, 0, [(3, 4)]), Turn(3, 0, [(9, 30)])])],
    [Document(9, [*range(50, 56)], [Turn(1, 0, [(2, 6)])])],
]
"""Five sequences of 3, 4, 2, 2 and 1 turns; turns of 1 to 21 tokens."""
WEIGHTED = weigh_turns(SEQUENCES, 512, 3072, 100)

Rows = list[list[int]]
TOKENS = ("input_ids", "labels")
TOKENIZER = ROOT / "mtpack/tokenizer/embedded/tokenizer.json"
SFT_TOLERANCE = 1e-5  # TRL computes the output layer in float32
SFT_WARNING = pytest.mark.filterwarnings(  # SFTConfig of trl 1.16 always sets it
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning"
)
TOLERANCE = 1e-12  # of the norm of a gradient in float64, through two layers and ~100 tokens


@pytest.fixture
def packed(tmp_path) -> Path:
    return pack(tmp_path / "packed")


def pack(folder: Path, label_alignment: str = "aligned", sequences: Any = SEQUENCES) -> Path:
    extra = ("turn_weights",) if sequences is WEIGHTED else ()
    metadata = metadata_of(label_alignment, extra_columns=extra)
    return write_output(folder, [columns_of_sequences(sequences, metadata)], metadata)


def build_tiny_model(**options: Any) -> GPT2LMHeadModel:
    """Build a GPT-2; most other models compute norms and positions in float32 for every dtype."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=150,
        bos_token_id=0,
        eos_token_id=0,
        n_positions=SEQ_LEN,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,  # so that the context of a token has a clear effect
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel._from_config(config, dtype=torch.float64, **options)


def compute_mean_over_turns(
    model: GPT2LMHeadModel, rows: list[int], sequences: Any = SEQUENCES
) -> torch.Tensor:
    """Compute the definition: every turn is a separate sample, and the mean of its token losses."""
    turns = [
        (document.ids[: turn.end], turn.positions, turn.units or 1)
        for row in rows
        for document in sequences[row]
        for turn in document.turns
    ]
    losses = []
    for ids, positions, _ in turns:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        before = torch.tensor(positions) - 1
        losses.append(cross_entropy(logits[before], torch.tensor(ids)[positions]))
    weights = torch.tensor([units for *_, units in turns], dtype=torch.float64)
    return (torch.stack(losses) * weights).sum() / weights.sum()


def flatten_gradients(model: GPT2LMHeadModel) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def compute_expected(
    rows: list[int], model: Any = None, sequences: Any = SEQUENCES
) -> tuple[float, torch.Tensor]:
    """Return the expected loss and gradients of a step of these sequences."""
    model = model or build_tiny_model()
    loss = compute_mean_over_turns(model, rows, sequences)
    loss.backward()
    return loss.item(), flatten_gradients(model)


@dataclass
class Steps(TrainerCallback):
    """The results of a run: the gradients and the logged loss of every step."""

    gradients: list[torch.Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    mean_loss: float = math.nan

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(flatten_gradients(model))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []


def build_arguments(
    folder: Path, batch_size: int = 1, accumulation: int = 1, **options: Any
) -> dict:
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


def build_sft_trainer(model: Any, settings: dict[str, Any], **datasets: Any) -> TurnMeanSFTTrainer:
    return TurnMeanSFTTrainer(
        model,
        SFTConfig(**settings, bf16=False),
        processing_class=PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER)),
        **datasets,
    )


def train(trainer) -> Steps:
    steps = Steps()
    trainer.add_callback(steps)
    steps.mean_loss = trainer.train().training_loss
    return steps


def compute_difference(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


def assert_steps(
    steps: Steps, rows_of_steps: Rows, tolerance: float = TOLERANCE, sequences: Any = SEQUENCES
) -> None:
    expected = [compute_expected(rows, sequences=sequences) for rows in rows_of_steps]
    losses, gradients = zip(*expected, strict=True)
    for found, reference in zip(steps.gradients, gradients, strict=True):
        assert compute_difference(found, reference) < tolerance
    assert steps.losses == pytest.approx(losses, rel=1e-6)  # the log is in float32
    assert steps.mean_loss == pytest.approx(fmean(losses), rel=1e-6)


def test_a_batch_equals_that_of_the_collator_of_transformers_for_its_documents(packed):
    rows = [PackedDataset(packed)[number] for number in (0, 1, 2)]
    documents = [
        {"input_ids": ids.tolist(), "labels": labels.tolist()}
        for row in rows
        for ids, labels in zip(
            *(np.split(row[name], row["seq_lengths"].cumsum()[:-1]) for name in TOKENS), strict=True
        )
    ]
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    expected_batch = collator(documents)
    batch = padding_free_batch(rows)
    for name, values in expected_batch.items():
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(values)), name
    assert set(MODEL_INPUTS) <= set(expected_batch)


def test_loss_on_the_first_token_of_a_document_is_refused(packed):
    row = PackedDataset(packed)[0]
    loss_mask, labels = row["loss_mask"].copy(), row["labels"].copy()
    loss_mask[0], labels[0] = 1, row["input_ids"][0]
    with pytest.raises(InputError, match="first token carries loss"):
        padding_free_batch([{**row, "loss_mask": loss_mask, "labels": labels}])


# Each entry: sequences of a micro-batch, micro-batches of a step, sequences of every step.
ACCUMULATED = [
    (1, 1, [[0], [1], [2], [3], [4]]),
    (1, 2, [[0, 1], [2, 3], [4]]),
    (1, 4, [[0, 1, 2, 3], [4]]),
    (2, 2, [[0, 1, 2, 3], [4]]),
    (4, 1, [[0, 1, 2, 3], [4]]),
]
ON_TWO_RANKS = [  # the loader fills up the last batches with the first sequences
    (1, 1, [[0, 1], [2, 3], [4, 0]]),
    (1, 2, [[0, 1, 2, 3], [4, 0]]),
    (1, 4, [[0, 1, 2, 3, 4, 0]]),
    (2, 1, [[0, 1, 2, 3], [4, 0, 1, 2]]),
]


@pytest.mark.parametrize(("batch_size", "accumulation", "rows_of_steps"), ACCUMULATED)
def test_a_step_is_the_mean_over_its_turns(
    packed, tmp_path, batch_size, accumulation, rows_of_steps
):
    trainer = TurnMeanTrainer(
        build_tiny_model(),
        TrainingArguments(**build_arguments(tmp_path, batch_size, accumulation)),
        train_dataset=PackedDataset(packed),
    )
    assert_steps(train(trainer), rows_of_steps)


@pytest.mark.parametrize(("batch_size", "accumulation", "rows_of_steps"), ACCUMULATED[1::2])
def test_a_step_of_weighted_turns_is_their_weighted_mean(
    tmp_path, batch_size, accumulation, rows_of_steps
):
    dataset = PackedDataset(pack(tmp_path / "packed", sequences=WEIGHTED))
    trainer = TurnMeanTrainer(
        build_tiny_model(),
        TrainingArguments(**build_arguments(tmp_path, batch_size, accumulation)),
        train_dataset=dataset,
        eval_dataset=dataset,
    )
    assert_steps(train(trainer), rows_of_steps, sequences=WEIGHTED)
    expected, _ = compute_expected([0, 1, 2, 3, 4], sequences=WEIGHTED)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=TOLERANCE)
    plain, _ = compute_expected([0, 1, 2, 3, 4])
    assert expected != pytest.approx(plain, rel=1e-3)


@SFT_WARNING
def test_a_step_of_the_sft_trainer_takes_weights(tmp_path):
    dataset = PackedDataset(pack(tmp_path / "packed", sequences=WEIGHTED))
    settings = build_arguments(tmp_path, 2, 2)
    trainer = build_sft_trainer(build_tiny_model(), settings, train_dataset=dataset)
    assert_steps(train(trainer), [[0, 1, 2, 3], [4]], SFT_TOLERANCE, WEIGHTED)


@pytest.mark.parametrize(("batch_size", "accumulation", "rows_of_steps"), ACCUMULATED[1:3])
@SFT_WARNING
def test_a_step_of_the_sft_trainer_is_the_mean_over_its_turns(
    packed, tmp_path, batch_size, accumulation, rows_of_steps
):
    settings = build_arguments(tmp_path, batch_size, accumulation)
    trainer = build_sft_trainer(build_tiny_model(), settings, train_dataset=PackedDataset(packed))
    assert_steps(train(trainer), rows_of_steps, SFT_TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_eval_loss_is_the_mean_over_all_turns(packed, tmp_path, batch_size):
    trainer = TurnMeanTrainer(
        build_tiny_model(),
        TrainingArguments(**build_arguments(tmp_path, batch_size)),
        eval_dataset=PackedDataset(packed),
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        compute_expected([0, 1, 2, 3, 4])[0], rel=TOLERANCE
    )


def test_each_of_several_evaluation_sets_has_its_own_loss(packed, tmp_path):
    dataset = PackedDataset(packed)
    trainer = TurnMeanTrainer(
        build_tiny_model(),
        TrainingArguments(**build_arguments(tmp_path, batch_size=2)),
        eval_dataset={"all": dataset, "last": Subset(dataset, [3, 4])},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_all_loss"] == pytest.approx(
        compute_expected([0, 1, 2, 3, 4])[0], rel=TOLERANCE
    )
    assert metrics["eval_last_loss"] == pytest.approx(compute_expected([3, 4])[0], rel=TOLERANCE)
    predicted = trainer.predict(Subset(dataset, [0])).metrics
    assert predicted["test_loss"] == pytest.approx(compute_expected([0])[0], rel=TOLERANCE)


@SFT_WARNING
def test_eval_loss_of_the_sft_trainer_is_the_mean_over_all_turns(packed, tmp_path):
    dataset = PackedDataset(packed)
    trainer = build_sft_trainer(
        build_tiny_model(),
        build_arguments(tmp_path, 2),
        train_dataset=dataset,
        eval_dataset=dataset,
    )
    expected_loss, _ = compute_expected([0, 1, 2, 3, 4])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected_loss, rel=SFT_TOLERANCE)


def run_on_rank(rank: int, port: int, folder: Path) -> None:
    """Train and evaluate as one of two processes, and write the results to `folder`."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    dataset = PackedDataset(folder / "packed")
    datasets = {"train_dataset": dataset, "eval_dataset": dataset}
    ranks = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}
    runs, eval_losses = [], []
    for batch_size, accumulation, _ in ON_TWO_RANKS:
        settings = build_arguments(folder, batch_size, accumulation, **ranks)
        trainer = TurnMeanTrainer(build_tiny_model(), TrainingArguments(**settings), **datasets)
        runs.append(train(trainer))
        eval_losses.append(trainer.evaluate()["eval_loss"])
    sft = build_sft_trainer(build_tiny_model(), settings, **datasets)
    sft_run, sft_eval_loss = train(sft), sft.evaluate()["eval_loss"]
    settings["logging_steps"] = 100  # more than the run has
    rarely_logged = TurnMeanTrainer(build_tiny_model(), TrainingArguments(**settings), **datasets)
    weighted = PackedDataset(folder / "weighted")
    settings = build_arguments(folder, *ON_TWO_RANKS[1][:2], **ranks)
    trainer = TurnMeanTrainer(
        build_tiny_model(),
        TrainingArguments(**settings),
        train_dataset=weighted,
        eval_dataset=weighted,
    )
    weighted_results = train(trainer), trainer.evaluate()["eval_loss"]
    results = (runs, eval_losses, sft_run, sft_eval_loss, train(rarely_logged), weighted_results)
    torch.save(results, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_same_steps_and_the_same_eval_loss(tmp_path):
    pack(tmp_path / "packed")
    pack(tmp_path / "weighted", sequences=WEIGHTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        run_on_rank, (port, tmp_path), nprocs=2, start_method="forkserver"
    )
    rows_of_runs = [rows for _, _, rows in ON_TWO_RANKS]
    eval_loss, _ = compute_expected([0, 1, 2, 3, 4])
    for rank in (0, 1):
        results = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=False)
        *results, (weighted_run, weighted_eval_loss) = results
        assert_steps(weighted_run, ON_TWO_RANKS[1][2], sequences=WEIGHTED)
        expected, _ = compute_expected([0, 1, 2, 3, 4], sequences=WEIGHTED)
        assert weighted_eval_loss == pytest.approx(expected, rel=TOLERANCE)
        runs, eval_losses, sft_run, sft_eval_loss, rarely_logged_run = results
        for steps, rows in zip(runs, rows_of_runs, strict=True):
            assert_steps(steps, rows)
        assert eval_losses == pytest.approx([eval_loss] * len(runs), rel=TOLERANCE)
        assert_steps(sft_run, rows_of_runs[-1], SFT_TOLERANCE)
        assert sft_eval_loss == pytest.approx(eval_loss, rel=SFT_TOLERANCE)
        assert rarely_logged_run.losses == [pytest.approx(runs[-1].mean_loss, rel=1e-6)]
        assert rarely_logged_run.mean_loss == pytest.approx(runs[-1].mean_loss, rel=1e-6)


class StockTrainer(Trainer):
    """The stock Trainer on the same batches: a mean over the tokens of a step."""

    def __init__(self, model: Any, args: TrainingArguments, **datasets: Any) -> None:
        args.remove_unused_columns = False
        super().__init__(model, args, data_collator=self.tokens_and_labels, **datasets)

    @staticmethod
    def tokens_and_labels(rows: list[Row]) -> dict[str, Any]:
        batch = padding_free_batch(rows)
        return {name: batch[name] for name in ("input_ids", "position_ids", "labels")}


class MeanOfMicroBatches(TurnMeanTrainer):
    """A trainer that divides too early: it averages the means over turns of micro-batches."""

    def get_batch_samples(self, *arguments):
        batches, count = super().get_batch_samples(*arguments)
        for batch in batches:
            batch["step_turn_num"] = batch["turn_num"].sum() * len(batches)
        return batches, count


@pytest.mark.parametrize("other", [StockTrainer, MeanOfMicroBatches])
def test_another_mean_gives_other_gradients(packed, tmp_path, other):
    trainer = other(
        build_tiny_model(),
        TrainingArguments(**build_arguments(tmp_path, accumulation=2)),
        train_dataset=PackedDataset(packed),
    )
    _, expected_gradients = compute_expected([0, 1])
    assert compute_difference(train(trainer).gradients[0], expected_gradients) > 0.1


def build_tiny_llama(attention: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=150,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_documents_are_separate_under_every_attention(packed, tmp_path, attention):
    trainer = TurnMeanTrainer(
        build_tiny_llama(attention),
        TrainingArguments(**build_arguments(tmp_path, batch_size=3)),
        train_dataset=PackedDataset(packed),
    )
    _, expected_gradients = compute_expected([0, 1, 2], build_tiny_llama(attention))
    assert compute_difference(train(trainer).gradients[0], expected_gradients) < 1e-5  # in float32


def causal_attention(module, query, key, value, attention_mask, scaling=None, **options):
    """Compute attention over all documents, as a custom attention of a user might."""
    attended = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2).contiguous(), None


def build_leaking_llama() -> LlamaForCausalLM:
    AttentionInterface.register("causal_attention", causal_attention)
    return build_tiny_llama("causal_attention")


def build_mamba() -> MambaForCausalLM:
    config = MambaConfig(vocab_size=150, hidden_size=16, num_hidden_layers=1, state_size=4)
    return MambaForCausalLM(config)


@pytest.mark.parametrize("model", [build_leaking_llama, build_mamba])
def test_a_model_that_lets_documents_see_each_other_is_refused(packed, tmp_path, model):
    dataset = PackedDataset(packed)
    settings = TrainingArguments(**build_arguments(tmp_path))
    trainer = TurnMeanTrainer(model(), settings, train_dataset=dataset, eval_dataset=dataset)
    with pytest.raises(SetupError, match="documents of a sequence see each other"):
        trainer.train()
    with pytest.raises(SetupError, match="documents of a sequence see each other"):
        trainer.evaluate()


@pytest.mark.parametrize(
    ("settings", "options", "reason"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor"),
        ({"average_tokens_across_devices": False}, {}, "average_tokens_across_devices=False"),
        ({"train_sampling_strategy": "group_by_length"}, {}, "train_sampling_strategy"),
        ({"accelerator_config": {"dispatch_batches": True}}, {}, "dispatch_batches"),
        ({}, {"data_collator": padding_free_batch}, "data_collator"),
        ({}, {"compute_loss_func": max}, "compute_loss_func"),
        ({}, {"compute_metrics": max}, "compute_metrics"),
    ],
)
def test_arguments_that_would_change_the_loss_are_refused(
    packed, tmp_path, settings, options, reason
):
    with pytest.raises(SetupError, match=reason) as refused:
        TurnMeanTrainer(
            build_tiny_model(),
            TrainingArguments(**build_arguments(tmp_path, **settings)),
            train_dataset=PackedDataset(packed),
            **options,
        )
    assert "\n" not in str(refused.value)


@SFT_WARNING
@pytest.mark.parametrize("settings", [{"packing": True}, {"loss_type": "dft"}])
def test_sft_arguments_that_would_change_the_loss_are_refused(packed, tmp_path, settings):
    with pytest.raises(SetupError, match=next(iter(settings))):
        build_sft_trainer(
            build_tiny_model(),
            build_arguments(tmp_path, **settings),
            train_dataset=PackedDataset(packed),
        )


def build_mixture_of_experts() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=150,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        output_router_logits=True,
    )
    return MixtralForCausalLM(config)


def build_encoder_decoder() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=150, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [(build_mixture_of_experts, "balancing loss"), (build_encoder_decoder, "encoder-decoder")],
)
def test_models_that_do_not_support_the_loss_are_refused(packed, tmp_path, model, reason):
    with pytest.raises(SetupError, match=reason):
        TurnMeanTrainer(
            model(),
            TrainingArguments(**build_arguments(tmp_path)),
            train_dataset=PackedDataset(packed),
        )


def test_shifted_labels_are_refused_and_converted_labels_are_accepted(tmp_path):
    shifted = pack(tmp_path / "shifted", "shifted")
    settings = TrainingArguments(**build_arguments(tmp_path, accumulation=4))
    with pytest.raises(InputError, match='label_alignment="aligned"'):
        TurnMeanTrainer(build_tiny_model(), settings, train_dataset=PackedDataset(shifted))
    converted = PackedDataset(shifted, label_alignment="aligned")
    trainer = TurnMeanTrainer(build_tiny_model(), settings, train_dataset=converted)
    assert_steps(train(trainer), [[0, 1, 2, 3], [4]])


def test_a_dataset_without_random_access_is_refused(packed, tmp_path):
    class Stream(IterableDataset[Row]):
        def __iter__(self):
            return iter(PackedDataset(packed))

    settings = TrainingArguments(**build_arguments(tmp_path, max_steps=1))
    with pytest.raises(SetupError, match="PackedDataset"):
        TurnMeanTrainer(build_tiny_model(), settings, train_dataset=Stream())


@pytest.fixture
def tiny_model_folder(tmp_path) -> Path:
    folder = tmp_path / "path/to/model"
    shutil.copytree(TOKENIZER.parent, folder)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@SFT_WARNING
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # no GPU
@pytest.mark.parametrize("heading", ["Transformers Trainer", "TRL"])
def test_the_recipe_of_the_training_page_trains(tiny_model_folder, tmp_path, monkeypatch, heading):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n")[1]
    recipe = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    pack(tmp_path / "packed")
    pack(tmp_path / "packed_eval", "shifted")
    monkeypatch.chdir(tmp_path)
    exec(recipe.replace("output_dir=", "use_cpu=True, output_dir="), {})
    log = json.loads((tmp_path / "trained/checkpoint-2/trainer_state.json").read_text())
    assert any("eval_loss" in entry for entry in log["log_history"])
    assert (tmp_path / "trained/model.safetensors").is_file()


def test_the_benchmark_of_the_trainers_runs_and_finds_equal_gradients(packed):
    dataset = PackedDataset(packed)
    difference, seconds, stock_seconds = compare_trainers(
        build_tiny_llama("sdpa"), dataset, [dataset[0], dataset[1]], steps=1
    )
    assert difference < 1e-5
    assert seconds > 0 < stock_seconds


def test_the_trainer_of_transformers_does_not_need_trl():
    needed = imports_of("integrations.transformers") | imports_of("integrations.padding_free")
    assert not {name for name in needed if name.split(".")[0] == "trl"}
