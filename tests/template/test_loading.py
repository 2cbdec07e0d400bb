"""Chat templates are found where transformers finds them, and what is no template is refused."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models
from transformers import AutoTokenizer, Qwen2VLProcessor

from mtpack.errors import SetupError
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.loading import load_chat_template
from mtpack.template.template_files import find_templates, read_templates
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import SHARED

DATE = "2026-01-31"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
TOKENIZER = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")).to_str()
EMBEDDED = load_tokenizer(None)
WALRUS = [{"role": "user", "content": "walrus"}]


def write_as(word: str) -> str:
    """Return a template that writes the word and the first message."""
    return word + " {{ messages[0].content }}"


def save(folder: Path, **files) -> Path:
    """Write a tokenizer folder with the named JSON files."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    files["tokenizer_config"] = {"tokenizer_class": "PreTrainedTokenizerFast"} | files.get(
        "tokenizer_config", {}
    )
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def save_additional(folder: Path, **templates: str) -> None:
    more = folder / "additional_chat_templates"
    more.mkdir(exist_ok=True)
    for name, source in templates.items():
        (more / f"{name}.jinja").write_text(source)


def load(folder: Path | None, named: Path | str | None = None, *arguments: str) -> ChatTemplate:
    tokenizer = EMBEDDED if folder is None else load_tokenizer(str(folder))
    return load_chat_template(tokenizer, None if named is None else str(named), arguments, DATE)


def write(folder: Path | None, named: Path | str | None = None, tools: list | None = None) -> str:
    """Render one message with the templates of the folder, or with the named one."""
    return load(folder, named).render(WALRUS, tools)


