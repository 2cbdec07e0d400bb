"""What turns rows into shards: everything that a process loads before its first unit of work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mtpack.documents.control_tokens import Renderer, load_renderer
from mtpack.errors import SetupError
from mtpack.options import PackOptions
from mtpack.running.heartbeat import Heartbeat
from mtpack.shards.arrow import ShardMetadata
from mtpack.template.chat_template import ChatTemplate, load_chat_template
from mtpack.template.turn_spans import finds_turns
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.engines import FASTOKENS, TOKENIZERS, EngineFailedError
from mtpack.tokenizer.loading import LoadedTokenizer, load_tokenizer

# What `tokenizers` takes for a byte of text, and fastokens to load a token of the vocabulary.
_SECONDS_A_BYTE = 4e-7
_SECONDS_A_TOKEN = 8e-6
# Seconds that encoding takes, from which on those of a rehearsal (0.2 to 1) are worth it.
_WORTH_WARMING_UP = 1.0


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What turns rows into documents, and documents into shards."""

    options: PackOptions
    tokenizer: LoadedTokenizer
    template: ChatTemplate
    renderer: Renderer
    encoders: Encoders
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    """Where the process says which row it is at."""

    @property
    def template_source(self) -> str:
        """Where the chat template comes from."""
        return self.options.chat_template or self.tokenizer.source

    @property
    def shard_metadata(self) -> ShardMetadata:
        """What the shards of this run say of themselves."""
        return ShardMetadata(
            seq_len=self.options.seq_len,
            label_alignment=self.options.label_alignment,
            pad_documents_to=self.options.pad_documents_to,
            pad_id=self.tokenizer.pad_id,
            tokenizer_sha256=self.tokenizer.sha256,
            template_sha256=self.template.sha256,
        )


def load_pipeline(options: PackOptions) -> Pipeline:
    """Load tokenizer and template; raise SetupError."""
    tokenizer = load_tokenizer(options.tokenizer)
    template = load_chat_template(
        tokenizer, options.chat_template, options.template_arg, options.date
    )
    if not finds_turns(template, tokenizer.added_tokens):
        raise SetupError(
            f"{options.chat_template or tokenizer.source}: where the chat template writes an "
            "assistant message can't be found; use one that writes messages one by one in a loop"
        )
    renderer = load_renderer(template, tokenizer, options)
    return Pipeline(options, tokenizer, template, renderer, Encoders(tokenizer, options.seed))


def with_engine(
    pipeline: Pipeline, input_bytes: int, own_texts: Iterable[str] | None
) -> tuple[Pipeline, str | None]:
    """Settle which engine a run takes; return why it is not the one to be expected, if so.

    Under `auto`, it is fastokens where the input is worth the time to load it; the ids are the
    same. It is loaded and proven on `own_texts` here, and the template rehearsed for such an input,
    so that forked workers share it all; where these are None, workers do that when they need it.
    Raises SetupError where an engine that was asked for can't serve.
    """
    gain = input_bytes * _SECONDS_A_BYTE / pipeline.options.num_workers
    load = pipeline.tokenizer.backend.get_vocab_size() * _SECONDS_A_TOKEN
    wanted = chosen = pipeline.options.tokenizer_engine
    if wanted == "auto":
        chosen = FASTOKENS if gain > load else TOKENIZERS
    refused = None
    if own_texts is not None:
        _ = pipeline.encoders.reference
        try:
            if chosen == FASTOKENS:
                pipeline.encoders.proven(own_texts)
        except EngineFailedError as error:
            if wanted == FASTOKENS:
                remedy = "choose --tokenizer-engine auto or tokenizers"
                raise SetupError(f"{error}; {remedy}") from error
            refused = f"{error}; going on with tokenizers, which takes many times as long"
            chosen = TOKENIZERS
        if gain > _WORTH_WARMING_UP and pipeline.renderer.replayer is not None:
            pipeline.renderer.replayer.warm_up()
    options = replace(pipeline.options, tokenizer_engine=chosen)
    return replace(pipeline, options=options), refused
