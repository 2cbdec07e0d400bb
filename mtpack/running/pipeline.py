"""The pipeline: everything that a process loads before its first task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from mtpack.documents.control_tokens import Renderer, load_renderer
from mtpack.documents.plain_text import TextRenderer, load_text_renderer
from mtpack.errors import SetupError
from mtpack.fast_path import FASTOKENS, REPLAY, FastPathFailedError
from mtpack.input.reading import ReadOptions
from mtpack.input.row_defaults import RowDefaults
from mtpack.options import PackOptions
from mtpack.recipe.sources import Source
from mtpack.running.heartbeat import Heartbeat
from mtpack.shards.arrow import ShardMetadata
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.loading import build_chat_template, load_chat_template
from mtpack.template.message_forms import find_forms
from mtpack.template.render_dialogue import finds_turns
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.engines import TOKENIZERS, FastLoading
from mtpack.tokenizer.kept_results import KeptResults
from mtpack.tokenizer.loading import (
    LoadedTokenizer,
    TokenizerFiles,
    read_tokenizer_files,
)

# Time of `tokenizers` to encode a byte of text, and of fastokens to load one of tokenizer.json.
_SECONDS_PER_BYTE = 4e-7
_SECONDS_TO_LOAD = 1e-7


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The loaded objects that turn rows into documents, and documents into shards."""

    options: PackOptions
    tokenizer: LoadedTokenizer
    template: ChatTemplate
    renderer: Renderer
    encoders: Encoders
    sources: tuple[Source, ...]
    """Those of the run."""
    texts: TextRenderer | None = None
    """Renders plain text, if a source has such rows."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    """Where the process reports the row that it is working on."""

    @property
    def contents(self) -> PipelineContents:
        """What another process makes the same pipeline of."""
        return PipelineContents(
            self.options, self.tokenizer.files, self.template.sources, self.sources
        )

    @property
    def template_source(self) -> str:
        """The file or model that the chat template comes from."""
        return self.options.chat_template or self.tokenizer.source

    @property
    def shard_metadata(self) -> ShardMetadata:
        """The metadata of the shards of this run."""
        return ShardMetadata(
            seq_len=self.options.seq_len,
            label_alignment=self.options.label_alignment,
            pad_documents_to=self.options.pad_documents_to,
            pad_id=self.tokenizer.pad_id,
            tokenizer_sha256=self.tokenizer.sha256,
            template_sha256=self.template.sha256,
            extra_columns=tuple(_list_extra_columns(self.options)),
        )

    @property
    def read_options(self) -> list[ReadOptions]:
        """How the rows of each source are read."""
        return [
            ReadOptions(
                row_format=source.row_format,
                more_columns=source.columns,
                max_rows=source.max_rows,
                variant=source.describe_variant(self.options),
            )
            for source in self.sources
        ]

    def find_defaults(self, source: Source) -> RowDefaults | None:
        """Return what the rows of a source get; None if they stay as they are.

        Variables that the template does not read are left out.
        """
        args = {
            name: value
            for name, value in (source.template_args or {}).items()
            if self.template.reads_variable(name)
        }
        if source.system is None and not args:
            return None
        return RowDefaults(system=source.system, template_args=args or None)

    def without(self, fast_paths: Collection[str]) -> Pipeline:
        """Return a copy that uses none of these fast paths (`REPLAY`, `FASTOKENS`)."""
        renderer, options = self.renderer, self.options
        if REPLAY in fast_paths:
            renderer = replace(renderer, replayer=None)
        if FASTOKENS in fast_paths:
            options = replace(options, tokenizer_engine=TOKENIZERS)
        return replace(self, renderer=renderer, options=options)

    @property
    def fast_paths(self) -> frozenset[str]:
        """The fast paths that this pipeline may use."""
        is_used = {
            REPLAY: self.renderer.replayer is not None,
            FASTOKENS: self.options.tokenizer_engine == FASTOKENS,
        }
        return frozenset(name for name, used in is_used.items() if used)

    def begin_split(self, sha256: str, process_rows: int) -> None:
        """Prepare for a split; sha256: of its rows, process_rows: in all splits of this process.

        The latter is an estimate: it limits the time spent on learning how the template renders.
        """
        salt = int(sha256[:8], 16)
        self.encoders.audit.salt = salt
        if self.renderer.replayer is not None:
            self.renderer.replayer.audit.salt = salt
            self.renderer.replayer.budget.num_dialogues = process_rows

    def count_fast_paths(self) -> Counter[str]:
        """Count the dialogues `replayed` and the results `audited` in this process so far."""
        counts = self.renderer.count_replays()
        counts["audited"] += self.encoders.audited
        return counts


@dataclass(frozen=True, slots=True)
class PipelineContents:
    """All that a pipeline is made of, by value: any process on any machine can make the same.

    So the process needs none of the files of tokenizer and template.
    """

    options: PackOptions
    tokenizer: TokenizerFiles
    templates: dict[str, str]
    """The source of each chat template by name, as in `ChatTemplate`."""
    sources: tuple[Source, ...]
    """As in `Pipeline`."""

    def load(self) -> Pipeline:
        """Make the pipeline; raise SetupError if it can't be used."""
        kept = KeptResults(self.tokenizer, is_kept=not self.options.no_cache)
        tokenizer = kept.find_tokenizer()
        template = build_chat_template(
            self.options.chat_template or tokenizer.source,
            self.templates,
            tokenizer,
            self.options.template_arg,
            self.options.date,
            self.options.tool_arguments,
        )
        encoders = Encoders(tokenizer, self.options.seed, kept)
        return _connect(self.options, tokenizer, template, encoders, self.sources)


