"""Files that are either whole and on the disk, or as they were before."""

import errno
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

# A network or VM mount that cannot do what was asked; other errors mean that the storage fails.
CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def write_durably(path: Path, content: bytes | bytearray | str | Iterable[memoryview]) -> None:
    """Replace `path` by `content`: temporary file, fsync, rename, fsync of the folder.

    The rename is the commit: whenever the power goes, `path` is the old file or the new one. The
    content may come in pieces. Raises OSError; the temporary file is then removed.
    """
    if isinstance(content, str):
        content = content.encode()
    pieces = [content] if isinstance(content, bytes | bytearray) else content
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a write or an fsync knows no name
        raise
    fsync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create `path` and what lacks above it, to last: each new name is synced where it stands."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        with suppress(PermissionError):  # a folder that may be written to, but not read
            fsync_folder(folder.parent)


def fsync(handle: int) -> None:
    """Wait until the file is on the disk, on macOS past the drive's own cache."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
        except OSError as error:  # a network mount may not know it
            if error.errno not in CANNOT:
                raise
    os.fsync(handle)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` last. Storage that cannot is named once; training goes on."""
    if os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        warn_once(
            f"{folder}: this storage cannot fsync a folder; a power cut may lose the newest "
            "checkpoint, never an older one"
        )
    finally:
        os.close(handle)


@cache
def warn_once(line: str) -> None:
    print(f"warning  {line}", file=sys.stderr)
