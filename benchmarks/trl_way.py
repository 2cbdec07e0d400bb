"""TRL's way from the same rows to packed sequences: its own preparation, called as it calls it.

`SFTTrainer._prepare_dataset` applies the training template, makes labels of the assistant's masks
and packs by best-fit decreasing, all in `datasets.map` with as many processes; what this adds is
loading the rows before and saving the sequences after it. No model is made, the libraries and
the tokenizer are loaded before the clock starts, and every round has an empty cache.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.setting import Figures, Setting
from mtpack.reading import find_inputs


def with_trl(setting: Setting) -> Figures:
    """Prepare the rows in a process of its own, so that no other way inherits its libraries."""
    with (
        tempfile.TemporaryDirectory(dir=setting.folder) as folder,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor,
    ):
        seconds = executor.submit(
            prepare,
            _files(setting, Path(folder)),
            setting.tokenizer,
            setting.training_template,
            setting.seq_len,
            setting.workers,
            Path(folder),
        ).result()
    return {"trl": setting.megabytes_a_second(seconds, setting.trl_rows), "trl.seconds": seconds}


def _files(setting: Setting, folder: Path) -> list[str]:
    """Return the input, or a file with its leading rows."""
    if setting.trl_rows is None:
        return find_inputs(setting.inputs)
    path = folder / "leading-rows.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for dialogue in itertools.islice(setting.dialogues, setting.trl_rows):
            row = {"messages": [message.fields for message in dialogue.messages]}
            if dialogue.tools is not None:
                row["tools"] = dialogue.tools
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return [str(path)]


def prepare(
    files: list[str],
    tokenizer_folder: Path,
    training_template: Path,
    seq_len: int,
    workers: int,
    folder: Path,
) -> float:
    """Return the seconds from files of rows to saved sequences."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    warnings.simplefilter("ignore")  # of settings that TRL chooses itself
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    class Preparation(SFTTrainer):
        """A trainer as far as preparing a dataset needs one."""

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
        "json", data_files=files, split="train", cache_dir=str(folder / "cache")
    )
    preparation.prepare(rows, options).save_to_disk(folder / "saved")
    return time.perf_counter() - started
