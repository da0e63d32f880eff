"""Counters that add up. Ranks and batches are summed and divided once, never averaged twice."""

import torch
from torch import Tensor
from torch.nn import functional as F

from googlenet_train import distributed


def new_counts(num_classes: int, device: torch.device) -> Tensor:
    """(num_classes, 4) zeros: per class the images seen, right at top-1, at top-5, summed loss."""
    # float32 counts exactly to 16 million a class; MPS has no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros(num_classes, 4, dtype=dtype, device=device)


def count(counts: Tensor, probabilities: Tensor, targets: Tensor) -> None:
    """Add one batch to `counts`, in place, without a host sync.

    `probabilities`: (N, num_classes); `targets`: (N,). The loss is the plain -log p(target).
    """
    top = probabilities.topk(min(5, probabilities.shape[1]), dim=1).indices
    hits = top == targets[:, None]
    # Where p is 0 in float32 the true -log p is at least 87: counted as that, not as infinity.
    log_p = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
    loss = F.nll_loss(log_p, targets, reduction="none")
    rows = torch.stack([torch.ones_like(loss), hits[:, 0], hits.any(1), loss], dim=1)
    counts.index_add_(0, targets, rows.to(counts.dtype))


def summary(counts: Tensor) -> dict[str, float]:
    """Sum over the ranks, divide once: `top1`, `top5`, `top1_macro` (percent), `loss`, `seen`.

    `top1_macro` is the mean over the classes that have images of each class's top-1.
    """
    per_class = distributed.all_reduce_sum(counts.clone()).cpu().double()
    seen, right, right5, loss = per_class.sum(0).tolist()
    present = per_class[per_class[:, 0] > 0]
    return {
        "top1": 100 * right / seen,
        "top5": 100 * right5 / seen,
        "top1_macro": 100 * float((present[:, 1] / present[:, 0]).mean()),
        "loss": loss / seen,
        "seen": int(seen),
    }
