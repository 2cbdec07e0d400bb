"""`verify --model`: a user's own causal language model in place of the built-in one."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from mtpack.cli import main
from mtpack.errors import SetupError
from tests.support.builders import hand_made_sequences, open_sequences, random_sequences

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mtpack.report.verify_view import show  # noqa: E402
from mtpack.verify import causal_model, computing, steps, verify  # noqa: E402
from mtpack.verify.causal_model import load_model  # noqa: E402
from mtpack.verify.check import Check  # noqa: E402

SMALL = {
    "vocab_size": 80,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Start no processes: they always use the built-in model."""

    monkeypatch.setattr(computing, "compare_ranks", lambda *_: Check.compare(0.0, 1e-10))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would make small models slow
    yield
    torch.set_num_threads(threads)


def words_of(text: str) -> str:
    """Return a text with single spaces: where a terminal wraps a line does not matter."""
    return " ".join(text.split())


def saved(folder, model, scale: float = 1.0) -> str:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model.save_pretrained(folder)
    return str(folder)


def llama(folder, **changes) -> str:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(SMALL | changes))
    return saved(folder, transformers.LlamaForCausalLM(config))


@pytest.fixture
def output(tmp_path):
    open_sequences(tmp_path, hand_made_sequences())
    return tmp_path / "out"


def test_a_model_that_separates_documents_by_positions_passes(tmp_path, output):
    report = verify.verify(output, "cpu", model=llama(tmp_path / "llama"))
    assert report.ok, report.checks
    assert report.numeric.model == f"LlamaForCausalLM from {tmp_path / 'llama'}"
    assert report.numeric.dtype == "float32"
    assert report.checks["equivalence"].tolerance <= 1e-5
    assert report.checks["isolation"].parts["documents"].value == 0


def test_a_large_model_sees_the_least_sample_and_its_time_is_estimated(tmp_path, monkeypatch):
    """A budget of time once left documents of one token, and their loss was a mean of nothing."""
    monkeypatch.setattr(causal_model, "_SMALL_MODEL", 0)
    open_sequences(tmp_path, random_sequences(0, 700, [[300, 390]] * 6, 80), seq_len=700)
    folder = llama(tmp_path / "wide", hidden_size=256)
    stages = {}
    report = verify.verify(
        tmp_path / "out", "cpu", model=folder, report_progress=stages.__setitem__
    )
    assert report.ok, report.checks
    for name in ("equivalence", "invariance", "isolation"):
        assert report.numeric.covered[name]["sequences"] >= 3
        assert report.numeric.covered[name]["documents"] >= 6
        assert stages[name] > 0
    assert report.numeric.covered["equivalence"]["turns"] >= 8
    assert report.numeric.covered["equivalence"]["tokens"] < 3 * 690 / 2  # it is large


def test_a_check_that_takes_more_than_a_minute_says_so(tmp_path, output, monkeypatch):
    seconds = {"equivalence": 130.0, "invariance": 50.0, "isolation": 9.0}
    monkeypatch.setattr(computing, "estimate_seconds", lambda *_: seconds)
    folder = llama(tmp_path / "llama")
    result = CliRunner().invoke(main, ["verify", str(output), "--device", "cpu", "--model", folder])
    assert result.exit_code == 0, result.output
    assert result.stderr == "mtpack: equivalence takes about 2.2 minutes with this model\n"


def test_a_model_of_nan_fails_and_is_not_said_to_mix_documents(tmp_path, output):
    folder = llama(tmp_path / "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    saved(folder, model, scale=float("nan"))
    result = CliRunner().invoke(main, ["verify", str(output), "--device", "cpu", "--model", folder])
    assert result.exit_code == 1
    assert "nan" not in result.stdout.split()
    assert "FAILED, because a loss or gradient is not a finite number" in words_of(result.stdout)
    assert "see each other" not in words_of(result.stdout)


def test_a_model_that_mixes_documents_fails_isolation_and_is_named(tmp_path, output):
    """Its short convolution runs over all positions and does not know where documents start."""
    config = transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])
    torch.manual_seed(0)
    folder = saved(tmp_path / "mixes", transformers.Lfm2ForCausalLM(config), scale=5)
    result = CliRunner().invoke(main, ["verify", str(output), "--device", "cpu", "--model", folder])
    assert result.exit_code == 1, result.output
    words = words_of(result.stdout)
    assert "Lfm2ForCausalLM" in words
    assert "documents of a sequence see each other" in words
    report = verify.verify(output, "cpu", model=folder)
    assert not report.checks["isolation"].parts["documents"].ok
    assert not report.checks["equivalence"].ok


def test_more_layers_may_round_more(tmp_path, output):
    """SmolLM2, with 30 layers, differs by 1.1e-5 of float32 where only rounding does."""
    deep = load_model(llama(tmp_path / "deep", num_hidden_layers=8), "cpu", torch.float32)
    assert deep.layers == 8
    assert steps.choose_tolerance(deep, 1000) == pytest.approx(2e-5)


def refusal(path) -> str:
    with pytest.raises(SetupError) as caught:
        load_model(path, "cpu", torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_causal_model_is_refused_in_one_line(tmp_path):
    assert "no config.json there" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    assert "transformers can't load it" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nothing_like_it"}')
    assert "transformers can't load it" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "transformers can't load it" in refusal(tmp_path)


def test_code_in_the_model_folder_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", '
        '"AutoModelForCausalLM": "evil.Model"}}'
    )
    assert "transformers can't load it" in refusal(tmp_path)


def test_a_model_that_takes_no_positions_is_refused(tmp_path):
    config = transformers.MambaConfig(vocab_size=80, hidden_size=16, num_hidden_layers=1)
    folder = saved(tmp_path / "mamba", transformers.MambaForCausalLM(config))
    assert "takes no position_ids" in refusal(folder)


def test_a_model_with_too_few_token_ids_is_refused(tmp_path, output):
    folder = llama(tmp_path / "llama", vocab_size=20)
    with pytest.raises(SetupError, match="it has 20 token ids, but the shards contain id 77; use"):
        verify.verify(output, "cpu", model=folder)


def test_documents_too_long_for_the_model_are_reported_in_one_line(tmp_path, output):
    config = transformers.GPT2Config(vocab_size=80, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    folder = saved(tmp_path / "gpt2", transformers.GPT2LMHeadModel(config))
    with pytest.raises(SetupError, match=r"it can't read documents of \d+ tokens: [^\n]*$"):
        verify.verify(output, "cpu", model=folder)


def test_float64_is_refused_for_a_model_that_computes_parts_in_float32(tmp_path, output):
    with pytest.raises(SetupError, match="use --dtype float32"):
        verify.verify(output, "cpu", dtype="float64", model=llama(tmp_path / "llama"))


def test_without_transformers_the_command_fails_with_status_2(tmp_path, output, monkeypatch):
    monkeypatch.setattr(causal_model, "find_spec", lambda name: None)
    result = CliRunner().invoke(
        main, ["verify", str(output), "--device", "cpu", "--model", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert result.stderr.startswith("mtpack: --model needs transformers")
    assert result.stderr.count("\n") == 1


def test_the_report_has_the_model_and_how_it_separates_documents(tmp_path, output):
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    show(verify.verify(output, "cpu", model=llama(tmp_path / "llama")), console)
    words = " ".join(console.file.getvalue().split())
    assert "documents separated by restarting position_ids (sdpa attention)" in words
