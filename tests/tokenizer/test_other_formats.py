"""A folder without tokenizer.json names the command that makes one, and the command is right."""

import base64
import json
import shlex
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from mtpack.errors import SetupError
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, load_tokenizer
from tests.conftest import shared

TEXTS = [
    "Hello, world!",
    " leading and trailing  ",
    " ",
    "two  spaces,\ttabs\n\n  and lines\r\n",
    "It's 12345 DON'T",
    "Grüße 你好 🙂 ﬁ ＦＵＬＬ e\u0301",
    "<|im_start|>user\nhi<|im_end|>\n x",
]
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = "the walrus and the otter, 12 lines\n\nof text: it's in the other 345 " * 20


def train_ranks(num_merges: int = 30) -> dict[bytes, int]:
    """Train a byte-level BPE on a few words: the bytes, then the merges in order."""
    ranks = {bytes([value]): value for value in range(256)}
    words = [[bytes([value]) for value in word.encode()] for word in CORPUS.split(" ")]
    while len(ranks) < 256 + num_merges:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        new = [pair for pair in pairs if b"".join(pair) not in ranks]
        left, right = max(new, key=lambda pair: (pairs[pair], pair))
        ranks[left + right] = len(ranks)
        for word in words:
            for at in range(len(word) - 2, -1, -1):
                if word[at : at + 2] == [left, right]:
                    word[at : at + 2] = [left + right]
    return ranks


