"""Names that are URLs: those of object stores, and `file://`."""

from __future__ import annotations

import re
from urllib.parse import unquote

from mtpack.errors import SetupError

STANDARD_INPUT = "-"
"""The name of standard input."""
EXTRAS = {"s3": "s3", "gs": "gcs", "hf": "hub"}
"""The extra of mtpack that each kind of store needs, by the scheme of its URLs."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)", re.DOTALL)
_QUERY = re.compile(r"\?[\w.-]+=.*", re.DOTALL)  # a question mark may also be part of a pattern
_KNOWN = f"{', '.join(f'{scheme}://' for scheme in EXTRAS)} and file://"


def is_url(name: str) -> bool:
    """Return whether a name is the URL of something in an object store.

    >>> is_url("s3://bucket/rows.jsonl"), is_url("rows.jsonl"), is_url("file:///rows.jsonl")
    (True, False, False)
    """
    return name.partition("://")[0] in EXTRAS and "://" in name


def mask_url(name: str) -> str:
    """Return a name for messages: the user part and the query of a URL may hold credentials.

    >>> mask_url("s3://key:secret@bucket/rows.jsonl?token=secret")
    's3://***@bucket/rows.jsonl?***'
    """
    match = _URL.fullmatch(name)
    if match is None:
        return name
    scheme, host, rest = match.groups()
    if "@" in host:
        host = f"***@{host.rpartition('@')[2]}"
    return f"{scheme}://{host}{_QUERY.sub('?***', rest)}"


def resolve_name(name: str) -> str:
    """Return the path of a `file://` URL; other names stay as they are.

    Raises SetupError for a URL that can't be used: of another scheme, without a bucket, with a
    query, or with credentials, which would get into reports.

    >>> resolve_name("file:///data/a%20b.jsonl"), resolve_name("s3://bucket/rows.jsonl")
    ('/data/a b.jsonl', 's3://bucket/rows.jsonl')
    """
    match = _URL.fullmatch(name)
    if match is None:
        return name
    scheme, host, path = match.groups()
    if scheme == "file":
        if host not in ("", "localhost") or not path:
            raise SetupError(f"{mask_url(name)}: write it as file:///folder/file")
        return unquote(path)
    if scheme not in EXTRAS:
        raise SetupError(f"{mask_url(name)}: unknown kind of URL; mtpack knows {_KNOWN}")
    if mask_url(name) != name:
        raise SetupError(
            f"{mask_url(name)}: a URL must hold no credentials and no query; the client of the "
            "store finds credentials in the environment"
        )
    if not host:
        raise SetupError(f"{name}: names no bucket; write it as {scheme}://bucket/folder")
    return name


def join_url(folder: str, name: str) -> str:
    """Return the URL of a name in a folder."""
    return f"{folder.rstrip('/')}/{name}"
