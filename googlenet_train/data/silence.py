"""Keep the own lines of libjpeg and libtiff off the terminal.

About an image that is damaged but can still be decoded they print a line, without the file's
name, to C's `stderr`; the decoders offer no way to turn that off. Moving descriptor 2 meanwhile
would take it from everybody in the process, from a progress bar in another thread too. So only the
C variable `stderr` points elsewhere while a decoder is at work, which the GNU C library allows
("variables that you can set just like any other", its manual, section Standard Streams): Python,
C++'s `std::cerr`, faulthandler and the C library's own last words go to descriptor 2 as ever.
"""

import ctypes
import os
import sys
import threading
from types import TracebackType


class _Silence:
    """A context manager; any number of threads may be inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._variable, self._nowhere = _stderr_and_nowhere()
        self._before: int | None = None

    def __enter__(self) -> None:
        if self._nowhere is None:
            return
        with self._lock:
            if self._inside == 0:
                self._before = self._variable.value
                self._variable.value = self._nowhere
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._nowhere is None:
            return
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._variable.value = self._before


def _stderr_and_nowhere() -> tuple[ctypes.c_void_p, int | None]:
    """C's variable `stderr`, and a stream to the null device; None where this is not glibc.

    Elsewhere the variable may be a constant: there the lines appear.
    """
    if sys.platform != "linux":
        return ctypes.c_void_p(), None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return ctypes.c_void_p(), None
    libc.fopen.restype = ctypes.c_void_p
    return ctypes.c_void_p.in_dll(libc, "stderr"), libc.fopen(os.devnull.encode(), b"we")


codecs_silent = _Silence()