def write_in_transformers(folder: Path, tools: list | None = None, **named: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer.apply_chat_template(WALRUS, tools=tools, tokenize=False, **named)


def refusal(folder: Path | None, named: Path | str | None = None) -> str:
    """Return the line with which the template is refused."""
    with pytest.raises(SetupError) as error:
        load(folder, named)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def write_file(tmp_path: Path, content: str | bytes | object, name: str = "file.jinja") -> Path:
    """Write a file: text, bytes, or any other content as JSON."""
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_text(text, encoding="utf-8")
    return file


# The templates of a tokenizer


def test_a_template_file_overrides_the_config(tmp_path):
    folder = save(tmp_path, tokenizer_config={"chat_template": write_as("config")})
    assert write(folder) == write_in_transformers(folder) == "config walrus"
    (folder / "chat_template.jinja").write_text(write_as("file"))
    assert write(folder) == write_in_transformers(folder) == "file walrus"


NAMED = {"default": write_as("without"), "tool_use": write_as("with"), "rag": write_as("rag")}
AS_A_LIST = [{"name": name, "template": text} for name, text in NAMED.items()]


@pytest.mark.parametrize("stored", [AS_A_LIST, NAMED], ids=["list", "object"])
def test_the_config_can_have_named_templates(tmp_path, stored):
    folder = save(tmp_path, tokenizer_config={"chat_template": stored})
    assert find_templates(folder) == NAMED
    for tools in (None, [], TOOLS):
        assert write(folder, tools=tools) == write_in_transformers(folder, tools)
    assert write(folder) == "without walrus"
    assert write(folder, tools=TOOLS) == "with walrus"


def test_a_folder_of_additional_templates_has_named_templates(tmp_path):
    folder = save(tmp_path)
    (folder / "chat_template.jinja").write_text(NAMED["default"])
    save_additional(folder, tool_use=NAMED["tool_use"], rag=NAMED["rag"])
    assert find_templates(folder) == NAMED
    for tools in (None, [], TOOLS):
        assert write(folder, tools=tools) == write_in_transformers(folder, tools)


@pytest.mark.parametrize("name", ["rag", "tool_use", "default"])
def test_a_template_that_is_named_renders_all_dialogues_as_in_transformers(tmp_path, name):
    folder = save(tmp_path)
    (folder / "chat_template.jinja").write_text(NAMED["default"])
    save_additional(folder, tool_use=NAMED["tool_use"], rag=NAMED["rag"])
    for tools in (None, TOOLS):
        expected = write_in_transformers(folder, tools, chat_template=name)
        assert write(folder, name, tools) == expected


@pytest.mark.parametrize("file", ["chat_template", "processor_config"])
@pytest.mark.parametrize("stored", [write_as("without"), NAMED, AS_A_LIST], ids=type)
def test_a_template_that_only_the_processor_has_is_found(tmp_path, file, stored):
    folder = save(tmp_path, **{file: {"chat_template": stored}})
    assert write(folder) == "without walrus"


def test_a_processor_reads_its_files_in_this_order(tmp_path):
    files = {
        name: {"chat_template": write_as(name)} for name in ("chat_template", "processor_config")
    }
    folder = save(tmp_path, **files)
    found, _ = Qwen2VLProcessor.get_processor_dict(folder)
    assert find_templates(folder) == {"default": found["chat_template"]}
    assert write(folder) == "processor_config walrus"


def test_the_templates_of_the_tokenizer_come_before_those_of_the_processor(tmp_path):
    folder = save(
        tmp_path,
        chat_template={"chat_template": write_as("processor")},
        processor_config={"chat_template": write_as("processor")},
        tokenizer_config={"chat_template": write_as("tokenizer")},
    )
    assert write(folder) == write_in_transformers(folder) == "tokenizer walrus"


def test_a_file_that_is_not_used_is_not_read(tmp_path):
    folder = save(tmp_path, tokenizer_config={"chat_template": 7})
    (folder / "chat_template.json").write_bytes(b"\xff")
    (folder / "chat_template.jinja").write_text(write_as("file"))
    assert write(folder) == "file walrus"


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    folder = save(tmp_path, processor_config={"image_size": 3})
    assert refusal(folder) == (
        f"{folder}: the tokenizer has no chat template; name one with --chat-template FILE"
    )


def test_without_a_default_the_names_are_listed(tmp_path):
    folder = save(tmp_path)
    save_additional(folder, tool_use=NAMED["tool_use"], rag=NAMED["rag"])
    assert refusal(folder) == (
        f"{folder}: no chat template is named default, only rag, tool_use; "
        "choose one with --chat-template NAME"
    )
    assert write(folder, "rag") == "rag walrus"


def test_an_invalid_template_of_a_tokenizer_is_refused_with_its_line(tmp_path):
    folder = save(tmp_path, tokenizer_config={"chat_template": "fine\n{% for %}"})
    assert refusal(folder).startswith(f"{folder} line 2: the chat template is not valid (")


# The templates that a user names


def test_a_template_file_replaces_the_template_of_the_tokenizer(tmp_path):
    file = write_file(tmp_path, "{{ messages | length }}{{ eos_token }}")
    assert write(None, file, TOOLS) == "1<|im_end|>"


@pytest.mark.parametrize(
    "name", ["chat_template.json", "processor_config.json", "tokenizer_config.json", "copied.txt"]
)
@pytest.mark.parametrize(
    "stored", [NAMED["default"], NAMED, AS_A_LIST, {"other": NAMED["default"]}], ids=str
)
def test_the_template_in_a_json_file_is_used(tmp_path, name, stored):
    file = write_file(tmp_path, {"size": 3, "chat_template": stored}, name)
    assert write(None, file) == "without walrus"
    assert write(None, file, TOOLS) == ("without" if len(stored) != 3 else "with") + " walrus"


def test_a_json_file_with_a_byte_order_mark_is_read(tmp_path):
    file = write_file(tmp_path, "\ufeff" + json.dumps({"chat_template": NAMED["rag"]}), "a.json")
    assert write(None, file) == "rag walrus"


def test_a_template_that_writes_json_is_a_template(tmp_path):
    file = write_file(tmp_path, '{"text": "{{ messages[0].content }}"}')
    assert write(None, file) == '{"text": "walrus"}'


def test_the_templates_in_a_folder_are_found_as_those_of_a_tokenizer(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(NAMED["default"])
    save_additional(folder, tool_use=NAMED["tool_use"])
    assert write(None, folder) == "without walrus"
    assert write(None, folder, TOOLS) == "with walrus"


def test_a_file_wins_over_a_template_of_the_same_name(tmp_path, monkeypatch):
    folder = save(tmp_path / "model", tokenizer_config={"chat_template": NAMED})
    monkeypatch.chdir(tmp_path)
    assert write(folder, "rag") == "rag walrus"
    write_file(tmp_path, write_as("file"), "rag")
    assert write(folder, "rag") == "file walrus"


@pytest.mark.parametrize("name", ["../x", "a b", "", "x" * 5000, "{{ messages }}", "\0"])
def test_any_name_of_a_template_can_be_chosen(tmp_path, monkeypatch, name):
    templates = NAMED | {name: "{{ messages }}"}
    folder = save(tmp_path / "model", tokenizer_config={"chat_template": templates})
    monkeypatch.chdir(tmp_path)
    assert write(folder, name) == str(WALRUS)


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("nowhere.jinja", "nowhere.jinja"),
        ("no\nwhere", r"'no\nwhere'"),
        ("", "''"),
        ("\0", r"'\x00'"),
        ("x" * 5000, "x" * 60 + "..."),
    ],
    ids=range(5),
)
def test_neither_a_file_nor_a_name_lists_the_names(tmp_path, named, shown):
    remedy = (
        "there is no such chat template; name a file, a folder, or one of the tokenizer's templates"
    )
    assert refusal(None, named) == f"{shown}: {remedy} (default)"
    many = {f"t{number:03}": "{{ messages }}" for number in range(100)}
    folder = save(tmp_path, tokenizer_config={"chat_template": many | {"a\nb": ""}})
    listed = ", ".join([r"'a\nb'", *(f"t{number:03}" for number in range(19)), "..."])
    assert refusal(folder, named) == f"{shown}: {remedy} ({listed})"
    assert refusal(save(tmp_path / "none"), named) == f"{shown}: {remedy} (it has none)"


