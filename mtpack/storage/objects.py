"""What can be done with the objects of a store: list, read, write and delete them."""

from __future__ import annotations

import hashlib
import io
import secrets
from calendar import timegm
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from mtpack.storage.client import make_error, open_client, wrap_store_errors

_SMALLEST_READ = 2**16
_LARGEST_READ = 8 * 2**20
# Of an upload in several parts: 64 MiB of memory for each upload.
_PART_BYTES = 16 * 2**20
_PARTS_AT_ONCE = 4
_WITH_BUCKETS = ("s3", "gs")
_UPLOAD = "mtpack-upload"  # the key of the metadata of an object that names its upload
_TAGS = ("ETag", "etag", "generation", "blob_id", "md5Hash")
_TIMES = ("LastModified", "mtime", "updated", "last_modified")


class ObjectStatus(NamedTuple):
    """The size of an object, and a number that changes with its content."""

    num_bytes: int
    version: int
    """The time of the last change in nanoseconds since 1970. A store knows it in seconds; the rest
    is made from the tag that the store gives to each content."""


_listed: dict[str, ObjectStatus] = {}
"""What `list_inputs` has found, until it is asked for."""


def find_objects(url: str) -> list[str]:
    """Return the URL of an object, or those below a folder, or those that match a pattern, sorted.

    Patterns are those of `glob`; `**` stands for any number of folders. Raises OSError; returns an
    empty list if there is nothing.
    """
    return sorted(_find_statuses(url))


def list_folder(url: str) -> dict[str, int]:
    """Return the sizes of the objects in a folder by name, without those in its folders.

    Raises OSError; returns nothing if there is no such folder.
    """
    found = _find_statuses(f"{url}/")
    names = {name.removeprefix(f"{url}/"): status for name, status in found.items()}
    return {name: status.num_bytes for name, status in names.items() if "/" not in name}


def list_inputs(url: str) -> list[str]:
    """As `find_objects`, and remember what the listing says of the objects.

    One request lists 1,000 objects, so very many inputs need no request for each. The next
    `stat_object` of one returns that, and the ones after it ask the store.
    """
    found = _find_statuses(url)
    _listed.update(found)
    return sorted(found)


def forget_inputs() -> None:
    """Forget what `list_inputs` has found: it may be out of date for another run."""
    _listed.clear()


def _find_statuses(url: str) -> dict[str, ObjectStatus]:
    client, path = open_client(url)
    scheme = url.partition("://")[0]
    with wrap_store_errors(url):
        if any(character in path for character in "*?["):
            found = client.glob(path, detail=True)
        else:
            found = _find(client, path)
    if not found and scheme in _WITH_BUCKETS:
        _require_bucket(client, url, path.partition("/")[0])
    return {
        f"{scheme}://{name.lstrip('/')}": _parse_status(information)
        for name, information in found.items()
        if information["type"] == "file" and not name.endswith("/")
    }


def _require_bucket(client: Any, url: str, bucket: str) -> None:
    try:
        with wrap_store_errors(url):
            client.info(bucket)
    except FileNotFoundError:
        raise make_error("NoSuchBucket", url) from None


def _find(client: Any, path: str) -> dict[str, Any]:
    try:
        information = client.info(path)
    except FileNotFoundError:
        return {}
    if information["type"] == "directory" or path.endswith("/"):
        return dict(client.find(path, detail=True))
    return {path: information}


def stat_object(url: str) -> ObjectStatus:
    """Return the status of an object; raise OSError."""
    listed = _listed.pop(url, None)
    if listed is not None:
        return listed
    client, path = open_client(url)
    with wrap_store_errors(url):
        information = client.info(path)
        if information["type"] != "file":
            raise FileNotFoundError(url)
        return _parse_status(information)


def is_object(url: str) -> bool:
    """Return whether there is an object with this URL; raise OSError."""
    if url in _listed:
        return True
    try:
        stat_object(url)
    except FileNotFoundError:
        return False
    return True


def _parse_status(information: Mapping[str, Any]) -> ObjectStatus:
    tag = next((str(information[key]) for key in _TAGS if information.get(key)), "")
    digest = hashlib.sha256(tag.encode()).digest()
    changed = next((information[key] for key in _TIMES if information.get(key)), None)
    seconds = timegm(changed.utctimetuple()) if isinstance(changed, datetime) else 0
    version = seconds * 10**9 + int.from_bytes(digest[:8], "big") % 10**9
    return ObjectStatus(int(information["size"]), version)


