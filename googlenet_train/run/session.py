"""The live objects of a run."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from googlenet_train import (
    distributed,
    ema,
    numeric,
    optim,
)
from googlenet_train.config import Config
from googlenet_train.errors import UserError
from googlenet_train.machine import device as devices
from googlenet_train.machine.background import Background
from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.reporting import Reporter, say
from googlenet_train.run import runs
from googlenet_train.run.launch import Launch
from googlenet_train.run.quarantine import Quarantine

# The columns of a window: sums over the images seen since the last log, the losses weighted, and
# over its steps.
WINDOW = (
    "seen",
    "correct",
    "weight",
    "loss",
    "loss_main",
    "loss_aux1",
    "loss_aux2",
    "steps",
    "grad_norm",
)


@dataclass
class Session:
    """A run in memory. `step` counts the optimizer steps done."""

    launch: Launch
    config: Config  # with nothing `auto` left
    choice: devices.Choice
    model: GoogLeNet
    network: nn.Module  # the same, as the ranks train it together
    optimizer: torch.optim.SGD
    live: dict[str, Tensor]  # the network's own tensors, by name
    averages: dict[float, ema.Average]
    window: Tensor
    guard: numeric.Guard
    quarantine: Quarantine
    reporter: Reporter
    class_weights: Tensor | None  # (num_classes,), on the host
    background: Background = field(default_factory=Background)  # the thread that saves
    step: int = 0
    passed_over: list[Path] = field(default_factory=list)  # damaged checkpoints, when it resumed
    evaluated: int = 0  # the last step that was evaluated
    saved: int = -1  # the last step that was saved, or is being saved
    best: dict[str, Any] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)  # the last top-1 of each network
    seconds: float = 0.0  # trained before this process started
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        return self.choice.device

    @property
    def checkpoints(self) -> Path:
        return self.launch.folder / runs.CHECKPOINTS

    def elapsed(self) -> float:
        """Seconds that the run has taken so far, over all its processes."""
        return self.seconds + time.monotonic() - self.started

    def close(self) -> None:
        """Wait for a save that is still being written, and close the log."""
        try:
            self.background.wait()
        except (UserError, OSError) as error:  # the run is ending with another one
            say(f"warning  {error}")
        finally:
            self.reporter.close()


def topology(session: Session) -> dict[str, str | int]:
    """What must be the same for the same bits."""
    own = session.config.device
    ranks = distributed.world_size()
    return devices.topology(session.device, int(own.threads), ranks, compiled=own.compile)


def learning_rate_at(launch: Launch, step: int) -> float:
    config = launch.config
    return optim.learning_rate(
        step,
        name=config.schedule.name,
        lr=config.optimizer.lr,
        steps_per_epoch=launch.steps_per_epoch,
        epochs=config.schedule.epochs,
        warmup_epochs=config.schedule.warmup_epochs,
    )
