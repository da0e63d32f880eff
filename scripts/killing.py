"""Kill this process at its n-th call of the system that touches the disk, from within.

For forks: `arm` counts every open for writing, write, fsync, rename, unlink and mkdir from then on,
and sends SIGKILL to the process before the n-th, after it, or halfway through it where it is a
write. Python's own calls are wrapped, so it works wherever there is a SIGKILL; tests/faults does
the same by strace, past Python, where that is installed.
"""

import io
import os
import signal
from collections.abc import Callable
from typing import Any

HOW = ("before", "within", "after")
_CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "truncate", "ftruncate")


def arm(number: int, how: str) -> list[str]:
    """Die at call `number`, the first is 1; 0 for never. Returns the list that names the calls."""
    made: list[str] = []

    def call(name: str, real: Callable[..., Any], *given: Any, **named: Any) -> Any:
        made.append(name)
        due = len(made) == number
        if due and how == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if due and how == "within" and name == "write":
            real(given[0][: len(given[0]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*given, **named)
        finally:
            if due:
                os.kill(os.getpid(), signal.SIGKILL)

    class Counted(io.FileIO):
        def write(self, data: Any) -> int:
            written: int = call("write", super().write, data)
            return written

    opened = io.open

    def counted_open(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode != "wb":
            return opened(file, mode, *rest, **named)
        return io.BufferedWriter(call("create", Counted, file, "wb"))

    vars(io)["open"] = counted_open
    for name in _CALLS:
        real = getattr(os, name)
        setattr(os, name, lambda *a, _name=name, _real=real, **k: call(_name, _real, *a, **k))
    return made
