"""The ranks of a run: who am I, how sums travel, and how one rank's trouble becomes everyone's.

torchrun starts the ranks and tells each who it is. Alone, every function here does the plain thing
at once, and torch is not even loaded.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from googlenet_train.errors import ExitCode, UserError
from googlenet_train.roll_call import RollCall, lost

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_call: RollCall | None = None  # while this rank is in a group
_apart = False  # whether this rank works by itself for a while


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
    return _call is not None and not _apart


def finish_first(work: Callable[[], object]) -> None:
    """`work` is done before a rank that lost the others ends: a save that has begun, say."""
    if _call is not None:
        _call.finish_first(work)


def waiting() -> AbstractContextManager[None]:
    """Around whatever waits for other ranks: one that is in it does not hang by itself."""
    return _call.waiting() if _call is not None and not _apart else nullcontext()


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
    global _call
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    # Tensors in a GPU's memory travel over NCCL, those of the host (signals, errors) over Gloo.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store survives a restart
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()  # Windows has no NCCL
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
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
    if on_gpus:
        _let_gloo_notice_first(at_most)
    times: list[int | None] = [None] * world_size()
    try:
        dist.all_gather_object(times, time.time_ns())
        _call = RollCall(store, rank(), world_size(), f"{times[0]}", timeout)
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        seen = _first_line(error)
        told = _call.missing(seen) if _call else lost("the ranks lost each other", seen)
        raise UserError(told, ExitCode.DISTRIBUTED) from None
    finally:
        if _call is not None:
            _call.over()
        _call = None
    dist.destroy_process_group()


def _let_gloo_notice_first(timeout: timedelta) -> None:
    """NCCL ends the whole process where it waits too long, Gloo raises an error that is told."""
    import torch
    import torch.distributed as dist

    assert dist.group.WORLD is not None
    with suppress(AttributeError):  # a name that PyTorch does not promise
        nccl = dist.group.WORLD._get_backend(torch.device("cuda"))
        nccl._set_default_timeout(2 * timeout + timedelta(minutes=1))


def _is_lost_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer")
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def all_reduce_sum(tensor: "Tensor") -> "Tensor":
    """The sum of `tensor` over all ranks, in place; the same bits on each of them."""
    if in_group():
        import torch.distributed as dist

        with waiting():
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

        with waiting():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def gather(value: T) -> list[T]:
    """The `value` of every rank, in their order."""
    if not in_group():
        return [value]
    import torch.distributed as dist

    values: list[T | None] = [None] * world_size()
    with waiting():
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
