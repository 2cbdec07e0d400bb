"""Reads the files next to tokenizer.json: names of tokens, and tokens that only they declare.

The precedence is that of transformers 5 (`from_pretrained` in tokenization_utils_base.py): a config
with `added_tokens_decoder` is complete. For an older config, `special_tokens_map.json`, which
overrides it, and `added_tokens.json` are read as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

_FLAGS = ("single_word", "lstrip", "rstrip")
# In the order in which transformers adds them, whatever their order in the file; others follow.
_STANDARD = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, slots=True)
class DeclaredTokens:
    """The tokens that the files declare."""

    named: dict[str, str]
    """`bos_token`, `eos_token` and so on, as templates see them."""
    tokens: list[tuple[int | None, AddedToken]]
    """The tokens that the vocabulary must have, each with the id that it must have, if any."""


def read_declared_tokens(
    config: Mapping[str, Any], special_tokens_map: Mapping[str, Any], added: Mapping[str, Any]
) -> DeclaredTokens:
    """Return the tokens in the contents of the three files.

    Raises AttributeError, KeyError, TypeError or ValueError if one is malformed.
    """
    numbered = config.get("added_tokens_decoder")
    if numbered is None:
        config = {**config, **special_tokens_map}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    found = {key: value for key, value in config.items() if key.endswith("_token")}
    named = {key: found[key] for key in _STANDARD if key in found} | found
    if isinstance(extra, Mapping):
        named |= extra
        extra = []
    # Not every such key is a token: `add_bos_token` is true or false.
    named = {key: value for key, value in named.items() if isinstance(value, str | Mapping)}
    special = [_parse_special(value) for value in (*named.values(), *extra)]
    contents = {token.content for token in special}
    if numbered is None:
        tokens = list(_read_added_tokens(added, contents))
    else:
        tokens = [(int(number), _parse_token(value)) for number, value in numbered.items()]
    tokens.sort(key=lambda item: item[0])
    return DeclaredTokens(
        named={key: _parse_special(value).content for key, value in named.items()},
        tokens=[*tokens, *((None, token) for token in special)],
    )


def _read_added_tokens(
    added: Mapping[str, Any], special: set[str]
) -> Iterator[tuple[int, AddedToken]]:
    for content, number in added.items():
        is_special = content in special
        yield int(number), AddedToken(content, normalized=not is_special, special=is_special)


def _parse_special(value: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, normalized=False, special=True)
    return _parse_token({"normalized": False, **value, "special": True})


def _parse_token(value: Mapping[str, Any]) -> AddedToken:
    special = bool(value.get("special"))
    flags = {name: bool(value.get(name)) for name in _FLAGS}
    normalized = bool(value.get("normalized", not special))
    return AddedToken(value["content"], normalized=normalized, special=special, **flags)
