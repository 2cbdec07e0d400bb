"""`verify`: the checks one after the other, and what they came to."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mtpack.errors import SetupError
from mtpack.manifest import Tally
from mtpack.shards import Shards, open_shards
from mtpack.verifying.structure import StructureReport, Violation, check_structure

if TYPE_CHECKING:
    from mtpack.verifying.equivalence import EquivalenceReport

MISSING_EXTRA = (
    "mtpack[torch] is not installed, so only the structure was checked; "
    "get it with: pip install 'mtpack[torch]'"
)


@dataclass(frozen=True, slots=True)
class Check:
    """What one check came to."""

    ok: bool
    value: float
    """Of the structure: broken laws found (the check ends with the first). Else a difference."""
    tolerance: float

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints; a value that is no number is null."""
        return asdict(self) | {"value": _number(self.value)}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The result of `verify`."""

    rows: int
    """Sequences that were found to keep every law."""
    rows_of: int
    checks: dict[str, Check]
    """By name, as far as they were made: none follows a structure that is broken."""
    loss: dict[str, float]
    """The sample's loss under three means; empty where the check of it was not made."""
    covered: dict[str, int]
    """What the numeric checks took, and of how much."""
    device: str
    violation: Violation | None
    tally: Tally | None
    """What the run counted; None for shards without their manifest, whose hashes nobody knows."""
    missing_extra: str | None = None
    """What to install, where checks were left out because torch is missing."""

    @property
    def ok(self) -> bool:
        """Whether every check that was made has held."""
        return all(check.ok for check in self.checks.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints; a loss that was not computed is null."""
        return {
            "ok": self.ok,
            "rows": self.rows,
            "checks": {name: check.as_dict() for name, check in self.checks.items()},
            "loss": {
                name: _number(self.loss.get(name, math.nan))
                for name in ("turn_mean", "token_mean", "dialogue_mean")
            },
            "device": self.device,
            "covered": self.covered,
            "violation": self.violation and self.violation.as_dict(),
        }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def verify(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], device: str = "auto"
) -> VerifyReport:
    """Check an output folder, or one or more shards.

    device: `cpu`, `cuda`, or `auto` (CUDA where there is some). Raises SetupError for a path or a
    device that is not there, InputError for shards that can't be read.
    """
    has_torch = find_spec("torch") is not None
    device = _usable_device(device) if has_torch else "cpu"
    shards = open_shards(paths)
    structure = check_structure(shards)
    if structure.violation is not None or not has_torch:
        return _report(shards, structure, None, device, None if has_torch else MISSING_EXTRA)
    from mtpack.verifying.equivalence import check_equivalence

    return _report(shards, structure, check_equivalence(shards, device), device, None)


def _usable_device(device: str) -> str:
    import torch

    if device == "cpu" or torch.cuda.is_available():
        return "cuda" if device == "auto" else device
    if device == "cuda":
        raise SetupError("--device cuda: torch finds no CUDA device; use --device cpu")
    return "cpu"


def _report(
    shards: Shards,
    structure: StructureReport,
    equivalence: EquivalenceReport | None,
    device: str,
    missing_extra: str | None,
) -> VerifyReport:
    broken = 0 if structure.violation is None else 1
    checks = {"structure": Check(not broken, broken, 0)}
    if equivalence is not None:
        checks["equivalence"] = Check(equivalence.ok, equivalence.value, equivalence.tolerance)
    return VerifyReport(
        rows=structure.rows,
        rows_of=len(shards),
        checks=checks,
        loss=asdict(equivalence.losses) if equivalence else {},
        covered=equivalence.coverage if equivalence else {},
        device=device,
        violation=structure.violation,
        tally=shards.manifest.report.tally if shards.manifest else None,
        missing_extra=missing_extra,
    )
