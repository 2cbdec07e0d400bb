"""Megatron-LM: a dataset, a forward step and a loss that is the mean over turns.

Under `--calculate-per-token-loss` Megatron sums losses and gradients over micro-batches and over
data- and context-parallel ranks. It divides the gradients once, by the sum of an integer that the
loss function returns (megatron/core/distributed/finalize_model_grads.py). Here that integer is the
number of turns or, if turns have weights, the sum of these in 1/1024. This module needs
megatron-core only, not the scripts of Megatron-LM; docs/training.md shows the three lines to change
in its pretrain_gpt.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, distributed

from mtpack.context_parallel import find_positions_on_rank
from mtpack.errors import SetupError
from mtpack.integrations.megatron_weights import (
    find_global_batch_size,
    has_weights,
    require_countable,
    require_one_kind,
)
from mtpack.loss import turn_mean_loss
from mtpack.shards.dataset import open_shards
from mtpack.token_batch import WEIGHT_UNITS
from mtpack.torch_data import PackedDataset, collate

_COLUMNS = (
    *("tokens", "labels", "position_ids", "loss_mask", "loss_token_num", "turn_heads"),
    "turn_units",  # if turns have weights
)


class TurnDataset(MegatronDataset):  # type: ignore[misc]  # megatron-core has no types
    """Packed sequences for Megatron's dataset builders, from a path of `--data-path`.

    An item has the columns of Megatron-LM's own SFTDataset: `tokens`, `labels` (shifted),
    `position_ids`: int64 (seq_len,); `loss_mask`: float32 (seq_len,); `cu_seqlens`: int32
    (seq_len + 1,), filled up with seq_len so that items can be stacked; `max_seqlen`: int32 ().
    It also has the columns of the loss: `loss_token_num`: int32 (seq_len,); `turn_heads`: uint8
    (seq_len,), 1 on the first loss token of each turn. If turns have weights: `turn_units`: int32
    (seq_len,), at each loss token the weight of its turn in 1/1024, 0 elsewhere.
    """

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Sized) -> int:
        """Return the number of sequences."""
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> PackedDataset:
        """Open an output folder or a shard, of either alignment.

        Raises SetupError if it was packed for another sequence length, with documents that can't
        be divided over the context-parallel ranks of `config` (a GPTDatasetConfig), or with weights
        of turns that are too large to be counted.
        """
        shards = PackedDataset(dataset_path, label_alignment="shifted")
        packed = shards.metadata
        if packed.seq_len != config.sequence_length:
            raise SetupError(
                f"{dataset_path}: packed with --seq-len {packed.seq_len}, "
                f"but --seq-length is {config.sequence_length}; use the same for both"
            )
        multiple = _find_document_multiple(config)
        if packed.pad_documents_to % multiple:
            raise SetupError(
                f"{dataset_path}: documents are padded to multiples of {packed.pad_documents_to}; "
                f"for these context-parallel ranks, pack with --pad-documents-to {multiple}"
            )
        if has_weights(shards):
            require_countable(dataset_path, open_shards(dataset_path), find_global_batch_size())
        return shards

    def __len__(self) -> int:
        return len(self.indices) if self.num_samples is None else self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.dataset[int(self.indices[index % len(self.indices)])]
        batch = collate([row])
        seq_len = len(row["input_ids"])
        cu_seqlens = torch.full((seq_len + 1,), seq_len, dtype=torch.int32)
        cu_seqlens[: len(batch["cu_seqlens"])] = batch["cu_seqlens"]
        item = {
            "tokens": batch["input_ids"][0],
            "labels": batch["labels"][0],
            "position_ids": batch["position_ids"][0],
            "loss_mask": batch["loss_mask"][0].float(),
            "loss_token_num": batch["loss_token_num"][0],
            "turn_heads": batch["turn_heads"][0],
            "cu_seqlens": cu_seqlens,
            "max_seqlen": batch["max_seqlen"],
        }
        if "turn_weight" in batch:
            item["turn_units"] = (batch["turn_weight"][0] * WEIGHT_UNITS).to(torch.int32)
        return item


def _find_document_multiple(config: Any) -> int:
    """Return the number that must divide the length of every document."""
    ranks: int = config.context_parallel_size or 1
    if config.hybrid_context_parallel:  # one document may be divided over all ranks
        ranks *= config.data_parallel_size * max(1, config.sequence_parallel_size)
    return 2 * ranks if ranks > 1 else 1


def build_datasets(
    train_val_test_num_samples: Sequence[int | None], config: Any
) -> list[TurnDataset | None]:
    """Build the training, validation and test sets: the result of a provider for `pretrain`.

    They are built on the first tensor-parallel rank of every pipeline stage, and are None on the
    others. config: a GPTDatasetConfig with output folders of `mtpack pack` in its blend. Raises
    SetupError if the folders do not match it, or each other.
    """
    datasets: list[TurnDataset | None] = BlendedMegatronDatasetBuilder(
        TurnDataset,
        train_val_test_num_samples,
        lambda: parallel_state.get_tensor_model_parallel_rank() == 0,
        config,
    ).build()
    require_one_kind(datasets)
    return datasets


@dataclass(frozen=True, slots=True)
class ContextParallel:
    """The ranks over which the sequences of one micro-batch are divided."""

    size: int = 1
    rank: int = 0
    group: distributed.ProcessGroup | None = None
    """None for a single rank."""
    report_weight: int = 1
    """The factor of a report. Megatron's log sums the reports of all ranks, and each rank of a
    group reports the sums of the whole group: the factor balances groups of different sizes."""

    @classmethod
    def static(cls) -> ContextParallel:
        """Return the ranks of --context-parallel-size, the same for all micro-batches."""
        if parallel_state.model_parallel_is_initialized():
            group = parallel_state.get_context_parallel_group()
            if group.size() > 1:
                return cls(group.size(), group.rank(), group)
        return cls()

    @classmethod
    def hybrid(cls, local_cp_size: int) -> ContextParallel:
        """Return the ranks that --hybrid-context-parallel has chosen for one micro-batch."""
        ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        if local_cp_size == 1:
            return cls(report_weight=ranks)
        group = parallel_state.get_hybrid_data_context_parallel_groups(group_size=local_cp_size)
        return cls(local_cp_size, group.rank(), group, ranks // local_cp_size)


@dataclass(frozen=True, slots=True)
class MegatronBatch:
    """The slice of a micro-batch that one rank computes, with its sequences concatenated."""

    tokens: Tensor
    """int64 (1, length), and so are `labels` and `position_ids`."""
    labels: Tensor
    position_ids: Tensor
    loss_mask: Tensor
    """int32 (1, length), and so is `loss_token_num`."""
    loss_token_num: Tensor
    turn_num: Tensor
    """int32 (): the turns whose first loss token is in this slice, or the sum of their units; so
    each turn counts once."""
    packed_seq_params: PackedSeqParams
    context: ContextParallel
    turn_units: Tensor | None = None
    """int32 (1, length): the weight of its turn in 1/1024 at each loss token; None: no weights."""


def loss_func(
    output_tensor: Tensor,
    loss_mask: Tensor,
    loss_token_num: Tensor,
    turn_num: Tensor | int,
    *,
    turn_units: Tensor | None = None,
    context: ContextParallel | None = None,
    tokens_per_turn: int = 1,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the sum of the turns' mean losses, the number of turns, and a report for the log.

    This is the contract of `--calculate-per-token-loss` (megatron/core/pipeline_parallel/
    schedules.py, forward_step_calc_loss): the sum of this rank, which Megatron divides once, and an
    integer count. The report is a sum and a count, float32 (2,), each summed over the
    context-parallel ranks. So their ratio is a mean over turns on every rank, even on a rank where
    no turn starts.

    output_tensor: token losses, float. loss_mask, loss_token_num: the same number of elements, in
    any shape. turn_num: integer, the turns whose first loss token is in this rank's slice (the sum
    of `turn_heads`). turn_units: integer, as in `MegatronBatch`; then each mean loss is multiplied
    by the units of its turn, and turn_num is the sum of these (of `turn_heads * turn_units`).
    context: the ranks that share the micro-batch; None: those of
    --context-parallel-size. tokens_per_turn: a factor of loss and count; it changes no gradient of
    the loss, but sets the scale of losses that the model itself adds (docs/training.md).

    Raises ValueError for a turn_num or tokens_per_turn that is not an integer: Megatron counts in
    integers, and a fraction of a turn would be lost when each rank rounds it. And for a
    tokens_per_turn other than 1 with turn_units, which are a factor already (docs/training.md).
    """
    _check_counts(turn_num, tokens_per_turn, has_weights=turn_units is not None)
    context = context or ContextParallel.static()
    losses = output_tensor.flatten().float()
    turns = torch.as_tensor(turn_num, device=losses.device).sum()
    loss_sum, _ = turn_mean_loss(
        losses,
        loss_mask.flatten(),
        loss_token_num.flatten(),
        turns,
        None if turn_units is None else turn_units.flatten(),
    )
    pair = torch.stack([loss_sum.detach(), turns.to(loss_sum.dtype)])
    if context.group is not None:
        distributed.all_reduce(pair, group=context.group)
    report = {"lm loss": pair * context.report_weight}
    # Megatron adds the count in place to a tensor of type int.
    return loss_sum * tokens_per_turn, (turns * tokens_per_turn).to(torch.int), report


