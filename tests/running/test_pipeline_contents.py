"""A pipeline travels by value: another process makes the same one without the files it was read
from, so that a tokenizer need only be on the machine that starts the run."""

import pickle
import shutil
from pathlib import Path

import pytest

from mtpack.options import PackOptions
from mtpack.running import runner as runner_module
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.running.runner import local_runner
from mtpack.tokenizer.loading import EMBEDDED_FOLDER

TEXT = "The otter, the walrus: 12 fish."
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{{ eos_token }}{{ word }}{% endfor %}"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder with a tokenizer, the files next to it, and a template of another name."""
    shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    (tmp_path / "other.jinja").write_text(TEMPLATE)
    return tmp_path


@pytest.fixture
def pipeline(folder) -> Pipeline:
    options = PackOptions(
        tokenizer=str(folder / "model"),
        chat_template=str(folder / "other.jinja"),
        template_arg=("word=otter",),
        date="2026-02-03",
    )
    return load_pipeline(options)


def describe(pipeline: Pipeline, task: int = 0) -> list[object]:
    """Return what must be the same in every process."""
    messages = [{"role": "user", "content": TEXT}]
    return [
        pipeline.options,
        pipeline.tokenizer.sha256,
        pipeline.tokenizer.source,
        pipeline.tokenizer.pad_id,
        pipeline.tokenizer.special_tokens,
        pipeline.tokenizer.added_tokens.stops,
        pipeline.tokenizer.backend.encode(TEXT).ids,
        pipeline.template.sha256,
        pipeline.template.render(messages, None),
        pipeline.shard_metadata,
    ]


def test_the_contents_of_a_pipeline_give_the_same_pipeline_without_its_files(pipeline, folder):
    sent = pickle.dumps(pipeline.contents)
    expected = describe(pipeline)
    shutil.rmtree(folder)
    assert describe(pickle.loads(sent).load()) == expected


def test_the_tokenizer_that_comes_with_mtpack_travels_too():
    pipeline = load_pipeline(PackOptions())
    assert describe(pickle.loads(pickle.dumps(pipeline.contents)).load()) == describe(pipeline)


def test_spawned_workers_need_no_file_of_tokenizer_and_template(pipeline, folder, monkeypatch):
    monkeypatch.setattr(runner_module, "may_fork", lambda: False)
    shutil.rmtree(folder)
    with local_runner(pipeline, 1) as runner:
        assert list(runner.run(describe, [1])) == [describe(pipeline)]


def test_a_process_without_a_pipeline_of_its_own_can_run_tasks(pipeline):
    with local_runner(pipeline.contents, 1) as runner:
        assert list(runner.run(describe, [1])) == [describe(pipeline)]
