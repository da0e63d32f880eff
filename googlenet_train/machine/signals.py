"""SIGINT and SIGTERM ask a run to stop at its next step; SIGUSR1 asks it to save and go on.

What is no run has nothing to save: there SIGTERM unwinds it, as Ctrl-C does.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

from googlenet_train import distributed
from googlenet_train.errors import UserError

# torchrun hands a signal on to its ranks; where the batch system has told them too, it comes twice.
_ONE_SIGNAL = 5.0  # seconds


def ignore_saves() -> None:
    """Before a run has begun there is nothing to save, and unhandled SIGUSR1 ends a process."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Terminated(KeyboardInterrupt):
    """SIGTERM where it unwinds: what cleans up after Ctrl-C cleans up after it too."""


@contextmanager
def terminable() -> Iterator[None]:
    """While it is entered, SIGTERM raises Terminated; a second one ends the process at once.

    Only the main thread may set a handler, and one that somebody else has set stays.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Signals:
    """While it is entered, a signal only sets a flag; a second one to stop exits at once.

    Nothing is half done at a step boundary, so that is where the ranks tell each other what they
    have heard. `stop` and `save` are what all of them know.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._heard_stop: int | None = None
        self._heard_at = 0.0
        self._heard_save = False
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

    def agree(
        self, *counts: int, save: bool = False, error: UserError | None = None
    ) -> tuple[int, ...]:
        """Every rank's signals, wish to save and error, from now on known to all; `counts` summed.

        All ranks call it at the same boundaries. Where one has an `error`, all of them raise it.
        """
        heard, self._heard_save = self._heard_save, False
        mine = (
            self._heard_stop == signal.SIGINT,
            self._heard_stop == signal.SIGTERM,
            heard or save,
            error is not None,
        )
        interrupted, terminated, saves, failed, *sums = distributed.sum_over_ranks(
            [*map(int, mine), *counts]
        )
        if failed:
            distributed.raise_first(error)
        if interrupted or terminated:
            self.stop = int(signal.SIGTERM if terminated else signal.SIGINT)
        self.save = self.save or saves > 0
        return tuple(sums)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._heard_stop is not None:
            if distributed.world_size() > 1 and time.monotonic() - self._heard_at < _ONE_SIGNAL:
                return
            os._exit(128 + number)  # the last checkpoint is whole: saving renames, never overwrites
        self._heard_stop, self._heard_at = number, time.monotonic()
        # os.write: a print inside a handler could interrupt a print and fail.
        with suppress(OSError):  # nobody may be listening any more
            os.write(2, b"\nstopping at the next step (again: at once)\n")

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._heard_save = True
