"""Megatron-LM on a CPU: ranks as processes over gloo, its own GPT model, schedule and finalization.

Two parts of megatron-core can't run without CUDA and are replaced here in the ways it offers: the
attention, which is a part of the layer's spec, and DistributedDataParallel, of which the
finalization of gradients calls two methods. A third is redirected: the schedule creates its counter
on "cuda".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.datasets.data_schedule import HybridCPDataLoaderWrapper
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel.random import (
    initialize_rng_tracker,
    model_parallel_cuda_manual_seed,
)
from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer
from megatron.core.transformer import TransformerConfig
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.overrides import TorchFunctionMode
from torch.utils.data import default_collate

from mtpack.errors import SetupError
from mtpack.integrations.megatron import (
    ContextParallel,
    TurnDataset,
    build_datasets,
    forward_step,
    next_batch,
)
from tests.support.strategies import Document

VOCABULARY = 100
SEQ_LEN = 32


def run_on_ranks(
    world: int, work: Callable[..., Any], *arguments: Any, backend: str = "gloo"
) -> list[Any]:
    """Run `work(*arguments)` on each of `world` ranks, and return the results.

    The ranks are forked from a process that has imported only this module, once.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(world, mp_context=context) as pool,
    ):
        running = [
            pool.submit(
                _run_on_rank, rank, world, backend, f"file://{folder}/store", work, arguments
            )
            for rank in range(world)
        ]
        return [rank.result() for rank in running]


def _run_on_rank(
    rank: int, world: int, backend: str, store: str, work: Callable[..., Any], arguments: Any
) -> Any:
    torch.set_num_threads(1)
    distributed.init_process_group(
        backend, store, timeout=timedelta(seconds=60), rank=rank, world_size=world
    )
    try:
        return work(*arguments)
    finally:
        distributed.destroy_process_group()


