"""`verify`: run the checks one after the other, and report their results."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mtpack.counts import Counts
from mtpack.errors import MtpackError, SetupError
from mtpack.shards.dataset import Shards, open_shards
from mtpack.verify.check import Check, ReportProgress
from mtpack.verify.structure import Violation, check_structure
from mtpack.verify.weights import WeightBucket, compute_weight_buckets

if TYPE_CHECKING:
    from mtpack.verify.computing import NumericReport
    from mtpack.verify.speed import SpeedReport

MISSING_EXTRA = (
    "mtpack[torch] is not installed, so only the structure was checked; "
    "get it with: pip install 'mtpack[torch]'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The result of `verify`."""

    rows: int
    """The number of sequences that keep every law."""
    rows_of: int
    """The number of all sequences."""
    checks: dict[str, Check]
    """By name, the checks that were made: after a broken structure, no others are."""
    device: str
    violation: Violation | None
    tally: Counts | None
    """The counts of the run; None for shards without a manifest, whose hashes are unknown."""
    weights: list[WeightBucket] = field(default_factory=list)
    """The weight of turns of each length under several means, over all shards; empty if the
    structure is broken."""
    numeric: NumericReport | None = None
    """The results of the numeric checks, if they were made."""
    speed: SpeedReport | None = None
    """Time and memory of the loss on this device, if they were measured."""
    missing_extra: str | None = None
    """The line that says what to install, if checks were left out because torch is missing."""

    @property
    def ok(self) -> bool:
        """Whether every check that was made has passed."""
        return all(check.ok for check in self.checks.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints; a loss that was not computed is null."""
        numeric = self.numeric
        loss = asdict(numeric.losses) if numeric else {}
        return {
            "ok": self.ok,
            "rows": self.rows,
            "checks": {name: check.as_dict() for name, check in self.checks.items()},
            "loss": {
                name: _null_if_not_finite(loss.get(name, math.nan))
                for name in ("turn_mean", "token_mean", "dialogue_mean")
            },
            "device": self.device,
            "dtype": numeric and numeric.dtype,
            "model": numeric and numeric.model,
            "covered": numeric.covered if numeric else {},
            "weights": [one.as_dict() for one in self.weights],
            "speed": self.speed and self.speed.as_dict(),
            "remarks": numeric.remarks if numeric else [],
            "violation": self.violation and self.violation.as_dict(),
        }


def _null_if_not_finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def verify(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    device: str = "auto",
    *,
    dtype: str = "auto",
    model: str | None = None,
    speed: bool = False,
    report_progress: ReportProgress = lambda stage: None,
) -> VerifyReport:
    """Check an output folder, or one or more shards.

    device: `cpu`, `cuda`, or `auto` (CUDA if there is a device). dtype: `float64`, `float32`,
    `bfloat16`, or `auto`. model: a folder with a causal language model for transformers, instead of
    the built-in one. speed: also measure the loss on the device. report_progress: called with the
    name of every stage. Raises SetupError for a path, device or model that does not exist or can't
    be used, InputError for shards that can't be read.
    """
    has_torch = find_spec("torch") is not None
    device = _choose_device(device) if has_torch else "cpu"
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    named = [os.fspath(path) for path in several]
    shards = open_shards(named)
    report_progress("structure")
    structure = check_structure(shards)
    broken = structure.violation is not None
    checks = {"structure": Check(int(broken), 0)}
    numeric = measured = None
    if has_torch and not broken:
        from mtpack.verify.speed import measure_losses

        numeric = _run_numeric_checks(named, shards, device, dtype, model, report_progress)
        checks |= numeric.checks
        report_progress("speed")
        measured = measure_losses(shards, device) if speed else None
    return VerifyReport(
        rows=structure.rows,
        rows_of=len(shards),
        checks=checks,
        device=device,
        violation=structure.violation,
        tally=shards.manifest.report.tally if shards.manifest else None,
        weights=[] if broken else compute_weight_buckets(shards),
        numeric=numeric,
        speed=measured,
        missing_extra=None if has_torch else MISSING_EXTRA,
    )


def _run_numeric_checks(
    named: list[str],
    shards: Shards,
    device: str,
    dtype: str,
    model: str | None,
    report_progress: ReportProgress,
) -> NumericReport:
    """Run the numeric checks; raise MtpackError if the device has too little memory."""
    from torch.cuda import OutOfMemoryError

    from mtpack.verify.computing import run_numeric_checks

    try:
        return run_numeric_checks(named, shards, device, dtype, model, report_progress)
    except OutOfMemoryError as error:
        raise MtpackError(
            f"{device} does not have enough memory for the numeric checks; "
            "try --dtype bfloat16, a smaller --model, or --device cpu"
        ) from error


def _choose_device(device: str) -> str:
    import torch

    if device == "cpu" or torch.cuda.is_available():
        return "cuda" if device == "auto" else device
    if device == "cuda":
        raise SetupError("--device cuda: torch finds no CUDA device; use --device cpu")
    return "cpu"
