"""What the files beside tokenizer.json say of tokens: names, and tokens that only they declare.

Which file counts is as in transformers 5 (`from_pretrained` in tokenization_utils_base.py): a
config with `added_tokens_decoder` has said all; older ones leave the rest to
`special_tokens_map.json`, which then wins, and to `added_tokens.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

_FLAGS = ("single_word", "lstrip", "rstrip")
# In the order in which transformers adds them, whatever the order in the file; others follow.
_STANDARD = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, slots=True)
class DeclaredTokens:
    """Tokens as the files declare them."""

    named: dict[str, str]
    """`bos_token`, `eos_token` and so on, as templates see them."""
    tokens: list[tuple[int | None, AddedToken]]
    """What the vocabulary must have, and where it must have it, if that is said."""


def read_declared_tokens(
    config: Mapping[str, Any], special_tokens_map: Mapping[str, Any], added: Mapping[str, Any]
) -> DeclaredTokens:
    """Read the contents of the three files.

    Raises AttributeError, KeyError, TypeError or ValueError where one is malformed.
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
    special = [_special(value) for value in (*named.values(), *extra)]
    contents = {token.content for token in special}
    if numbered is None:
        tokens = list(_from_added_tokens(added, contents))
    else:
        tokens = [(int(number), _token(value)) for number, value in numbered.items()]
    tokens.sort(key=lambda item: item[0])
    return DeclaredTokens(
        named={key: _special(value).content for key, value in named.items()},
        tokens=[*tokens, *((None, token) for token in special)],
    )


def _from_added_tokens(
    added: Mapping[str, Any], special: set[str]
) -> Iterator[tuple[int, AddedToken]]:
    for content, number in added.items():
        is_special = content in special
        yield int(number), AddedToken(content, normalized=not is_special, special=is_special)


def _special(value: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, normalized=False, special=True)
    return _token({"normalized": False, **value, "special": True})


def _token(value: Mapping[str, Any]) -> AddedToken:
    special = bool(value.get("special"))
    flags = {name: bool(value.get(name)) for name in _FLAGS}
    normalized = bool(value.get("normalized", not special))
    return AddedToken(value["content"], normalized=normalized, special=special, **flags)
