"""TRL's SFTTrainer, with the loss of `TurnMeanTrainer`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from datasets import Dataset as TableDataset
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset
from trl import SFTConfig, SFTTrainer

from mtpack.integrations.transformers import TurnMeanTrainer, raise_first_fault
from mtpack.shards.dataset import Row


class TurnMeanSFTTrainer(TurnMeanTrainer, SFTTrainer):  # type: ignore[misc]  # untyped base
    """An SFTTrainer for sequences of `PackedDataset`; its loss is the mean over a step's turns.

    TRL's changes to a model (PEFT adapters, the output layer in chunks, activation offloading) and
    its other metrics stay the same. Its preparation of data (templates, tokenizing, packing) is
    skipped, since the data is packed already. Raises the errors of `TurnMeanTrainer`.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        *,
        train_dataset: Dataset[Row],
        eval_dataset: Dataset[Row] | dict[str, Dataset[Row]] | None = None,
        **options: Any,
    ) -> None:
        """Set up an SFTTrainer with its own arguments; all but the first two by name."""
        args = SFTConfig() if args is None else copy.copy(args)
        raise_first_fault(
            {
                "packing and padding_free: the data is packed already; set both to False": (
                    args.packing or args.padding_free
                ),
                "loss_type: the loss is the mean of plain token losses; set it to 'nll'": (
                    args.loss_type != "nll"
                ),
            }
        )
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__init__(
            model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **options
        )

    def _choose_init_dataset(self, train_dataset: Dataset[Row] | None) -> Any:
        """Return a Dataset of `datasets`: TRL requires one, and reads its first row."""
        return TableDataset.from_dict({"input_ids": [[0]], "labels": [[0]]})

    def _compute_token_losses(
        self, model: torch.nn.Module, batch: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """Return the losses of TRL's own pass over the batch, which also updates its metrics."""
        outputs: Any = None

        def forward(**inputs: Any) -> Any:
            nonlocal outputs
            outputs = model(**inputs)
            return outputs

        inputs = {**self._select_model_inputs(batch), "labels": batch["labels"]}
        SFTTrainer.compute_loss(self, forward, inputs)
        return pad(-outputs.log_probs, (1, 0)), outputs  # the first token has no prediction
