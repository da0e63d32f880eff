"""Which photo meets which optimizer step: pure integer functions of the seed and the step.

An epoch is one pass over a permutation in floor(N / B) steps of B photos, B the global batch; the
remainder is left out of that epoch. Nothing here depends on the number of workers, and the number
of ranks only divides a batch, so the state of the data stream is the step alone.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from googlenet_train import randomness
from googlenet_train.errors import ExitCode, UserError

_ORDER = 0x6F72646572  # "order" in ASCII: keeps these hashes apart from other uses of (seed, epoch)


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order of 0..count-1 in an epoch: int64 of shape (count,), read-only, cached."""
    hashes = randomness.hashes(randomness.key(seed, epoch, _ORDER), count)
    order = np.argsort(hashes, kind="stable").astype(np.int64, copy=False)
    order.setflags(write=False)
    return order


def steps_per_epoch(count: int, batch_size: int) -> int:
    """floor(count / batch_size). Raises UserError (USAGE) where that would be zero."""
    if count < batch_size:
        raise UserError(
            f"optimizer.batch_size {batch_size} is larger than the {count} training images; "
            f"the largest that works is {count}",
            ExitCode.USAGE,
        )
    return count // batch_size


def batch_indices(
    seed: int,
    step: int,
    count: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int = 0,
    accumulate: int = 1,
) -> npt.NDArray[np.int64]:
    """The photos of one micro-batch of one rank: int64 of shape (B / (ranks x accumulate),).

    The global batch falls into world_size x accumulate blocks without gaps; micro-batch m of rank r
    is block m x world_size + r, which is also its number in the global batch.
    Raises UserError (USAGE) where the batch does not divide or exceeds the data set.
    """
    check_divides(batch_size, world_size, accumulate)
    epoch, step_in_epoch = divmod(step, steps_per_epoch(count, batch_size))
    size = batch_size // (world_size * accumulate)
    start = step_in_epoch * batch_size + (micro_batch * world_size + rank) * size
    return permutation(seed, epoch, count)[start : start + size]


def possible_parts(batch_size: int, world_size: int, *, pairs: bool) -> list[int]:
    """Each number of micro-batches that a rank's part of a batch can be cut into, the fewest first.

    At least two images in each, for batch normalisation learns nothing from one, and with `pairs`
    an even number. The batch divides by the ranks (see `check_divides`).
    """
    images = batch_size // world_size
    smallest = 2 if pairs or images > 1 else 1
    return [
        n
        for n in range(1, images // smallest + 1)
        if images % n == 0 and not (pairs and images // n % 2)
    ]


def check_divides(batch_size: int, world_size: int, accumulate: int) -> None:
    """Raise UserError (USAGE), naming the nearest fits, unless ranks x accumulate divides B."""
    parts = world_size * accumulate
    below = batch_size // parts * parts
    if below == batch_size:
        return
    sizes = [str(size) for size in (below, below + parts) if size > 0]
    mend = f"the nearest batch sizes that do are {' and '.join(sizes)}"
    if len(sizes) == 1:
        mend = f"the smallest that does is {sizes[0]}"
    per_rank, uneven = divmod(batch_size, world_size)
    if not uneven:
        fits = [n for n in range(1, per_rank + 1) if per_rank % n == 0]
        lower = [n for n in fits if n < accumulate][-1:]
        upper = [n for n in fits if n > accumulate][:1]
        values = " or ".join(map(str, lower + upper))
        mend += f"; with {batch_size}, optimizer.accumulate could be {values}"
    raise UserError(
        f"optimizer.batch_size {batch_size} does not divide into {world_size} rank"
        f"{'s' if world_size > 1 else ''} x optimizer.accumulate {accumulate}; {mend}",
        ExitCode.USAGE,
    )
