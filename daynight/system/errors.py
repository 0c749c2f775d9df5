"""The two ways a command ends badly; the command line prints either as one line."""


class InputError(Exception):
    """Something that was given is wrong: the message names the file or option and what would be right. Exit 2."""

    exit_code = 2


class Unreadable(InputError):
    """A file that cannot be decoded: what `--skip-unreadable` goes on without."""


class RunError(Exception):
    """A run that had begun could not go on: the message names the cause and what is left. Exit 1."""

    exit_code = 1
