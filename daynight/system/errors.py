"""The two ways in which a command fails. The command line prints either as one line."""


class InputError(Exception):
    """An option or a file is wrong. The message names it and says what would be right. Exit status 2."""

    exit_code = 2


class Unreadable(InputError):
    """A file cannot be decoded. `--skip-unreadable` goes on without it."""


class Unlabelled(InputError):
    """A data set has no labels."""


class RunError(Exception):
    """A run that had begun cannot go on. The message names the cause and what is left. Exit status 1."""

    exit_code = 1
