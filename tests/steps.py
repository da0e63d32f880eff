"""One optimizer step outside a run: what the tests of single steps share."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

import googlenet_train.train as training
from googlenet_train import ema, numeric
from googlenet_train.data.loader import Batch


def one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    window: torch.Tensor,
    guard: numeric.Guard,
    averages: Mapping[float, ema.Average] | None = None,
    live: Mapping[str, torch.Tensor] | None = None,
    **settings: object,
) -> None:
    """`train_step` on these micro-batches of one rank, on the CPU; `settings` replace the plain."""
    plain: dict[str, object] = {
        "step": 0,
        "count": sum(len(batch.labels) for batch in batches),
        "lr": 1.0,
        "seed": 0,
        "device": torch.device("cpu"),
        "precision": "fp32",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "channels_last": True,
        "aux_weight": 0.3,
        "label_smoothing": 0.0,
        "clip_norm": None,
        "ema_every": 1,
    }
    training.train_step(
        model, optimizer, averages or {}, live or {}, batches, window, guard, **plain | settings
    )