def _check_counts(turn_num: Tensor | int, tokens_per_turn: int, *, has_weights: bool) -> None:
    for name, number in (("turn_num", turn_num), ("tokens_per_turn", tokens_per_turn)):
        if torch.as_tensor(number).is_floating_point():
            raise ValueError(f"{name}: {number}; Megatron needs an integer")
    if has_weights and tokens_per_turn != 1:
        raise ValueError(
            "tokens_per_turn: loss and count have the factor 1024 already, since turns have "
            "weights; scale the coefficients of other losses instead"
        )


def forward_step(
    data_iterator: Iterator[dict[str, Tensor]] | None,
    model: Any,
    return_schedule_plan: bool = False,
    *,
    tokens_per_turn: int = 1,
) -> tuple[Any, partial[tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Run the model on the next micro-batch: the forward step for `pretrain`.

    data_iterator: batches of `TurnDataset`, on the first tensor-parallel rank of every pipeline
    stage. model: a GPTModel, perhaps wrapped. return_schedule_plan: return a schedule plan instead
    of token losses (Megatron sets it under --overlap-moe-expert-parallel-comm). tokens_per_turn:
    as in `loss_func`.

    Returns the output of the model, and `loss_func` with all arguments but that output.
    """
    batch = next_batch(data_iterator, next(model.parameters()).device)
    run = model.build_schedule_plan if return_schedule_plan else model
    units = 1 if batch.turn_units is None else batch.turn_units
    output = run(
        batch.tokens,
        batch.position_ids,
        None,
        labels=batch.labels,
        # The model uses it for multi-token prediction, whose loss has the same divisor.
        loss_mask=batch.loss_mask / batch.loss_token_num * units * tokens_per_turn,
        packed_seq_params=batch.packed_seq_params,
    )
    return output, partial(
        loss_func,
        loss_mask=batch.loss_mask,
        loss_token_num=batch.loss_token_num,
        turn_num=batch.turn_num,
        turn_units=batch.turn_units,
        context=batch.context,
        tokens_per_turn=tokens_per_turn,
    )


def next_batch(
    data_iterator: Iterator[dict[str, Tensor]] | None, device: torch.device
) -> MegatronBatch:
    """Read the next micro-batch and return this rank's slice.

    The first tensor-parallel rank reads the iterator and sends all columns to the others. Every
    pipeline stage reads all columns: stages in the middle need `position_ids` to find the
    documents, and the batch is small.

    Raises InputError if documents can't be divided over the context-parallel ranks.
    """
    columns, local_cp_size = _broadcast_columns(data_iterator, device)
    context = ContextParallel.hybrid(local_cp_size) if local_cp_size else ContextParallel.static()
    cu_seqlens = find_document_bounds(columns["position_ids"])
    if context.size > 1:
        positions = find_positions_on_rank(cu_seqlens, context.size, context.rank)
        columns = {name: column[:, positions] for name, column in columns.items()}
    units = columns.get("turn_units")
    heads = columns["turn_heads"] if units is None else columns["turn_heads"] * units
    longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
    return MegatronBatch(
        tokens=columns["tokens"].long(),
        labels=columns["labels"].long(),
        position_ids=columns["position_ids"].long(),
        loss_mask=columns["loss_mask"],
        loss_token_num=columns["loss_token_num"],
        turn_num=heads.sum(dtype=torch.int),
        packed_seq_params=PackedSeqParams(
            # A hybrid micro-batch is one document. Megatron applies rotary embeddings by the ranks
            # of that micro-batch in this layout only (megatron/core/utils.py,
            # get_batch_on_this_hybrid_cp_rank).
            qkv_format="sbhd" if local_cp_size else "thd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            local_cp_size=local_cp_size or None,
            cp_group=context.group if local_cp_size else None,
        ),
        context=context,
        turn_units=units,
    )


def _broadcast_columns(
    data_iterator: Iterator[dict[str, Tensor]] | None, device: torch.device
) -> tuple[dict[str, Tensor], int]:
    """Return the columns of the next micro-batch, on every tensor-parallel rank.

    Returns the columns, int32 (1, sequences x seq_len), and the number of ranks of a hybrid
    micro-batch, or 0. One tensor is sent, with 4 bytes an entry, and its shape before it.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    source = parallel_state.get_tensor_model_parallel_src_rank()
    if group.rank() == 0:
        if data_iterator is None:
            raise SetupError(
                "no data on the first tensor-parallel rank of a pipeline stage; "
                "let the datasets provider return the result of build_datasets"
            )
        item = next(data_iterator)
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        if stages > 1 and item["tokens"].dim() == 2 and len(item["tokens"]) > 1:
            # Sequences are concatenated here, but stages exchange (seq_len, sequences, hidden).
            raise SetupError("several pipeline stages need --micro-batch-size 1")
        names = [name for name in _COLUMNS if name in item]
        columns = torch.stack(
            [item[name].to(device, torch.int32, non_blocking=True).flatten() for name in names]
        )
        sizes = [columns.shape[1], int(item.get("local_cp_size", 0)), len(names)]
    else:
        sizes = [0, 0, 0]
    if group.size() > 1:
        shape = torch.tensor(sizes, device=device)
        distributed.broadcast(shape, source, group=group)
        sizes = shape.tolist()
        if group.rank() != 0:
            columns = torch.empty((sizes[2], sizes[0]), dtype=torch.int32, device=device)
        distributed.broadcast(columns, source, group=group)
    return dict(zip(_COLUMNS, columns[:, None], strict=False)), sizes[1]


def find_document_bounds(position_ids: Tensor) -> Tensor:
    """Return the start of each document, and the end of the last: int32 (documents + 1,).

    position_ids: from 0 in every document; padding is a document.

    >>> find_document_bounds(torch.tensor([0, 1, 2, 0, 1, 0]))
    tensor([0, 3, 5, 6], dtype=torch.int32)
    """
    starts = (position_ids.flatten() == 0).nonzero()[:, 0]
    return torch.nn.functional.pad(starts, (0, 1), value=position_ids.numel()).to(torch.int32)
