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

from mtpack.integrations.transformers import TurnMeanTrainer, refuse_first
from mtpack.shards.dataset import Row


class TurnMeanSFTTrainer(TurnMeanTrainer, SFTTrainer):  # type: ignore[misc]  # untyped base
    """An SFTTrainer whose loss is the mean over the turns of a step, for rows of `PackedDataset`.

    What TRL does to a model (PEFT adapters, its output layer in chunks, activation offloading) and
    what it logs besides the loss is as it was; what it would do to rows (templates, tokenizing,
    packing) is done already. Raises what `TurnMeanTrainer` raises.
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
        """Take the arguments of an SFTTrainer; all but the first two by name."""
        args = SFTConfig() if args is None else copy.copy(args)
        refuse_first(
            {
                "packing and padding_free: the rows are packed; leave both False": (
                    args.packing or args.padding_free
                ),
                "loss_type: the mean over turns is of the plain token losses; leave it 'nll'": (
                    args.loss_type != "nll"
                ),
            }
        )
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__init__(
            model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **options
        )

    def _shown_at_construction(self, train_dataset: Dataset[Row] | None) -> Any:
        """Return a Dataset of `datasets`: TRL insists on one, and looks at its first row."""
        return TableDataset.from_dict({"input_ids": [[0]], "labels": [[0]]})

    def _token_losses(self, model: torch.nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Take them from TRL's own pass over the batch, which also keeps its metrics."""
        outputs: Any = None

        def forward(**inputs: Any) -> Any:
            nonlocal outputs
            outputs = model(**inputs)
            return outputs

        inputs = {**self._model_inputs(batch), "labels": batch["labels"]}
        SFTTrainer.compute_loss(self, forward, inputs)
        return pad(-outputs.log_probs, (1, 0)), outputs  # the first token has no prediction
