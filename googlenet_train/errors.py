"""The one exception that a user's mistake or a machine's failure becomes, and its exit codes."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns to the shell."""

    DONE = 0
    BUG = 1
    USAGE = 2  # command line, config, folder in use, other class count, changed config
    DATA = 3
    CHECKPOINT = 4
    NUMERIC = 5
    STORAGE = 6
    DISTRIBUTED = 7
    SIGINT = 130
    SIGTERM = 143


class UserError(Exception):
    """Something the person at the keyboard can mend: printed as it is, without a traceback.

    The message is complete in itself: what is wrong, where (file, key, value), how to mend it.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.shared = False  # whether every rank raises it, so that one of them tells it
