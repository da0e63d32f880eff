"""The optimizer, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def build_sgd(
    model: nn.Module,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    fused: bool,
    head: Sequence[str] = (),
    head_lr_scale: float = 1.0,
) -> torch.optim.SGD:
    """SGD with momentum. Weight decay on convolution and linear weights only.

    The learning rate of the modules named in `head` is `head_lr_scale` times that of the others;
    a group's factor is its `lr_scale`. Parameters without a gradient, the frozen ones, are left
    out: nothing is kept for them, and nothing moves them.

    BatchNorm's gamma and beta and all biases are vectors: pulling them to zero regularises nothing
    and slows the first epochs (Goyal et al., 2017, section 5.3; He et al., 2019, section 3.1).
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            scale = head_lr_scale if name.partition(".")[0] in head else 1.0
            members.setdefault((decay, scale), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in members.items()
    ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=fused)
    if momentum:
        # The fused kernel would make them at its first step from raw memory and, where that step
        # is masked, leave them so (seen in torch 2.14). From 0 the first update is the same.
        for p in (p for parameters in members.values() for p in parameters):
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


@torch.no_grad()
def masked_step(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """`optimizer.step()`, and nothing at all where `bad`, a 0-dim boolean on the device, is true.

    The device is not waited for. A fused optimizer masks by itself, as for a gradient scaler.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        optimizer.step()
        return
    state = [p for group in optimizer.param_groups for p in group["params"]]
    state += [t for slot in optimizer.state.values() for t in slot.values() if torch.is_tensor(t)]
    before = [tensor.clone() for tensor in state]
    optimizer.step()
    for tensor, old in zip(state, before, strict=True):
        tensor.copy_(torch.where(bad, old, tensor))


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
