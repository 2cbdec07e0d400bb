"""Find, check and load a tokenizer with what stands beside it.

A tokenizer is a folder with `tokenizer.json` (and `tokenizer_config.json`, `chat_template.jinja`,
`additional_chat_templates/`), that file alone, a model id of the Hugging Face Hub, or, without a
name, the small one that ships with mtpack. All of these files are untrusted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from mtpack.errors import SetupError
from mtpack.tokenizer.added_tokens import AddedTokens, added_tokens_of

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / EMBEDDED
_HUB_FILES = ("tokenizer*.json", "special_tokens_map.json", "*.jinja")
_NAMED_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


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
    """Of tokenizer.json and of the tokens that only the config declares."""


def load_tokenizer(source: str | None) -> LoadedTokenizer:
    """Load the tokenizer that `source` names; raise SetupError where it can't be used."""
    path = _locate(source)
    folder = path.parent
    content = _read(path)
    _refuse_unfit(path, content)
    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise SetupError(f"{path}: not a tokenizer that can be loaded ({error})") from error
    # It would only add special tokens, which come from the template, and trim offsets.
    backend.post_processor = None
    config = _read_json(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(_read_json(folder / "special_tokens_map.json") | config)
    declared = _add_declared_tokens(path, backend, config, special_tokens)
    return LoadedTokenizer(
        source=EMBEDDED if source is None else source,
        backend=backend,
        added_tokens=added_tokens_of(backend, special_tokens.get("eos_token")),
        special_tokens=special_tokens,
        chat_templates=_chat_templates(folder, config),
        pad_id=_pad_id(backend, special_tokens),
        sha256=hashlib.sha256("\n".join([content, *declared]).encode()).hexdigest(),
    )


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
    if path.suffix or source.count("/") != 1 or source.startswith((".", "/", "~")):
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
    return _parse_object(path, _read(path))


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


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the named special tokens, as transformers' special_tokens_map has them."""
    named = dict(config)
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= extra
    found = {}
    for key, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found


def _add_declared_tokens(
    path: Path,
    backend: tokenizers.Tokenizer,
    config: dict[str, Any],
    special_tokens: dict[str, str],
) -> list[str]:
    """Add tokens that only the config declares, and return them; stored ones stay as they are."""
    declared = config.get("added_tokens_decoder") or {}
    wanted: list[tuple[int | None, tokenizers.AddedToken]] = []
    try:
        for number, token in sorted(declared.items(), key=lambda item: int(item[0])):
            flags = {key: bool(token.get(key)) for key in ("single_word", "lstrip", "rstrip")}
            flags["normalized"] = bool(token.get("normalized", not token.get("special")))
            added = tokenizers.AddedToken(
                token["content"], special=bool(token.get("special")), **flags
            )
            wanted.append((int(number), added))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SetupError(
            f"{path.parent / 'tokenizer_config.json'}: added_tokens_decoder is malformed ({error})"
        ) from error
    wanted += [
        (None, tokenizers.AddedToken(content, special=True, normalized=False))
        for name in _NAMED_TOKENS
        if (content := special_tokens.get(f"{name}_token"))
    ]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added_here = []
    for number, token in wanted:
        if token.content in known:
            continue
        known.add(token.content)
        if number is None and backend.token_to_id(token.content) is not None:
            continue  # a named token that is an ordinary word of the vocabulary stays one
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
    """Collect templates by name; files beside the tokenizer win over the config."""
    found: dict[str, str] = {}
    stored = config.get("chat_template")
    if isinstance(stored, str):
        found["default"] = stored
    elif isinstance(stored, list):
        for entry in stored:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                found[str(entry.get("name"))] = entry["template"]
    files = {"default": folder / "chat_template.jinja"}
    more = folder / "additional_chat_templates"
    files |= {path.stem: path for path in sorted(more.glob("*.jinja"))}
    return found | {name: _read(path) for name, path in files.items() if path.is_file()}


def _pad_id(backend: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> int:
    for name in ("pad_token", "eos_token"):
        number = backend.token_to_id(special_tokens.get(name, ""))
        if number is not None:
            return number
    return 0
