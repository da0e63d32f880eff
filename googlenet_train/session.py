"""The live objects of a run, made from a launch, and their way into a checkpoint and back."""

import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from googlenet_train import (
    __version__,
    checkpoint,
    compiled,
    config_text,
    distributed,
    ema,
    memory,
    numeric,
    optim,
    parallel,
    pretrained,
    runs,
    sources,
)
from googlenet_train import device as devices
from googlenet_train.background import Background
from googlenet_train.config import Config
from googlenet_train.data.cache import open_cache
from googlenet_train.errors import UserError
from googlenet_train.launch import Launch
from googlenet_train.model.googlenet import HEAD, GoogLeNet
from googlenet_train.quarantine import Quarantine
from googlenet_train.randomness import key
from googlenet_train.reporting import Reporter, say
from googlenet_train.storage import write_durably
from googlenet_train.trained import build_model

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
# Pixels of the kept photos' short side for each of a training image's: 288 for 224, as `data pack`.
CACHE_PER_PIXEL = 288 / 224
_WEIGHTS = 1  # one use of the seed; train.py has the others


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


def open_session(launch: Launch) -> Session:
    """A run at step 0, or where its newest good checkpoint left it."""
    choice = devices.choose(launch.config.device.kind)
    config = _resolved(launch.config, choice.device)
    devices.prepare(
        choice.device,
        threads=int(config.device.threads),
        deterministic=config.device.deterministic,
    )
    launch, config = _with_cache(launch, config)
    state = _newest(launch.folder / runs.CHECKPOINTS) if launch.resume else None

    torch.manual_seed(key(config.run.seed, _WEIGHTS))
    model = build_model(config, len(launch.train.classes))
    if state is None and config.model.init is not None:
        distributed.together(lambda: _initialise(model, launch, config))
    model.freeze(config.model.freeze)
    model = model.to(choice.device)
    if config.distributed.sync_batchnorm:
        model = parallel.with_sync_batchnorm(model, choice.device)
    live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    window = torch.zeros(len(WINDOW), dtype=torch.float32, device=choice.device)
    step = state.step if state else 0
    first = distributed.rank() == 0  # the one that writes
    images = {"data.train": launch.train} | ({"data.val": launch.val} if launch.val else {})
    skips = config.optimizer.skip_limit if config.optimizer.on_nonfinite == "skip" else 0
    guard = numeric.new_guard(model, window, skips, config.device.precision)
    session = Session(
        launch=launch,
        config=config,
        choice=choice,
        model=model,
        network=model,
        optimizer=optim.build_sgd(
            model,
            lr=config.optimizer.lr,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
            fused=choice.device.type in ("cpu", "cuda"),
            head=HEAD,
            head_lr_scale=config.optimizer.head_lr_scale,
        ),
        live=live,
        averages={decay: ema.start(live) for decay in config.ema.decays},
        window=window,
        guard=guard,
        quarantine=Quarantine(
            images, config.data.quarantine_limit, launch.folder if first else None, step
        ),
        reporter=Reporter(launch.folder if first else None, step, launch.steps_per_epoch),
        class_weights=_class_weights(launch),
    )
    if state is not None:
        _restore(session, state)
        saved = checkpoint.checkpoints(session.checkpoints)
        session.passed_over = [path for path in saved if checkpoint.step_of(path) > state.step]
    distributed.broadcast(list(checkpoint.named_tensors(_live(session)).values()))
    try:
        session.network = _network(session)
    except UserError:
        session.close()
        raise
    distributed.together(lambda: _describe_run(session))
    return session


def _network(session: Session) -> nn.Module:
    """The model as a step calls it: compiled, if that is asked for, and spread over the ranks."""
    config, device = session.config, session.device
    network: nn.Module = session.model
    count = config.optimizer.batch_size // config.parts // distributed.world_size()
    if config.device.compile:
        say("compile  the network is translated for this device; that takes a while")
        network = compiled.Compiled(network, count, deterministic=config.device.deterministic)
    size = session.launch.image_size(session.step)
    network = parallel.spread(network, session.guard, device, size, config.parts)
    if config.device.compile:
        layout = torch.channels_last if config.device.channels_last else torch.contiguous_format
        images = torch.zeros(count, 3, size, size, device=device).contiguous(memory_format=layout)
        compiled.warm_up(network, session.guard, images, config.device.precision)
    return network


def _initialise(model: GoogLeNet, launch: Launch, config: Config) -> None:
    """Give rank 0's network its first weights; the others get them with the rest of the state."""
    assert config.model.init is not None
    lines = pretrained.initialise(
        model,
        config.model.init,
        launch.train.classes,
        mean=config.data.mean,
        std=config.data.std,
    )
    say("\n".join(lines))


def _newest(folder: Path) -> checkpoint.TrainState | None:
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


def _live(session: Session) -> checkpoint.TrainState:
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


def _resolved(config: Config, device: torch.device) -> Config:
    threads, precision = config.device.threads, config.device.precision
    side = config.data.cache_short_side
    return config_text.resolved(
        config,
        {
            "data.cache_short_side": (
                round(config.largest_side * CACHE_PER_PIXEL) if side == "auto" else side
            ),
            "device.kind": device.type,
            "device.threads": devices.threads_per_rank() if threads == "auto" else threads,
            "device.precision": (
                devices.good_precision(device) if precision == "auto" else precision
            ),
        },
    )


def _with_cache(launch: Launch, config: Config) -> tuple[Launch, Config]:
    if config.data.cache == "none":
        return launch, config
    cache = open_cache(
        launch.train,
        config.data.cache,
        short_side=int(config.data.cache_short_side),
        exif_orientation=config.data.exif_orientation,
        available=distributed.least_known(memory.available()),  # all must keep the same pixels
        processes=distributed.local_world_size(),
    )
    say(f"cache    {cache.line}")
    return (
        replace(launch, sources=launch.sources._replace(train=cache.photos)),
        config_text.resolved(config, {"data.cache": cache.mode}),
    )


def _class_weights(launch: Launch) -> Tensor | None:
    weights = launch.class_weights()
    return None if weights is None else torch.tensor(weights, dtype=torch.float32)


def capture(session: Session) -> checkpoint.TrainState:
    """The whole run as tensors and JSON, copied to the host: training may go on at once."""
    live = _live(session)
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
            "fingerprints": session.launch.fingerprints(),
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
def _restore(session: Session, state: checkpoint.TrainState) -> None:
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
    for name, tensor in _live(session).loss_scale.items():
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


def topology(session: Session) -> dict[str, str | int]:
    """What must be the same for the same bits."""
    own = session.config.device
    ranks = distributed.world_size()
    return devices.topology(session.device, int(own.threads), ranks, compiled=own.compile)


def _describe_run(session: Session) -> None:
    """config.yaml and environment.json: what a reader needs to repeat the run."""
    folder = session.launch.folder
    write_durably(folder / runs.CONFIG, config_text.dump(session.config))
    if session.launch.sources.split:
        write_durably(folder / sources.SPLIT, sources.split_text(session.launch.sources))
    environment = {
        "googlenet_train": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "device": session.choice.why,
        "topology": topology(session),
        "command": sys.argv,
    }
    write_durably(folder / "environment.json", json.dumps(environment, indent=2) + "\n")


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
