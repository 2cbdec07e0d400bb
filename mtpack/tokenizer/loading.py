"""Finds, checks and loads a tokenizer and the files next to it.

A tokenizer is a folder with `tokenizer.json` (and `tokenizer_config.json`), that file alone, a
model id of the Hugging Face Hub, or, if none is named, the small one that comes with mtpack. All of
these files are untrusted. The chat templates in the folder are found by `template`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from mtpack.errors import MtpackError, SetupError
from mtpack.tokenizer.added_tokens import AddedToken, AddedTokens, collect_added_tokens
from mtpack.tokenizer.declared_tokens import DeclaredTokens, read_declared_tokens
from mtpack.tokenizer.files import parse_file, parse_object, read_text
from mtpack.tokenizer.other_formats import explain_conversion

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / EMBEDDED
_NUM_IDS = 2**32  # the type of ids in `tokenizers`
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
HUB_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
    "processor_config.json",
    "*.jinja",
)
_CONFIG = "tokenizer_config.json"
_NAMED_TOKENS = "special_tokens_map.json"
_ADDED_TOKENS = "added_tokens.json"
_GENERATION = "generation_config.json"
_DOWNLOAD = "hf download --local-dir tokenizer --exclude '*.safetensors' --exclude '*.bin'"


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files that a tokenizer is made of, by value, so that any process can make the same."""

    source: str
    """The name that the user gave, or `embedded`."""
    path: Path
    """Where its tokenizer.json was read."""
    content: str
    """That of tokenizer.json."""
    others: dict[str, str]
    """The contents of those next to it, by name; only those that exist."""

    @property
    def sha256(self) -> str:
        """The digest of all contents: what a library makes of them depends on nothing else."""
        digest = hashlib.sha256(self.content.encode())
        digest.update(json.dumps(self.others, sort_keys=True).encode())
        return digest.hexdigest()

    def parse(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file next to it, or an empty one; raise SetupError."""
        content = self.others.get(name)
        return {} if content is None else parse_file(self.path.parent / name, content)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer, and its properties that templates and shards need."""

    files: TokenizerFiles
    """What it was made of."""
    load_backend: Callable[[], tokenizers.Tokenizer]
    is_as_stored: bool
    """Whether tokenizer.json has the same added tokens, with the same ids."""
    added_tokens: AddedTokens
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token` and so on, as templates see them."""
    pad_id: int
    sha256: str
    """The digest of tokenizer.json, the tokens that only the config declares, the names, and the
    stop tokens that only generation_config.json names."""

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """What encodes. It may be loaded at its first use: 0.4 s for 150,000 tokens."""
        return self.load_backend()

    @property
    def source(self) -> str:
        """The name that the user gave, or `embedded`."""
        return self.files.source

    @property
    def folder(self) -> Path:
        """The folder of its files, which may have chat templates."""
        return self.files.path.parent


def load_tokenizer(source: str | None) -> LoadedTokenizer:
    """Load the tokenizer that `source` names; raise SetupError if it can't be used."""
    return build_tokenizer(read_tokenizer_files(source))


def read_tokenizer_files(source: str | None) -> TokenizerFiles:
    """Find and read the files of the tokenizer that `source` names; raise SetupError."""
    path = _locate(source)
    others = {
        name: read_text(path.parent / name)
        for name in (_CONFIG, _NAMED_TOKENS, _ADDED_TOKENS, _GENERATION)
        if (path.parent / name).is_file()
    }
    name = EMBEDDED if source is None else source
    return TokenizerFiles(name, path, read_text(path), others)


def build_tokenizer(files: TokenizerFiles) -> LoadedTokenizer:
    """Make the tokenizer of these files, and read no other; raise SetupError."""
    declared = _read_declared(files)
    backend, added_here = _load_backend(files, declared)
    names = json.dumps(declared.named, sort_keys=True)
    end_of_sequence = declared.named.get("eos_token")
    stops = _read_stop_tokens(files, backend)
    stops_here = sorted(set(stops) - {end_of_sequence})
    stop_tokens = tuple(dict.fromkeys([*([end_of_sequence] if end_of_sequence else []), *stops]))
    digest = hashlib.sha256(files.content.encode())
    digest.update("\n".join(["", *added_here, names, *stops_here]).encode())
    return LoadedTokenizer(
        files=files,
        load_backend=lambda: backend,
        is_as_stored=_stores_added_tokens(files.content, backend),
        added_tokens=collect_added_tokens(backend, stop_tokens),
        special_tokens=declared.named,
        pad_id=_find_pad_id(backend, declared.named),
        sha256=digest.hexdigest(),
    )


def describe_tokenizer(tokenizer: LoadedTokenizer) -> dict[str, Any]:
    """Return what `restore_tokenizer` needs besides the files, as JSON values."""
    added = tokenizer.added_tokens
    return {
        "is_as_stored": tokenizer.is_as_stored,
        "added_tokens": [asdict(token) for token in added.tokens],
        "stops": added.stops,
        "special_tokens": tokenizer.special_tokens,
        "pad_id": tokenizer.pad_id,
        "sha256": tokenizer.sha256,
    }


def restore_tokenizer(files: TokenizerFiles, described: Mapping[str, Any]) -> LoadedTokenizer:
    """Return the tokenizer that `build_tokenizer` made of the same files, and load no backend."""
    tokens = [AddedToken(**token) for token in described["added_tokens"]]
    return LoadedTokenizer(
        files=files,
        load_backend=lambda: _load_backend(files, _read_declared(files))[0],
        is_as_stored=described["is_as_stored"],
        added_tokens=AddedTokens(tokens, described["stops"]),
        special_tokens=described["special_tokens"],
        pad_id=described["pad_id"],
        sha256=described["sha256"],
    )


def _read_declared(files: TokenizerFiles) -> DeclaredTokens:
    """Return the tokens that the files next to tokenizer.json declare; raise SetupError."""
    config = files.parse(_CONFIG)
    try:
        return read_declared_tokens(config, files.parse(_NAMED_TOKENS), files.parse(_ADDED_TOKENS))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = files.path.parent / _CONFIG
        raise SetupError(f"{path}: its tokens are malformed ({error})") from error


def _load_backend(
    files: TokenizerFiles, declared: DeclaredTokens
) -> tuple[tokenizers.Tokenizer, list[str]]:
    """Return the loaded tokenizer, and the tokens that were added to it; raise SetupError."""
    path, content = files.path, files.content
    try:
        backend = tokenizers.Tokenizer.from_str(content)
        _refuse_unsafe_settings(path, backend)
        # It would only add special tokens, which the template writes, and trim offsets.
        backend.post_processor = None
        return backend, _add_declared_tokens(path, backend, declared)
    except BaseException as error:
        if is_tokenizer_failure(error):
            parse_object(path, content)  # raises an error that says more, if it is no JSON object
            raise SetupError(f"{path}: not a tokenizer that can be loaded ({error})") from error
        raise


@contextmanager
def wrap_tokenizer_errors(source: str) -> Iterator[None]:
    """Convert what `tokenizers` raises in the block into a SetupError that names the tokenizer."""
    try:
        yield
    except BaseException as error:
        if is_tokenizer_failure(error):
            raise SetupError(f"{source}: the tokenizer failed ({error})") from error
        raise


def is_tokenizer_failure(error: BaseException) -> bool:
    """Return whether `tokenizers` raised this: an exception, or a panic, which is no Exception."""
    if isinstance(error, MtpackError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _locate(source: str | None) -> Path:
    if source is None:
        return EMBEDDED_FOLDER / "tokenizer.json"
    path = Path(source)
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            missing = (
                f"{source}: the folder has no tokenizer.json; "
                "save it with transformers' save_pretrained"
            )
            raise SetupError(*(explain_conversion(path) or [missing]))
        return path / "tokenizer.json"
    if path.is_file():
        if explanation := explain_conversion(path):
            raise SetupError(*explanation)
        return path
    if not _HUB_ID.fullmatch(source) or path.suffix == ".json":
        raise SetupError(f"{source}: no such tokenizer file or folder")
    return _download_from_hub(source)


def _download_from_hub(source: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise SetupError(
            f"{source}: no such folder; to load it from the Hugging Face Hub, "
            "install the extra: pip install 'mtpack[hub]'"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(source, allow_patterns=list(HUB_FILES))
    except Exception as error:  # it raises its own, httpx's and the system's errors
        raise SetupError(
            f"{source}: no such folder, and the download from the Hugging Face Hub failed "
            f"({type(error).__name__}); check the name and the connection"
        ) from error
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise SetupError(
            f"{source}: the model on the Hugging Face Hub has no tokenizer.json; "
            f"download it, and name its folder to see how to make one: {_DOWNLOAD} {source}"
        )
    return path


def _refuse_unsafe_settings(path: Path, backend: tokenizers.Tokenizer) -> None:
    """Refuse settings that would change the ids without a warning; raise SetupError."""
    unsafe = {
        "truncation": (backend.truncation, "long dialogues would be cut without a warning"),
        "padding": (backend.padding, "padding tokens would be treated as text"),
        "dropout": (
            getattr(backend.model, "dropout", None),
            "every run would give different ids",
        ),
    }
    for name, (is_enabled, consequence) in unsafe.items():
        if is_enabled:
            raise SetupError(
                f"{path}: {name} is enabled, so {consequence}; set it to null in tokenizer.json"
            )


def _add_declared_tokens(
    path: Path, backend: tokenizers.Tokenizer, declared: DeclaredTokens
) -> list[str]:
    """Add the tokens that tokenizer.json does not have, and return them; others stay unchanged."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added_here = []
    for number, token in declared.tokens:
        if token.content in known:
            continue
        known.add(token.content)
        backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if number is not None and found != number:
            raise SetupError(
                f"{path}: tokenizer_config.json gives {token.content} the id {number}, "
                f"but with this vocabulary its id is {found}"
            )
        added_here.append(f"{found} {token!r}")
    return added_here


def _stores_added_tokens(content: str, backend: tokenizers.Tokenizer) -> bool:
    """Return whether a tokenizer.json lists the added tokens of the loaded tokenizer.

    It may lack those of tokenizer_config.json, and `tokenizers` corrects some ids.
    """
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    start = content.find("[", content.find('"added_tokens"'))
    try:  # to parse all of it would take half as long as to load it
        stored = json.JSONDecoder().raw_decode(content, start)[0]
        return {token["id"]: token["content"] for token in stored} == added
    except (LookupError, TypeError, ValueError):
        return False


def _read_stop_tokens(files: TokenizerFiles, backend: tokenizers.Tokenizer) -> list[str]:
    """Return the tokens at which generation stops (`eos_token_id`), one or several."""
    named = files.parse(_GENERATION).get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    if named is not None and not all(type(number) is int and number >= 0 for number in ids):
        path = files.path.parent / _GENERATION
        raise SetupError(f"{path}: eos_token_id must be a token id or a list of token ids")
    possible = [number for number in ids if number is not None and number < _NUM_IDS]
    contents = map(backend.id_to_token, possible)
    return [content for content in contents if content]  # it may be that of another vocabulary


def _find_pad_id(backend: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> int:
    for name in ("pad_token", "eos_token"):
        number = backend.token_to_id(special_tokens.get(name, ""))
        if number is not None:
            return number
    return 0
