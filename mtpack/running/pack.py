"""Run `pack`, from the inputs to a complete output folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mtpack.counts import RunCounts
from mtpack.errors import InputError, SetupError
from mtpack.fast_path import REMEDIES, FastPathFailedError
from mtpack.input.files import (
    InputFile,
    describe_input,
)
from mtpack.input.input_hashes import InputHashes
from mtpack.input.reading import read_sources
from mtpack.options import PackOptions
from mtpack.recipe.load import Config
from mtpack.recipe.sources import Recipe
from mtpack.recipe.write import format_own_recipe
from mtpack.running.argument_warnings import list_argument_warnings
from mtpack.running.attempt import Attempt, RunState
from mtpack.running.callbacks import Callbacks
from mtpack.running.earlier_work import forget_windows
from mtpack.running.empty_run import explain_empty_run
from mtpack.running.ending_warnings import list_ending_warnings
from mtpack.running.executors import open_runner
from mtpack.running.format_notices import FormatNotices
from mtpack.running.outputs import Output, open_output
from mtpack.running.pipeline import (
    Pipeline,
    choose_engine,
    load_pipeline,
)
from mtpack.running.run_inputs import (
    Inputs,
    find_files,
    load_run,
    record_sources,
    refuse_empty_files,
)
from mtpack.running.run_record import continue_run, identify_run, write_run_record
from mtpack.running.run_setup import RunSetup, estimate_text_bytes, read_first_rows
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.table_process import table_process
from mtpack.running.token_store import holds_splits, measure_store
from mtpack.running.windows import StaleWindowError
from mtpack.shards.manifest import (
    RECIPE,
    PackReport,
    RunIdentity,
    RunInfo,
    SourceRecord,
)
from mtpack.shards.output_folder import find_complete_output, refuse_foreign_files
from mtpack.shards.side_files import write_datasets_files
from mtpack.shards.work_area import WorkArea, empty_area, find_last_file
from mtpack.storage.urls import STANDARD_INPUT
from mtpack.tokenizer.loading import EMBEDDED
from mtpack.version import __version__


def pack(
    inputs: Inputs = (),
    *,
    config: Config | None = None,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> PackReport:
    """Pack dialogues into shards and return the report.

    inputs: files (docs/files.md has their kinds), folders, patterns, or `-`. config: a recipe
    (docs/recipes.md), as a file or as a dict of its keys; then there may be no inputs. options:
    those of `PackOptions`, by name; they win over the recipe. Raises SetupError if the run can't
    start, InputError for a bad row (unless `on_error="skip"`) and if nothing is left to pack.

    The work is done in worker processes. They are forked where that is safe; otherwise (on macOS,
    in programs that have threads) they are spawned and load everything themselves. They do not
    import the caller's script.
    """
    return PackRun(load_run(inputs, config, options), callbacks or Callbacks()).pack()


def prepare_output(pipeline: Pipeline, warn: Callable[[str], None]) -> tuple[Output, list[str]]:
    """Return the output, and warnings of template arguments; raise SetupError.

    Nothing is written. What the user should know of the choices is reported to `warn`.
    """
    options = pipeline.options
    if pipeline.tokenizer.source == EMBEDDED:
        warn(
            "using the small tokenizer that comes with mtpack; choose your model's with --tokenizer"
        )
    warnings = list_argument_warnings(pipeline.template, options.template_arg)
    for source in pipeline.sources:
        where = f'source "{source.name}": template-args'
        warnings += list_argument_warnings(pipeline.template, source.template_args or (), where)
    for warning in warnings:
        warn(f"warning: {warning}")
    output = open_output(options)
    output.refuse_foreign_files()
    if options.token_store is not None:
        refuse_foreign_files(Path(options.token_store), holds_splits, "--token-store")
    return output, warnings


class PackRun:
    """One run of `pack`: its recipe, callbacks and stopwatch, and a method for each step."""

    def __init__(self, recipe: Recipe, callbacks: Callbacks) -> None:
        """Find the inputs; raise SetupError."""
        self.recipe = recipe
        self._names = find_files(recipe)
        self.callbacks = callbacks
        self.watch = Stopwatch()
        self.disabled: set[str] = set()
        """The fast paths that failed, in this run or in the one that it continues."""
        self.argument_warnings: list[str] = []
        self.pipeline: Pipeline | None = None
        """What was loaded; it stays until the end of this object."""

    @property
    def options(self) -> PackOptions:
        """Those of the recipe."""
        return self.recipe.options

    def pack(self) -> PackReport:
        """Do all of it and return the report; raise as `pack`."""
        names = [name for name, _ in self._names]
        found = [
            None if name == STANDARD_INPUT else describe_input(name, name, source)
            for name, source in self._names
        ]
        new_bytes = self._estimate_new_bytes(names, filter(None, found))
        pipeline = load_pipeline(self.options, self.recipe.sources, new_bytes)
        self.pipeline = pipeline
        self.watch.lap("start")
        output, self.argument_warnings = prepare_output(pipeline, self.callbacks.warn)
        with ExitStack() as stack:
            area = None
            if STANDARD_INPUT in names or output.has_work_area():
                area = stack.enter_context(self._work_area(output, pipeline))
            files = [
                file or self._spool(name, source, area)
                for file, (name, source) in zip(found, self._names, strict=True)
            ]
            refuse_empty_files(self.recipe, files)
            run = identify_run(pipeline, files)
            complete = find_complete_output(
                output.place, run, files, lambda: _hash_inputs(files, pipeline), self.options
            )
            if complete is not None:
                output.finish_complete(complete)
                self.callbacks.warn(f"{output.place}: already complete")
                if area is not None:
                    area.is_kept = False
                return complete
            if area is None:
                area = stack.enter_context(self._work_area(output, pipeline))
            self.watch.lap("read")
            setup = RunSetup(files, area, output, pipeline, is_resumed=area.is_kept)
            setup = self._choose_engine(setup)
            self.watch.lap("start")
            return self._write_output(setup, run)

    def _choose_engine(self, setup: RunSetup) -> RunSetup:
        # Splits in the token store are most likely those of this run: then no engine is needed.
        is_stored = setup.shared_store is not None and setup.shared_store.exists()
        sample_texts = None if is_stored else read_first_rows(setup.files)
        pipeline, refused = choose_engine(setup.pipeline, setup.input_bytes, sample_texts)
        if refused is not None:
            self.callbacks.warn(refused)
        return replace(setup, pipeline=pipeline)

    @contextmanager
    def _work_area(self, output: Output, pipeline: Pipeline) -> Iterator[WorkArea]:
        """Provide the work area; what an earlier run completed there moves to the output first."""
        with output.open_work_area() as area:
            try:
                if output.finish_earlier(area):
                    self.callbacks.warn(
                        f"{output.place}: completed what an earlier run had left to do"
                    )
                    empty_area(area.path)
                    write_run_record(area, pipeline, ())
                    area.is_kept = False
                else:
                    earlier = continue_run(area, output, pipeline, self.callbacks.warn)
                    self.disabled |= {*earlier}
            except OSError as error:
                raise SetupError(
                    f"{output.place}: can't be written to ({error.strerror})"
                ) from error
            yield area

    def _estimate_new_bytes(self, names: list[str], found: Iterable[InputFile]) -> int | None:
        """Return the estimated bytes of text to tokenize; None if it is not known, or most are not.

        Of standard input the size is not known. A complete output and stored splits are most likely
        those of this run.
        """
        is_complete = find_last_file(self.options.output, self.options.work_dir).exists()
        store = self.options.token_store
        if STANDARD_INPUT in names or is_complete or (store and os.path.exists(store)):
            return None
        return sum(map(estimate_text_bytes, found))

    def _spool(self, name: str, source: int, area: WorkArea | None) -> InputFile:
        """Copy standard input to the work area, since it can be read only once."""
        assert area is not None
        path = area.scratch / "standard-input.jsonl"
        with open(path, "wb") as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool)
        return describe_input(name, path, source)

    def _write_output(self, setup: RunSetup, run: RunIdentity) -> PackReport:
        setup.output.begin()
        state = self._pack_all(setup)
        if not state.counts.documents:
            setup.area.is_kept = False
            raise InputError(
                *explain_empty_run(
                    setup.files, self.options, state.counts, state.empty, state.first_reject
                )
            )
        try:
            sources = record_sources(self.recipe, state.by_source)
        except InputError:
            setup.area.is_kept = False
            raise
        counts = state.run_counts
        if setup.is_resumed or counts.shards_resumed:
            self.callbacks.warn(
                f"resumed: {counts.splits_reused:,} of {counts.splits:,} splits, "
                f"{counts.shards_resumed:,} of {len(state.shards):,} shards"
            )
        recipe = format_own_recipe(self.recipe).encode(errors="backslashreplace")
        (setup.area.path / RECIPE).write_bytes(recipe)
        report = self._report(setup, state, sources, hashlib.sha256(recipe).hexdigest())
        if self.options.ipc_format == "stream":
            write_datasets_files(setup.area.path, report.shards, setup.pipeline.shard_metadata)
        setup.area.is_kept = True  # once complete, it may hold the only copy of some files
        inputs = [
            {**described, "sha256": state.hashes.sha256(file.name)}
            for described, file in zip(run.inputs, setup.files, strict=True)
        ]
        setup.output.publish(setup.area, replace(run, inputs=inputs), report)
        setup.area.is_kept = False
        return report

    def _pack_all(self, setup: RunSetup) -> RunState:
        """Turn the whole input into shards.

        If a fast path fails, the workers end, so that none of them writes another shard, and all
        splits are made again without that fast path. If an earlier run wrote shards from splits
        that have changed since, their window is made again.
        """
        formats = FormatNotices(self.callbacks.warn)
        inputs = [file.path for file in setup.files]
        while True:
            attempt = Attempt(setup, self.disabled, self.callbacks, self.watch, formats)
            try:
                with (
                    table_process(setup.files) as call_table,
                    ThreadPoolExecutor(self.options.num_workers, "sync") as threads,
                    open_runner(
                        setup.pipeline, setup.num_workers, setup.area.path, inputs
                    ) as runner,
                ):
                    self.watch.lap("start")
                    state = attempt.run(runner, threads, call_table)
                formats.report_totals()
                return state
            except StaleWindowError as error:
                forget_windows(setup.area.path, error.number)
            except FastPathFailedError as error:
                if error.fast_path in self.disabled:  # a bug: without this, it would never end
                    raise
                self.callbacks.warn(f"warning: {error}, {REMEDIES[error.fast_path]}")
                self.disabled.add(error.fast_path)
                write_run_record(setup.area, setup.pipeline, self.disabled)
            attempt.undo_progress()

    def _report(
        self,
        setup: RunSetup,
        state: RunState,
        sources: list[SourceRecord],
        recipe_sha256: str,
    ) -> PackReport:
        state.counts.check()
        failed = len(self.disabled)
        run_counts = state.run_counts + RunCounts(audited=failed, audit_mismatches=failed)
        endings = list_ending_warnings(state.counts, setup.pipeline.template_source)
        warnings = sorted(state.warnings | endings)
        for warning in warnings:  # those of arguments came before the first row
            self.callbacks.warn(f"warning: {warning}")
        seconds = {**self.watch.seconds, "total": self.watch.total - self.watch.seconds["start"]}
        about = RunInfo(
            mtpack_version=__version__,
            tokenizer=setup.pipeline.tokenizer.source,
            inputs=[file.name for file in setup.files],
            inputs_modified_ns=[file.modified_ns for file in setup.files],
            seconds={stage: round(amount, 3) for stage, amount in seconds.items()},
            warnings=[*self.argument_warnings, *warnings],
            tokenizer_engine=setup.pipeline.without(self.disabled).options.tokenizer_engine,
            token_store_bytes=measure_store(self.options.token_store),
            recipe_sha256=recipe_sha256,
            **asdict(run_counts),
        )
        return PackReport(
            output=self.options.output,
            seq_len=self.options.seq_len,
            tally=state.counts,
            shards=[state.shards[number] for number in sorted(state.shards)],
            about=about,
            sources=sources,
        )


def _hash_inputs(files: list[InputFile], pipeline: Pipeline) -> list[str]:
    """Read all files and return their sha256, as they are in the manifest; raise InputError."""
    hashes = InputHashes()
    with table_process(files) as call_table:
        for split in read_sources(files, pipeline.read_options, call_table):
            hashes.add(split.digest().files)
    return [hashes.sha256(file.name) for file in files]
