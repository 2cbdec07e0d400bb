"""Where a run puts its output: a folder, or a store. Both do the same steps."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from mtpack.errors import SetupError
from mtpack.options import PackOptions, flag
from mtpack.running.earlier_work import (
    FinishedShard,
    commit_shard,
    find_shards,
    parse_shard,
)
from mtpack.running.shard_task import WrittenShard
from mtpack.running.stopwatch import Stopwatch
from mtpack.shards.manifest import MANIFEST, PackReport, RunIdentity
from mtpack.shards.output_folder import (
    finish_publishing,
    holds_output,
    publish,
    refuse_foreign_files,
)
from mtpack.shards.output_store import (
    begin_output,
    find_stored_shards,
    finish_publishing_to_store,
    publish_to_store,
    refuse_foreign_objects,
    upload_shard,
    withdraw,
)
from mtpack.shards.work_area import (
    WorkArea,
    find_stored_area,
    has_work_area,
    stored_work_area,
    work_area,
)
from mtpack.storage.places import Place, is_file, join_place
from mtpack.storage.urls import is_url


class Output(Protocol):
    """The steps of a run that concern its output."""

    place: Place

    def refuse_foreign_files(self) -> None:
        """Raise SetupError if something else than an output of mtpack is there."""

    def has_work_area(self) -> bool:
        """Return whether an earlier run has left its work area."""

    def open_work_area(self) -> AbstractContextManager[WorkArea]:
        """Provide the work area, locked; raise SetupError."""

    def finish_earlier(self, area: WorkArea) -> bool:
        """Complete what an earlier run has left; return whether the output is complete now."""

    def finish_complete(self, report: PackReport) -> None:
        """Remove what the run that completed this output has left to remove."""

    def begin(self) -> None:
        """Note that this run writes from now on."""

    def find_shards(self, area: WorkArea, disabled: Collection[str]) -> dict[int, FinishedShard]:
        """Return the intact shards of earlier runs, by number, without a `disabled` fast path."""

    def commit_shard(
        self, area: WorkArea, written: WrittenShard, window_sha256: str, paths: Collection[str]
    ) -> Mapping[str, float]:
        """Put a written shard where it stays; return the seconds that it took, by stage.

        paths: the fast paths of its window.
        """

    def publish(self, area: WorkArea, run: RunIdentity, report: PackReport) -> None:
        """Complete the output; its shards are where they stay."""


class OutputFolder:
    """An output in a folder. Its work area is in it too, but for what is in `--work-dir`."""

    def __init__(self, folder: Path, work_dir: Path | None) -> None:
        """Do nothing yet."""
        self.place: Place = folder
        self._folder = folder
        self._work_dir = work_dir

    def refuse_foreign_files(self) -> None:
        """Raise SetupError if it holds other files."""
        refuse_foreign_files(self._folder, holds_output, "-o")

    def has_work_area(self) -> bool:
        """Return whether an earlier run has left its work area."""
        return has_work_area(self._folder)

    @contextmanager
    def open_work_area(self) -> Iterator[WorkArea]:
        """Provide the work area, locked; raise SetupError."""
        with work_area(self._folder, self._work_dir) as area:
            yield area

    def finish_earlier(self, area: WorkArea) -> bool:
        """Move what an earlier run has completed to the output."""
        return finish_publishing(self._folder, area.path)

    def finish_complete(self, report: PackReport) -> None:
        """Do nothing: `finish_earlier` does it."""

    def begin(self) -> None:
        """Do nothing: the lock of the work area says that this run writes."""

    def find_shards(self, area: WorkArea, disabled: Collection[str]) -> dict[int, FinishedShard]:
        """Return those in the work area, and remove others there."""
        return find_shards(area.path, disabled)

    def commit_shard(
        self, area: WorkArea, written: WrittenShard, window_sha256: str, paths: Collection[str]
    ) -> Mapping[str, float]:
        """Put it and its record on the disk, in the work area."""
        return commit_shard(area.path, area.unsynced, written, window_sha256, paths)

    def publish(self, area: WorkArea, run: RunIdentity, report: PackReport) -> None:
        """Move all files from the work area to the output."""
        publish(self._folder, area.path, run, report)


class OutputStore:
    """An output in a store. Its work area is in `--work-dir`, or in a temporary folder."""

    def __init__(self, url: str, work_dir: Path | None) -> None:
        """Do nothing yet."""
        self.place: Place = url
        self._url = url
        self._work_dir = work_dir
        self._run_id = ""

    def refuse_foreign_files(self) -> None:
        """Raise SetupError if it holds other objects, or can't be reached."""
        with _wrap_setup_errors(self._url):
            refuse_foreign_objects(self._url)

    def has_work_area(self) -> bool:
        """Return whether an earlier run on this machine has left its work area."""
        return find_stored_area(self._url, self._work_dir).exists()

    @contextmanager
    def open_work_area(self) -> Iterator[WorkArea]:
        """Provide the work area, locked; raise SetupError."""
        with stored_work_area(self._url, self._work_dir) as area:
            try:
                yield area
            finally:
                if self._run_id and not area.is_kept:
                    withdraw(self._url, self._run_id)

    def finish_earlier(self, area: WorkArea) -> bool:
        """Leave it to this run, which takes all shards that are there."""
        return False

    def finish_complete(self, report: PackReport) -> None:
        """Delete what older outputs have left, if the run was killed before it did."""
        finish_publishing_to_store(self._url, report)

    def begin(self) -> None:
        """Put the id of this run in the store, and delete an older manifest."""
        with _wrap_setup_errors(self._url):
            self._run_id = begin_output(self._url)

    def find_shards(self, area: WorkArea, disabled: Collection[str]) -> dict[int, FinishedShard]:
        """Return those in the store whose metadata has a record."""
        found = {}
        for stored in find_stored_shards(self._url):
            with suppress(ValueError, TypeError, KeyError):
                number, shard = parse_shard({"record": asdict(stored.record), **stored.more})
                if not shard.fast_paths & set(disabled):
                    found[number] = shard
        return found

    def commit_shard(
        self, area: WorkArea, written: WrittenShard, window_sha256: str, paths: Collection[str]
    ) -> Mapping[str, float]:
        """Upload it with its record."""
        watch = Stopwatch()
        file = area.unsynced / written.record.path
        more = {"window_sha256": window_sha256, "fast_paths": sorted(paths)}
        upload_shard(file, self._url, written.record, more)
        file.unlink()
        watch.lap("commit")
        return watch.seconds

    def publish(self, area: WorkArea, run: RunIdentity, report: PackReport) -> None:
        """Upload the other files, and the manifest at last."""
        publish_to_store(self._url, area.path, run, report, self._run_id)


def open_output(options: PackOptions) -> Output:
    """Return the output that the options name; raise SetupError for a folder that is a URL."""
    for name in ("work_dir", "token_store"):
        chosen = getattr(options, name)
        if chosen is not None and is_url(chosen):
            raise SetupError(f"{flag(name)} {chosen}: must be a folder, not in a store")
    work_dir = None if options.work_dir is None else Path(options.work_dir)
    if is_url(options.output):
        if options.output.startswith("hf:"):
            raise SetupError(
                f"{options.output}: outputs can't be written there; choose a folder, s3:// or gs://"
            )
        if options.executor == "ray" and work_dir is None:
            raise SetupError(
                "--executor ray with an output in a store needs --work-dir: a folder that all "
                "nodes share"
            )
        return OutputStore(options.output.rstrip("/"), work_dir)
    return OutputFolder(Path(options.output), work_dir)


def has_manifest(output: Output) -> bool:
    """Return whether an output is complete."""
    return is_file(join_place(output.place, MANIFEST))


@contextmanager
def _wrap_setup_errors(url: str) -> Iterator[None]:
    """Convert errors of a store, before there is work to lose, into a SetupError."""
    try:
        yield
    except OSError as error:
        raise SetupError(f"{url}: can't be written to: {error.strerror}") from error
