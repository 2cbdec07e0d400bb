"""The errors that mtpack raises on purpose, with their exit statuses.

    MtpackError          exit status 1
    ├── InputError       1: a bad row, no sequence, a failed check, a failed read or write
    └── SetupError       2: a bad option, missing input, an unusable tokenizer or template,
                            a refused output folder, a missing extra

A message has one or two lines: what is wrong, where, and what to do about it. It never quotes the
content of a dialogue. It may quote names of files and keys, which can hold any character.
"""


class MtpackError(Exception):
    """The base class of all errors that mtpack raises on purpose.

    Each argument is a line of the message: a line break in an argument belongs to a name.
    """

    exit_status = 1

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class InputError(MtpackError):
    """The data can't be used: for example a bad row, a damaged shard, or no sequence to write."""


class SetupError(MtpackError):
    """The run can't start with this option, input path, tokenizer, template or output folder."""

    exit_status = 2
