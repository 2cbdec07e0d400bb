"""A Trainer of transformers whose loss is the mean over turns.

The stock Trainer divides by tokens. Here the loss of a micro-batch is the sum of its turns' mean
losses, divided by the number of turns in the whole step: in all its micro-batches on all ranks. If
turns have weights, they multiply the mean losses, and their sum is the divisor. The rest follows
from how the Trainer uses a loss (transformers 5.24, trainer.py):

- `_run_epoch` reads the micro-batches of a step from `get_batch_samples` before it computes the
  first. So turns are counted there, once, over all ranks.
- `training_step` divides by the micro-batches of a step unless `loss_is_scaled_for_ga`.
- DDP, FSDP and DeepSpeed average gradients over the ranks, and the log averages losses over them.
  So `compute_loss` multiplies by the number of ranks.
- With several ranks, the last batch is filled up with sequences of the first, and the stock
  `evaluation_loop` averages batches. So evaluation here sums over sequences, each counted once.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    PretrainedConfig,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from mtpack.errors import SetupError
from mtpack.integrations.padding_free import MODEL_INPUTS, documents_leak, padding_free_batch
from mtpack.loss import turn_mean_loss
from mtpack.shards.dataset import Row

if not hasattr(Trainer, "loss_is_scaled_for_ga"):  # an older one divides the loss again
    raise ImportError("mtpack.integrations.transformers needs transformers 5.19 or newer")


class TurnMeanTrainer(Trainer):
    """A Trainer whose loss is the mean over the turns of a step, for sequences of `PackedDataset`.

    It takes the arguments of a Trainer, except those that it sets itself: it concatenates sequences
    into one flat row without padding, and all columns are kept. The loss, its gradients and its log
    do not depend on how a step is divided into micro-batches and ranks. `eval_loss` is the sum of
    all turns' mean losses, divided by the number of all turns; no sequence is counted twice.

    The model must keep documents separate. This is checked before the first batch.

    Raises SetupError for arguments that would change the loss, for a model that does not support
    it, and, before the first batch, for a model that lets documents see each other.
    """

    loss_is_scaled_for_ga = True
    model: Any  # transformers also declares plain torch modules, which have no config

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        train_dataset: Dataset[Row] | None = None,
        eval_dataset: Dataset[Row] | dict[str, Dataset[Row]] | None = None,
        **options: Any,
    ) -> None:
        """Set up a Trainer with its own arguments; all but the first two by name.

        train_dataset, eval_dataset: `PackedDataset`s with `aligned` labels, or datasets that return
        sequences of them.
        """
        args = TrainingArguments() if args is None else copy.copy(args)
        raise_first_fault(_find_argument_faults(args, options))
        for dataset in (train_dataset, eval_dataset):
            _require_packed_sequences(dataset)
        args.remove_unused_columns = False
        super().__init__(
            model,
            args,
            data_collator=padding_free_batch,
            train_dataset=self._choose_init_dataset(train_dataset),
            eval_dataset=eval_dataset,
            **options,
        )
        self.train_dataset = train_dataset
        base_model = getattr(self.model, "get_base_model", lambda: self.model)()
        parameters = inspect.signature(base_model.forward).parameters
        raise_first_fault(self._find_model_faults(set(parameters)))
        takes_any_name = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self._input_names = [name for name in MODEL_INPUTS if takes_any_name or name in parameters]
        self.add_callback(_LogLastSteps())
        self._documents_are_separate = False
        self._evaluated: list[tuple[int, float, float]] = []  # row number, sum of means, count

    def _choose_init_dataset(self, train_dataset: Dataset[Row] | None) -> Any:
        """Return the training data that the parent's constructor gets."""
        return train_dataset

    def _find_model_faults(self, parameters: set[str]) -> dict[str, bool]:
        """Return each possible fault of the model for this loss, and whether it applies."""
        config = self._get_text_config()
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        return {
            "a mixture of experts with output_router_logits: its balancing loss is not a mean over "
            "turns; set router_aux_loss_coef=0 (trl) or model.config.output_router_logits=False": (
                getattr(config, "output_router_logits", False)
            ),
            "an encoder-decoder model; use a causal language model": (config.is_encoder_decoder),
            f"{type(self.model).__name__}.forward has no parameter logits_to_keep": (
                "logits_to_keep" not in parameters
            ),
            "tensor, context or sequence parallelism: turns are counted over data-parallel ranks; "
            "use DDP, FSDP or DeepSpeed ZeRO": (
                parallelism is not None and parallelism.non_data_parallel_size > 1
            ),
        }

    def _get_text_config(self) -> PretrainedConfig:
        config: PretrainedConfig = self.model.config.get_text_config()
        return config

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Return the micro-batches of a step; each knows the step's number of turns, or the sum of
        their weights.
        """
        batches = list(islice(epoch_iterator, num_batches))
        turns = sum((_get_counts(batch).sum() for batch in batches), torch.tensor(0))
        step_turn_num = self.accelerator.reduce(turns.to(device), reduction="sum")
        for batch in batches:
            batch["step_turn_num"] = step_turn_num
        return batches, step_turn_num

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's part of the step's loss, times the number of ranks.

        The divisor is in the batch: `num_items_in_batch` counts tokens where a Trainer does not
        call `get_batch_samples`.
        """
        losses, outputs = self._check_and_compute_losses(model, inputs)
        loss_sum, _ = turn_mean_loss(
            losses,
            inputs["loss_mask"],
            inputs["loss_token_num"],
            inputs["turn_num"],
            inputs.get("turn_weight"),
        )
        count = inputs["step_turn_num"]
        count = torch.where(count > 0, count, 1).to(loss_sum.dtype)
        loss = loss_sum * self.accelerator.num_processes / count
        return (loss, outputs) if return_outputs else loss

    def _check_and_compute_losses(
        self, model: torch.nn.Module, batch: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        if not self._documents_are_separate:
            self._require_separate_documents(model)
        return self._compute_token_losses(model, batch)

    def _compute_token_losses(
        self, model: torch.nn.Module, batch: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """Return token losses (1, tokens), 0 except at loss tokens, and the model's outputs."""
        positions = batch["loss_positions"]
        outputs = model(**self._select_model_inputs(batch), logits_to_keep=positions - 1)
        logits = outputs.logits[0]
        losses = cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)),
            batch["labels"][0, positions],
            reduction="none",
        )
        tokens = batch["labels"].shape[1]
        return losses.new_zeros(tokens).index_put((positions,), losses)[None], outputs

    def _select_model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs of the model's forward; a cache would disable the masks."""
        return {name: batch[name] for name in self._input_names} | {"use_cache": False}

    def _require_separate_documents(self, model: torch.nn.Module) -> None:
        # The model without torch.compile, which would compile it for the lengths of this check.
        model = getattr(model, "_orig_mod", model)

        def logits_of(batch: dict[str, Any]) -> Tensor:
            logits: Tensor = model(**self._select_model_inputs(self._prepare_inputs(batch))).logits
            return logits

        training = model.training
        model.eval()
        with torch.no_grad():
            leak = documents_leak(logits_of, self._get_text_config().vocab_size)
        model.train(training)
        if leak:
            raise SetupError(
                f"{type(self.model).__name__} lets the documents of a sequence see each other "
                f"(attn_implementation={self._get_text_config()._attn_implementation!r}); load it "
                "with flash_attention_2, flex_attention, sdpa or eager, or use another model"
            )
        self._documents_are_separate = True

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the stock metrics; `eval_loss` is the mean over all turns of the dataset.

        `compute_metrics` is not supported: logits are computed for loss tokens only.
        """
        self.eval_dataset = _number_sequences(self.eval_dataset)
        return super().evaluate(_number_sequences(eval_dataset), ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Return the metrics of a dataset, as `evaluate` does, without predictions."""
        return super().predict(_number_sequences(test_dataset), ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate every batch, then sum over the sequences of all ranks, each once."""
        self._evaluated = []
        output = super().evaluation_loop(
            dataloader, description, True, ignore_keys, metric_key_prefix
        )
        rows = {number: row for number, *row in gather_object(self._evaluated)}
        count = math.fsum(count for _, count in rows.values())
        loss_sum = math.fsum(loss for loss, _ in rows.values())
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = loss_sum / (count or 1)
        return output

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Any = None,
    ) -> tuple[None, None, None]:
        """Store the sums of each sequence; return nothing that could be averaged."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses, _ = self._check_and_compute_losses(model, batch)
        rows = len(batch["turn_num"])
        columns = [losses, batch["loss_mask"], batch["loss_token_num"]]
        columns = [*(one.view(rows, -1) for one in columns), batch["turn_num"]]
        if "turn_weight" in batch:
            columns.append(batch["turn_weight"].view(rows, -1))
        for number, *row in zip(batch["row_numbers"].tolist(), *columns, strict=True):
            loss_sum, count = turn_mean_loss(*row)
            self._evaluated.append((number, float(loss_sum), count.item()))
        return None, None, None


def _get_counts(batch: dict[str, Any]) -> Tensor:
    """Return the number of turns of each sequence, or the sum of their weights."""
    counts: Tensor = batch.get("weight_sum", batch["turn_num"])
    return counts


class _LogLastSteps(TrainerCallback):
    """Log the last steps too: steps without a log enter `train_loss` from one rank only."""

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Request a log at the end of the training."""
        control.should_log |= control.should_training_stop or state.global_step >= state.max_steps


class _NumberedSequences(Dataset[Row]):
    """Sequences with their number, so that one on several ranks is counted once."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return {**self.rows[index], "row_number": index}


def _number_sequences(dataset: Any) -> Any:
    """Number the sequences of a dataset, or of several; return a name or None unchanged."""
    if dataset is None or isinstance(dataset, str | _NumberedSequences):
        return dataset
    if isinstance(dataset, dict):
        return {name: _number_sequences(one) for name, one in dataset.items()}
    _require_packed_sequences(dataset)
    return _NumberedSequences(dataset)


def raise_first_fault(faults: dict[str, bool]) -> None:
    """Raise SetupError with the first fault that applies."""
    for fault, applies in faults.items():
        if applies:
            raise SetupError(f"TurnMeanTrainer: {fault}")


def _find_argument_faults(args: TrainingArguments, options: dict[str, Any]) -> dict[str, bool]:
    """Return each possible fault of the arguments, and whether it applies."""
    return {
        f"{name} is not supported: the trainer {why}": options.get(name) is not None
        for name, why in (
            ("data_collator", "builds padding-free batches of packed sequences itself"),
            ("compute_loss_func", "computes the mean over turns itself"),
            ("compute_metrics", "keeps the logits of loss tokens only"),
        )
    } | {
        "label_smoothing_factor: the loss is the mean of plain token losses; set it to 0": (
            args.label_smoothing_factor != 0
        ),
        "average_tokens_across_devices=False: turns are counted over all ranks; set it to True": (
            not args.average_tokens_across_devices
        ),
        f"train_sampling_strategy={args.train_sampling_strategy!r}: all sequences have one length; "
        "use random or sequential": args.train_sampling_strategy not in ("random", "sequential"),
        "dispatch_batches=True would cut a batch, which is one flat row; set it to False": bool(
            getattr(args.accelerator_config, "dispatch_batches", False)
        ),
        "several GPUs in one process (DataParallel) would cut a batch, which is one flat row; "
        "launch with torchrun or accelerate launch": args.n_gpu > 1,
    }


def _require_packed_sequences(dataset: Any) -> None:
    """Refuse a dataset, or one of several, without random access or without aligned labels."""
    for one in dataset.values() if isinstance(dataset, dict) else [dataset]:
        by_number = hasattr(one, "__getitem__") and not isinstance(one, IterableDataset)
        raise_first_fault(
            {
                "a dataset without random access; use mtpack.torch_data.PackedDataset": (
                    one is not None and not by_number
                )
            }
        )
        if one:
            padding_free_batch([one[0]])
