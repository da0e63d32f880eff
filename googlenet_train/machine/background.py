"""Work that goes on beside training, one piece at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread. What its work raises is raised where it is next asked about."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work`, once the piece before it is done."""
        self.wait()
        self._pending = self._pool.submit(work)

    def check(self) -> None:
        """Raise what the work raised, if it has ended; never waits."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the work, and raise what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
