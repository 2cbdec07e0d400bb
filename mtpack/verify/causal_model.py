"""The language model that the checks use: the small built-in one, or a user's own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtpack.errors import SetupError, first_line
from mtpack.packing.columns import IGNORED
from mtpack.shards.dataset import Row
from mtpack.token_batch import Int64
from mtpack.verify.model import LAYERS, Transformer

_BUILT_IN_SEED = 0
_BUILT_IN_VOCABULARY = 256
_SMALL_MODEL = 3e7

ModelBatch = Mapping[str, Tensor]
"""The tensors of a micro-batch by column, as `mtpack.torch_data.collate` returns them."""


@dataclass(frozen=True, slots=True)
class CausalModel:
    """A causal language model that can read several documents in one sequence."""

    module: nn.Module
    forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    """From input_ids, position_ids and document_ids, integers (tokens,), to the logits of the next
    token at every position, float (tokens, vocabulary)."""
    vocabulary: int
    """The number of token ids."""
    layers: int
    name: str
    separates_documents_by: str
    """The input that separates the documents of a sequence, in words."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def device(self) -> torch.device:
        """The device of the model; its inputs must be there too."""
        return self.parameters[0].device

    @property
    def is_small(self) -> bool:
        """Whether a pass over some hundred tokens takes well below a second on a CPU."""
        return sum(parameter.numel() for parameter in self.parameters) < _SMALL_MODEL

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.parameters[0].dtype

    def logits(self, batch: ModelBatch) -> Tensor:
        """Return the logits of a batch, float (sequences, seq_len, vocabulary).

        The model reads the whole batch as one sequence, as in padding-free training.
        """
        return self.forward(*flatten_inputs(batch)).view(*batch["input_ids"].shape, -1)


def flatten_inputs(batch: ModelBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return input_ids, position_ids and document_ids, int64 (sequences * seq_len,) each."""
    return (
        batch["input_ids"].flatten(),
        batch["position_ids"].flatten(),
        read_document_ids(batch),
    )


def read_document_ids(batch: ModelBatch) -> Tensor:
    """Return the document at each position, int64 (sequences * seq_len,), from `cu_seqlens`."""
    lengths = batch["cu_seqlens"].diff().long()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def make_built_in_model(device: str, dtype: torch.dtype) -> CausalModel:
    """Return the small transformer with random weights, always the same."""
    module = Transformer(_BUILT_IN_VOCABULARY, _BUILT_IN_SEED).to(device, dtype)
    return CausalModel(
        module,
        module,
        _BUILT_IN_VOCABULARY,
        LAYERS,
        "built in",
        "cu_seqlens",
    )


def fold_ids(rows: list[Row]) -> list[Row]:
    """Return sequences for the built-in model: its vocabulary is small, so ids are modulo that."""

    def fold(ids: Int64) -> Int64:
        return np.where(ids == IGNORED, IGNORED, ids % _BUILT_IN_VOCABULARY)

    return [
        {**row, "input_ids": fold(row["input_ids"]), "labels": fold(row["labels"])} for row in rows
    ]


def load_model(path: str | os.PathLike[str], device: str, dtype: torch.dtype) -> CausalModel:
    """Load a causal language model from a local folder with transformers; run no code from there.

    Documents are separated by position_ids that restart, without an attention mask. From these,
    transformers (5.24, masking_utils.py, `find_packed_sequence_indices`) makes a mask within
    documents, and its flash attention takes the document lengths. Raises SetupError if transformers
    is missing or can't load the model; `forward` raises it too, if the model can't read its inputs.
    """
    if find_spec("transformers") is None:
        raise SetupError("--model needs transformers; get it with: pip install transformers")
    if dtype == torch.float64:
        raise SetupError(
            "--dtype float64 is not possible with --model: transformers always computes parts of a "
            "model in float32; use --dtype float32"
        )
    if not (Path(path) / "config.json").is_file():
        raise SetupError(
            f"--model {path}: no config.json there; give the path of a local model folder"
        )
    module = _load(path, dtype).to(device).eval()  # no dropout
    if "position_ids" not in inspect.signature(module.forward).parameters:
        raise SetupError(
            f"--model {path}: {type(module).__name__} takes no position_ids, "
            "so it can't separate the documents of a sequence"
        )

    def forward(input_ids: Tensor, position_ids: Tensor, document_ids: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids[None], "position_ids": position_ids[None]}
        try:
            output = module(**inputs, use_cache=False)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            longest = int(position_ids.max()) + 1
            raise SetupError(
                f"--model {path}: it can't read documents of {longest:,} tokens: "
                f"{first_line(error)}"
            ) from error
        return output.logits[0]  # type: ignore[no-any-return]  # transformers is untyped here

    attention = getattr(module.config, "_attn_implementation", None) or "its own"
    return CausalModel(
        module,
        forward,
        int(module.get_input_embeddings().num_embeddings),
        int(getattr(module.config.get_text_config(), "num_hidden_layers", LAYERS)),
        f"{type(module).__name__} from {path}",
        f"restarting position_ids ({attention} attention)",
    )


def _load(path: str | os.PathLike[str], dtype: torch.dtype) -> Any:
    """Load a model; transformers reports nothing and shows no progress meanwhile."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError) as error:
        reason = first_line(error)
        raise SetupError(f"--model {path}: transformers can't load it: {reason}") from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
