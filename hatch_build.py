"""What the build does differently from hatchling: two hooks, named in pyproject.toml.

The links of README.md are relative, so that they work in a clone, in a fork and at every commit. A
package index has no such files, so there they lead to the same files at the tag of the version.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?P<is_picture>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<path>[^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Make the readme of the metadata from README.md."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the readme to the metadata of the project."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = make_links_absolute(readme, metadata["urls"]["Source"], f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


class SourceFilesHook(BuildHookInterface[Any]):
    """Leave .gitignore out of a source distribution, where hatchling puts it unasked."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Remove the file from those that the build adds."""
        build_data["force_include"].pop(str(Path(self.root, ".gitignore")), None)


def make_links_absolute(markdown: str, source: str, revision: str) -> str:
    """Return a text of Markdown in which relative links lead to a revision of a repository.

    Links within the page stay. A picture needs the file itself, a link the page that shows it.

    >>> make_links_absolute("[a](docs/a.md#b), ![c](c.svg), [d](#d)", "https://host/x", "v1")
    '[a](https://host/x/blob/v1/docs/a.md#b), ![c](https://host/x/raw/v1/c.svg), [d](#d)'
    """

    def replace(link: re.Match[str]) -> str:
        view = "raw" if link["is_picture"] else "blob"
        address = f"{source}/{view}/{revision}/{link['path']}"
        return f"{link['is_picture']}[{link['text']}]({address})"

    return _LINK.sub(replace, markdown)
