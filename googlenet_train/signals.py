"""SIGINT and SIGTERM ask a run to stop at its next step; SIGUSR1 asks it to save and go on."""

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType


def ignore_saves() -> None:
    """Before a run has begun there is nothing to save, and unhandled SIGUSR1 ends a process."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Signals:
    """While it is entered, a signal only sets a flag; a second one to stop exits at once.

    Nothing is half done at a step boundary, so that is where the training loop looks.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_stop)
        if hasattr(signal, "SIGUSR1"):  # Windows has none
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._on_save)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop is not None:
            os._exit(128 + number)  # the last checkpoint is whole: saving renames, never overwrites
        self.stop = number
        # os.write: a print inside a handler could interrupt a print and fail.
        with suppress(OSError):  # nobody may be listening any more
            os.write(2, b"\nstopping at the next step (again: at once)\n")

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True
