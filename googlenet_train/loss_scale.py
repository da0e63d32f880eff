"""Training in float16: the loss is multiplied, so that small gradients do not vanish.

float16 ends at 65,504 and below 6e-8. The factor is as large as the gradients allow: an overflow
halves it, many good steps in a row double it (Micikevicius et al., 2018, section 3.2). It is always
a power of two, so dividing by it changes no digit. torch.amp.GradScaler follows the same rule, but
its step waits for the device to know whether to take place.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FIRST = 2.0**16
LEAST = 1.0  # a gradient that overflows here is no matter of scale
MOST = 2.0**24  # where gradients are zero nothing else would end its growth
PATIENCE = 2000  # good steps before it is doubled


class LossScale(NamedTuple):
    """Both 0-dim, on the device, and changed in place."""

    factor: Tensor  # float32
    good: Tensor  # int64: good steps since it last changed


def new(device: torch.device) -> LossScale:
    return LossScale(
        torch.tensor(FIRST, device=device), torch.zeros((), dtype=torch.int64, device=device)
    )


@torch.no_grad()
def unscale(scale: LossScale, gradients: Sequence[Tensor]) -> None:
    """Divide the gradients by the factor, in place: again those of the loss itself."""
    torch._foreach_mul_(list(gradients), scale.factor.reciprocal())


@torch.no_grad()
def update(scale: LossScale, overflow: Tensor, bad: Tensor) -> None:
    """After a step: halve the factor at an `overflow`, else count it as good unless it was `bad`.

    Both are 0-dim booleans on the device, and it is not waited for.
    """
    good = torch.where(overflow, torch.zeros_like(scale.good), scale.good + ~bad)
    doubled = good >= PATIENCE
    scale.factor.mul_(1 + doubled.float() - overflow.float() / 2).clamp_(LEAST, MOST)
    scale.good.copy_(torch.where(doubled, torch.zeros_like(good), good))
