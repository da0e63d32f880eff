"""Which ranks still answer, once one is missed: asked in the store, which all of them reach.

Gloo tells a rank that waits for a dead one at once, and a rank that waits for a survivor nothing.
So each rank has a thread that looks into the store: it answers for a rank that is blocked, and ends
it. PyTorch is not loaded here.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from googlenet_train.errors import ExitCode, UserError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

PATIENCE = 5.0  # seconds that a rank has to answer, once another one has been missed
_LOOK_EVERY = 1.0  # seconds; a request of a few bytes
_WAITING, _ELSEWHERE = "waiting", "elsewhere"  # what a rank answers


class RollCall:
    """This rank's part in it. `name` is of this group alone: a store outlives a restart."""

    def __init__(self, store: "Store", rank: int, ranks: int, name: str, timeout: float) -> None:
        self._store, self._rank, self._ranks = store, rank, ranks
        self._name, self._timeout = name, timeout
        self._waits = False
        self._finish: Callable[[], object] = lambda: None
        self._silent: list[int] = []  # as far as this rank knew while it was elsewhere
        self._ends = threading.Lock()  # held by the thread that ends this rank, main or ours
        self._over = threading.Event()
        own = store.clone()  # a connection is one thread's
        threading.Thread(target=self._watch, args=(own,), daemon=True, name="roll call").start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it is entered this rank waits for others, and is not to be blamed."""
        before, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = before

    def finish_first(self, work: Callable[[], object]) -> None:
        """`work` is done before this rank ends, however it does: a save that has begun, say."""
        self._finish = work

    def over(self) -> None:
        """This rank leaves in order."""
        self._over.set()

    def missing(self, error: str) -> str:
        """Who does not answer, as a person is told it. `error` is what this rank noticed it by."""
        self._ends.acquire()
        return self._ask(self._store, error)

    def _watch(self, store: "Store") -> None:
        with suppress(RuntimeError):  # the store is gone; who waits learns of it by Gloo
            while not self._over.wait(_LOOK_EVERY):
                if store.check([f"{self._name}/missed"]):
                    self._answer_for_the_blocked(store)
                    break

    def _answer_for_the_blocked(self, store: "Store") -> None:
        patience = time.monotonic() + PATIENCE
        while not self._over.wait(0.05):
            if not self._ends.acquire(blocking=False):
                return  # it has noticed by itself
            try:
                if self._waits:
                    self._end(self._ask(store, "told by another rank"))
                self._say(store, _ELSEWHERE)  # it comes to an exchange, or hangs
            finally:
                self._ends.release()
            if not self._silent and time.monotonic() > patience:
                self._silent = [r for r in range(self._ranks) if self._heard(store, r) is None]

    def _end(self, message: str) -> None:
        """The rank's own thread is blocked for good, so nobody else can say it."""
        with suppress(OSError):  # nobody may be listening any more
            print(f"error    rank {self._rank}: {message}", file=sys.stderr, flush=True)
        with suppress(UserError, OSError):
            self._finish()
        os._exit(ExitCode.DISTRIBUTED)

    def _ask(self, store: "Store", error: str) -> str:
        # A store in a process that hangs never answers.
        late = threading.Timer(3 * PATIENCE, self._end, [_no_store(error)])
        late.daemon = True
        late.start()
        try:
            store.set(f"{self._name}/missed", "")
            self._say(store, _WAITING)
            self._wait_for(lambda r: self._heard(store, r) == _WAITING)
            answers = [self._heard(store, r) for r in range(self._ranks)]
            silent = [r for r, answer in enumerate(answers) if answer is None]
            elsewhere = [r for r, answer in enumerate(answers) if answer == _ELSEWHERE]
            # The store may live in rank 0: it stays until the others have looked into it too.
            store.set(f"{self._name}/told/{self._rank}", "")
            if self._rank == 0:
                self._wait_for(lambda r: r in silent or self._has_been_told(store, r))
        except RuntimeError:
            if not self._silent:
                return _no_store(error)
            silent, elsewhere = self._silent, []
        finally:
            late.cancel()
        return lost(self._whom(silent, elsewhere), error)

    def _whom(self, silent: list[int], elsewhere: list[int]) -> str:
        named = silent or elsewhere
        if not named:
            return "the ranks lost each other"
        many = len(named) > 1
        names = f"rank{'s' if many else ''} {', '.join(map(str, named))} of {self._ranks} "
        hanging = f"hanging for {self._timeout:g} s (distributed.timeout)"
        if silent:
            return f"{names}do{'' if many else 'es'} not answer: killed, or {hanging}"
        return f"{names}do{'' if many else 'es'} not come to where the others wait: {hanging}"

    def _say(self, store: "Store", what: str) -> None:
        store.set(f"{self._name}/answer/{self._rank}", what)

    def _heard(self, store: "Store", rank: int) -> str | None:
        key = f"{self._name}/answer/{rank}"
        return bytes(store.get(key)).decode() if store.check([key]) else None

    def _has_been_told(self, store: "Store", rank: int) -> bool:
        return bool(store.check([f"{self._name}/told/{rank}"]))

    def _wait_for(self, done: Callable[[int], bool]) -> None:
        """Until all ranks are `done`, or patience is at its end."""
        deadline = time.monotonic() + PATIENCE
        while not all(done(r) for r in range(self._ranks)) and time.monotonic() < deadline:
            time.sleep(0.05)


def lost(begin: str, error: str) -> str:
    """A message that begins with who is lost: what is to be done, and what was noticed."""
    return (
        f"{begin}. The last checkpoint is whole; start again with --resume, which torchrun "
        f"--max-restarts does by itself. ({error})"
    )


def _no_store(error: str) -> str:
    return lost("the machine that the ranks meet at (MASTER_ADDR) does not answer", error)
