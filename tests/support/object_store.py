"""A store for tests: moto's server of S3, which is started on loopback, behind a `FaultProxy`."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_proxy import FaultProxy

KEY_ID, SECRET = "AKIATESTKEYID0000000", "test-secret-that-no-message-may-show"
BUCKET = "bucket"
_NEEDED = ("moto", "flask", "flask_cors", "s3fs")


class ObjectStore:
    """The bucket `BUCKET` of the server, for a test."""

    def __init__(self, port: int) -> None:
        self.proxy = FaultProxy(port)
        self._port = port
        self._client: Any = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use the store: short timeouts, so that faults show soon."""
        settings = {"connect_timeout": 2, "read_timeout": 2, "retries": {"max_attempts": 1}}
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "FSSPEC_S3": json.dumps({"config_kwargs": settings}),
        }

    @property
    def client(self) -> Any:
        """A client that goes past the proxy."""
        if self._client is None:
            import botocore.session

            self._client = botocore.session.Session().create_client(
                "s3",
                region_name="us-east-1",
                endpoint_url=f"http://127.0.0.1:{self._port}",
                aws_access_key_id=KEY_ID,
                aws_secret_access_key=SECRET,
            )
        return self._client

    def empty(self) -> None:
        """Make the bucket, without objects and unfinished uploads."""
        self.proxy.faults.clear()
        self.proxy.requests.clear()
        self.client.create_bucket(Bucket=BUCKET)
        for name in self.list_names():
            self.client.delete_object(Bucket=BUCKET, Key=name)
        for key, upload in self.list_uploads():
            self.client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)

    def put(self, key: str, content: bytes) -> str:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def put_folder(self, folder: Path, key: str) -> str:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{BUCKET}/{key}"

    def list_names(self, prefix: str = "") -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return sorted(each["Key"] for each in found.get("Contents", ()))

    def read_folder(self, key: str) -> dict[str, bytes]:
        return {name.removeprefix(f"{key}/"): self.get(name) for name in self.list_names(f"{key}/")}

    def list_uploads(self) -> list[tuple[str, str]]:
        found = self.client.list_multipart_uploads(Bucket=BUCKET)
        return [(each["Key"], each["UploadId"]) for each in found.get("Uploads", ())]


@contextmanager
def serve_objects() -> Iterator[ObjectStore]:
    """Start the server, or skip the test where it is not installed."""
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs a server of S3: pip install 'mtpack[dev]' ({name} is missing)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, server)
        store = ObjectStore(port)
        yield store
        store.proxy.close()
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server of the test does not start")
