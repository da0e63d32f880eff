"""Polyak averages: a moving average of the weights, which generalises better than the last ones.

Polyak & Juditsky (1992); the paper's section 6 uses it for the final model. An average is a plain
dictionary of tensors under the network's own names, so `torch.func.functional_call` evaluates it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Average = dict[str, Tensor]


def start(live: Mapping[str, Tensor]) -> Average:
    """A copy of `live` (the network's `state_dict()`), float32 where it is floating."""
    return {
        name: tensor.detach().clone().float() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in live.items()
    }


def decay_after(updates: int, decay: float, every_steps: int = 1) -> float:
    """The share d that the average keeps at its next update: d = min(decay, (1+t) / (10+t)) ** n.

    t = `updates` made before, n = `every_steps` between them. Without the ramp a short run's
    average would still be made of its first, random weights.
    """
    return float(min(decay, (1 + updates) / (10 + updates)) ** every_steps)


@torch.no_grad()
def update(
    average: Average, live: Mapping[str, Tensor], d: float, bad: Tensor | None = None
) -> None:
    """average = d average + (1 - d) live, in place; integer tensors (counters) are copied.

    Parameters and BatchNorm statistics alike: statistics belong to the weights they were taken
    under, so both must be averaged the same way. Nothing changes where `bad`, a 0-dim boolean on
    the device, is true; the device is not waited for. float32 throughout: on the CPU by
    `Tensor.lerp_`, elsewhere as average + (1 - d) (live - average).
    """
    device = next(iter(average.values())).device
    good = torch.ones((), dtype=torch.bool, device=device) if bad is None else ~bad
    for floating, share in ((True, good * (1 - d)), (False, good.long())):
        names = [name for name, t in average.items() if t.is_floating_point() == floating]
        if names:
            _approach([average[name] for name in names], [live[name] for name in names], share)


def _approach(mine: list[Tensor], theirs: list[Tensor], share: Tensor) -> None:
    """mine += share (theirs - mine), where each tensor by itself would cost a GPU its start."""
    if share.device.type == "cpu" and share.is_floating_point():
        # Memory is what takes the time: three passes instead of one take three times as long.
        torch._foreach_lerp_(mine, theirs, [share] * len(mine))
        return
    steps = torch._foreach_sub(theirs, mine)
    torch._foreach_mul_(steps, share)
    torch._foreach_add_(mine, steps)
