"""The ranks of a run: who am I, and how sums travel. torch is imported only where it is used."""

import os
from typing import TYPE_CHECKING

from googlenet_train.errors import ExitCode, UserError

if TYPE_CHECKING:
    from torch import Tensor


def refuse_many_ranks() -> None:
    """One process trains today: as one of many it would train the same network many times over."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        raise UserError(
            f"WORLD_SIZE={ranks}: training on several processes is not built yet. Start "
            "googlenet-train by itself, without torchrun.",
            ExitCode.DISTRIBUTED,
        )


def world_size() -> int:
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(tensor: "Tensor") -> "Tensor":
    """The sum of `tensor` over all ranks, in place."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
