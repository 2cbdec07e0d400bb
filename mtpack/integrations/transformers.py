"""A Trainer of transformers in which every turn of the packed rows weighs the same.

The stock Trainer divides by tokens. Here a micro-batch gives the sum of its turns' mean losses, and
what that is divided by is the number of turns in the whole step: all its micro-batches, all ranks.
What the Trainer does with a loss (transformers 5.24, trainer.py) decides the rest:

- `_run_epoch` takes a step's micro-batches from `get_batch_samples` before the first is computed:
  there the turns are counted, once, over all ranks.
- `training_step` divides by the micro-batches of a step unless `loss_is_scaled_for_ga`.
- DDP, FSDP and DeepSpeed average gradients over the ranks, and the log averages losses over them:
  `compute_loss` multiplies by their number.
- The last batch of several ranks is filled up with rows of the first. `evaluation_loop` averages
  batches; so here evaluation sums rows, each one once.
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

if not hasattr(Trainer, "loss_is_scaled_for_ga"):  # it would divide the loss once more
    raise ImportError("mtpack.integrations.transformers needs transformers 5.19 or newer")


class TurnMeanTrainer(Trainer):
    """A Trainer whose loss is the mean over the turns of a step, for rows of `PackedDataset`.

    It takes what a Trainer takes, less the choices that are made here: rows are collated into one
    flat row without padding, and all columns are kept. The loss, its gradients and its log do not
    depend on how a step is divided into micro-batches and ranks. `eval_loss` is the sum of all
    turns' mean losses over the number of all turns, each row counted once.

    Documents are kept apart by the model; the first batch is preceded by a check that they are.

    Raises SetupError for arguments that would give another loss, for a model that the loss does not
    fit, and, before the first batch, for a model that lets documents see each other.
    """

    loss_is_scaled_for_ga = True
    model: Any  # transformers declares what a torch module can be too, without a config

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        train_dataset: Dataset[Row] | None = None,
        eval_dataset: Dataset[Row] | dict[str, Dataset[Row]] | None = None,
        **options: Any,
    ) -> None:
        """Take the arguments of a Trainer; all but the first two by name.

        train_dataset, eval_dataset: `PackedDataset`s with `aligned` labels, or datasets that give
        their rows.
        """
        args = TrainingArguments() if args is None else copy.copy(args)
        refuse_first(_other_losses(args, options))
        for dataset in (train_dataset, eval_dataset):
            _require_packed_rows(dataset)
        args.remove_unused_columns = False
        super().__init__(
            model,
            args,
            data_collator=padding_free_batch,
            train_dataset=self._shown_at_construction(train_dataset),
            eval_dataset=eval_dataset,
            **options,
        )
        self.train_dataset = train_dataset
        without_adapter = getattr(self.model, "get_base_model", lambda: self.model)()
        parameters = inspect.signature(without_adapter.forward).parameters
        refuse_first(self._misfits(set(parameters)))
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self._input_names = [name for name in MODEL_INPUTS if takes_any or name in parameters]
        self.add_callback(_LogWhatIsLeft())
        self._documents_are_apart = False
        self._evaluated: list[tuple[int, float, int]] = []  # row number, sum of turn means, turns

    def _shown_at_construction(self, train_dataset: Dataset[Row] | None) -> Any:
        """Return what the constructor above this one is given for the training data."""
        return train_dataset

    def _misfits(self, parameters: set[str]) -> dict[str, bool]:
        """Return what is wrong with the model for this loss, and whether it is so."""
        config = self._text_config()
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        return {
            "a mixture of experts with output_router_logits: its balancing loss is not a mean over "
            "turns; set router_aux_loss_coef=0 (trl) or model.config.output_router_logits=False": (
                getattr(config, "output_router_logits", False)
            ),
            "an encoder-decoder model; packed rows are for causal language models": (
                config.is_encoder_decoder
            ),
            f"{type(self.model).__name__}.forward takes no logits_to_keep": (
                "logits_to_keep" not in parameters
            ),
            "tensor, context or sequence parallelism: turns are counted over data-parallel ranks; "
            "use DDP, FSDP or DeepSpeed ZeRO": (
                parallelism is not None and parallelism.non_data_parallel_size > 1
            ),
        }

    def _text_config(self) -> PretrainedConfig:
        config: PretrainedConfig = self.model.config.get_text_config()
        return config

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Take the micro-batches of a step, each with the turns of the step over all ranks."""
        batches = list(islice(epoch_iterator, num_batches))
        turns = sum((batch["turn_num"].sum() for batch in batches), torch.tensor(0))
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

        The divisor comes with the batch: `num_items_in_batch` counts tokens wherever a Trainer does
        not ask `get_batch_samples`.
        """
        losses, outputs = self._checked_token_losses(model, inputs)
        loss_sum, _ = turn_mean_loss(
            losses, inputs["loss_mask"], inputs["loss_token_num"], inputs["turn_num"]
        )
        loss = loss_sum * self.accelerator.num_processes / inputs["step_turn_num"].clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def _checked_token_losses(
        self, model: torch.nn.Module, batch: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        if not self._documents_are_apart:
            self._require_documents_apart(model)
        return self._token_losses(model, batch)

    def _token_losses(self, model: torch.nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return token losses (1, tokens), 0 where nothing is trained, and the model's outputs."""
        positions = batch["loss_positions"]
        outputs = model(**self._model_inputs(batch), logits_to_keep=positions - 1)
        logits = outputs.logits[0]
        losses = cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)),
            batch["labels"][0, positions],
            reduction="none",
        )
        tokens = batch["labels"].shape[1]
        return losses.new_zeros(tokens).index_put((positions,), losses)[None], outputs

    def _model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what the model's forward takes; a cache would switch the masks off."""
        return {name: batch[name] for name in self._input_names} | {"use_cache": False}

    def _require_documents_apart(self, model: torch.nn.Module) -> None:
        model = getattr(model, "_orig_mod", model)  # not compiled for the lengths of this check

        def logits_of(batch: dict[str, Any]) -> Tensor:
            logits: Tensor = model(**self._model_inputs(self._prepare_inputs(batch))).logits
            return logits

        training = model.training
        model.eval()
        with torch.no_grad():
            leak = documents_leak(logits_of, self._text_config().vocab_size)
        model.train(training)
        if leak:
            raise SetupError(
                f"{type(self.model).__name__} lets the documents of a packed row see each other "
                f"(attn_implementation={self._text_config()._attn_implementation!r}); load it with "
                "flash_attention_2, flex_attention, sdpa or eager, or take another model"
            )
        self._documents_are_apart = True

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the stock metrics; `eval_loss` is the mean over all turns of the dataset.

        `compute_metrics` is not taken: the logits of packed rows are of trained tokens alone.
        """
        self.eval_dataset = _numbered(self.eval_dataset)
        return super().evaluate(_numbered(eval_dataset), ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Return the metrics of a dataset as `evaluate` does, and no predictions."""
        return super().predict(_numbered(test_dataset), ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate every batch, then add up the rows of all ranks, each row once."""
        self._evaluated = []
        output = super().evaluation_loop(
            dataloader, description, True, ignore_keys, metric_key_prefix
        )
        rows = {number: row for number, *row in gather_object(self._evaluated)}
        turns = sum(turn_num for _, turn_num in rows.values())
        loss_sum = math.fsum(loss for loss, _ in rows.values())
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = loss_sum / max(turns, 1)
        return output

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Any = None,
    ) -> tuple[None, None, None]:
        """Keep the sums of this batch's rows; there is nothing in it to average."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses, _ = self._checked_token_losses(model, batch)
        rows = len(batch["turn_num"])
        columns = [
            one.view(rows, -1) for one in (losses, batch["loss_mask"], batch["loss_token_num"])
        ]
        for number, *row in zip(
            batch["row_numbers"].tolist(), *columns, batch["turn_num"], strict=True
        ):
            loss_sum, turn_num = turn_mean_loss(*row)
            self._evaluated.append((number, float(loss_sum), int(turn_num)))
        return None, None, None


class _LogWhatIsLeft(TrainerCallback):
    """Log the last steps too: what is not logged goes into `train_loss` from one rank alone."""

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask for a log at the end of the training."""
        control.should_log |= control.should_training_stop or state.global_step >= state.max_steps


class _NumberedRows(Dataset[Row]):
    """Rows that know their number, so that one that several ranks were given is counted once."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return {**self.rows[index], "row_number": index}


def _numbered(dataset: Any) -> Any:
    """Number the rows of a dataset, or of several; the name of one, or none, stays as it is."""
    if dataset is None or isinstance(dataset, str | _NumberedRows):
        return dataset
    if isinstance(dataset, dict):
        return {name: _numbered(one) for name, one in dataset.items()}
    _require_packed_rows(dataset)
    return _NumberedRows(dataset)


def refuse_first(refusals: dict[str, bool]) -> None:
    """Raise SetupError with the first reason that holds."""
    for reason, holds in refusals.items():
        if holds:
            raise SetupError(f"TurnMeanTrainer: {reason}")


def _other_losses(args: TrainingArguments, options: dict[str, Any]) -> dict[str, bool]:
    """Return what is wrong with arguments, and whether it is so."""
    return {
        f"{name}: left to the trainer, which {why}": options.get(name) is not None
        for name, why in (
            ("data_collator", "makes padding-free batches of packed rows"),
            ("compute_loss_func", "computes the mean over turns"),
            ("compute_metrics", "keeps the logits of trained tokens alone"),
        )
    } | {
        "label_smoothing_factor: the mean over turns is of the plain token losses; set 0": (
            args.label_smoothing_factor != 0
        ),
        "average_tokens_across_devices=False: turns are counted over all ranks; set True": (
            not args.average_tokens_across_devices
        ),
        f"train_sampling_strategy={args.train_sampling_strategy!r}: all rows are of one length; "
        "set random or sequential": args.train_sampling_strategy not in ("random", "sequential"),
        "dispatch_batches=True cuts batches that are one flat row; set it to False": bool(
            getattr(args.accelerator_config, "dispatch_batches", False)
        ),
        "several GPUs in one process (DataParallel) cut batches that are one flat row; "
        "launch with torchrun or accelerate launch": args.n_gpu > 1,
    }


def _require_packed_rows(dataset: Any) -> None:
    """Refuse a dataset, or one of several, that does not give rows by number, or not aligned."""
    for one in dataset.values() if isinstance(dataset, dict) else [dataset]:
        by_number = hasattr(one, "__getitem__") and not isinstance(one, IterableDataset)
        refuse_first(
            {
                "a dataset without random access; use mtpack.torch_data.PackedDataset": (
                    one is not None and not by_number
                )
            }
        )
        if one:
            padding_free_batch([one[0]])
