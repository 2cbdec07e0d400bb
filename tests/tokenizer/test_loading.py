"""Tokenizers load as in transformers, or are refused with a helpful message."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mtpack.errors import SetupError
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, HUB_FILES, load_tokenizer
from scripts.train_embedded_tokenizer import VOCABULARY_SIZE, train
from tests.conftest import ROOT, SAMPLE_DATA, SHARED, shared

EMBEDDED = load_tokenizer(None)


def tiny_tokenizer(normalizer: normalizers.Normalizer | None = None) -> tokenizers.Tokenizer:
    """Train a byte-level BPE of a few words; its one added token is `<unk>`, id 0."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the walrus and the otter"] * 3, trainer)
    return tokenizer


TINY = tiny_tokenizer().to_str()
NEXT_ID = tiny_tokenizer().get_vocab_size()
"""The id of the first token that is added to the tiny tokenizer."""
TINY_VOCABULARY = {number: token for token, number in tiny_tokenizer().get_vocab().items()}


def save(folder: Path, tokenizer: str = TINY, config: dict | None = None) -> Path:
    """Write a tokenizer folder."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    if config is not None:
        named = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def change_model(**changes) -> str:
    stored = json.loads(TINY)
    stored["model"] |= changes
    return json.dumps(stored)


def added(content: str, **flags: bool) -> dict:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": content} | off | flags


def in_transformers(folder: Path):
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def refusal(source: Path | str) -> str:
    """Return the message with which `source` is refused: one or two lines."""
    with pytest.raises(SetupError) as error:
        load_tokenizer(str(source))
    assert 1 <= len(str(error.value).splitlines()) <= 2
    return str(error.value)


# Sources


def test_a_folder_is_loaded(tmp_path):
    loaded = load_tokenizer(str(save(tmp_path, config={"eos_token": "<unk>"})))
    assert loaded.source == str(tmp_path)
    assert loaded.backend.get_vocab_size() == NEXT_ID
    assert loaded.special_tokens == {"eos_token": "<unk>"}


def test_a_single_file_is_loaded(tmp_path):
    alone = save(tmp_path) / "alone.json"
    (tmp_path / "tokenizer.json").rename(alone)
    loaded = load_tokenizer(str(alone))
    assert loaded.source == str(alone)
    assert loaded.backend.get_vocab_size() == NEXT_ID
    assert loaded.special_tokens == {}


def test_the_files_next_to_a_named_file_are_read(tmp_path):
    folder = save(tmp_path, config={"eos_token": "<unk>"})
    loaded = load_tokenizer(str(folder / "tokenizer.json"))
    assert loaded.special_tokens == {"eos_token": "<unk>"}
    assert loaded.folder == folder


def test_a_tokenizer_adds_no_special_token_to_a_text(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<unk> $A <unk>", special_tokens=[("<unk>", 0)]
    )
    loaded = load_tokenizer(str(save(tmp_path, tokenizer.to_str())))
    assert 0 not in loaded.backend.encode("the walrus").ids


# The embedded tokenizer


def test_without_a_name_the_embedded_tokenizer_is_loaded():
    assert EMBEDDED.source == "embedded"
    assert EMBEDDED.backend.get_vocab_size() == VOCABULARY_SIZE
    assert 8_000 <= VOCABULARY_SIZE <= 8_192
    assert EMBEDDED.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert EMBEDDED.pad_id == EMBEDDED.backend.token_to_id("<|endoftext|>")


def test_the_embedded_tokenizer_cuts_out_its_control_tokens():
    text = "<|im_start|>user\nwalrus<|im_end|>"
    tokens = EMBEDDED.backend.encode(text, add_special_tokens=False).tokens
    assert tokens[0] == "<|im_start|>"
    assert tokens[-1] == "<|im_end|>"


@given(st.text() | st.text("<|im_start|> \n\t'sé🙂\u2028"))
def test_the_embedded_tokenizer_encodes_any_text_without_loss(text):
    ids = EMBEDDED.backend.encode(text, add_special_tokens=False).ids
    assert EMBEDDED.backend.decode(ids, skip_special_tokens=False) == text


def test_training_reproduces_the_embedded_tokenizer():
    shipped = (EMBEDDED_FOLDER / "tokenizer.json").read_text(encoding="utf-8")
    assert train(SAMPLE_DATA).to_str(pretty=True) == shipped


# Tokens that only the config declares

DECLARED = {
    "control tokens": {
        NEXT_ID: added("<|start|>", special=True),
        NEXT_ID + 1: added("<|end|>", special=True),
    },
    "tags": {NEXT_ID: added("<tool>"), NEXT_ID + 1: added("</tool>", normalized=True)},
    "white space absorbed on one side": {
        NEXT_ID: added("<|start|>", special=True, rstrip=True),
        NEXT_ID + 1: added("<|end|>", special=True, lstrip=True),
    },
    "whole words only": {NEXT_ID: added("<tool>", single_word=True)},
    "declared out of order": {NEXT_ID + 1: added("<|end|>"), NEXT_ID: added("<|start|>")},
    "a word of the vocabulary": {
        tiny_tokenizer().token_to_id("Ġwalrus"): added("Ġwalrus"),
        NEXT_ID: added("<tool>"),
    },
    "flags left out": {
        NEXT_ID: {"content": "<tool>"},
        NEXT_ID + 1: {"content": "<|end|>", "special": True},
    },
    "a token of tokenizer.json": {
        0: added("<unk>", special=True),
        NEXT_ID: added("<|end|>", special=True),
    },
}
PIECES = (
    "<|start|>",
    "<|end|>",
    "<|END|>",
    "<tool>",
    "</tool>",
    "<TOOL>",
    "<unk>",
    "walrus",
    "the",
    "x",
)


@pytest.mark.parametrize("normalizer", [None, normalizers.Lowercase()], ids=["", "lowercase"])
@pytest.mark.parametrize("declared", DECLARED.values(), ids=DECLARED)
def test_declared_tokens_are_added_with_their_ids_as_in_transformers(
    tmp_path_factory, declared, normalizer
):
    config = {"added_tokens_decoder": {str(key): token for key, token in declared.items()}}
    tokenizer = tiny_tokenizer(normalizer).to_str()
    folder = save(tmp_path_factory.mktemp("declared"), tokenizer, config)
    loaded, twin = load_tokenizer(str(folder)), in_transformers(folder)
    for number, token in declared.items():
        assert loaded.backend.token_to_id(token["content"]) == number

    @given(st.lists(st.sampled_from([*PIECES, " ", "\n"]), max_size=12).map("".join))
    def check(text: str) -> None:
        found = loaded.backend.encode(text, add_special_tokens=False).ids
        assert found == twin(text, add_special_tokens=False)["input_ids"]

    check()


def test_named_tokens_that_are_missing_are_added_in_the_order_of_transformers(tmp_path):
    config = {"pad_token": "<|pad|>", "eos_token": "<|end|>", "bos_token": "<|start|>"}
    folder = save(tmp_path, config=config | {"unk_token": "<unk>", "sep_token": "<|end|>"})
    loaded, twin = load_tokenizer(str(folder)), in_transformers(folder)
    names = ("<|start|>", "<|end|>", "<|pad|>", "<unk>")
    assert [loaded.backend.token_to_id(name) for name in names] == [
        NEXT_ID + i for i in range(3)
    ] + [0]
    text = "<|start|>the walrus<|pad|> x<|end|>\n<unk>"
    found = loaded.backend.encode(text, add_special_tokens=False).ids
    assert found == twin(text, add_special_tokens=False)["input_ids"]
    special = {token.content for token in loaded.added_tokens.tokens if token.special}
    assert special == {*names}


NEIGHBOR_FILES = {
    "the map overrides an older config": {
        "tokenizer_config.json": {"eos_token": "<|old|>"},
        "special_tokens_map.json": {"eos_token": "<|end|>", "pad_token": {"content": "<|pad|>"}},
    },
    "a newer config is complete": {
        "tokenizer_config.json": {"added_tokens_decoder": {}, "eos_token": "<|end|>"},
        "special_tokens_map.json": {"eos_token": "<|other|>"},
    },
    "additional special tokens": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {},
            "additional_special_tokens": ["<|user|>", "<|tool|>"],
            "eos_token": "<|end|>",
        },
    },
    "extra special tokens by name": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {},
            "extra_special_tokens": {"image_token": "<|image|>"},
            "audio_token": "<|audio|>",
        },
    },
    "a name with flags": {
        "tokenizer_config.json": {},
        "special_tokens_map.json": {
            "eos_token": {
                "content": "<|end|>",
                "lstrip": True,
                "rstrip": True,
                "normalized": False,
                "single_word": False,
            }
        },
    },
}


@pytest.mark.parametrize("files", NEIGHBOR_FILES.values(), ids=NEIGHBOR_FILES)
def test_the_files_next_to_the_tokenizer_are_read_as_in_transformers(tmp_path, files):
    folder = save(tmp_path, config=files["tokenizer_config.json"])
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    loaded, twin = load_tokenizer(str(folder)), in_transformers(folder)
    names = "<|old|> <|end|> <|pad|> <|other|> <|user|> <|tool|> <|image|> <|audio|> <|ignored|>"
    for text in [names, names.replace(" ", ""), "the walrus<|end|>\nx <|user|> y"]:
        found = loaded.backend.encode(text, add_special_tokens=False).ids
        assert found == twin(text, add_special_tokens=False)["input_ids"]
    assert loaded.special_tokens == twin.special_tokens_map


def test_declared_tokens_come_before_named_ones(tmp_path):
    config = {
        "added_tokens_decoder": {str(NEXT_ID): added("<tool>")},
        "eos_token": "<|end|>",
        "bos_token": "<tool>",
    }
    folder = save(tmp_path, config=config)
    loaded, twin = load_tokenizer(str(folder)), in_transformers(folder)
    assert loaded.backend.token_to_id("<|end|>") == NEXT_ID + 1
    assert twin.convert_tokens_to_ids("<|end|>") == NEXT_ID + 1


@pytest.mark.parametrize("number", [NEXT_ID + 7, 5])
def test_a_declared_id_that_is_not_available_is_refused(tmp_path, number):
    config = {"added_tokens_decoder": {str(number): added("<tool>")}}
    message = refusal(save(tmp_path, config=config))
    assert f"gives <tool> the id {number}" in message
    assert f"its id is {NEXT_ID}" in message


@pytest.mark.parametrize(
    "declared",
    [
        ["<tool>"],
        {"five": added("<tool>")},
        {str(NEXT_ID): "<tool>"},
        {str(NEXT_ID): {"special": True}},
        {str(NEXT_ID): added("<tool>") | {"content": 5}},
    ],
)
def test_malformed_declared_tokens_are_refused(tmp_path, declared):
    message = refusal(save(tmp_path, config={"added_tokens_decoder": declared}))
    assert message.startswith(str(tmp_path / "tokenizer_config.json"))
    assert "its tokens are malformed" in message


# Special tokens


@pytest.mark.parametrize(
    "name",
    sorted(path.parent.name for path in SHARED.glob("tokenizers/*/tokenizer_config.json")),
)
def test_real_tokenizers_have_the_special_tokens_of_transformers(name):
    folder = shared(f"tokenizers/{name}")
    loaded, twin = load_tokenizer(str(folder)), in_transformers(folder)
    assert loaded.special_tokens == twin.special_tokens_map
    assert loaded.pad_id == twin.pad_token_id


def test_special_tokens_are_read_in_every_form_of_the_config(tmp_path):
    config = {
        "bos_token": {"__type": "AddedToken", **added("<unk>")},
        "eos_token": "<unk>",
        "pad_token": None,
        "add_bos_token": False,
        "model_max_length": 512,
    }
    loaded = load_tokenizer(str(save(tmp_path, config=config)))
    assert loaded.special_tokens == {"bos_token": "<unk>", "eos_token": "<unk>"}
    assert loaded.special_tokens == in_transformers(tmp_path).special_tokens_map


def test_special_tokens_map_is_read_if_there_is_no_config(tmp_path):
    folder = save(tmp_path)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<unk>"}')
    assert load_tokenizer(str(folder)).special_tokens == {"eos_token": "<unk>"}


@pytest.mark.parametrize(
    ("named", "pad_id"),
    [
        ({"pad_token": "<|pad|>", "eos_token": "<unk>"}, NEXT_ID),
        ({"eos_token": "<|end|>"}, NEXT_ID),
        ({"pad_token": None, "eos_token": "<|end|>"}, NEXT_ID),
        ({"bos_token": "<|start|>"}, 0),
        ({}, 0),
    ],
)
def test_the_pad_id_is_that_of_the_pad_token_or_the_end_of_sequence_or_zero(
    tmp_path, named, pad_id
):
    assert load_tokenizer(str(save(tmp_path, config=named))).pad_id == pad_id


# Stop tokens


@pytest.mark.parametrize(
    ("config", "stops"),
    [
        (None, ("<unk>",)),
        ({}, ("<unk>",)),
        ({"eos_token_id": None}, ("<unk>",)),
        ({"eos_token_id": NEXT_ID}, ("<unk>", "<|end|>")),
        ({"eos_token_id": [NEXT_ID, 0]}, ("<unk>", "<|end|>")),
        ({"eos_token_id": [10**9, 10**20]}, ("<unk>",)),  # those of another vocabulary
    ],
)
def test_stop_tokens_are_those_of_all_files(tmp_path, config, stops):
    folder = save(tmp_path, config={"eos_token": "<unk>", "pad_token": "<|end|>"})
    if config is not None:
        (folder / "generation_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(str(folder))
    assert loaded.added_tokens.stops == stops
    assert set(stops) <= set(loaded.added_tokens.control.values())


def test_the_digest_changes_with_the_stop_tokens_alone(tmp_path):
    folder = save(tmp_path, config={"eos_token": "<unk>", "pad_token": "<|end|>"})
    digests = []
    for config in (None, {"eos_token_id": 0}, {"eos_token_id": NEXT_ID}):
        if config is not None:
            (folder / "generation_config.json").write_text(json.dumps(config))
        digests.append(load_tokenizer(str(folder)).sha256)
    assert digests[0] == digests[1] != digests[2]


def save_with_stops(folder: Path, stops: str) -> Path:
    """Write a tokenizer whose `generation_config.json` names these stop tokens, as JSON."""
    save(folder, config={"eos_token": "<unk>"})
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {stops}}}')
    return folder


@pytest.mark.parametrize("stops", ['"<unk>"', "-1", "true", "1.0", "[[1]]", "[null]", "{}", "NaN"])
def test_stop_tokens_that_are_no_ids_are_refused(tmp_path, stops):
    assert "eos_token_id must be a token id" in refusal(save_with_stops(tmp_path, stops))


# Refused tokenizers


def truncating() -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(512)
    return tokenizer.to_str()


def padding() -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding()
    return tokenizer.to_str()


@pytest.mark.parametrize(
    ("tokenizer", "name", "consequence"),
    [
        (truncating(), "truncation", "long dialogues would be cut without a warning"),
        (padding(), "padding", "padding tokens would be treated as text"),
        (change_model(dropout=0.1), "dropout", "every run would give different ids"),
    ],
)
def test_settings_that_change_ids_without_a_warning_are_refused(
    tmp_path, tokenizer, name, consequence
):
    message = refusal(save(tmp_path, tokenizer))
    assert message.startswith(f"{tmp_path / 'tokenizer.json'}: {name} is enabled")
    assert consequence in message


def test_a_dropout_of_zero_is_accepted(tmp_path):
    assert load_tokenizer(str(save(tmp_path, change_model(dropout=0.0)))).pad_id == 0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "not a tokenizer that can be loaded"),
        ('{"model": null}', "not a tokenizer that can be loaded"),
        ('{"model": []}', "not a tokenizer that can be loaded"),
        ('{"version": "1.0", "model": {"type": "Nonsense"}}', "not a tokenizer that can be loaded"),
        (change_model(vocab="walrus"), "not a tokenizer that can be loaded"),
        (change_model(merges=[["no", "such"]]), "not a tokenizer that can be loaded"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path, content, complaint):
    message = refusal(save(tmp_path, content))
    assert message.startswith(f"{tmp_path / 'tokenizer.json'}: {complaint}")


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
)
def test_a_file_that_is_not_utf_8_is_named(tmp_path, file):
    save(tmp_path)
    (tmp_path / file).write_bytes('{"eos_token": "é"}'.encode("latin-1"))
    assert refusal(tmp_path).startswith(f"{tmp_path / file}: can't be read ('utf-8' codec")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_config_that_is_not_an_object_is_named(tmp_path, file):
    save(tmp_path)
    (tmp_path / file).write_text("[]")
    assert refusal(tmp_path) == f"{tmp_path / file}: not a JSON object"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    assert refusal(tmp_path).startswith(f"{tmp_path}: the folder has no tokenizer.json")


@pytest.mark.parametrize(
    "source",
    ["/no/such/folder", "./missing", "../missing/folder", "~/missing", "missing.json", "a/b/c"],
)
def test_a_path_that_does_not_exist_is_refused_without_a_request_to_the_hub(source):
    assert refusal(source) == f"{source}: no such tokenizer file or folder"


# Identity


def test_sha256_depends_on_contents_and_not_on_paths(tmp_path):
    config = {"added_tokens_decoder": {str(NEXT_ID): added("<tool>")}}
    one = save(tmp_path / "one", config=config)
    same = shutil.copytree(one, tmp_path / "same")
    plain = save(tmp_path / "plain")
    other_flag = {"added_tokens_decoder": {str(NEXT_ID): added("<tool>", lstrip=True)}}
    others = [
        plain,
        save(tmp_path / "other token", config={"eos_token": "<|end|>"}),
        save(tmp_path / "other flag", config=other_flag),
        save(tmp_path / "other merges", change_model(merges=[])),
    ]
    sha256 = {folder: load_tokenizer(str(folder)).sha256 for folder in (one, same, *others)}
    assert sha256[one] == sha256[same]
    assert len(set(sha256.values())) == 5
    assert load_tokenizer(str(plain / "tokenizer.json")).sha256 == sha256[plain]


def test_sha256_does_not_depend_on_the_template(tmp_path):
    plain = save(tmp_path / "plain")
    with_template = save(tmp_path / "with template", config={"chat_template": "hello"})
    assert load_tokenizer(str(plain)).sha256 == load_tokenizer(str(with_template)).sha256


# The Hugging Face Hub


def test_the_download_has_all_files_that_are_read_and_no_weights():
    read = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "processor_config.json",
        "chat_template.json",
    ]
    hub = pytest.importorskip("huggingface_hub.utils")
    others = ["model.safetensors", "config.json", "tokenizer.model", "model.safetensors.index.json"]
    assert list(hub.filter_repo_objects(read + others, allow_patterns=HUB_FILES)) == read


LOAD_A_MODEL = """
from mtpack.errors import SetupError
from mtpack.tokenizer.loading import load_tokenizer
try:
    load_tokenizer("walrus/otter")
except SetupError as error:
    print(error)
"""
WITHOUT_THE_EXTRA = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "huggingface_hub":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def printed_by(code: str, tmp_path: Path, **environment: str) -> str:
    """Return the output of `code`, run in another Python in a folder without such a model."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout


def test_without_huggingface_hub_the_error_names_the_extra(tmp_path):
    message = printed_by(WITHOUT_THE_EXTRA + LOAD_A_MODEL, tmp_path, HF_HUB_OFFLINE="1")
    assert message == (
        "walrus/otter: no such folder; to load it from the Hugging Face Hub, "
        "install the extra: pip install 'mtpack[hub]'\n"
    )


def test_a_model_id_that_can_not_be_downloaded_is_refused_in_one_line(tmp_path):
    pytest.importorskip("huggingface_hub")
    message = printed_by(LOAD_A_MODEL, tmp_path, HF_HUB_OFFLINE="1")
    assert message.startswith(
        "walrus/otter: no such folder, and the download from the Hugging Face Hub failed"
    )
    assert message.count("\n") == 1
