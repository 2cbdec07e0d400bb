"""TRL's way from the same rows to packed sequences: its own preparation of a dataset.

`SFTTrainer._prepare_dataset` applies the training template, makes labels from the assistant's masks
and packs by best-fit decreasing, all in `datasets.map` with as many processes. This module also
loads the rows before it and saves the sequences after it. No model is created. The libraries and
the tokenizer are loaded before the time starts, and every round has an empty cache.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.setting import Figures, Setting, format_json_line


def prepare_with_trl(setting: Setting) -> Figures:
    """Prepare the rows in a separate process, so that no other way inherits its libraries."""
    file, megabytes = _write_rows_for_trl(setting)
    with (
        tempfile.TemporaryDirectory(dir=setting.folder) as folder,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor,
    ):
        seconds = executor.submit(
            prepare,
            file,
            setting.tokenizer,
            setting.training_template,
            setting.seq_len,
            setting.workers,
            Path(folder),
        ).result()
    return {"trl": megabytes / seconds, "trl.seconds": seconds}


@functools.cache
def _write_rows_for_trl(setting: Setting) -> tuple[Path, float]:
    """Write the rows that TRL accepts, and return their file and the size of their texts in MB.

    TRL refuses a row without an assistant message; mtpack reads it, counts it and drops it.
    """
    path = setting.folder / "rows-for-trl.jsonl"
    num_bytes = 0
    with open(path, "w", encoding="utf-8") as file:
        for dialogue, size in zip(
            setting.dialogues[: setting.trl_rows], setting.text_sizes, strict=False
        ):
            if "assistant" in dialogue.roles:
                file.write(format_json_line(dialogue))
                num_bytes += size
    return path, num_bytes / 1e6


def prepare(
    file: Path,
    tokenizer_folder: Path,
    training_template: Path,
    seq_len: int,
    workers: int,
    folder: Path,
) -> float:
    """Return the seconds from reading a file of rows to saving the sequences."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    warnings.simplefilter("ignore")  # about settings that TRL chooses itself
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    class Preparation(SFTTrainer):
        """A trainer with the attributes that preparing a dataset needs."""

        def __init__(self) -> None:
            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
            self.chat_template = training_template.read_text(encoding="utf-8")
            self.completion_only_loss = False

        def prepare(self, rows: datasets.Dataset, options: SFTConfig) -> datasets.Dataset:
            return self._prepare_dataset(rows, self._tokenizer, options, True, None, "train")

    datasets.disable_progress_bars()
    options = SFTConfig(
        output_dir=str(folder / "trainer"),
        max_length=seq_len,
        packing=True,
        packing_strategy="bfd",
        assistant_only_loss=True,
        dataset_num_proc=workers,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    preparation = Preparation()
    started = time.perf_counter()
    rows = datasets.load_dataset(
        "json", data_files=str(file), split="train", cache_dir=str(folder / "cache")
    )
    preparation.prepare(rows, options).save_to_disk(folder / "saved")
    return time.perf_counter() - started
