"""A release candidate of `tokenizers` against the installed engines: ids, positions and speed.

    python -m benchmarks.release_candidate data/*.jsonl.gz --tokenizer qwen3 --tokenizer t5

The candidate is installed into an environment of its own. Each library encodes in processes of its
own (`benchmarks.encode_program`) with one thread, in turns, round after round, from the
tokenizer.json that mtpack gives to an engine. The texts are those of the data, rendered with the
chat template that comes with mtpack, so they are the same for all tokenizers. A throughput is MB of
UTF-8 text per second of CPU time, which other load on the machine changes less than wall time.

Ids and offsets are compared with those of the installed `tokenizers`, also on adversarial texts:
those of the probe, and random ones. Where a vocabulary spells bytes, mtpack finds positions from
the ids; these are compared with the offsets as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import encode_program
from benchmarks.encode_program import Answer, Request, Tokens
from benchmarks.machine import describe_machine
from benchmarks.rendering import read_dialogues
from benchmarks.table import Line, compute_ratios
from mtpack.options import PackOptions
from mtpack.running.pipeline import load_pipeline
from mtpack.running.thread_limits import SINGLE_THREAD_ENV
from mtpack.token_batch import offsets_from_lengths
from mtpack.tokenizer.byte_level import build_byte_level
from mtpack.tokenizer.encode import EncodedTexts, TextEncoder
from mtpack.tokenizer.engines import Engine, FlatTokens, load_reference_engine
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, LoadedTokenizer, load_tokenizer
from mtpack.tokenizer.probe import build_probe_texts
from tests.support.hostile_texts import hostile_texts

VERSION = "1.0.0rc3"
_CANDIDATE = "candidate"
_RANDOM_TEXTS = 5000


@dataclass(frozen=True)
class Library:
    """A library in an environment."""

    name: str
    python: str
    """The interpreter of the environment."""
    module: str

    def encode(self, tokenizer: Path, texts: Path, tokens: Path | None = None) -> Answer:
        """Run `encode_program`; the arguments are its files. To measure, it gets one core."""
        request = Request(
            library=self.module,
            tokenizer=str(tokenizer),
            texts=str(texts),
            tokens=None if tokens is None else str(tokens),
            one_core=tokens is None,
        )
        done = subprocess.run(
            [self.python, "-I", encode_program.__file__],
            input=json.dumps(request).encode(),
            env={**os.environ, **SINGLE_THREAD_ENV},
            stdout=subprocess.PIPE,
            check=True,
        )
        answer: Answer = json.loads(done.stdout)
        return answer


@dataclass(frozen=True)
class Case:
    """A tokenizer and its texts, in files that `encode_program` reads."""

    tokenizer: LoadedTokenizer
    data: list[str]
    adversarial: list[str]
    folder: Path

    @property
    def name(self) -> str:
        """The name of the tokenizer's folder."""
        return self.tokenizer.folder.name

    @property
    def texts(self) -> list[str]:
        """Those of the data, and then the adversarial ones."""
        return [*self.data, *self.adversarial]

    def write_tokenizer(self) -> Path:
        """Write what mtpack gives to an engine."""
        return self._write("tokenizer.json", self.tokenizer.backend.to_str())

    def write_texts(self, texts: list[str]) -> Path:
        return self._write("texts.json", json.dumps(texts))

    def _write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        return path


@dataclass(frozen=True)
class Comparison:
    """The texts whose tokens differ from those of the installed `tokenizers`, in words."""

    tokenizer: str
    library: str
    data: str
    """Texts of the data with other ids; or why the library can't encode."""
    adversarial: str = ""
    offsets: str = ""
    """Texts with the same ids and other offsets."""
    positions: str = ""
    """Texts with the same ids where mtpack finds other positions from them."""
    threads: str = ""
    """Of the process that has encoded them."""


def make_environment(folder: Path, version: str) -> str:
    """Return the interpreter of an environment with this version; use the one that is there.

    Raises click.UsageError if it has another version, or if pip can't install this one.
    """
    python = str((folder / "bin" / "python").absolute())
    if not Path(python).exists():
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "-qq", f"tokenizers=={version}"]
        if subprocess.run(install, check=False).returncode:
            raise click.UsageError(f"pip can't install tokenizers {version}")
    find_version = "from importlib.metadata import version; print(version('tokenizers'))"
    done = subprocess.run([python, "-I", "-c", find_version], stdout=subprocess.PIPE, check=True)
    if (found := done.stdout.decode().strip()) != version:
        raise click.UsageError(f"{folder} has tokenizers {found}, not {version}")
    return python


