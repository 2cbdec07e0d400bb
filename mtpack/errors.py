"""One family of errors, each a sentence for the person who reads it, with its exit status.

    MtpackError          exit status 1
    ├── InputError       1: a bad row, no sequence, a failed check, a failed read or write
    └── SetupError       2: a bad option, missing input, an unusable tokenizer or template,
                            a refused output folder, a missing extra

A message is one or two lines: what is wrong, where, and what to do about it.
It never quotes the content of a dialogue.
"""


class MtpackError(Exception):
    """The base of every error that mtpack raises on purpose."""

    exit_status = 1


def first_line(error: Exception) -> str:
    """Return what another library's error says, as far as it fits into a message of mtpack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class InputError(MtpackError):
    """The data can't be used: a bad row, a damaged shard, nothing left to pack."""


class SetupError(MtpackError):
    """The run can't start: an option, an input path, a tokenizer, a template, the output folder."""

    exit_status = 2
