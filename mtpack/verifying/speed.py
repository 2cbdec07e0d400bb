"""What the loss takes on a device, forwards and backwards, beside what trainers use today.

From hidden states and the output matrix to their gradients, with the loss tokens of the shards:

    full logits            `torch.nn.functional.cross_entropy` on all logits, in float32
    mtpack                 `mtpack.loss.linear_turn_mean_loss`
    liger-kernel, cut-cross-entropy   theirs, where installed, on CUDA

For information: it is no check. Only `mtpack` weighs turns; the others take the mean over tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mtpack.alignment import realigned
from mtpack.assembling import IGNORED
from mtpack.loss import linear_turn_mean_loss
from mtpack.runners.starting import give_back_freed_memory
from mtpack.shards import Row, Shards
from mtpack.torch_data import collate
from mtpack.verifying.causal_model import Batch

_REPEATS = 3
_OWN_STATUS, _OWN_PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a case to measure."""

    tokens: int
    hidden: int
    vocabulary: int
    dtype: str


SIZES = {
    "cpu": Sizes(1_024, 256, 16_384, "float32"),  # a second
    "cuda": Sizes(8_192, 4_096, 151_936, "bfloat16"),  # Qwen3 8B
}


@dataclass(frozen=True)
class Case:
    """What every way is given: labels are shifted, so a hidden state stands at its label."""

    hidden: Tensor
    """(tokens, hidden), a leaf."""
    weight: Tensor
    """(vocabulary, hidden), a leaf."""
    batch: Batch
    """The columns of `collate`, (1, tokens) each."""

    @property
    def labels(self) -> Tensor:
        """The labels, (tokens,)."""
        return self.batch["labels"].flatten()


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way took."""

    name: str
    seconds: float | None
    """The best of several, forwards and backwards; None where the memory did not do."""
    peak_bytes: int | None
    """Above inputs, parameters and their gradients; None where nothing tells."""


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """What all ways took."""

    sizes: Sizes
    loss_share: float
    """Of the tokens, how many are trained."""
    ways: list[Measured]

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints."""
        return asdict(self) | {"loss_share": round(self.loss_share, 6)}


Way = Callable[[Case], Tensor]
"""From a case to the loss, to be called backwards."""


def measure_losses(shards: Shards, device: str) -> SpeedReport:
    """Measure every way that there is on a device, with the loss tokens of the first sequences."""
    sizes = SIZES[device]
    case = make_case(rows_for(shards, sizes.tokens), sizes, device)
    share = float(case.batch["loss_mask"].double().mean())
    ways = [measure(name, way, case) for name, way in ways_on(device).items()]
    return SpeedReport(sizes, share, ways)


def rows_for(shards: Shards, tokens: int) -> list[Row]:
    """Take sequences with so many tokens or more in all, labels shifted; a few shards repeat."""
    rows = []
    for number in range(-(-tokens // shards.metadata.seq_len)):
        row = shards[number % len(shards)]
        aligned = shards.metadata.label_alignment == "aligned"
        rows.append({**row, **realigned(row, "shifted")} if aligned else row)
    return rows


def make_case(rows: list[Row], sizes: Sizes, device: str) -> Case:
    """Make hidden states and weights at random, and labels where the rows have some."""
    columns = {}
    for name, values in collate(rows).items():
        if values.shape == (len(rows), len(rows[0]["input_ids"])):
            columns[name] = values.flatten()[None, : sizes.tokens].to(device)
    columns["turn_num"] = columns["turn_heads"].sum(dim=1)
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, sizes.dtype)
    tokens = columns["labels"].shape[1]
    random_labels = torch.randint(sizes.vocabulary, (1, tokens), generator=generator, device=device)
    columns["labels"] = random_labels.masked_fill(columns["loss_mask"] == 0, IGNORED)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, device=device, dtype=dtype)
        scaled: Tensor = values / sizes.hidden**0.25
        return scaled.requires_grad_()

    return Case(leaf(tokens, sizes.hidden), leaf(sizes.vocabulary, sizes.hidden), columns)


def ways_on(device: str) -> dict[str, Way]:
    """Return the ways that can be measured on a device."""
    ways: dict[str, Way] = {"full logits": full_logits, "mtpack": turn_mean}
    if device == "cuda" and find_spec("liger_kernel"):
        ways["liger-kernel"] = liger
    if device == "cuda" and find_spec("cut_cross_entropy"):
        ways["cut-cross-entropy"] = cut_cross_entropy
    return ways


def full_logits(case: Case) -> Tensor:
    """Return the mean over tokens from all logits, in float32 as trainers make them."""
    logits = functional.linear(case.hidden, case.weight).float()
    return functional.cross_entropy(logits, case.labels, ignore_index=IGNORED)


def turn_mean(case: Case) -> Tensor:
    """Return the mean over turns."""
    loss_sum, count = linear_turn_mean_loss(
        case.hidden[None], case.weight, case.batch, label_alignment="shifted"
    )
    return loss_sum / count


def liger(case: Case) -> Tensor:
    """Return the mean over tokens by Liger Kernel's fused linear cross-entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED)(
        case.weight, case.hidden, case.labels
    )
    return loss


def cut_cross_entropy(case: Case) -> Tensor:
    """Return the mean over tokens by cut-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(case.hidden, case.weight, case.labels, ignore_index=IGNORED)
    return loss


def measure(name: str, way: Way, case: Case, repeats: int = _REPEATS) -> Measured:
    """Run a way forwards and backwards: once for its memory, then for its time, the best of some.

    One for which there is not enough memory has no figures.
    """
    try:
        _, peak = timed(way, case)
        seconds = min(timed(way, case)[0] for _ in range(repeats))
    except torch.OutOfMemoryError:
        return Measured(name, None, None)
    return Measured(name, seconds, peak)


def timed(way: Way, case: Case) -> tuple[float, int | None]:
    """Return the seconds of one run, and its peak of memory in bytes beside what it returns."""
    case.hidden.grad = case.weight.grad = None
    before = _start_counting(case.hidden.device)
    start = time.perf_counter()
    way(case).backward()  # type: ignore[no-untyped-call]  # torch has no types
    if case.hidden.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = _peak(case.hidden.device)
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in (case.hidden, case.weight))
    return seconds, None if peak is None or before is None else max(0, peak - before - gradients)


def _start_counting(device: torch.device) -> int | None:
    """Forget the peak so far; return what is in use now, in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    give_back_freed_memory()  # or what is used again would not show
    try:
        _OWN_PEAK_RESET.write_text("5")  # Linux: the peak becomes what is resident now
    except OSError:
        return None
    return _peak(device)


def _peak(device: torch.device) -> int | None:
    """Return the most memory in use since then: allocated on CUDA, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        status = _OWN_STATUS.read_text()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None