class _ObjectStream(io.RawIOBase):
    """An object, read by ranges: larger ones as long as it is read from start to end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._position = 0
        self._block, self._block_start = b"", 0
        self._ahead = _SMALLEST_READ
        self._size: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            if self._size is None:
                self._size = stat_object(self._url).num_bytes
            offset += self._size
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        inside = self._position - self._block_start
        if not 0 <= inside < len(self._block):
            self._fetch(len(view))
            inside = 0
        part = self._block[inside : inside + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _fetch(self, wanted: int) -> None:
        """Fetch the block at the position; an empty one at the end of the object."""
        start = self._position
        follows = start == self._block_start + len(self._block) and bool(self._block)
        self._ahead = min(2 * self._ahead, _LARGEST_READ) if follows else _SMALLEST_READ
        length = max(wanted, self._ahead)
        self._block, self._block_start = b"", start
        if self._size is not None and start >= self._size:
            return
        client, path = open_client(self._url)
        try:
            with wrap_store_errors(self._url):
                self._block = client.cat_file(path, start=start, end=start + length)
        except OSError:  # a range that starts at the end of the object is an error
            if self._size is None:
                self._size = stat_object(self._url).num_bytes
            if start < self._size:
                raise
        if len(self._block) < length and self._size is None:
            self._size = start + len(self._block)


def open_object(url: str) -> BinaryIO:
    """Open an object for reading at any position; nothing is fetched before it is read.

    `read` returns as many bytes as it is asked for, but at the end. Reading raises OSError.
    """
    return cast(BinaryIO, _WholeReads(url))


class _WholeReads(_ObjectStream):
    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, or fewer at the end; all that follow if it is negative."""
        if size < 0:
            return self.readall()
        parts: list[bytes] = []
        while size > 0 and (part := super().read(min(size, _LARGEST_READ))):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def read_object(url: str, limit: int) -> bytes:
    """Return the content of a small object, or its first `limit` bytes; raise OSError."""
    with open_object(url) as stream:
        return stream.read(limit)


def write_object(url: str, content: bytes) -> None:
    """Write a small object in one request; raise OSError."""
    client, path = open_client(url)
    with wrap_store_errors(url):
        client.pipe_file(path, content)


def upload_file(file: Path, url: str, metadata: Mapping[str, str]) -> None:
    """Upload a file: the object is there as a whole or not at all; raise OSError.

    metadata: is stored with the object. A small file is one request. A large one is sent in parts;
    if that fails, the parts are removed.
    """
    client, path = open_client(url)
    size = file.stat().st_size
    all_metadata = {**metadata, _UPLOAD: secrets.token_hex(16)}
    settings: dict[str, Any] = {"metadata": all_metadata}
    if url.startswith("s3:"):
        settings = {"Metadata": all_metadata, "max_concurrency": _PARTS_AT_ONCE}
        settings["chunksize"] = max(_PART_BYTES, size // 5_000)
    try:
        with wrap_store_errors(url):
            client.put_file(str(file), path, **settings)
    except FileNotFoundError:
        # If the answer to the last request was lost, the store knows no such upload any more.
        with suppress(OSError):
            if read_metadata(url)[1].get(_UPLOAD) == all_metadata[_UPLOAD]:
                return
        raise


def read_metadata(url: str) -> tuple[int, dict[str, str]]:
    """Return the size of an object and what `upload_file` stored with it; raise OSError."""
    client, path = open_client(url)
    with wrap_store_errors(url):
        if url.startswith("s3:"):
            bucket, key, _ = client.split_path(path)
            head = client.call_s3("head_object", Bucket=bucket, Key=key)
            return int(head["ContentLength"]), dict(head["Metadata"])
        information = client.info(path)
        return int(information["size"]), dict(information.get("metadata") or {})


def delete_object(url: str) -> None:
    """Delete an object, if it is there; raise OSError."""
    client, path = open_client(url)
    try:
        with wrap_store_errors(url):
            client.rm_file(path)
    except FileNotFoundError:
        return


def abort_uploads(folder: str) -> None:
    """Remove the parts of unfinished uploads below a folder of S3; raise OSError.

    A process that is killed leaves them. They take space, and no listing of objects shows them.
    """
    if not folder.startswith("s3:"):
        return
    client, path = open_client(folder)
    with wrap_store_errors(folder):
        bucket, key, _ = client.split_path(path)
        prefix = f"{key.rstrip('/')}/" if key else ""
        found = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        for upload in found.get("Uploads", ()):
            name = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
            client.call_s3("abort_multipart_upload", Bucket=bucket, **name)
