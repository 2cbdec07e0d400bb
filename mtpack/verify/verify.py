"""`verify`: run the checks one after the other, and report their results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mtpack.counts import Counts
from mtpack.errors import SetupError
from mtpack.shards.dataset import is_output, map_shards, read_complete_manifest
from mtpack.storage.places import to_place
from mtpack.storage.urls import resolve_name
from mtpack.verify.check import Check, ReportProgress
from mtpack.verify.files import Violation, find_changed_file
from mtpack.verify.structure import check_structure
from mtpack.verify.weights import MEANS, WeightBucket, compute_weight_buckets

if TYPE_CHECKING:
    from mtpack.verify.computing import NumericReport

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
    """What the numeric checks found, if they were made."""
    missing_extra: str | None = None
    """The line that says what to install, if checks were left out because torch is missing."""

    @property
    def ok(self) -> bool:
        """Whether every check has passed; a check that was not done has not."""
        return all(check.ok for check in self.checks.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints; a loss that was not computed is null."""
        numeric = self.numeric
        return {
            "ok": self.ok,
            "rows": self.rows,
            "checks": {name: check.as_dict() for name, check in self.checks.items()},
            "loss": numeric.losses if numeric else dict.fromkeys(MEANS[:3]),
            "device": self.device,
            "dtype": numeric and numeric.dtype,
            "model": numeric and numeric.model,
            "covered": numeric.covered if numeric else {},
            "weights": [asdict(one) for one in self.weights],
            "violation": self.violation and asdict(self.violation),
        }


def verify(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    device: str = "auto",
    *,
    dtype: str = "auto",
    model: str | None = None,
    report_progress: ReportProgress = lambda check, seconds: None,
) -> VerifyReport:
    """Check an output folder, or one or more shards.

    device: `cpu`, `cuda`, or `auto` (CUDA if there is a device). dtype: `float64`, `float32`,
    `bfloat16`, or `auto`. model: a folder with a causal language model for transformers, instead of
    the built-in one. Raises SetupError for a path, device or model that does not exist or can't
    be used, InputError for shards that can't be read.
    """
    has_torch = find_spec("torch") is not None
    device = _choose_device(device) if has_torch else "cpu"
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    named = [resolve_name(os.fspath(path)) for path in several]
    report_progress("structure", 0)
    if changed := _check_files(named, device):
        return changed
    shards = map_shards(named)
    structure = check_structure(shards)
    broken = structure.violation is not None
    checks = {"structure": Check.compare(int(broken), 0)}
    numeric = None
    if has_torch and not broken:
        from mtpack.verify.computing import run_numeric_checks

        numeric = run_numeric_checks(named, shards, device, dtype, model, report_progress)
        checks |= numeric.checks
    return VerifyReport(
        rows=structure.rows,
        rows_of=len(shards),
        checks=checks,
        device=device,
        violation=structure.violation,
        tally=shards.manifest.report.tally if shards.manifest else None,
        weights=[] if broken else compute_weight_buckets(shards),
        numeric=numeric,
        missing_extra=None if has_torch else MISSING_EXTRA,
    )


def _check_files(named: list[str], device: str) -> VerifyReport | None:
    """Return the report on an output of which a file is not the one in its manifest, or None."""
    folder = to_place(named[0].rstrip("/") or named[0]) if len(named) == 1 else None
    if folder is None or not is_output(folder):
        return None
    manifest = read_complete_manifest(folder)
    violation = find_changed_file(folder, manifest)
    if violation is None:
        return None
    return VerifyReport(
        rows=0,
        rows_of=manifest.report.tally.sequences,
        checks={"structure": Check.compare(1, 0)},
        device=device,
        violation=violation,
        tally=manifest.report.tally,
    )


def _choose_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SetupError("--device cuda: torch finds no CUDA device; use --device cpu")
    return device
