"""Find, check and load a tokenizer with what stands beside it.

A tokenizer is a folder with `tokenizer.json` (and `tokenizer_config.json`, `chat_template.jinja`,
`additional_chat_templates/`), that file alone, a model id of the Hugging Face Hub, or, without a
name, the small one that ships with mtpack. All of these files are untrusted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from mtpack.errors import MtpackError, SetupError
from mtpack.tokenizer.added_tokens import AddedTokens, added_tokens_of
from mtpack.tokenizer.declared_tokens import DeclaredTokens, read_declared_tokens

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / EMBEDDED
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_HUB_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "*.jinja")


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer, ready to encode, and what templates and shards need to know of it."""

    source: str
    """What the user named, or `embedded`."""
    backend: tokenizers.Tokenizer
    added_tokens: AddedTokens
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token` and so on, as templates see them."""
    chat_templates: dict[str, str]
    """By name; `default` is the usual one. Empty where there is none."""
    pad_id: int
    sha256: str
    """Of tokenizer.json, of the tokens that only the config declares, and of the names."""


def load_tokenizer(source: str | None) -> LoadedTokenizer:
    """Load the tokenizer that `source` names; raise SetupError where it can't be used."""
    path = _locate(source)
    folder = path.parent
    content = _read(path)
    _refuse_unfit(path, content)
    config = _read_json(folder / "tokenizer_config.json")
    try:
        declared = read_declared_tokens(
            config,
            _read_json(folder / "special_tokens_map.json"),
            _read_json(folder / "added_tokens.json"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SetupError(
            f"{folder / 'tokenizer_config.json'}: its tokens are malformed ({error})"
        ) from error
    try:
        backend = tokenizers.Tokenizer.from_str(content)
        # It would only add special tokens, which come from the template, and trim offsets.
        backend.post_processor = None
        added_here = _add(path, backend, declared)
    except BaseException as error:
        if is_tokenizer_failure(error):
            raise SetupError(f"{path}: not a tokenizer that can be loaded ({error})") from error
        raise
    names = json.dumps(declared.named, sort_keys=True)
    return LoadedTokenizer(
        source=EMBEDDED if source is None else source,
        backend=backend,
        added_tokens=added_tokens_of(backend, declared.named.get("eos_token")),
        special_tokens=declared.named,
        chat_templates=_chat_templates(folder, config),
        pad_id=_pad_id(backend, declared.named),
        sha256=hashlib.sha256("\n".join([content, *added_here, names]).encode()).hexdigest(),
    )


@contextmanager
def failures_named(source: str) -> Iterator[None]:
    """Turn what `tokenizers` raises inside the block into a SetupError that names the tokenizer."""
    try:
        yield
    except BaseException as error:
        if is_tokenizer_failure(error):
            raise SetupError(f"{source}: the tokenizer failed ({error})") from error
        raise


def is_tokenizer_failure(error: BaseException) -> bool:
    """Return whether `tokenizers` raised this: plain exceptions, and panics, which are none."""
    if isinstance(error, MtpackError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _locate(source: str | None) -> Path:
    if source is None:
        return EMBEDDED_FOLDER / "tokenizer.json"
    path = Path(source)
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise SetupError(
                f"{source}: the folder has no tokenizer.json; "
                "save it with transformers' save_pretrained"
            )
        return path / "tokenizer.json"
    if path.is_file():
        return path
    if not _HUB_ID.fullmatch(source) or path.suffix == ".json":
        raise SetupError(f"{source}: no such tokenizer file or folder")
    return _from_hub(source)


def _from_hub(source: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise SetupError(
            f"{source}: no such folder; to load it from the Hugging Face Hub, "
            "install the extra: pip install 'mtpack[hub]'"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(source, allow_patterns=list(_HUB_FILES))
    except Exception as error:  # it raises its own, httpx's and the system's errors
        raise SetupError(
            f"{source}: no such folder, and the Hugging Face Hub did not give it "
            f"({type(error).__name__}); check the name and the connection"
        ) from error
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise SetupError(f"{source}: the model on the Hugging Face Hub has no tokenizer.json")
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{path}: can't be read ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = _parse_object(path, _read(path))
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise SetupError(f"{path}: holds half of a surrogate pair; repair it") from None
    return value


def _parse_object(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise SetupError(f"{path}: not a JSON object")
    return value


def _refuse_unfit(path: Path, content: str) -> None:
    """Refuse what would change ids in silence."""
    stored = _parse_object(path, content)
    model = stored.get("model")
    unfit = {
        "truncation": (stored.get("truncation"), "long dialogues would be cut in silence"),
        "padding": (stored.get("padding"), "padding tokens would be taken for text"),
        "dropout": (
            isinstance(model, dict) and model.get("dropout"),
            "every run would give other ids",
        ),
    }
    for name, (switched_on, consequence) in unfit.items():
        if switched_on:
            raise SetupError(
                f"{path}: {name} is switched on, so {consequence}; set it to null in tokenizer.json"
            )


def _add(path: Path, backend: tokenizers.Tokenizer, declared: DeclaredTokens) -> list[str]:
    """Add tokens that tokenizer.json does not have, and return them; stored ones stay as stored."""
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
                f"but behind this vocabulary it becomes {found}"
            )
        added_here.append(f"{found} {token!r}")
    return added_here


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Collect templates by name; the config's count only where there is no file of them."""
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: _read(path) for name, path in files.items()}
    stored = config.get("chat_template")
    if isinstance(stored, str):
        return {"default": stored}
    return {
        str(entry.get("name")): entry["template"]
        for entry in (stored if isinstance(stored, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("template"), str)
    }


def _pad_id(backend: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> int:
    for name in ("pad_token", "eos_token"):
        number = backend.token_to_id(special_tokens.get(name, ""))
        if number is not None:
            return number
    return 0
