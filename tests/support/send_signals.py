"""Sends signals to a program at one of its own events, so that a test needs no time.

A test copies this file to a folder as `sitecustomize.py`: Python runs it before the program. The
events are Python's audit events of imports, files and processes, from the first import after the
command has set its handlers to the end of the process.
"""

import _signal
import atexit
import json
import os
import signal
import sys
import threading

_KINDS = ("import", "open", "os", "shutil", "fcntl")


class SignalSender:
    """Sends signals at an event; see `Plan` in tests/test_signals.py."""

    def __init__(self, plan: dict) -> None:
        self._plan = plan
        self._process = os.getpid()
        self._started = self._is_published = self._is_done = False
        self.count = 0
        # Python has emptied all modules when it removes this object.
        self._kill, self._killpg, self._get_group = os.kill, os.killpg, os.getpgrp
        self._mask = _signal.pthread_sigmask
        self._block, self._unblock = int(signal.SIG_BLOCK), int(signal.SIG_UNBLOCK)

    def __del__(self) -> None:
        """Called when Python removes its modules, after it has reset the handlers."""
        if self._plan["at"] == "teardown":
            self._send()

    def handle(self, event: str, arguments: tuple) -> None:
        if os.getpid() != self._process or self._is_done:
            return
        if not self._started:
            self._started = event == "import" and arguments[0] == self._plan["start"]
            return
        if event.partition(".")[0] not in _KINDS:
            return
        self.count += 1
        if self._is_the_one(event, arguments):
            self._is_done = True
            self._send()

    def _is_the_one(self, event: str, arguments: tuple) -> bool:
        if self._plan["at"] == "published":
            was_published = self._is_published
            self._is_published = event == "os.rename" and self._is_manifest(arguments[1])
            return was_published
        if self._plan["at"] == "publishing":
            return event == "os.rename" and self._is_manifest(arguments[1])
        if isinstance(self._plan["at"], str):
            return self._plan["at"] in (event, arguments[0] if event == "import" else event)
        return self.count == self._plan["at"]

    def _is_manifest(self, path: object) -> bool:
        """Return whether a path is that of the output's manifest, not the one in the work area."""
        folder, name = os.path.split(os.fspath(path))
        return name == "manifest.json" and os.path.basename(folder) != ".mtpack"

    def _send(self) -> None:
        numbers = self._plan["signals"]
        self._mask(self._block, numbers)
        for number in numbers:  # they arrive together
            if self._plan["group"]:
                self._killpg(self._get_group(), number)
            else:
                self._kill(self._process, number)
        self._mask(self._unblock, numbers)


def _start(plan: dict) -> None:
    sender = SignalSender(plan)
    if plan["at"] == "teardown":
        sys.sender_of_signals = sender
        return
    sys.addaudithook(sender.handle)
    if plan["count_to"]:
        atexit.register(lambda: print(sender.count, file=open(plan["count_to"], "w")))  # noqa: SIM115
    if plan["spawned"]:  # a program with threads spawns its workers
        threading.Thread(target=threading.Event().wait, daemon=True).start()


if "SEND_SIGNALS" in os.environ:
    _start(json.loads(os.environ.pop("SEND_SIGNALS")))  # not in the workers as well