def load_pipeline(
    options: PackOptions, sources: Sequence[Source] = (), input_bytes: int | None = None
) -> Pipeline:
    """Load tokenizer and template; raise SetupError if they can't be used.

    sources: those of the run; by default one, which is read as the options say. The template is
    compiled here; `check_template` tries it. input_bytes: as for `choose_engine`, if it is known
    and is going to be called: then fastokens begins to load, if it is worth it.
    """
    files = read_tokenizer_files(options.tokenizer)
    kept = KeptResults(files, is_kept=not options.no_cache)
    begun = None
    if input_bytes is not None and prefers_fastokens(options, files, input_bytes):
        begun = None if kept.read_probe() else FastLoading(files)
    tokenizer = kept.find_tokenizer()
    template = load_chat_template(
        tokenizer,
        options.chat_template,
        options.template_arg,
        options.date,
        options.tool_arguments,
    )
    encoders = Encoders(tokenizer, options.seed, kept, begun)
    chosen = tuple(sources) or (Source().resolve(options, ""),)
    return _connect(options, tokenizer, template, encoders, chosen)


def _connect(
    options: PackOptions,
    tokenizer: LoadedTokenizer,
    template: ChatTemplate,
    encoders: Encoders,
    sources: tuple[Source, ...],
) -> Pipeline:
    renderer = load_renderer(template, tokenizer, options)
    has_text = any(source.is_text for source in sources)
    texts = load_text_renderer(renderer, tokenizer) if has_text else None
    return Pipeline(options, tokenizer, template, renderer, encoders, sources, texts)


def _list_extra_columns(options: PackOptions) -> Iterator[str]:
    """Yield the columns that only some outputs have, in the order of the shard."""
    if options.merge == "always":
        yield "turn_bent"
    if options.turn_weights:
        yield "turn_weights"


def check_template(pipeline: Pipeline) -> None:
    """Raise SetupError if the turns of a simple dialogue can't be found.

    This also finds the forms in which the template takes messages. Only workers call it, since the
    template may hang. They do so before their first row.
    """
    source = pipeline.template_source
    pipeline.heartbeat.begin(f"trying the chat template of {source}")
    find_forms(pipeline.template, tools=None)
    find_forms(pipeline.template, tools=[])
    if not _finds_turns(pipeline.template, pipeline.tokenizer.added_tokens):
        raise SetupError(
            f"{source}: can't find where the chat template writes an assistant message; "
            "use one that writes messages one by one in a loop"
        )
    _ = pipeline.renderer.spelled  # found by rendering, so here and not with the first row
    pipeline.heartbeat.end()


_finds_turns = lru_cache(maxsize=1)(finds_turns)  # once in each process


def prefers_fastokens(options: PackOptions, files: TokenizerFiles, input_bytes: int) -> bool:
    """Return whether fastokens is the engine to try, for an input of so many bytes of text."""
    gain = input_bytes * _SECONDS_PER_BYTE / options.num_workers
    return options.tokenizer_engine == FASTOKENS or (
        options.tokenizer_engine == "auto" and gain > len(files.content) * _SECONDS_TO_LOAD
    )


def choose_engine(
    pipeline: Pipeline, input_bytes: int, sample_texts: Iterable[str] | None
) -> tuple[Pipeline, str | None]:
    """Choose the tokenizer engine of a run.

    Returns the pipeline with that engine as its option, and why fastokens can't be used, or None.
    Under `auto`, fastokens is chosen where the input is large enough to be worth the time to load
    it; the ids are the same. Here it is loaded and probed with `sample_texts`, so that forked
    workers share it. If `sample_texts` is None, workers do so when they need it. Raises SetupError
    if the engine that the user chose can't be used.
    """
    is_preferred = prefers_fastokens(pipeline.options, pipeline.tokenizer.files, input_bytes)
    chosen: Literal["fastokens", "tokenizers"] = FASTOKENS if is_preferred else TOKENIZERS
    refused = None
    if sample_texts is not None:
        _ = pipeline.tokenizer.backend, pipeline.encoders.reference
        try:
            if chosen == FASTOKENS:
                pipeline.encoders.probe_fast(sample_texts)
        except FastPathFailedError as error:
            if pipeline.options.tokenizer_engine == FASTOKENS:
                remedy = "choose --tokenizer-engine auto or tokenizers"
                raise SetupError(f"{error}; {remedy}") from error
            refused = f"{error}; continuing with tokenizers, which is many times slower"
            chosen = TOKENIZERS
    options = replace(pipeline.options, tokenizer_engine=chosen)
    return replace(pipeline, options=options), refused
