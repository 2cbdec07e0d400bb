"""mtpack beside what else does the same, on one machine: a table of ratios and their spread.

    python -m benchmarks.compare data/*.jsonl.gz --tokenizer path/to/model \\
        --training-template path/to/training_template.jinja

Every round measures all ways one after the other; a ratio is of two figures of the same round.
docs/performance.md says how each is measured. Runs on Linux, with all extras for development.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from rich.console import Console

from benchmarks.batches import load_batches
from benchmarks.encode_only import with_fastokens, with_tokenizers
from benchmarks.machine import describe_machine
from benchmarks.packing import (
    end_to_end,
    end_to_end_with_tokenizers,
    kept_output,
    pack_sample_data,
    repack,
    show_help,
)
from benchmarks.planning import best_fit_decreasing
from benchmarks.rows import read_rows
from benchmarks.scaling import scale
from benchmarks.setting import Figures, Setting
from benchmarks.table import LINES, Rounds, ratios, show_profile, show_table
from benchmarks.trl_way import with_trl
from mtpack.packing.plan import plan_sequences
from mtpack.shards.dataset import open_shards


def plan(setting: Setting) -> Figures:
    """Plan the lengths of all documents, and place them by best-fit decreasing."""
    shards = open_shards(kept_output(setting))
    batches = [batch for shard in shards.opened for batch in shard.batches]
    lengths = np.concatenate([batch.document_lengths for batch in batches]).astype(np.int64)
    lengths = lengths[lengths > 0]
    started = time.perf_counter()
    planned = plan_sequences(lengths, setting.seq_len, "optimal", (0,))
    ended = time.perf_counter()
    placed = best_fit_decreasing(lengths, setting.seq_len)
    return {
        "plan.sequences": planned.num_sequences,
        "plan.bound": planned.lower_bound,
        "plan.seconds": ended - started,
        "bfd.sequences": placed,
        "bfd.seconds": time.perf_counter() - ended,
    }


WAYS: dict[str, Callable[[Setting], Figures]] = {
    "mtpack": end_to_end,
    "mtpack-tokenizers": end_to_end_with_tokenizers,
    "trl": with_trl,
    "tokenizers": with_tokenizers,
    "fastokens": with_fastokens,
    "planning": plan,
    "rows": read_rows,
    "batches": load_batches,
    "scaling": scale,
    "repack": repack,
    "help": show_help,
    "sample": pack_sample_data,
}


def _chosen_ways(context: click.Context, option: click.Parameter, value: str) -> list[str]:
    names = value.split(",")
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: no such way; there are {', '.join(WAYS)}")
    return names


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="DATA...")
@click.option(
    "--tokenizer",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with tokenizer.json, as transformers loads it.",
)
@click.option("--chat-template", type=_FILE, help="Instead of the tokenizer's own.")
@click.option(
    "--training-template",
    type=_FILE,
    help="The chat template with {% generation %} around the assistant's text; TRL's way needs it.",
)
@click.option("--seq-len", default=4096, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes of every way.")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--trl-rows",
    type=int,
    help="Give TRL's way only as many leading rows; what it takes at any size weighs more then.",
)
@click.option(
    "--only",
    default=",".join(WAYS),
    callback=_chosen_ways,
    metavar="NAME,...",
    help=f"Measure these ways alone: {', '.join(WAYS)}.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep all figures here.")
def main(rounds: int, only: list[str], json_file: Path | None, **chosen: object) -> None:
    """Measure ways to pack the dialogues of DATA and print how they compare."""
    if "trl" in only and chosen["training_template"] is None:
        raise click.UsageError("TRL's way needs --training-template; or leave it out of --only")
    machine = describe_machine()
    click.echo(machine)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(folder=Path(folder), **chosen)  # type: ignore[arg-type]
        data = _describe_data(setting, rounds)
        click.echo(data)
        figures = measure(setting, only, rounds)
    console = Console(width=200, highlight=False)  # wide enough that no line is broken
    show_table(figures, console)
    if "mtpack" in only:
        show_profile(figures, console)
    if json_file is not None:
        found = {
            f"{line.name} / {line.against_name}": ratios(line, figures)
            for line in LINES
            if line.against
        }
        known = {"machine": machine, "data": data, "figures": figures, "ratios": found}
        json_file.write_text(json.dumps(known, indent=1, ensure_ascii=False), encoding="utf-8")


def _describe_data(setting: Setting, rounds: int) -> str:
    names = ", ".join(Path(name).name for name in setting.inputs)
    for_trl = "" if setting.trl_rows is None else f", {setting.trl_rows:,} of them for TRL"
    return (
        f"{names}: {len(setting.texts):,} rows{for_trl}, {setting.megabytes:,.1f} MB "
        f"rendered; tokens a sequence: {setting.seq_len:,}; processes: {setting.workers}; "
        f"rounds: {rounds}"
    )


def measure(setting: Setting, names: list[str], rounds: int) -> Rounds:
    """Measure the named ways in turns."""
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