RANKS = train_ranks()
TIKTOKEN = b"".join(base64.b64encode(t) + b" %d\n" % rank for t, rank in RANKS.items())
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|im_start|>"]
TEKKEN = {
    "config": {
        "pattern": LLAMA3_PATTERN,
        "num_vocab_tokens": len(RANKS),
        "default_vocab_size": len(RANKS) + 10,
        "default_num_special_tokens": 10,
        "version": "v7",
    },
    "vocab": [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in RANKS.items()
    ],
    "special_tokens": [
        {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(SPECIAL)
    ],
}


def refusal(source: Path | str) -> str:
    with pytest.raises(SetupError) as error:
        load_tokenizer(str(source))
    return str(error.value)


def write(folder: Path, **files: bytes | dict | list) -> Path:
    """Write the files, bytes or JSON; `__` in a name is a dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


# What the error says

SENTENCEPIECE = b"\x0a\x0e\x0a\x05<unk>"
LOAD_AND_SAVE = (
    'python -c "import sys; from transformers import {} as T; '
    'T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])" {}'
)
FOR_SENTENCEPIECE = (
    "(SentencePiece): pip install 'transformers>=5' sentencepiece protobuf, and then"
)
FOR_TIKTOKEN = "pip install 'transformers>=5' tiktoken"


def test_a_sentencepiece_model_names_its_command(tmp_path):
    folder = write(tmp_path / "a model", tokenizer__model=SENTENCEPIECE)
    command = LOAD_AND_SAVE.format("TokenizersBackend", f"'{folder}'")
    said = (
        f"there is no tokenizer.json; make it from tokenizer.model {FOR_SENTENCEPIECE}\n{command}"
    )
    assert refusal(folder) == f"{folder}: {said}"
    file = folder / "tokenizer.model"
    assert refusal(file) == f"{file}: {said}"


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model.v3"])
def test_a_sentencepiece_model_of_another_name_is_copied_first(tmp_path, name):
    (tmp_path / name).write_bytes(SENTENCEPIECE)
    command = LOAD_AND_SAVE.format("TokenizersBackend", tmp_path)
    assert refusal(tmp_path) == (
        f"{tmp_path}: there is no tokenizer.json; make it from {name} {FOR_SENTENCEPIECE}\n"
        f"cp {tmp_path / name} {tmp_path / 'tokenizer.model'} && {command}"
    )


def test_a_tekken_file_names_its_command(tmp_path):
    file = write(tmp_path, tekken__json=TEKKEN, tokenizer__model=SENTENCEPIECE) / "tekken.json"
    for source in (tmp_path, file):
        assert refusal(source) == (
            f"{source}: there is no tokenizer.json; make it from tekken.json (Mistral's tekken): "
            "pip install 'transformers>=5' mistral-common, and then\n"
            'python -c "import sys; '
            "from transformers.integrations.mistral import convert_tekken_tokenizer as C; "
            f'C(sys.argv[1]).save_pretrained(sys.argv[2])" {file} {tmp_path}'
        )


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "some.tiktoken"])
def test_a_tiktoken_file_without_configs_is_that_of_llama_3(tmp_path, name):
    (tmp_path / name).write_bytes(TIKTOKEN)
    first, command = refusal(tmp_path).split("\n")
    assert first == (
        f"{tmp_path}: there is no tokenizer.json; make it from {name} (tiktoken of Llama 3): "
        f"{FOR_TIKTOKEN}, and then"
    )
    assert command.startswith('python -c "import sys; from transformers import TokenizersBackend')
    assert command.endswith(f'" {tmp_path / name} {tmp_path}')


def test_a_tiktoken_file_whose_config_declares_tokens_uses_them(tmp_path):
    config = {"added_tokens_decoder": {"500": {"content": "<s>"}}}
    write(tmp_path, tokenizer__model=TIKTOKEN, tokenizer_config__json=config)
    assert refusal(tmp_path) == (
        f"{tmp_path}: there is no tokenizer.json; make it from tokenizer.model (tiktoken, with the "
        f"pattern of Llama 3): {FOR_TIKTOKEN} sentencepiece protobuf, and then\n"
        + LOAD_AND_SAVE.format("TokenizersBackend", tmp_path)
    )


def test_a_tiktoken_file_with_code_of_its_own_uses_that(tmp_path):
    config = {"auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}
    write(tmp_path, tiktoken__model=TIKTOKEN, tokenizer_config__json=config)
    assert refusal(tmp_path) == (
        f"{tmp_path}: there is no tokenizer.json; make it from tiktoken.model (tiktoken; the "
        f"command runs the model's own code): {FOR_TIKTOKEN} blobfile, and then\n"
        'python -c "import sys; '
        "from transformers.dynamic_module_utils import get_class_from_dynamic_module as load; "
        "from transformers.integrations.tiktoken import convert_tiktoken_to_fast as convert; "
        "t = load(sys.argv[2], sys.argv[1]).from_pretrained(sys.argv[1]); "
        "convert(getattr(t, 'model', None) or t.tokenizer, sys.argv[1])\" "
        f"{tmp_path} tokenization_kimi.TikTokenTokenizer"
    )


@pytest.mark.parametrize("named", ["x; rm -rf .", "$(id).A", "a.b\n", 7, [], None, {"A": 1}])
def test_no_odd_name_of_a_config_gets_into_a_command(tmp_path, named):
    write(tmp_path, tiktoken__model=TIKTOKEN, tokenizer_config__json={"auto_map": [named]})
    assert "(tiktoken of Llama 3)" in refusal(tmp_path)


def test_vocabularies_with_merges_and_of_words_name_their_class(tmp_path):
    merges = write(tmp_path / "merges", vocab__json={"a": 0}, merges__txt=b"#version: 0.2\n")
    words = write(tmp_path / "words", vocab__txt=b"[UNK]\na\n")
    for folder, file, kind, usual in (
        (merges, "merges.txt", "vocab.json and merges.txt", "GPT2Tokenizer"),
        (words, "vocab.txt", "WordPiece", "BertTokenizer"),
    ):
        first = (
            f"{folder}: there is no tokenizer.json; make it from {file} ({kind}): "
            "pip install 'transformers>=5', and then\n"
        )
        assert refusal(folder) == first + LOAD_AND_SAVE.format(usual, folder)
        write(folder, config__json={"model_type": "qwen2"})
        assert refusal(folder) == first + LOAD_AND_SAVE.format("AutoTokenizer", folder)


def test_a_vocabulary_next_to_a_tokenizer_json_names_that(tmp_path):
    write(tmp_path, tokenizer__model=SENTENCEPIECE, tokenizer__json=b"{}")
    file = tmp_path / "tokenizer.model"
    beside = tmp_path / "tokenizer.json"
    assert refusal(file) == f"{file}: not a tokenizer.json (SentencePiece); name {beside} instead"


def test_files_of_no_known_format_are_not_named(tmp_path):
    write(tmp_path, lid__model=b"\xbaO/", vocab__json={}, mytekken__json={})
    (tmp_path / "tokenizer.model").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path}: the folder has no tokenizer.json; save it")


@pytest.mark.parametrize("name", ["vocab.json", "my_tekken_tokenizer.json", "x.model"])
def test_a_tokenizer_json_of_any_name_is_loaded(tmp_path, name):
    file = tmp_path / name
    file.write_bytes((EMBEDDED_FOLDER / "tokenizer.json").read_bytes())
    assert load_tokenizer(str(file)).backend.get_vocab_size() > 8_000


# What the command makes


def run_command(folder: Path, monkeypatch) -> None:
    """Run the command that the error names, in this process."""
    _, _, code, *arguments = shlex.split(refusal(folder).split("\n")[1])
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec(code, {})


def encode(folder: Path) -> list[list[int]]:
    backend = load_tokenizer(str(folder)).backend
    return [backend.encode(text, add_special_tokens=False).ids for text in TEXTS]


def test_a_folder_of_gpt_2_is_converted_without_a_difference(tmp_path, monkeypatch):
    original = shared("tokenizers/gpt2")
    model = json.loads((original / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = "\n".join(m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    write(tmp_path, vocab__json=model["vocab"], merges__txt=f"#version: 0.2\n{merges}\n".encode())
    run_command(tmp_path, monkeypatch)
    assert encode(tmp_path) == encode(original)


def test_a_folder_of_bert_is_converted_without_a_difference(tmp_path, monkeypatch):
    original = shared("tokenizers/bert-base-uncased-wordpiece")
    model = json.loads((original / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    write(tmp_path, vocab__txt="".join(f"{word}\n" for word in words).encode())
    run_command(tmp_path, monkeypatch)
    assert encode(tmp_path) == encode(original)


def test_a_tekken_file_is_converted_with_the_ids_of_its_format(tmp_path, monkeypatch):
    write(tmp_path, tekken__json=TEKKEN)
    run_command(tmp_path, monkeypatch)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.special_tokens["eos_token"] == "</s>"
    ids = [loaded.backend.token_to_id(token) for token in SPECIAL]
    assert ids == list(range(len(SPECIAL)))
    merged = max(RANKS, key=RANKS.__getitem__)  # the special tokens are before the vocabulary
    assert loaded.backend.encode(merged.decode()).ids == [RANKS[merged] + 10]


def test_a_tekken_file_is_converted_without_a_difference(tmp_path, monkeypatch):
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    file = write(tmp_path, tekken__json=TEKKEN) / "tekken.json"
    reference = tekken.Tekkenizer.from_file(str(file))
    run_command(tmp_path, monkeypatch)
    texts = [text.replace("<|im_start|>", "") for text in TEXTS]  # it never makes special tokens
    backend = load_tokenizer(str(tmp_path)).backend
    for text in texts:
        ids = backend.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text, bos=False, eos=False)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "LlamaTokenizer"}], ids=str)
def test_a_sentencepiece_model_is_converted_without_a_difference(
    tmp_path, monkeypatch, kind, config
):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text(CORPUS * 5 + "\n" + "\n".join(TEXTS) * 5)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=320,
        model_type=kind,
        hard_vocab_limit=False,
        byte_fallback=True,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        # As the models of Llama 2 and Gemma are made, and as those of T5.
        normalization_rule_name="identity" if kind == "bpe" else "nmt_nfkc",
        remove_extra_whitespaces=kind == "unigram",
        minloglevel=3,
    )
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    write(tmp_path, tokenizer_config__json=config)
    run_command(tmp_path, monkeypatch)
    assert encode(tmp_path) == [model.encode(text) for text in TEXTS]


LLAMA3_SPECIAL = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eot_id|>": 9,
    "<|reserved_special_token_247|>": 255,
}


def make_encoding(pattern: str, special: dict[str, int]):
    tiktoken = pytest.importorskip("tiktoken")
    special = {token: len(RANKS) + at for token, at in special.items()}
    return tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=RANKS, special_tokens=special)


def test_a_tiktoken_file_of_llama_3_is_converted_without_a_difference(tmp_path, monkeypatch):
    encoding = make_encoding(LLAMA3_PATTERN, LLAMA3_SPECIAL)
    write(tmp_path, tokenizer__model=TIKTOKEN)
    run_command(tmp_path, monkeypatch)
    backend = load_tokenizer(str(tmp_path)).backend
    for text in [*TEXTS, "".join(LLAMA3_SPECIAL)]:
        assert backend.encode(text).ids == encoding.encode(text, allowed_special="all")


def test_a_tiktoken_file_of_qwen_1_is_converted_without_a_difference(tmp_path, monkeypatch):
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    special = {name: at for at, name in enumerate(names)}
    encoding = make_encoding(LLAMA3_PATTERN.replace("{1,3}", ""), special)
    write(tmp_path, qwen__tiktoken=TIKTOKEN)
    run_command(tmp_path, monkeypatch)
    normal = [unicodedata.normalize("NFC", text) for text in TEXTS]
    assert encode(tmp_path) == [encoding.encode(text, allowed_special="all") for text in normal]
    backend = load_tokenizer(str(tmp_path)).backend
    assert backend.encode("".join(names)).ids == [len(RANKS) + at for at in range(len(names))]


OWN_CODE = f"""
import tiktoken
from tiktoken.load import load_tiktoken_bpe
from transformers import PreTrainedTokenizer

class OwnTokenizer(PreTrainedTokenizer):
    vocab_files_names = {{"vocab_file": "tiktoken.model"}}

    def __init__(self, vocab_file, **more):
        ranks = load_tiktoken_bpe(vocab_file)
        self.model = tiktoken.Encoding(
            "own", pat_str={LLAMA3_PATTERN.replace("{1,3}", "{1,2}")!r},
            mergeable_ranks=ranks, special_tokens={{"<|im_start|>": len(ranks)}},
        )
        super().__init__(**more)

    vocab_size = 1
    def get_vocab(self): return {{}}
    def _convert_token_to_id(self, token): return 0
"""


def test_a_tiktoken_file_with_code_of_its_own_is_converted_without_a_difference(
    tmp_path, monkeypatch
):
    pytest.importorskip("blobfile")
    encoding = make_encoding(LLAMA3_PATTERN.replace("{1,3}", "{1,2}"), {"<|im_start|>": 0})
    config = {"auto_map": {"AutoTokenizer": ["own_code.OwnTokenizer", None]}}
    write(
        tmp_path,
        tiktoken__model=TIKTOKEN,
        tokenizer_config__json=config,
        own_code__py=OWN_CODE.encode(),
    )
    run_command(tmp_path, monkeypatch)
    assert encode(tmp_path) == [encoding.encode(text, allowed_special="all") for text in TEXTS]
