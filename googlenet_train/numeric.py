"""A step whose loss or gradients are not finite changes nothing, and nobody waits to find out.

The device itself counts such steps and masks what they would change: the optimizer, the averages,
BatchNorm's statistics, the sums for the log. The host reads the counts when it looks anyway.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from googlenet_train import distributed, loss_scale

COUNTS = ("skipped", "in_a_row", "fatal")


class Guard(NamedTuple):
    """What the device knows of bad steps, and what it has to protect from them.

    `counts`, int64 (see COUNTS): steps skipped since the last log; skipped in a row up to now; the
    step that went past `limit`, -1 for none. From that step on no step changes anything, so the
    state stays what it was before it. A limit of 0 stops at the first bad step.
    """

    counts: Tensor
    values: Tensor  # what the fatal step would have added to the window
    statistics: tuple[tuple[Tensor, ...], ...]  # the network's buffers, by data type
    limit: int
    scale: loss_scale.LossScale | None = None  # in float16


def new_guard(model: nn.Module, window: Tensor, limit: int, precision: str = "fp32") -> Guard:
    """A guard of `model` that has met no bad step; `window` is the tensor of sums for the log.

    Frozen parts are in evaluation: their statistics stand still and need none.
    """
    learning = [module for module in model.modules() if module.training]
    buffers = [buffer for module in learning for buffer in module.buffers(recurse=False)]
    types = sorted({buffer.dtype for buffer in buffers}, key=str)
    return Guard(
        counts=torch.tensor([0, 0, -1], device=window.device),
        values=torch.zeros_like(window),
        statistics=tuple(tuple(b for b in buffers if b.dtype == dtype) for dtype in types),
        limit=limit,
        scale=loss_scale.new(window.device) if precision == "fp16" else None,
    )


def judge(guard: Guard, window: Tensor, sums: Tensor, step: int) -> Tensor:
    """A 0-dim boolean on the device: whether `step` is to change nothing. Counts it in `guard`.

    `sums` is `window` with this step's losses and, last, gradient norm added, of all ranks: one NaN
    or infinity anywhere in them reaches it, and every rank judges alike.

    In float16 gradients that are too large for the scale are expected now and then: such a step
    changes nothing but the scale, and is not counted.
    """
    # No plain number may stand in a torch.where: it would be copied to a GPU, which waits for it.
    unfit = ~torch.isfinite(sums).all()
    skipped, in_a_row, fatal = guard.counts.unbind()
    over = fatal >= 0
    overflow = torch.zeros_like(unfit)
    if guard.scale is not None:
        overflow = unfit & ~over & torch.isfinite(sums[:-1]).all()
        overflow &= guard.scale.factor > loss_scale.LEAST
        unfit = unfit & ~overflow
    now = unfit & ~over & (in_a_row >= guard.limit)
    stopped = over | now
    guard.values.copy_(torch.where(now, sums - window, guard.values))
    guard.counts.copy_(
        torch.stack(
            [
                skipped + (unfit & ~stopped),
                torch.where(stopped | overflow, in_a_row, (in_a_row + 1) * unfit),
                fatal + now * (step + 1),  # it was -1
            ]
        )
    )
    bad = unfit | stopped | overflow
    if guard.scale is not None:
        loss_scale.update(guard.scale, overflow, bad)
    return bad


def snapshot(guard: Guard) -> list[Tensor]:
    """The network's statistics before a step, one tensor a data type: a copy a few numbers long."""
    return [_joined(group) for group in guard.statistics]


@torch.no_grad()
def settle(guard: Guard, before: Sequence[Tensor], bad: Tensor, share: float = 1.0) -> None:
    """The statistics are again those of `before` where `bad`, else the mean over the ranks.

    `share` is this rank's part of the step's images, its weight in that mean.
    """
    for group, old in zip(guard.statistics, before, strict=True):
        now = _joined(group)
        if distributed.in_group() and now.is_floating_point():
            now = distributed.all_reduce_sum(now * share)
        _write(group, torch.where(bad, old, now))


@torch.no_grad()
def put_back(guard: Guard, before: Sequence[Tensor]) -> None:
    """The statistics are again those of `before`."""
    for group, old in zip(guard.statistics, before, strict=True):
        _write(group, old)


def _write(group: tuple[Tensor, ...], joined: Tensor) -> None:
    parts = torch.split(joined, [tensor.numel() for tensor in group])
    torch._foreach_copy_(
        group, [part.view_as(tensor) for part, tensor in zip(parts, group, strict=True)]
    )


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
