"""A proxy before a store's server that makes chosen requests fail, as networks and stores do."""

from __future__ import annotations

import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_DOWN = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"""
NO_UPLOAD = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>NoSuchUpload</Code><Message>It does not exist.</Message></Error>"""
DENIED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"""
_HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "keep-alive")


@dataclass
class Fault:
    """What happens to requests whose line (`PUT /bucket/key?query`) a pattern is found in."""

    pattern: str
    kind: str
    """`error`: the answer is `status`. `cut request`: the connection ends when half of the body is
    read. `cut answer`: when half of the body is sent. `lost answer`: before the answer, when the
    request is done. `silent`: no answer for `seconds`. `slow`: the answer comes after `seconds`."""
    times: int = 10**9
    """How often; after that, requests get through."""
    status: int = 503
    body: bytes = SLOW_DOWN
    seconds: float = 0.0
    hits: int = 0


@dataclass
class FaultProxy:
    """The proxy, which runs in threads of this process until `close`."""

    upstream: int
    """The port of the server."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """The lines of all requests so far."""

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, pattern: str, kind: str, **more: object) -> Fault:
        self.faults.append(Fault(pattern, kind, **more))  # type: ignore[arg-type]
        return self.faults[-1]

    def find_fault(self, line: str) -> Fault | None:
        with self._lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.hits < fault.times and re.search(fault.pattern, line):
                    fault.hits += 1
                    return fault
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def _handle(self) -> None:
        fault = self.proxy.find_fault(f"{self.command} {self.path}")
        kind = fault.kind if fault else ""
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "cut request":
            self.rfile.read(length // 2)
            self._cut()
            return
        if (self.headers.get("Expect") or "").lower() == "100-continue":
            pass  # the base class has answered
        body = self._read_body(length)
        if fault and kind == "error":
            self._answer(fault.status, [("Content-Type", "application/xml")], fault.body)
            return
        if fault and kind == "silent":
            time.sleep(fault.seconds)
            self._cut()
            return
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        upstream = HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP[:2]}
        headers["Content-Length"] = str(len(body))
        headers.pop("Expect", None)
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP]
        if self.command == "HEAD":
            kept.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        upstream.close()
        if kind == "lost answer":
            self._cut()
            return
        self._answer(answer.status, kept, content, cut=kind == "cut answer")

    def _read_body(self, length: int) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        elif not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle
