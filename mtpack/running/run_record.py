"""The record of a run in its work area: what it was, so that the next run knows what to take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

from mtpack.fast_path import REMEDIES
from mtpack.input.files import InputFile
from mtpack.recipe.sources import describe_sources
from mtpack.running.earlier_work import clean_area
from mtpack.running.outputs import Output, has_manifest
from mtpack.running.pipeline import Pipeline
from mtpack.running.token_store import name_run_folder
from mtpack.shards.manifest import RunIdentity
from mtpack.shards.work_area import WorkArea
from mtpack.version import __version__


def identify_run(pipeline: Pipeline, files: Collection[InputFile] = ()) -> RunIdentity:
    """Return all that the contents of an output depend on, without the contents of the input."""
    sources = describe_sources(pipeline.sources, pipeline.options)
    inputs: list[dict[str, Any]] = [{"bytes": file.num_bytes} for file in files]
    if len(sources) > 1:
        for described, file in zip(inputs, files, strict=True):
            described["source"] = file.source
    return RunIdentity(
        options=pipeline.options.output_options(),
        inputs=inputs,
        sources=sources,
        tokenizer_sha256=pipeline.tokenizer.sha256,
        template_sha256=pipeline.template.sha256,
    )


def hash_run(pipeline: Pipeline) -> str:
    """Return a digest of all that shards depend on, except the input."""
    text = json.dumps([__version__, asdict(identify_run(pipeline))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_run_record(area: WorkArea, pipeline: Pipeline, disabled: Collection[str]) -> None:
    """Write the record of this run; disabled: the fast paths that were found to be wrong."""
    values = {"mtpack_version": __version__, "run": asdict(identify_run(pipeline))}
    area.write_run_record(values | {"disabled": sorted(disabled)})


def continue_run(
    area: WorkArea, output: Output, pipeline: Pipeline, warn: Callable[[str], None]
) -> list[str]:
    """Keep in the work area what this run can use of an earlier one, and begin this run.

    warn: is called with the line for the user, if there was an earlier run. Returns the fast paths
    that it found to be wrong.
    """
    record = area.read_run_record()
    difference = None if record is None else _find_difference(record, pipeline)
    keeps_shards = record is not None and difference is None
    run_folder = name_run_folder(pipeline)
    kept = {
        clean_area(folder, run_folder, keeps_shards=keeps_shards)
        for folder in {area.path, area.scratch}
    }
    area.is_kept = True in kept
    disabled = [] if record is None else _find_disabled(record, pipeline)
    write_run_record(area, pipeline, disabled)
    if record is not None and (area.is_kept or not has_manifest(output)):
        line = f"{output.place}: an earlier run did not complete"
        if difference is None:
            rest = "continuing it" if area.is_kept else "starting over"
        else:
            line += f", and {difference}"
            rest = "taking its tokenized splits" if area.is_kept else "starting over"
        warn(f"{line}; {rest}")
    for name in disabled:
        warn(f"warning: an earlier run found {name} to be wrong, {REMEDIES[name]}")
    return disabled


def _find_difference(record: Mapping[str, Any], pipeline: Pipeline) -> str | None:
    """Return how the earlier run differs from this one, except in its input, as text."""
    version = record.get("mtpack_version")
    if version != __version__:
        return f"it was one of mtpack {version or '(version unknown)'}, not {__version__}"
    try:
        return RunIdentity(**record["run"]).difference(identify_run(pipeline))
    except (TypeError, KeyError, AttributeError):
        return "its record is damaged"


def _find_disabled(record: Mapping[str, Any], pipeline: Pipeline) -> list[str]:
    """Return the fast paths that the earlier run found to be wrong for this template and tokenizer.

    They are still wrong, whatever the other options are.
    """
    run, found = record.get("run"), record.get("disabled")
    if not isinstance(run, dict) or not isinstance(found, list):
        return []
    this = asdict(identify_run(pipeline))
    names = ("tokenizer_sha256", "template_sha256")
    is_same = all(run.get(name) == this[name] for name in names)
    if not is_same or record.get("mtpack_version") != __version__:
        return []
    return [name for name in REMEDIES if name in found]
