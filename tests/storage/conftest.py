"""The store that tests of this folder use: one server for all of them, emptied for each."""

from collections.abc import Iterator

import pytest

from tests.support.object_store import ObjectStore, serve_objects


@pytest.fixture(scope="session")
def server() -> Iterator[ObjectStore]:
    with serve_objects() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path) -> ObjectStore:
    """An empty bucket, which this process and those that it starts can use."""
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("mtpack.storage.client._RETRIES", 2)
    fsspec.config.set_conf_env(fsspec.config.conf)
    server.empty()
    return server
