"""Explains how to make tokenizer.json from the vocabulary files of other tokenizer libraries.

Each command was tried with transformers 5.24, and the ids compared with those of the library that
the files are for (docs/tokenizers.md). A command gets its paths as arguments, so that they need no
quotes of Python.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mtpack.tokenizer.files import read_object

_SAVE = (
    "import sys; from transformers import {} as T; "
    "T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
)
_TEKKEN = (
    "import sys; from transformers.integrations.mistral import convert_tekken_tokenizer as C; "
    "C(sys.argv[1]).save_pretrained(sys.argv[2])"
)
# The words and special tokens of Qwen 1 (tokenization_qwen.py); `Qwen2Tokenizer` splits as it does.
_QWEN = (
    "import sys; from transformers import Qwen2Tokenizer as T; "
    "from transformers.convert_slow_tokenizer import TikTokenConverter as C; "
    "v, m = C().extract_vocab_merges_from_model(sys.argv[1]); "
    "T(v, m, extra_special_tokens=['<|im_start|>', '<|im_end|>', "
    "*('<|extra_%d|>' % i for i in range(205))]).save_pretrained(sys.argv[2])"
)
# The special tokens of Llama 3.1; Llama 3 has reserved ones in place of three that it never uses.
_LLAMA3 = (
    "import sys; from transformers import TokenizersBackend as T; "
    "from transformers.convert_slow_tokenizer import TikTokenConverter as C; "
    "r = ['<|reserved_special_token_%d|>' % i for i in range(248)]; "
    "s = ['<|begin_of_text|>', '<|end_of_text|>', *r[:2], '<|finetune_right_pad_id|>', r[2], "
    "'<|start_header_id|>', '<|end_header_id|>', '<|eom_id|>', '<|eot_id|>', '<|python_tag|>', "
    "*r[3:]]; T(tokenizer_object=C(sys.argv[1], extra_special_tokens=s).converted(), "
    "bos_token=s[0], eos_token=s[9]).save_pretrained(sys.argv[2])"
)
_OWN_CODE = (
    "import sys; "
    "from transformers.dynamic_module_utils import get_class_from_dynamic_module as load; "
    "from transformers.integrations.tiktoken import convert_tiktoken_to_fast as convert; "
    "t = load(sys.argv[2], sys.argv[1]).from_pretrained(sys.argv[1]); "
    "convert(getattr(t, 'model', None) or t.tokenizer, sys.argv[1])"
)
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")
_CLASS = re.compile(r"([\w.-]+/[\w.-]+--)?\w+\.\w+")


@dataclass(frozen=True, slots=True)
class _Conversion:
    """How to make tokenizer.json from files of one format."""

    format: str
    packages: str
    """What pip has to install."""
    code: str
    arguments: tuple[str, ...]
    copied: tuple[Path, Path] | None = None
    """A file to copy first, and where to; transformers finds it by its name."""

    @property
    def command(self) -> str:
        """The command, for a shell."""
        command = f'python -c "{self.code}" {shlex.join(self.arguments)}'
        if self.copied is None:
            return command
        return f"cp {shlex.join(map(str, self.copied))} && {command}"


def explain_conversion(path: Path) -> list[str]:
    """Return how to make tokenizer.json from `path`: a file, or a folder without tokenizer.json.

    Returns two lines, the second of which is a command. Returns no line if the folder has no
    vocabulary file of a known format, or the file is none. Raises SetupError if a config next to it
    can't be read.
    """
    # In the order of the formats, so that the one that the model is served with wins.
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    for names, describe in _FORMATS:
        for file in files:
            is_known = file.is_file() and any(fnmatchcase(file.name, name) for name in names)
            if is_known and (conversion := describe(file)):
                return _explain(path, file, conversion)
    return []


def _explain(path: Path, file: Path, conversion: _Conversion) -> list[str]:
    converted = file.parent / "tokenizer.json"
    if converted.is_file():
        return [f"{path}: not a tokenizer.json ({conversion.format}); name {converted} instead"]
    return [
        f"{path}: there is no tokenizer.json; make it from {file.name} ({conversion.format}): "
        f"pip install {conversion.packages}, and then",
        conversion.command,
    ]


def _describe_tekken(file: Path) -> _Conversion | None:
    if not isinstance(read_object(file).get("vocab"), list):
        return None
    arguments = (str(file), str(file.parent))
    return _Conversion("Mistral's tekken", "'transformers>=5' mistral-common", _TEKKEN, arguments)


def _describe_model(file: Path) -> _Conversion | None:
    """Return how to convert a `.model` file, which two libraries use; its content says which."""
    try:
        with file.open("rb") as opened:
            start = opened.read(1024)
    except OSError:
        return None
    if _TIKTOKEN_LINE.match(start):
        return _describe_tiktoken(file)
    if not start.startswith(b"\n"):  # the tag of the pieces in SentencePiece's protocol buffer
        return None
    folder = file.parent
    expected = folder / "tokenizer.model"
    return _Conversion(
        "SentencePiece",
        "'transformers>=5' sentencepiece protobuf",
        _SAVE.format("TokenizersBackend"),
        (str(folder),),
        None if file.name == expected.name else (file, expected),
    )


def _describe_tiktoken(file: Path) -> _Conversion:
    """Return how to convert a tiktoken file, which has neither its pattern nor special tokens."""
    folder = file.parent
    paths = (str(file), str(folder))
    packages = "'transformers>=5' tiktoken"
    if file.name == "qwen.tiktoken":
        return _Conversion("tiktoken of Qwen 1", packages, _QWEN, paths)
    config = read_object(folder / "tokenizer_config.json")
    if own_class := _find_own_class(config):
        explained = "tiktoken; the command runs the model's own code"
        return _Conversion(explained, packages + " blobfile", _OWN_CODE, (str(folder), own_class))
    if config.get("added_tokens_decoder"):
        expected = folder / "tiktoken.model"
        is_found = file.name in ("tokenizer.model", expected.name)
        return _Conversion(
            "tiktoken, with the pattern of Llama 3",
            packages + " sentencepiece protobuf",
            _SAVE.format("TokenizersBackend"),
            (str(folder),),
            None if is_found else (file, expected),
        )
    return _Conversion("tiktoken of Llama 3", packages, _LLAMA3, paths)


def _find_own_class(config: dict[str, object]) -> str | None:
    """Return the class of the model's own code that a config names as its tokenizer."""
    named = config.get("auto_map")
    if isinstance(named, dict):
        named = named.get("AutoTokenizer")
    if isinstance(named, list) and named:
        named = named[0]
    return named if isinstance(named, str) and _CLASS.fullmatch(named) else None


def _describe_merges(file: Path) -> _Conversion | None:
    if not all((file.parent / name).is_file() for name in ("vocab.json", "merges.txt")):
        return None
    return _describe_words("vocab.json and merges.txt", "GPT2Tokenizer", file.parent)


def _describe_vocabulary(file: Path) -> _Conversion:
    return _describe_words("WordPiece", "BertTokenizer", file.parent)


def _describe_words(name: str, usual_class: str, folder: Path) -> _Conversion:
    """Return how to convert vocabulary files; `usual_class` is for folders that name none."""
    is_named = "tokenizer_class" in read_object(
        folder / "tokenizer_config.json"
    ) or "model_type" in read_object(folder / "config.json")
    code = _SAVE.format("AutoTokenizer" if is_named else usual_class)
    return _Conversion(name, "'transformers>=5'", code, (str(folder),))


_FORMATS: tuple[tuple[tuple[str, ...], Callable[[Path], _Conversion | None]], ...] = (
    (("*tekken*.json",), _describe_tekken),
    (("*.tiktoken",), _describe_tiktoken),
    (("*.model", "*.model.v*"), _describe_model),
    (("vocab.json", "merges.txt"), _describe_merges),
    (("vocab.txt",), _describe_vocabulary),
)
