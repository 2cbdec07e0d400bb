"""Broken variants of system calls, with which the fault tests must find something."""

import contextlib
import os
import shutil


def copy_and_remove(source, target, **_):
    """Break `os.replace`: the target has its name before it is complete."""
    shutil.copyfile(source, target)
    os.unlink(source)


def sync_nothing(descriptor):
    """Break `os.fsync`: what a file holds may be lost later."""


_rename = os.rename


def ignore_errors_of_renames(source, target, **_):
    """Break `os.replace`: a rename that fails is not noticed."""
    with contextlib.suppress(OSError):
        _rename(source, target)
