"""The clients of object stores, and what their errors mean."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtpack.errors import SetupError
from mtpack.storage.urls import EXTRAS

# A server that says nothing for longer than `read_timeout` seconds gets the request again, and so
# does one that is overloaded, after a growing wait. Together with `_RETRIES`, a dead one is given
# up after some minutes.
_SETTINGS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 20,
            "retries": {"mode": "standard", "max_attempts": 5},
        },
    },
    "gs": {"use_listings_cache": False},
    "hf": {"use_listings_cache": False},
}
_RETRIES = 3  # of s3fs, around those of the client: for a body that ends early
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a role",
    "hf": "HF_TOKEN",
}
_NO_CREDENTIALS = "no credentials; set them in the environment ({credentials})"
_WRONG_CREDENTIALS = "wrong or expired credentials; check the environment ({credentials})"
_DENIED = "access denied; check what these credentials may do ({credentials})"
_OVERLOADED = "the store is overloaded or failing ({code}); run again later"
_REFUSED = "the store refused it ({code}); run again"
_UNREACHABLE = "the store can't be reached; check the network and the endpoint"
_SILENT = "the store stopped answering in the middle; run again"
_ERRORS: dict[str, tuple[int, str]] = {
    "NoSuchBucket": (errno.ENOENT, "no such bucket; check its name, or create it"),
    "NoSuchKey": (errno.ENOENT, "no such object"),
    "NoSuchUpload": (errno.ENOENT, "no such upload; another run has removed it; run again"),
    "404": (errno.ENOENT, "no such object or bucket; check the name"),
    "AccessDenied": (errno.EACCES, _DENIED),
    "AllAccessDisabled": (errno.EACCES, _DENIED),
    "403": (errno.EACCES, _DENIED),
    "InvalidAccessKeyId": (errno.EACCES, _WRONG_CREDENTIALS),
    "SignatureDoesNotMatch": (errno.EACCES, _WRONG_CREDENTIALS),
    "ExpiredToken": (errno.EACCES, _WRONG_CREDENTIALS),
    "InvalidToken": (errno.EACCES, _WRONG_CREDENTIALS),
    "401": (errno.EACCES, _WRONG_CREDENTIALS),
    "RefreshError": (errno.EACCES, _WRONG_CREDENTIALS),
    "DefaultCredentialsError": (errno.EACCES, _NO_CREDENTIALS),
    "NoCredentialsError": (errno.EACCES, _NO_CREDENTIALS),
    "PartialCredentialsError": (errno.EACCES, _NO_CREDENTIALS),
    "ProfileNotFound": (errno.EACCES, _NO_CREDENTIALS),
    "SlowDown": (errno.EIO, _OVERLOADED),
    "ServiceUnavailable": (errno.EIO, _OVERLOADED),
    "InternalError": (errno.EIO, _OVERLOADED),
    "503": (errno.EIO, _OVERLOADED),
    "429": (errno.EIO, _OVERLOADED),
    "500": (errno.EIO, _OVERLOADED),
    "EndpointConnectionError": (errno.EHOSTUNREACH, _UNREACHABLE),
    "ConnectTimeoutError": (errno.EHOSTUNREACH, _UNREACHABLE),
    "ConnectError": (errno.EHOSTUNREACH, _UNREACHABLE),
    "ConnectTimeout": (errno.EHOSTUNREACH, _UNREACHABLE),
    "ClientConnectorError": (errno.EHOSTUNREACH, _UNREACHABLE),
    "ReadTimeoutError": (errno.ETIMEDOUT, _SILENT),
    "ReadTimeout": (errno.ETIMEDOUT, _SILENT),
    "FSTimeoutError": (errno.ETIMEDOUT, _SILENT),
    "ConnectionClosedError": (errno.ECONNRESET, _SILENT),
    "ClientPayloadError": (errno.ECONNRESET, _SILENT),
    "IncompleteReadError": (errno.ECONNRESET, _SILENT),
    "ResponseStreamingError": (errno.ECONNRESET, _SILENT),
    # Only if nothing above is known:
    "FileNotFoundError": (errno.ENOENT, "no such object or bucket; check the name"),
    "PermissionError": (errno.EACCES, _DENIED),
}


def open_client(url: str) -> tuple[Any, str]:
    """Return the client of a store, and what it calls the object; raise SetupError without it.

    It is a file system of fsspec, whose settings in the environment (`FSSPEC_S3`) hold too. A
    process has one for each kind of store, and a forked process makes its own.
    """
    scheme, _, path = url.partition("://")
    try:
        import fsspec

        chosen = fsspec.config.conf.get(scheme, {})
        settings = {key: each for key, each in _SETTINGS[scheme].items() if key not in chosen}
        client = fsspec.filesystem(scheme, **settings)
    except ImportError as error:
        raise SetupError(
            f"{url}: needs a client for {scheme}://; get it with: "
            f"pip install 'mtpack[{EXTRAS[scheme]}]'"
        ) from error
    if scheme == "s3":
        client.retries = _RETRIES
    return client, path


@contextmanager
def wrap_store_errors(url: str) -> Iterator[None]:
    """Convert what a client raises in the block into an OSError with a line of our own.

    The texts of a store are left out: they may quote keys and requests.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        codes = _list_codes(error)
        code = next((each for each in _ERRORS if each in codes), codes[0])
        raise make_error(code, url) from None


def make_error(code: str, url: str) -> OSError:
    """Return the error that a code of a store, or the name of a client's error, stands for."""
    number, text = _ERRORS.get(code, (errno.EIO, _REFUSED))
    details = {"credentials": _CREDENTIALS[url.partition("://")[0]], "code": code}
    return OSError(number, text.format(**details), url)


def _list_codes(error: BaseException | None) -> list[str]:
    """Return the codes of a store's answers that led to an error, and the names of the errors."""
    codes = []
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            codes += [code] if code.isalnum() else []
        code = str(getattr(error, "code", getattr(response, "status_code", "")))
        codes += [code] if code.isdigit() else []
        codes += [kind.__name__ for kind in type(error).__mro__[:-1]]
        error = error.__cause__  # a context may be an error before this one
    return codes