def render_texts(inputs: tuple[str, ...], megabytes: float) -> list[str]:
    """Return the texts of the first dialogues, about as many MB as given."""
    pipeline = load_pipeline(PackOptions())
    texts: list[str] = []
    num_bytes = 0
    for dialogue in read_dialogues(inputs, pipeline):
        if num_bytes >= megabytes * 1e6:
            break
        texts.append(pipeline.template.render(dialogue.messages, dialogue.tools))
        num_bytes += len(texts[-1].encode())
    return texts


def measure_speed(libraries: Sequence[Library], case: Case, rounds: int) -> dict[str, list[Answer]]:
    """Let the libraries encode in turns; return their answers, without those that can't."""
    tokenizer, texts = case.write_tokenizer(), case.write_texts(case.data)
    answers: dict[str, list[Answer]] = {library.name: [] for library in libraries}
    for _ in range(rounds):
        for library in libraries:
            answers[library.name].append(library.encode(tokenizer, texts))
    return {
        name: given
        for name, given in answers.items()
        if all(answer["failure"] is None for answer in given)
    }


def compare_tokens(libraries: Sequence[Library], case: Case) -> list[Comparison]:
    """Compare the tokens of all texts; the first library is the reference."""
    (_, expected), *others = [_encode_all(library, case) for library in libraries]
    assert expected is not None, "the installed tokenizers has loaded it before"
    return [
        _compare(case, library.name, expected, answer, tokens)
        for library, (answer, tokens) in zip(libraries[1:], others, strict=True)
    ]


def _encode_all(library: Library, case: Case) -> tuple[Answer, Tokens | None]:
    """Return the tokens of all texts; None if the library fails."""
    file = case.folder / "tokens.json"
    answer = library.encode(case.write_tokenizer(), case.write_texts(case.texts), file)
    return answer, None if answer["failure"] else json.loads(file.read_text(encoding="utf-8"))


def _compare(
    case: Case, library: str, expected: Tokens, answer: Answer, found: Tokens | None
) -> Comparison:
    if found is None:
        return Comparison(case.name, library, f"fails: {answer['failure']}")
    same_ids = _find_equal(expected["ids"], found["ids"])
    data, adversarial = np.split(same_ids, [len(case.data)])
    offsets, positions = "none", "none"
    if expected["offsets"] is not None and found["offsets"] is not None:
        same_offsets = _find_equal(expected["offsets"], found["offsets"])
        offsets = _count_different(same_offsets[same_ids])
    if build_byte_level(case.tokenizer) is not None:
        positions = _count_different(_find_equal_positions(case, found)[same_ids])
    return Comparison(
        *(case.name, library, _count_different(data), _count_different(adversarial)),
        *(offsets, positions, str(answer["threads"])),
    )


def _find_equal_positions(case: Case, found: Tokens) -> Any:
    """Tell for each text whether mtpack finds the offsets of `tokenizers` from these ids."""
    texts = case.texts
    ids = FlatTokens(
        np.fromiter(chain.from_iterable(found["ids"]), np.int32),
        offsets_from_lengths(np.array(list(map(len, found["ids"])), np.int64)),
    )
    encoders = (
        TextEncoder(
            case.tokenizer, Engine(_CANDIDATE, lambda texts: ids), build_byte_level(case.tokenizer)
        ),
        TextEncoder(case.tokenizer, load_reference_engine(case.tokenizer), None),
    )
    return _find_equal(
        *(
            _find_characters(texts, encoder.encode(texts, range(len(texts)), {}))
            for encoder in encoders
        )
    )


def _find_characters(texts: list[str], encoded: EncodedTexts) -> list[Any]:
    """Return for each text the first character of each token and the one after its last.

    Offsets are of whole characters; a token that spells bytes may begin or end within one.
    """
    joined = np.frombuffer("".join(texts).encode(), np.int8)
    characters = np.flatnonzero(joined >= -64)  # all other bytes continue a character
    first = np.searchsorted(characters, encoded.starts, side="right") - 1
    end = np.searchsorted(characters, encoded.ends, side="left")
    return np.split(np.stack([first, end]), encoded.offsets[1:-1], axis=1)


def _find_equal(first: Sequence[Any], second: Sequence[Any]) -> Any:
    """Tell for each text whether two values are equal, bool (texts,)."""
    return np.array([np.array_equal(*pair) for pair in zip(first, second, strict=True)], bool)


def _count_different(same: Any) -> str:
    return f"{np.count_nonzero(~same):,} of {len(same):,}"


