"""What a run is, as tensors and JSON: into a checkpoint and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from googlenet_train import (
    checkpoint,
    distributed,
)
from googlenet_train.reporting import say
from googlenet_train.run.session import Session, topology
from googlenet_train.version import __version__


def capture(session: Session) -> checkpoint.TrainState:
    """The whole run as tensors and JSON, copied to the host: training may go on at once."""
    live = live_state(session)
    return checkpoint.TrainState(
        step=live.step,
        model=copied(live.model),
        momentum=copied(live.momentum),
        ema={decay: copied(average) for decay, average in live.ema.items()},
        window=copied(live.window),
        loss_scale=copied(live.loss_scale),
        info={
            "version": __version__,
            "config": session.config.model_dump(mode="json", by_alias=True),
            "classes": list(session.launch.train.classes),
            "names": list(session.launch.sources.names),
            "fingerprints": session.launch.sources.fingerprints(),
            "topology": topology(session),
            "total_steps": session.launch.total_steps,
            "evaluated": session.evaluated,
            "best": session.best,
            "results": session.results,
            "seconds": session.elapsed(),
        },
    )


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory, which no later step changes."""
    return {name: _copy(tensor) for name, tensor in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


@torch.no_grad()
def restore(session: Session, state: checkpoint.TrainState) -> None:
    for name, tensor in state.model.items():
        session.live[name].copy_(tensor)
    for name, parameter in session.model.named_parameters():
        # one may have been frozen since, or be no longer
        if name in state.momentum and parameter in session.optimizer.state:
            session.optimizer.state[parameter]["momentum_buffer"].copy_(state.momentum[name])
    for decay, average in session.averages.items():
        for name, tensor in state.ema.get(str(decay), state.model).items():
            average[name].copy_(tensor)
    session.window.copy_(state.window.get("sums", session.window))
    session.guard.counts.copy_(state.window.get("guard", session.guard.counts))
    for name, tensor in live_state(session).loss_scale.items():
        tensor.copy_(state.loss_scale.get(name, tensor))  # none where it began in another precision
    session.step = session.saved = state.step
    session.evaluated = state.info["evaluated"]
    session.best = state.info["best"]
    session.results = state.info["results"]
    session.seconds = state.info["seconds"]
    now = topology(session)
    for part, before in state.info["topology"].items():
        if now[part] != before:
            say(
                f"warning  {part} was {before} and is {now[part]}: the run goes on with the same "
                "images, but no longer to the bit"
            )


def live_state(session: Session) -> checkpoint.TrainState:
    """All that a step reads and changes, as it is on the device: what is saved, and what every rank
    must hold alike."""
    names = {id(p): name for name, p in session.model.named_parameters()}
    return checkpoint.TrainState(
        step=session.step,
        model=session.live,
        momentum={
            names[id(p)]: slot["momentum_buffer"]
            for p, slot in session.optimizer.state.items()
            if "momentum_buffer" in slot
        },
        ema={str(decay): average for decay, average in session.averages.items()},
        window={"sums": session.window, "guard": session.guard.counts},
        loss_scale=session.guard.scale._asdict() if session.guard.scale else {},
    )


def newest(folder: Path) -> checkpoint.TrainState | None:
    """The newest checkpoint that verifies. Rank 0 alone reads it; the others get its tensors later.

    Raises UserError (checkpoint) where there are some and none verifies.
    """
    read: list[checkpoint.TrainState] = []

    def find() -> tuple[int, dict[str, Any]] | None:
        state, bad = checkpoint.newest(folder)
        for line in bad:
            say(f"warning  {line}; taking the one before")
        if state is None:
            return None
        read.append(state)
        return state.step, state.info

    found = distributed.together(find)
    if found is None or read:
        return read[0] if read else None
    return checkpoint.TrainState(found[0], model={}, info=found[1])
