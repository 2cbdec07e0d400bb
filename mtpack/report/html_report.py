"""The HTML report: one file with charts, a sample of sequences, and the manifest.

The text in shards, and the names of files, are untrusted. Whatever the template writes is escaped;
the sequences are JSON, without any character that could end their element; and the policy in the
page allows no script but our own, by its hash, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mtpack.errors import SetupError
from mtpack.options import flag
from mtpack.report.decoding import Decoder
from mtpack.report.escaping import escape_line
from mtpack.report.figures import Figures
from mtpack.report.html_figures import describe_counts, list_charts, list_tiles
from mtpack.report.html_problems import EXPLANATIONS, MARKS, Mark
from mtpack.report.html_sequences import SampledSequences, sample_sequences
from mtpack.report.notices import turn_summary
from mtpack.report.terminal import format_count
from mtpack.report.turn_marks import TurnMark
from mtpack.shards.atomic_file import atomic_file
from mtpack.shards.dataset import Shards
from mtpack.shards.manifest import Manifest
from mtpack.version import __version__

_PAGE = Path(__file__).parent / "page"
_MOST_FILES = 100
"""So many inputs and shards are listed at most."""


def require_html_path(name: str) -> Path:
    """Return the path of the report; raise SetupError for one that can't be meant."""
    path = Path(name)
    if path.suffix.lower() not in (".html", ".htm"):
        raise SetupError(f"--html {name}: its name must end in .html, so that no data is replaced")
    if not path.parent.is_dir():
        raise SetupError(f"--html {name}: no such folder: {path.parent}")
    return path


@dataclass(frozen=True, slots=True)
class HtmlReport:
    """A report that was written."""

    path: Path
    bytes: int
    shown: int
    """The number of sequences in it."""
    sequences: int
    """The number of all sequences."""

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `inspect --html FILE --json` prints."""
        return asdict(self) | {"path": str(self.path)}

    def __str__(self) -> str:
        shown = f"{self.shown:,} of {format_count(self.sequences, 'sequence')}"
        return f"{self.path}: {self.bytes / 2**10:,.0f} KiB, with {shown}; open it in a browser"


def write_html_report(
    path: Path, shards: Shards, figures: Figures, decoder: Decoder | None
) -> HtmlReport:
    """Write the report of shards with these figures; without a decoder, it shows ids.

    Raises InputError for a damaged sequence, OSError if the file can't be written.
    """
    sample = sample_sequences(shards, decoder)
    page = render_page(shards, figures, sample, has_text=decoder is not None)
    content = page.encode("utf-8", errors="backslashreplace")
    with atomic_file(path) as file:
        file.write(content)
    return HtmlReport(path, len(content), len(sample.sequences), figures.rows)


def render_page(
    shards: Shards, figures: Figures, sample: SampledSequences, *, has_text: bool
) -> str:
    """Return the text of the page; has_text: whether the sample has texts, not ids."""
    manifest = shards.manifest
    style, script = (_read_resource(file) for file in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.jinja").render(
        name=escape_line(manifest.report.output if manifest else str(shards.opened[0].path)),
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        policy=_make_policy(style, script),
        tiles=list_tiles(figures),
        charts=list_charts(figures),
        counts=describe_counts(figures),
        notices=turn_summary(figures.tally) if figures.tally else [],
        filters=_describe_filters(sample, _list_known_marks(shards, has_text=has_text)),
        sample=sample,
        rows=figures.rows,
        has_text=has_text,
        has_weights="turn_weights" in shards.metadata.extra_columns,
        data=_format_data(sample),
        run=_describe_run(manifest) if manifest else None,
    )


def _read_resource(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _make_policy(style: str, script: str) -> str:
    """Return the content security policy: this style and this script, and nothing else."""
    hashes = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    style_hash, script_hash = hashes
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _format_data(sample: SampledSequences) -> Markup:
    """Return the data of the script as JSON in which no element or comment can start or end."""
    data = {
        "vocabulary": sample.vocabulary,
        "sequences": sample.sequences,
        "straddle": TurnMark.STRADDLE,
        "explanations": EXPLANATIONS,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _list_known_marks(shards: Shards, *, has_text: bool) -> list[Mark]:
    """Return the marks that were looked for."""
    known = dict.fromkeys(TurnMark, has_text)
    known[TurnMark.BENT] = "turn_bent" in shards.metadata.extra_columns
    return [mark for mark in MARKS if not isinstance(mark, TurnMark) or known[mark]]


def _describe_filters(sample: SampledSequences, marks: list[Mark]) -> list[dict[str, Any]]:
    """Return what the filters say; `shown` counts sequences of the page, `found` the examined."""
    return [
        {
            "mark": mark,
            "text": EXPLANATIONS[mark],
            "found": sample.with_mark[mark],
            "shown": sum(
                any(each["mark"] == mark for each in sequence["problems"])
                for sequence in sample.sequences
            ),
        }
        for mark in marks
    ]


def _describe_run(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as tables of text."""
    run, about, shards = manifest.run, manifest.report.about, manifest.report.shards
    names = [*about.inputs, *[""] * (len(run.inputs) - len(about.inputs))]
    inputs = [
        (escape_line(name), f"{each.get('bytes') or 0:,}", str(each.get("sha256") or ""))
        for name, each in zip(names, run.inputs, strict=False)
    ]
    made_with = {
        "mtpack": about.mtpack_version,
        "tokenizer": about.tokenizer,
        "engine of the tokenizer": about.tokenizer_engine,
        "sha256 of the tokenizer": run.tokenizer_sha256,
        "sha256 of the chat template": run.template_sha256,
        "seconds": f"{about.seconds.get('total', 0):,.1f}",
    }
    return {
        "made_with": [(key, escape_line(value)) for key, value in made_with.items()],
        "options": [
            (escape_line(flag(name)), escape_line(_format_value(value)))
            for name, value in sorted(run.options.items())
        ],
        "inputs": inputs[:_MOST_FILES],
        "inputs_left": max(0, len(inputs) - _MOST_FILES),
        "shards": [
            (shard["path"], f"{shard['rows']:,}", f"{shard['bytes']:,}", shard["sha256"])
            for shard in map(asdict, shards[:_MOST_FILES])
        ],
        "shards_left": max(0, len(shards) - _MOST_FILES),
        "warnings": [escape_line(text) for text in about.warnings],
    }


def _format_value(value: Any) -> str:
    if value is None or value == []:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
