"""Trains the small tokenizer that comes with mtpack on the project's sample data.

    python -m scripts.train_embedded_tokenizer sample_data

A byte-level BPE of about 8,000 entries. It can encode any text, and the text in `sample_data` in
few tokens. With it, mtpack can be tried without a download; it is not the tokenizer of a model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mtpack.input.dialogue import Dialogue, Origin
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import RowOptions, read_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.tokenizer.loading import EMBEDDED_FOLDER

VOCABULARY_SIZE = 8192
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAG_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tools>", "</tools>")
# Contractions; words with the space or sign before them; single digits; runs of signs; line
# breaks; other white space, without its last character if a word follows.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(sample_data: Path) -> Tokenizer:
    """Train on the rendered dialogues of a folder; the same data gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(TAG_TOKENS),
        special_tokens=[AddedToken(token, special=True) for token in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_render_texts(sample_data), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TAG_TOKENS])
    return tokenizer


def _render_texts(sample_data: Path) -> Iterator[str]:
    source = (EMBEDDED_FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    template = ChatTemplate({"default": source}, {}, "2026-01-01")
    options = RowOptions(keeps_argument_text=True)
    for path in sorted(sample_data.glob("*.jsonl")):
        for line, text in enumerate(path.read_bytes().splitlines(), 1):
            dialogue = read_dialogue(0, Origin(str(path), line), text, LINE_LIMIT, options=options)
            if not isinstance(dialogue, Dialogue):
                raise SystemExit(str(dialogue))
            rendered = template.render(dialogue.messages, dialogue.tools)
            for token in CONTROL_TOKENS + TAG_TOKENS:
                rendered = rendered.replace(token, "\n")
            yield rendered


def main() -> None:
    """Write the tokenizer into the package."""
    train(Path(sys.argv[1])).save(str(EMBEDDED_FOLDER / "tokenizer.json"))
    config = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (EMBEDDED_FOLDER / "tokenizer_config.json").write_text(text)


if __name__ == "__main__":
    main()
