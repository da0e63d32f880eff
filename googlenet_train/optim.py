"""The optimizer, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn


def build_sgd(
    model: nn.Module, *, lr: float, momentum: float, weight_decay: float, fused: bool
) -> torch.optim.SGD:
    """SGD with momentum. Weight decay on convolution and linear weights only.

    BatchNorm's gamma and beta and all biases are vectors: pulling them to zero regularises nothing
    and slows the first epochs (Goyal et al., 2017, section 5.3; He et al., 2019, section 3.1).
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=fused)


def learning_rate(
    step: int,
    *,
    name: str,
    lr: float,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float,
) -> float:
    """The learning rate of optimizer step `step` (the first is 0).

    A linear warm-up of min(warmup_epochs, epochs / 2), then, with t from 0 to 1 over the rest:

    - `cosine`: lr (1 + cos(pi t)) / 2 (Loshchilov & Hutter, 2017)
    - `linear`: lr (1 - t)
    - `step`: lr, times 0.1 after each third of all epochs
    - `paper`: lr, times 0.96 every 8 epochs (paper, section 6)
    """
    warmup = int(min(warmup_epochs, epochs / 2) * steps_per_epoch)
    if step < warmup:
        return lr * (step + 1) / warmup
    total = epochs * steps_per_epoch
    t = (step - warmup) / max(1, total - warmup)
    if name == "cosine":
        return lr * (1 + math.cos(math.pi * t)) / 2
    if name == "linear":
        return lr * (1 - t)
    if name == "step":
        return lr * 0.1 ** (3 * step // total)
    if name == "paper":
        return lr * 0.96 ** (step // (8 * steps_per_epoch))
    raise ValueError(f"unknown schedule {name!r}")
