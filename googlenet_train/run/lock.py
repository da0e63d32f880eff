"""The lock on a run's folder: one process trains there at a time. No torch."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.storage import CANNOT, warn_once

FILE = ".lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. The lock dies with it, however it dies.

    `lockf`, not `flock`: a forked child inherits `flock`'s and would keep it after our death.
    Raises UserError (usage) where another process trains there.
    """
    handle = _take(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _take(folder: Path) -> int | None:
    if os.name == "nt":
        return None
    import fcntl

    handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (*CANNOT, errno.ENOLCK):
            warn_once(f"{folder}: this storage has no locks; do not train twice in one folder")
            return handle
        os.close(handle)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise UserError(
            f"{folder}: another process is training there. Wait for it or stop it, or choose "
            "another folder with run.dir=FOLDER.",
            ExitCode.USAGE,
        ) from None
    return handle


def not_in_use(folder: Path) -> Path:
    """`folder`. Raises UserError (usage) where another process trains there."""
    if (folder / FILE).exists():
        with hold(folder):
            pass
    return folder


def is_locked(folder: Path) -> bool:
    try:
        not_in_use(folder)
    except UserError:
        return True
    return False