# What is no template

NO_TEMPLATE = {
    "constant text": ("Once upon a time", "it never reads `messages`"),
    "no messages": (
        "messages{# messages #}{{ bos_token }}{{ 'messages' }}",
        "it never reads `messages`",
    ),
    "empty": (" \n", "the chat template is empty"),
    "binary": (b"{{ messages }}\0", "not a chat template but binary data"),
    "not UTF-8": ("Grüße {{ messages }}".encode("latin-1"), "can't be read (not UTF-8)"),
    "web page": ("<!DOCTYPE html><p>{{ messages }}", "not a chat template but a web page"),
    "too long": ("{{ messages }}" * 20_000, "has more than 262,144 characters"),
    "JSON without a template": ({"model_max_length": 3}, "it never reads `messages`"),
    "JSON cut short": ('{"chat_template": "{{ messages', "not valid JSON"),
    "JSON, of the wrong type": ({"chat_template": 7}, "chat_template must be a text, or named"),
    "JSON, half a character": ('{"chat_template": "{{ messages }}\\ud800"}', "binary data"),
    "nameless": (
        {"chat_template": [{"template": "{{ messages }}"}]},
        "must have a name and a text",
    ),
    "no object": ({"chat_template": ["{{ messages }}"]}, "must have a name and a text"),
    "no text": ({"chat_template": {"default": None}}, "must have a name and a text"),
    "twice": (
        {"chat_template": [*AS_A_LIST, {"name": "rag", "template": "{{ messages }}"}]},
        "two templates of one name, 'rag'",
    ),
    "no default": (
        {"chat_template": {"a": NAMED["rag"], "b": NAMED["rag"]}},
        "no chat template is named default, only a, b; save the one to use in a file of its own",
    ),
}


