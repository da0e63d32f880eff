"""The ranks of a run: who am I, how sums travel, and how one rank's trouble becomes everyone's.

torchrun starts the ranks and tells each who it is. Alone, every function here does the plain thing
at once, and torch is not even loaded.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from googlenet_train.errors import ExitCode, UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")

_PATIENCE = 5.0  # seconds that a rank has to say it is alive, once another one has been missed
_store: "Store | None" = None  # reaches every rank although their group is broken
_apart = False  # whether this rank works by itself for a while
_timeout = 0.0
_meeting = ""  # names this group in the store, where those before a restart may have left marks


def world_size() -> int:
    return 1 if _apart else _started()


def _started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this rank on its own machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _started() > 1 else 0


def local_world_size() -> int:
    """The ranks on this machine: they share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _started() > 1 else 1


def cores() -> int:
    """The processor cores that this process may use: of a machine's, each rank its part."""
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    else:
        found = os.cpu_count() or 1
    return max(1, found // local_world_size())


def in_group() -> bool:
    """Whether this rank has joined others."""
    return _store is not None and not _apart


@contextmanager
def apart() -> Iterator[None]:
    """This rank by itself, as if there were no others: what it does meanwhile waits for nobody."""
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


def refuse_many_ranks(verb: str) -> None:
    """Raise UserError (distributed) where torchrun started a verb that is one process's work."""
    if world_size() > 1:
        raise UserError(
            f"{verb} is the work of one process, and torchrun started {world_size()}. Start "
            f"googlenet-train {verb} by itself.",
            ExitCode.DISTRIBUTED,
        )


@contextmanager
def group(timeout: float) -> Iterator[None]:
    """Join the other ranks that torchrun started; alone, do nothing.

    No rank waits longer than `timeout` seconds for another one. Raises UserError (distributed),
    naming the ranks that do not answer, where one is killed or hangs.
    """
    global _store, _timeout, _meeting
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    # Tensors in a GPU's memory travel over NCCL, those of the host (signals, errors) over Gloo.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store survives a restart
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        at_most = timedelta(seconds=timeout)
        store, _, _ = next(dist.rendezvous("env://", timeout=at_most))  # type: ignore[attr-defined]
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"group/{start}", store),  # type: ignore[attr-defined]
            rank=rank(),
            world_size=world_size(),
            timeout=at_most,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {world_size()} ranks could not meet ({_first_line(error)}). Start them with "
            "torchrun, and see that every machine reaches MASTER_ADDR at MASTER_PORT.",
            ExitCode.DISTRIBUTED,
        ) from None
    _store, _timeout = store, timeout
    try:
        _meeting = f"{gather(time.time_ns())[0]}"
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise UserError(_who_is_missing(error), ExitCode.DISTRIBUTED) from None
    finally:
        _store = None
    dist.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer")
    )


def _who_is_missing(error: RuntimeError) -> str:
    """Every rank that still runs says so in the store; the others are those that hang or died."""
    assert _store is not None
    begin = "the ranks lost each other"
    try:
        missing = _silent("alive", range(world_size()))
        if missing:
            names = f"{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
            begin = (
                f"rank{names} of {world_size()} do{'' if len(missing) > 1 else 'es'} not answer: "
                f"killed, or hanging for {_timeout:g} s (distributed.timeout)"
            )
        # The store may live in rank 0: it stays until the others have looked into it too.
        left = [r for r in range(world_size()) if r not in missing]
        _silent("told", left if rank() == 0 else [])
    except RuntimeError:
        begin = "the machine that the ranks meet at (MASTER_ADDR) does not answer"
    return (
        f"{begin}. The last checkpoint is whole; start again with --resume, which torchrun "
        f"--max-restarts does by itself. ({_first_line(error)})"
    )


def _silent(word: str, ranks: Sequence[int]) -> list[int]:
    """Say `word` in the store; those of `ranks` that have not said it within _PATIENCE seconds."""
    assert _store is not None
    _store.set(f"{_meeting}/{word}/{rank()}", "")
    missing = list(ranks)
    deadline = time.monotonic() + _PATIENCE
    while True:
        missing = [r for r in missing if not _store.check([f"{_meeting}/{word}/{r}"])]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.05)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def all_reduce_sum(tensor: "Tensor") -> "Tensor":
    """The sum of `tensor` over all ranks, in place; the same bits on each of them."""
    if in_group():
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def sum_over_ranks(numbers: Sequence[int]) -> list[int]:
    """Each number summed over all ranks, by way of the host: no device is waited for."""
    if not in_group():
        return list(numbers)
    import torch

    total: list[int] = all_reduce_sum(torch.tensor(numbers, dtype=torch.int64)).tolist()
    return total


def least(number: int) -> int:
    """The smallest `number` of all ranks."""
    return min(gather(number))


def least_known(number: int | None) -> int | None:
    """The smallest `number` of all ranks; None where one of them does not know its own."""
    numbers = gather(number)
    return None if None in numbers else min(n for n in numbers if n is not None)


def broadcast(tensors: Sequence["Tensor"]) -> None:
    """Give every rank the values that rank 0 has, in place."""
    if in_group():
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def gather(value: T) -> list[T]:
    """The `value` of every rank, in their order."""
    if not in_group():
        return [value]
    import torch.distributed as dist

    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return cast(list[T], values)


def gather_all(items: Sequence[T]) -> list[T]:
    """The items of every rank in one list, in the ranks' order."""
    return [item for part in gather(list(items)) for item in part]


def together(work: Callable[[], T]) -> T:
    """`work`, done by rank 0 alone. Its result, or the UserError in its place, reaches all ranks.

    For what happens once: files, messages, decisions. The result must be small; it is pickled.
    """
    if not in_group():
        return work()
    result: T | None = None
    error: UserError | None = None
    if rank() == 0:
        try:
            result = work()
        except (UserError, OSError) as raised:
            error = as_user_error(raised)
    result, failure = gather((result, _parts(error)))[0]
    if failure is not None:
        raise _shared(*failure)
    return cast(T, result)


def raise_first(error: UserError | None) -> None:
    """Raise, on every rank, the error of the first rank that has one; no error, no effect."""
    if not in_group():
        if error is not None:
            raise error
        return
    for number, found in enumerate(gather(_parts(error))):
        if found is not None:
            raise _shared(f"rank {number}: {found[0]}", found[1])


def as_user_error(error: UserError | OSError) -> UserError:
    """An error of the file system as the person at the keyboard is told it."""
    if isinstance(error, UserError):
        return error
    where = f"{error.filename}: " if error.filename is not None else "storage: "
    return UserError(f"{where}{error.strerror or error}", ExitCode.STORAGE)


def _parts(error: UserError | None) -> tuple[str, ExitCode] | None:
    return (str(error), error.exit_code) if error is not None else None


def _shared(message: str, code: ExitCode) -> UserError:
    error = UserError(message, code)
    error.shared = True
    return error