def show_comparisons(comparisons: Iterable[Comparison], console: Console) -> None:
    """Print how many texts differ."""
    table = Table(box=box.MARKDOWN)
    differences = ("other ids, data", "other ids, adversarial", "other offsets", "other positions")
    for title in ("tokenizer", "library", *differences, "threads"):
        table.add_column(title, no_wrap=True)
    for comparison in comparisons:
        table.add_row(*vars(comparison).values())
    console.print(table)


def show_speed(
    answers: dict[str, dict[str, list[Answer]]], megabytes: float, console: Console
) -> None:
    """Print loading time and throughput of each library, and the ratios of each round."""
    table = Table(box=box.MARKDOWN)
    titles = [
        title
        for way in ("first", "again")
        for title in (f"{way}, MB/s", "times tokenizers", "times fastokens")
    ]
    for title in ("tokenizer", "library", "load, s", *titles):
        table.add_column(title, no_wrap=True)
    for tokenizer, by_library in answers.items():
        for library, given in by_library.items():
            cells = [f"{median(answer['load'] for answer in given):.2f}"]
            for way in ("first", "again"):
                rounds = {
                    name: [megabytes / answer[way] for answer in answers]
                    for name, answers in by_library.items()
                }
                cells.append(f"{median(rounds[library]):.1f}")
                for other in ("tokenizers", "fastokens"):
                    ratios = compute_ratios(Line("", library, "", other), rounds)
                    cells.append(_format_ratios(ratios if library != other else []))
            table.add_row(tokenizer, library, *cells)
    console.print(table)


def _format_ratios(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="DATA...")
@click.option(
    "--tokenizer",
    "tokenizers",
    multiple=True,
    default=[str(EMBEDDED_FOLDER)],
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="A folder with tokenizer.json. Repeatable. Default: the one of mtpack.",
)
@click.option(
    "--version", default=VERSION, show_default=True, help="The version of tokenizers to install."
)
@click.option(
    "--environment",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to make its environment, or where it is. Default: a temporary folder.",
)
@click.option("--megabytes", default=4.0, show_default=True, help="How much of DATA to encode.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here."
)
def main(
    inputs: tuple[str, ...],
    tokenizers: tuple[str, ...],
    version: str,
    environment: Path | None,
    megabytes: float,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Encode the dialogues of DATA with a release candidate of tokenizers and with this one."""
    console = Console(width=200, highlight=False)
    machine = describe_machine()
    console.print(machine, soft_wrap=True)
    texts = render_texts(inputs, megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    console.print(
        f"{', '.join(Path(name).name for name in inputs)}: {len(texts):,} texts, {size:.1f} MB; "
        f"rounds: {rounds}"
    )
    comparisons: list[Comparison] = []
    answers: dict[str, dict[str, list[Answer]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        libraries = (
            Library("tokenizers", sys.executable, "tokenizers"),
            Library("fastokens", sys.executable, "fastokens"),
            Library(
                _CANDIDATE,
                make_environment(environment or folder / "environment", version),
                "tokenizers",
            ),
        )
        for name in tokenizers:
            case = build_case(load_tokenizer(name), texts, folder)
            comparisons += compare_tokens(libraries, case)
            answers[case.name] = measure_speed(libraries, case, rounds)
            click.echo(f"{case.name}: done", err=True)
    show_comparisons(comparisons, console)
    show_speed(answers, size, console)
    missing = ", ".join(find_missing(answers))
    console.print(f"tokenizers {version} lacks: {missing or 'nothing'}", soft_wrap=True)
    if json_file is not None:
        content = {
            "machine": machine,
            "megabytes": size,
            "comparisons": list(map(vars, comparisons)),
            "answers": answers,
        }
        json_file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def build_case(tokenizer: LoadedTokenizer, data: list[str], folder: Path) -> Case:
    """Return a tokenizer with the texts of the data and adversarial ones."""
    contents = [token.content for token in tokenizer.added_tokens.tokens]
    probe = build_probe_texts(tokenizer.added_tokens)
    return Case(tokenizer, data, [*probe, *hostile_texts(_RANDOM_TEXTS, contents)], folder)


def find_missing(answers: dict[str, dict[str, list[Answer]]]) -> list[str]:
    """Return what mtpack uses of `tokenizers` and the candidate does not have."""
    given = chain.from_iterable(by_library.get(_CANDIDATE, ()) for by_library in answers.values())
    return next((answer["missing"] for answer in given), [])


if __name__ == "__main__":
    main()