@pytest.mark.parametrize(("content", "complaint"), NO_TEMPLATE.values(), ids=NO_TEMPLATE)
def test_a_file_that_is_no_template_is_refused_in_one_line(tmp_path, content, complaint):
    file = write_file(tmp_path, content)
    said = refusal(None, file)
    assert said.startswith(f"{file}: ")
    assert complaint in said


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"model_max_length": 3}, "JSON without a chat template; it has no chat_template"),
        ({"chat_template": []}, "JSON without a chat template; it has no chat_template"),
        (["{{ messages }}"], "not a JSON object"),
        ("{{ messages }}", "not valid JSON"),
        ('{"chat_template": ' + "[" * 100_000, "not valid JSON"),
        ("7" * 5000, "not valid JSON"),
    ],
    ids=range(6),
)
def test_a_json_file_without_a_template_is_refused_in_one_line(tmp_path, content, complaint):
    file = write_file(tmp_path, content, "file.json")
    assert refusal(None, file).startswith(f"{file}: {complaint}")


def test_a_folder_without_a_template_is_refused(tmp_path):
    assert refusal(None, tmp_path) == f"{tmp_path}: the folder has no chat template"


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]", b"", b'{"chat_template": 7}'])
def test_a_broken_file_of_a_tokenizer_is_named(tmp_path, file, content):
    folder = save(tmp_path)
    (folder / file).write_bytes(content)
    assert refusal(folder).startswith(f"{folder / file}: ")


def test_a_file_of_any_size_is_refused():
    assert refusal(None, "/dev/zero") == "/dev/zero: too large for a chat template"


def test_only_the_templates_that_render_dialogues_must_read_messages(tmp_path):
    folder = save(tmp_path, tokenizer_config={"chat_template": NAMED | {"title": "{{ topic }}"}})
    assert write(folder) == "without walrus"
    assert "never reads `messages`" in refusal(folder, "title")


@pytest.mark.parametrize("file", sorted((SHARED / "templates").glob("*/*.jinja"))[::12], ids=str)
def test_no_real_template_is_refused(file):
    assert read_templates(file) == {"default": file.read_text(encoding="utf-8")}
    load(None, file)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{% for %}", 1),
        ("fine\nfine\n{{ messages | nope }}", 3),
        ("fine\n{% if messages %}\nnever closed", 3),
        ("{% generation %}never closed", 1),
        ("\n{% endgeneration %}", 2),
        ("\n\n{% block a %}{% endblock %}{% block a %}{% endblock %}", 3),
    ],
)
def test_the_error_for_an_invalid_template_names_the_file_and_line(tmp_path, source, line):
    file = write_file(tmp_path, source)
    assert f"{file} line {line}: " in refusal(None, file)


# Template arguments


def write_with(tmp_path: Path, source: str, *arguments: str) -> str:
    file = write_file(tmp_path, source + "{% if not messages %}{% endif %}")
    return load(None, file, *arguments).render(WALRUS, None)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("value=true", True),
        ("value=false", False),
        ("value=null", None),
        ("value=3", 3),
        ("value=-0.5", -0.5),
        ("value=[1, 2]", [1, 2]),
        ('value={"a": "b=c"}', {"a": "b=c"}),
        ('value="true"', "true"),
        ("value=high", "high"),
        ("value=a=b", "a=b"),
        ("value=True", "True"),  # not JSON, so text
        ("value=", ""),
    ],
)
def test_a_template_argument_is_json_if_it_is_valid_json_otherwise_text(tmp_path, argument, value):
    assert write_with(tmp_path, "{{ value | tojson }}", argument) == json.dumps(value)


def test_a_template_argument_replaces_special_tokens_and_earlier_arguments(tmp_path):
    assert write_with(tmp_path, "{{ eos_token }}{{ n }}", "eos_token=END", "n=1", "n=2") == "END2"


@pytest.mark.parametrize("argument", ["value", "=3", "", "two words=3", "9lives=3", "a-b=3"])
def test_a_template_argument_that_is_not_key_and_value_is_refused(tmp_path, argument):
    with pytest.raises(SetupError, match="KEY=VALUE") as error:
        write_with(tmp_path, "", argument)
    assert argument in str(error.value)
