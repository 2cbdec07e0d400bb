"""mtpack against other ways to do the same on one machine: a table of ratios with their spread.

    python -m benchmarks.compare data/*.jsonl.gz --tokenizer path/to/model \\
        --training-template path/to/training_template.jinja

Every round measures all ways one after the other; a ratio is of two figures of the same round.
docs/performance.md says how each is measured. Runs on Linux, with all extras for development.

    python -m benchmarks.compare data/*.jsonl.gz --old path/to/old/venv/bin/python

compares another installed version of mtpack with this one instead (`benchmarks.old_version`). With
`--only mtpack,trl,fastokens,start,repack`, these ways are measured as well, for both versions.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from benchmarks.batches import load_batches
from benchmarks.encode_only import encode_with_fastokens, encode_with_tokenizers
from benchmarks.machine import describe_machine
from benchmarks.old_version import CASES, ROUNDS, compare_versions
from benchmarks.packing import (
    ensure_output,
    measure_start,
    pack_end_to_end,
    pack_sample_data,
    pack_with_tokenizers,
    repack,
    time_help,
)
from benchmarks.planning import count_best_fit_decreasing
from benchmarks.rows import read_rows
from benchmarks.scaling import measure_scaling
from benchmarks.setting import Figures, Setting
from benchmarks.table import LINES, Rounds, compute_ratios, show_profile, show_table
from benchmarks.trl_way import prepare_with_trl
from mtpack.packing.plan import plan_sequences
from mtpack.shards.dataset import open_shards
from mtpack.tokenizer.loading import EMBEDDED_FOLDER


def measure_planning(setting: Setting) -> Figures:
    """Plan the lengths of all documents, also by best-fit decreasing."""
    shards = open_shards(ensure_output(setting))
    batches = list(shards.batches())
    lengths = np.concatenate([batch.document_lengths for batch in batches]).astype(np.int64)
    lengths = lengths[lengths > 0]
    started = time.perf_counter()
    planned = plan_sequences(lengths, setting.seq_len, "dense", (0,))
    ended = time.perf_counter()
    best_fit_sequences = count_best_fit_decreasing(lengths, setting.seq_len)
    return {
        "plan.sequences": planned.num_sequences,
        "plan.bound": planned.lower_bound,
        "plan.seconds": ended - started,
        "bfd.sequences": best_fit_sequences,
        "bfd.seconds": time.perf_counter() - ended,
    }


WAYS: dict[str, Callable[[Setting], Figures]] = {
    "mtpack": pack_end_to_end,
    "mtpack-tokenizers": pack_with_tokenizers,
    "trl": prepare_with_trl,
    "tokenizers": encode_with_tokenizers,
    "fastokens": encode_with_fastokens,
    "planning": measure_planning,
    "rows": read_rows,
    "batches": load_batches,
    "scaling": measure_scaling,
    "repack": repack,
    "start": measure_start,
    "help": time_help,
    "sample": pack_sample_data,
}


def _parse_names(known: Iterable[str]) -> Callable[..., list[str] | None]:
    """Return the callback of an option whose value is a list of known names."""

    def parse(
        context: click.Context, option: click.Parameter, value: str | None
    ) -> list[str] | None:
        names = None if value is None else value.split(",")
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise click.BadParameter(
                f"{', '.join(unknown)}: unknown; use names of {', '.join(known)}"
            )
        return names

    return parse


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="DATA...")
@click.option(
    "--tokenizer",
    default=EMBEDDED_FOLDER,
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="A folder with tokenizer.json, as transformers loads it. Default: the one of mtpack.",
)
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="Use it instead of the tokenizer's own.",
)
@click.option(
    "--training-template",
    type=_FILE,
    help="The chat template with {% generation %} around the assistant's text; TRL's way needs it.",
)
@click.option("--seq-len", default=4096, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes of every way.")
@click.option("--rounds", type=click.IntRange(1), help=f"Default: 3; with --old: {ROUNDS}.")
@click.option(
    "--trl-rows",
    type=int,
    help="Limit TRL's way to the first rows: quicker, but its fixed costs then weigh more.",
)
@click.option(
    "--read-seconds",
    default=1.0,
    show_default=True,
    help="How long each way to read rows or batches is measured.",
)
@click.option(
    "--only",
    callback=_parse_names(WAYS),
    metavar="NAME,...",
    help=f"Measure only these ways: {', '.join(WAYS)}. Default: all; with --old: none.",
)
@click.option(
    "--old",
    type=_FILE,
    metavar="PYTHON",
    help="Compare the mtpack that this Python interpreter imports with this one.",
)
@click.option(
    "--cases",
    default=",".join(CASES),
    callback=_parse_names(CASES),
    metavar="NAME,...",
    help=f"With --old: compare only these: {', '.join(CASES)}.",
)
@click.option(
    "--also",
    multiple=True,
    type=click.Path(exists=True, resolve_path=True),
    metavar="FILE",
    help="With --old: compare this input as well, unchanged. Repeatable.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here."
)
def main(
    rounds: int | None,
    only: list[str] | None,
    cases: list[str],
    also: tuple[str, ...],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Measure ways to pack the dialogues of DATA and print how they compare."""
    old = options["old"]
    ways = list(WAYS) if only is None and old is None else only or []
    if "trl" in ways and options["training_template"] is None:
        raise click.UsageError("TRL's way needs --training-template; or use --only without trl")
    machine = describe_machine()
    click.echo(machine)
    content: dict[str, Any] = {"machine": machine}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(folder=Path(folder), **options)
        if old is not None:
            content["old"] = _compare_with_old(setting, cases, also, rounds or ROUNDS)
        if ways:
            content["ways"] = _compare_ways(setting, ways, rounds or 3)
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _compare_ways(setting: Setting, names: list[str], rounds: int) -> dict[str, Any]:
    """Print the table of the named ways; return the description of the data, and the figures."""
    for_trl = "" if setting.trl_rows is None else f", {setting.trl_rows:,} of them for TRL"
    data = _describe_data(
        setting,
        f"{len(setting.texts):,} rows{for_trl}, {setting.megabytes:,.1f} MB rendered",
        rounds,
    )
    click.echo(data)
    figures = measure_ways(setting, names, rounds)
    console = Console(width=200, highlight=False)  # wide enough for every line
    show_table(figures, console)
    if "mtpack" in names:
        show_profile(figures, console)
    found = {
        f"{line.name} / {line.against_name}": compute_ratios(line, figures)
        for line in LINES
        if line.against
    }
    return {"data": data, "figures": figures, "ratios": found}


def _compare_with_old(
    setting: Setting, cases: list[str], also: tuple[str, ...], rounds: int
) -> dict[str, Any]:
    data = _describe_data(setting, f"{setting.rows.stat().st_size / 1e6:,.1f} MB of rows", rounds)
    click.echo(data)
    return {"data": data, **compare_versions(setting, cases, also, rounds)}


def _describe_data(setting: Setting, amount: str, rounds: int) -> str:
    names = ", ".join(Path(name).name for name in setting.inputs)
    return (
        f"{names}: {amount}; tokens a sequence: {setting.seq_len:,}; "
        f"processes: {setting.workers}; rounds: {rounds}"
    )


def measure_ways(setting: Setting, names: list[str], rounds: int) -> Rounds:
    """Measure the named ways in turns, and return their figures."""
    figures: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for name in names:
            started = time.perf_counter()
            for figure, value in WAYS[name](setting).items():
                figures[figure].append(value)
            seconds = time.perf_counter() - started
            click.echo(f"round {number} of {rounds}: {name}, {seconds:.1f} s", err=True)
    return figures


if __name__ == "__main__":
    main()
