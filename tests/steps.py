"""One optimizer step outside a run: what the tests of single steps share."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

import googlenet_train.train as training
from googlenet_train import ema, numeric, optim
from googlenet_train.data.loader import Batch
from googlenet_train.run.session import WINDOW


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


class StepBench:
    """A network with momentum, averages, a window and a guard: all that a step may change."""

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        precision: str = "fp32",
        limit: int = 0,
        fused: bool = True,
        decays: Sequence[float] = (0.9,),
    ) -> None:
        self.model = model
        self.live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.lr, self.precision = lr, precision
        self.optimizer = optim.build_sgd(model, lr=lr, momentum=0.9, weight_decay=1e-4, fused=fused)
        self.averages = {decay: ema.start(self.live) for decay in decays}
        self.device = next(model.parameters()).device
        self.window = torch.zeros(len(WINDOW), device=self.device)
        self.guard = numeric.new_guard(model, self.window, limit, precision)

    def take(self, batches: Sequence[Batch], **settings: object) -> None:
        """One step on these micro-batches."""
        own = {"device": self.device, "precision": self.precision, "lr": self.lr}
        one_step(
            self.model,
            self.optimizer,
            batches,
            self.window,
            self.guard,
            self.averages,
            self.live,
            **own | settings,
        )
