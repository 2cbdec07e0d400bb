"""The built-in model: a small decoder-only transformer with random weights.

As current models, it has rotary positions, RMSNorm and gated feed-forward layers. No dropout.
A packed sequence and a single document go through the same code; only their document ids differ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYERS = 2
WIDTH = 64
HEADS = 4
HIDDEN = 128
_ROTARY_BASE = 10_000.0


class Transformer(nn.Module):
    """The model; equal seeds give equal weights."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # layers draw weights; keep the caller's state
            self.embedding = nn.Embedding(vocabulary, WIDTH)
            self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
            self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
            self.output = nn.Linear(WIDTH, vocabulary, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    scale = 1 / math.sqrt(parameter.shape[1])
                    parameter.normal_(0, scale, generator=generator)
            self.embedding.weight.mul_(math.sqrt(WIDTH))

    def forward(self, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor) -> Tensor:
        """Return the logits of the next token at every position, float (tokens, vocabulary).

        The arguments are those of `states`.
        """
        logits: Tensor = self.output(self.states(input_ids, position_ids, document_ids))
        return logits

    def states(self, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor) -> Tensor:
        """Return the hidden states before the output matrix, float (tokens, width).

        input_ids, position_ids, document_ids: integers (tokens,), document_ids ascending. A
        position attends to itself and to the earlier positions of its document.
        """
        hidden = self.embedding(input_ids)
        rotations = _compute_rotations(position_ids, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, rotations, document_ids)
        return self.norm(hidden)  # type: ignore[no-any-return]  # layers are untyped


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.forward_norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.gate_up = nn.Linear(WIDTH, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, hidden: Tensor, rotations: Tensor, document_ids: Tensor) -> Tensor:
        mixed = self.query_key_value(self.attention_norm(hidden))
        query, key, value = mixed.view(-1, 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
        attended = _attend(_rotate(query, rotations), _rotate(key, rotations), value, document_ids)
        hidden = hidden + self.attention_output(attended.transpose(0, 1).flatten(1))
        gate, up = self.gate_up(self.forward_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]  # layers are untyped


def _compute_rotations(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the cosines and sines of rotary positions, (2, seq_len, head width / 2)."""
    half = WIDTH // HEADS // 2
    wide = torch.promote_types(dtype, torch.float32)  # in bfloat16, 257 and 258 are the same
    steps = torch.arange(half, device=positions.device, dtype=wide) / half
    angles = positions[:, None].to(wide) * _ROTARY_BASE**-steps
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def _rotate(heads: Tensor, rotations: Tensor) -> Tensor:
    cosine, sine = rotations
    left, right = heads.chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, left * sine + right * cosine), dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, document_ids: Tensor) -> Tensor:
    """Attend causally within documents, (heads, seq_len, head width), one after the other."""
    ends = [*(document_ids.diff().nonzero().ravel() + 1).tolist(), len(document_ids)]
    # The rounding of CUDA's fused kernels may exceed the tolerance.
    backends = [SDPBackend.MATH] + ([] if query.is_cuda else [SDPBackend.FLASH_ATTENTION])
    attended = []
    with sdpa_kernel(backends):
        for start, end in zip([0, *ends], ends, strict=False):
            one, keys, values = (tensor[None, :, start:end] for tensor in (query, key, value))
            attended.append(
                functional.scaled_dot_product_attention(one, keys, values, is_causal=True)
            )
    return torch.cat(attended, dim=2)[0]
