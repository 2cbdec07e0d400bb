"""The connection to a Ray cluster: the user's, or one on this machine that ends with the run.

Ray writes to the terminal what its nodes and workers do, and handles a signal itself. The user
sees none of it: lost workers are replaced, and named if they stop the run.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.services as ray_services
import ray._private.worker as ray_internals

from mtpack.errors import SetupError, first_line

_ADDRESS = "RAY_ADDRESS"
_LOCAL = "local"
_SECONDS_TO_CONNECT = 10.0
_OBJECT_STORE_BYTES = 2**28  # for the tokenizer, and for results that are longer than usual


@contextmanager
def connect(address: str | None, num_workers: int) -> Iterator[bool]:
    """Connect to Ray for the block, unless this program is connected already.

    address: that of a cluster. Default: the one that the environment names, else a Ray is started
    on this machine for `num_workers` processes, and ends with the block. Yields whether it was
    started. Raises SetupError.
    """
    where = f"--ray-address {address}"
    if ray.is_initialized():
        if address not in (None, "auto", ray.get_runtime_context().gcs_address):
            raise SetupError(f"{where}: this program is connected to another Ray; leave it out")
        yield False
        return
    if address is None:
        address = os.environ.get(_ADDRESS) or _LOCAL
        where = "Ray on this machine" if address == _LOCAL else f"{_ADDRESS} {address}"
    if "://" in address:
        raise SetupError(
            f"{where}: a Ray client can't run this; start mtpack on a node of the cluster, with "
            "--ray-address auto"
        )
    is_local = address == _LOCAL
    try:
        with _keep_signal_handlers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not is_local:
                _reach(address)
            _start(address, num_workers if is_local else None)
    except Exception as error:  # Ray's own, those of the system, and RuntimeError for a version
        raise SetupError(f"{where}: can't connect ({first_line(error)})") from error
    try:
        with _quiet_listener():
            yield is_local
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError or ConnectionError if nothing answers there; Ray would wait for minutes."""
    found = ray_services.canonicalize_bootstrap_address(address)
    host, _, port = (found or "").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()


def _start(address: str, num_cpus: int | None) -> None:
    more: dict[str, Any] = {}
    if num_cpus is not None:
        more = {
            "num_cpus": num_cpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **more)


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Restore the handlers that Ray replaces; only the main thread may set any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # set by Python
                signal.signal(number, handler)


@contextmanager
def _quiet_listener() -> Iterator[None]:
    """Keep the thread of Ray that receives errors of the cluster from printing them.

    It prints to standard output, and no setting of Ray prevents it (2.60:
    `ray._private.worker.listen_error_messages`).
    """
    name = "print_to_stdstream"
    original = getattr(ray_internals, name, None)
    setattr(ray_internals, name, lambda *arguments, **more: None)
    try:
        yield
    finally:
        setattr(ray_internals, name, original)