def find_zigzag_positions(cu_seqlens: list[int], size: int, rank: int) -> list[int]:
    """Compute the positions of a rank one by one.

    This is the kernel `thd_partition_indices` of transformer_engine in Python
    (transformer_engine/common/fused_attn/context_parallel.cu).
    """
    local_bounds = [bound // size for bound in cu_seqlens]
    positions = []
    for token in range(local_bounds[-1]):
        document = max(n for n, bound in enumerate(local_bounds[:-1]) if bound <= token)
        length = local_bounds[document + 1] - local_bounds[document]
        index = token - local_bounds[document]
        offset = rank if index < length // 2 else (size - 1) * 2 - rank
        positions.append(index + local_bounds[document] * size + length // 2 * offset)
    return positions


class AllGather(torch.autograd.Function):
    """The tensors of all ranks of a group, with gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(own) for _ in range(group.size())]
        distributed.all_gather(parts, own.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient, group=ctx.group)
        return gradient[ctx.group.rank()], None


class DocumentAttention(torch.nn.Module):
    """Causal attention within documents, over context-parallel ranks, in its simplest form."""

    def __init__(self, config: Any, layer_number: int, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: Any, **__: Any
    ) -> Tensor:
        params = packed_seq_params
        bounds = params.cu_seqlens_q.tolist()
        group = params.cp_group
        if params.local_cp_size is None:
            group = parallel_state.get_context_parallel_group()
        own = list(range(bounds[-1]))
        everywhere = own
        if group is not None and group.size() > 1:
            slices = [
                find_zigzag_positions(bounds, group.size(), rank) for rank in range(group.size())
            ]
            own, everywhere = slices[group.rank()], [at for each in slices for at in each]
            key, value = (AllGather.apply(each, group).flatten(0, 1) for each in (key, value))
        heads = [each.view(each.shape[0], -1, each.shape[-1]).transpose(0, 1)
                 for each in (query, key, value)]  # fmt: skip
        documents = torch.bucketize(torch.arange(bounds[-1]), params.cu_seqlens_q, right=True)
        rows, columns = torch.tensor(own)[:, None], torch.tensor(everywhere)
        mask = (documents[rows] == documents[columns]) & (rows >= columns)
        attended = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        return attended.transpose(0, 1).reshape(*query.shape[:-2], -1)


class SummingReplica(torch.nn.Module):
    """A model whose gradients are summed over data- and context-parallel ranks, not averaged.

    DistributedDataParallel does the same under calculate_per_token_loss.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.module(*arguments, **named)

    def finish_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        for parameter in self.parameters():
            distributed.all_reduce(
                parameter.grad, group=parallel_state.get_data_parallel_group(True)
            )

    def scale_gradients(self, factor: Tensor) -> None:
        for parameter in self.parameters():
            parameter.grad *= factor


class WithoutCuda(TorchFunctionMode):
    """Creates tensors for "cuda" on the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        named = dict(named or {})
        if named.get("device") == "cuda":
            named["device"] = "cpu"
        return function(*arguments, **named)


@contextmanager
def model_parallel(**sizes: Any) -> Any:
    parallel_state.initialize_model_parallel(**sizes)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()


def build_model() -> SummingReplica:
    """Build a GPT, with the same weights in every process."""
    initialize_rng_tracker(inference_rng_tracker=True)  # the default one reads the state of CUDA
    config = TransformerConfig(
        num_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        calculate_per_token_loss=True,
        finalize_model_grads_func=finalize_model_grads,
    )
    spec = get_gpt_layer_local_spec()
    spec.submodules.self_attention.submodules.core_attention = DocumentAttention
    torch.manual_seed(0)
    model = GPTModel(config, spec, VOCABULARY, SEQ_LEN, position_embedding_type="learned_absolute")
    return SummingReplica(model)


def read_gradients(model: SummingReplica) -> NDArray[np.float32]:
    """Return all gradients, concatenated."""
    return np.concatenate([parameter.grad.flatten() for parameter in model.parameters()])


def build_config(folder: str, **changes: Any) -> GPTDatasetConfig:
    settings = {
        "random_seed": 0,
        "sequence_length": SEQ_LEN,
        "blend": ([folder], None),
        "split": "1,0,0",
        "tokenizer": NullTokenizer(VOCABULARY),
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "create_attention_mask": False,
    }
    return GPTDatasetConfig(**{**settings, **changes})


def build_dataset(folder: str, num_samples: int | None = None, **changes: Any) -> TurnDataset:
    """Build the training set with Megatron."""
    train, _, _ = build_datasets([num_samples, 0, 0], build_config(folder, **changes))
    return train


def compute_turn_means(model: torch.nn.Module, documents: list[Document]) -> Iterator[Tensor]:
    """Yield the mean loss of each turn, by definition.

    Each turn is a sample of its own, without packing: the dialogue up to the turn's end, with the
    loss of this turn only.
    """
    device = next(model.parameters()).device
    for document in documents:
        for turn in document.turns:
            ids = torch.tensor(document.ids[: turn.end], device=device)
            length = len(ids) - 1
            bounds = torch.tensor([0, length], dtype=torch.int32, device=device)
            losses = model(
                ids[None, :-1],
                torch.arange(length, device=device)[None],
                None,
                labels=ids[None, 1:],
                packed_seq_params=PackedSeqParams(
                    "thd", bounds, bounds, max_seqlen_q=length, max_seqlen_kv=length
                ),
            )
            yield losses[0, [position - 1 for position in turn.positions]].mean()


def run_one_sample_per_turn(documents: list[Document]) -> tuple[float, NDArray[np.float32]]:
    """Return the mean over turns of their mean losses, by their weights, and its gradients."""
    with model_parallel():
        model = build_model()
        turns = [turn for document in documents for turn in document.turns]
        weights = torch.tensor([float(turn.units or 1) for turn in turns])
        means = torch.stack(list(compute_turn_means(model, documents)))
        loss = (means * weights).sum() / weights.sum()
        loss.backward()
        return loss.item(), read_gradients(model)


def run_training_step(
    folder: str, context_parallel_size: int, step: Callable[..., Any] = forward_step
) -> tuple[list[list[float]], NDArray[np.float32]]:
    """Run one step of two micro-batches over all sequences, as `train_step` of Megatron-LM does.

    Returns the reports of this rank's micro-batches and the finished gradients.
    """
    with model_parallel(context_parallel_size=context_parallel_size), WithoutCuda():
        model = build_model()
        dataset = build_dataset(folder, context_parallel_size=context_parallel_size)
        ranks = parallel_state.get_data_parallel_world_size()
        rows = [
            dataset[row]
            for row in range(parallel_state.get_data_parallel_rank(), len(dataset), ranks)
        ]
        middle = len(rows) // 2
        reports = schedules.forward_backward_no_pipelining(
            forward_step_func=step,
            data_iterator=map(default_collate, (rows[:middle], rows[middle:])),
            model=[model],
            num_microbatches=2,
            seq_length=SEQ_LEN,
            micro_batch_size=middle,
        )
        return [report["lm loss"].tolist() for report in reports], read_gradients(model)


def run_hybrid_training_step(folder: str) -> tuple[list[list[float]], NDArray[np.float32]]:
    """Run one step in which each document has its own number of context-parallel ranks.

    The schedule, megatron/core/pipeline_parallel/hybrid_cp_schedule.py, needs CUDA, so it is
    repeated here. The groups and the code that cuts sequences into documents are Megatron's.
    """
    ranks = distributed.get_world_size()
    with model_parallel(hybrid_context_parallel=True, context_parallel_size=2):
        model = build_model()
        model.module.config.max_seqlen_per_dp_cp_rank = SEQ_LEN
        settings = {"context_parallel_size": 2, "data_parallel_size": 2}
        dataset = build_dataset(folder, hybrid_context_parallel=True, **settings)
        wrapper = HybridCPDataLoaderWrapper(None, model.module.config)
        documents = wrapper.unpack_batch([dataset[row] for row in range(len(dataset))])
        turns = torch.zeros([], dtype=torch.int)
        reports: list[dict[str, Tensor]] = []
        first, sizes = 0, cycle((4, 2, 1))
        while first < len(documents):
            size = next(sizes)
            own = first + distributed.get_rank() // size
            first += ranks // size
            if own >= len(documents):
                continue
            sample = documents[own] | {"local_cp_size": torch.tensor(size, dtype=torch.int32)}
            output, loss_func = forward_step(iter([sample]), model)
            loss, count = calculate_loss(model, output, loss_func, reports)
            turns += count.item()
            loss.backward()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        finalize_model_grads([model], turns)
        return [report["lm loss"].tolist() for report in reports], read_gradients(model)


def calculate_loss(model: Any, output: Tensor, loss_func: Any, reports: list[Any]) -> Any:
    """Call the function that Megatron's schedules call with the results of a forward step."""
    return schedules.forward_step_calc_loss(
        model,
        output,
        loss_func,
        model.module.config,
        vp_stage=None,
        collect_non_loss_data=False,
        num_microbatches=1,
        forward_data_store=reports,
        cp_group_size=1,
        is_last_stage=True,
    )


def read_batch_on_tensor_rank(folder: str) -> dict[str, NDArray[np.int64]]:
    """Return the micro-batch of this tensor-parallel rank; only the first rank reads data."""
    with model_parallel(tensor_model_parallel_size=distributed.get_world_size()):
        dataset = build_dataset(folder)
        assert (dataset is None) == (parallel_state.get_tensor_model_parallel_rank() > 0)
        data = dataset and iter([default_collate([dataset[0], dataset[1]])])
        batch = next_batch(data, torch.device("cpu"))
    names = ("tokens", "labels", "position_ids", "loss_mask", "loss_token_num", "turn_num")
    columns = {name: getattr(batch, name).numpy() for name in names}
    if batch.turn_units is not None:
        columns["turn_units"] = batch.turn_units.numpy()
    return columns | {"cu_seqlens": batch.packed_seq_params.cu_seqlens_q.numpy()}


class Planning(torch.nn.Linear):
    """A model that returns the arguments of `build_schedule_plan`."""

    def build_schedule_plan(self, *arguments: Any, **named: Any) -> Any:
        return arguments, named


def run_planned_step(folder: str) -> tuple[list[str], list[int], int]:
    """Return the arguments of a schedule plan, and its count of turns."""
    with model_parallel():
        data = iter([default_collate([build_dataset(folder)[0]])])
        (_, named), loss_func = forward_step(data, Planning(1, 1), return_schedule_plan=True)
    bounds = named["packed_seq_params"].cu_seqlens_q.tolist()
    return sorted(named), bounds, loss_func.keywords["turn_num"].item()


def read_refused_batch(folder: str) -> str:
    """Return the error for a micro-batch of two sequences on several pipeline stages."""
    with model_parallel(pipeline_model_parallel_size=distributed.get_world_size()):
        dataset = build_dataset(folder)
        rows = default_collate([dataset[0], dataset[1]])
        try:
            next_batch(iter([rows]), torch.device("cpu"))
        except SetupError as error:
            return str(error)
    return ""


def run_mistaken_step(mistake: str, *arguments: Any) -> Any:
    """Run the forward step with a wrong count, which looks right under context parallelism."""
    output, loss_func = forward_step(*arguments)
    columns = loss_func.keywords
    shares = (columns["loss_mask"] / columns["loss_token_num"]).sum()
    if mistake == "share of this rank, as an integer":
        # Megatron-LM's own loss function counts so, if the weights are its loss_mask.
        return output, partial(loss_func, turn_num=shares.to(torch.int))
    whole = shares.clone()
    distributed.all_reduce(whole, group=ContextParallel.static().group)
    return output, partial(loss_func, turn_num=whole.round().int())


def run_on_cuda(
    folder: str, documents: list[Document]
) -> tuple[list[list[float]], NDArray[np.float32], NDArray[np.float32]]:
    """Run a step with transformer_engine's attention and Megatron's DistributedDataParallel.

    Returns the reports, the gradients, and those of one sample per turn, in bf16 on one GPU.
    """
    with model_parallel():
        model_parallel_cuda_manual_seed(0)
        config = TransformerConfig(
            num_layers=2,
            hidden_size=64,
            num_attention_heads=2,
            bf16=True,
            params_dtype=torch.bfloat16,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            calculate_per_token_loss=True,
            finalize_model_grads_func=finalize_model_grads,
        )
        spec = get_gpt_layer_with_transformer_engine_spec()
        module = GPTModel(config, spec, 128, SEQ_LEN, position_embedding_type="rope").cuda()
        model = DistributedDataParallel(
            config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), module
        )
        dataset = build_dataset(folder)
        rows = [dataset[row] for row in range(len(dataset))]
        reports = schedules.forward_backward_no_pipelining(
            forward_step_func=forward_step,
            data_iterator=map(default_collate, (rows[:2], rows[2:])),
            model=[model],
            num_microbatches=2,
            seq_length=SEQ_LEN,
            micro_batch_size=2,
        )
        found = read_main_gradients(model)
        model.zero_grad_buffer()
        turns = sum(len(document.turns) for document in documents)
        for mean in compute_turn_means(model, documents):
            (mean / turns).backward()
        model.finish_grad_sync()
        return [report["lm loss"].tolist() for report in reports], found, read_main_gradients(model)


def read_main_gradients(model: torch.nn.Module) -> NDArray[np.float32]:
    gradients = [parameter.main_grad.flatten().float() for parameter in model.parameters()]
    return torch.cat(gradients).cpu().numpy()
