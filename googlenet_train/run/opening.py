"""A launch becomes a run: every live object, new or as a checkpoint holds it."""

import json
import platform
import sys
from dataclasses import replace

import torch
import torchvision
from torch import Tensor, nn

from googlenet_train import (
    checkpoint,
    compiled,
    distributed,
    ema,
    numeric,
    optim,
    parallel,
)
from googlenet_train.config import Config
from googlenet_train.config import text as config_text
from googlenet_train.data.cache import open_cache
from googlenet_train.errors import UserError
from googlenet_train.machine import device as devices
from googlenet_train.machine import memory
from googlenet_train.machine.storage import write_durably
from googlenet_train.model.googlenet import HEAD, GoogLeNet
from googlenet_train.randomness import key
from googlenet_train.reporting import Reporter, say
from googlenet_train.run import pretrained, runs, sources
from googlenet_train.run.launch import Launch
from googlenet_train.run.quarantine import Quarantine
from googlenet_train.run.session import WINDOW, Session, topology
from googlenet_train.run.state import live_state, newest, restore
from googlenet_train.run.trained import build_model
from googlenet_train.version import __version__

# Pixels of the kept photos' short side for each of a training image's: 288 for 224, as `data pack`.
CACHE_PER_PIXEL = 288 / 224
_WEIGHTS = 1  # one use of the seed; train.py has the others


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
    state = newest(launch.folder / runs.CHECKPOINTS) if launch.resume else None

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
        class_weights=_class_weights(launch, choice.device),
    )
    if state is not None:
        restore(session, state)
        saved = checkpoint.checkpoints(session.checkpoints)
        session.passed_over = [path for path in saved if checkpoint.step_of(path) > state.step]
    distributed.broadcast(list(checkpoint.named_tensors(live_state(session)).values()))
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
                distributed.together(lambda: devices.good_precision(device))
                if precision == "auto"
                else precision
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


def _class_weights(launch: Launch, device: torch.device) -> Tensor | None:
    """On the host; where a GPU trains, in memory from which a copy makes nobody wait."""
    weights = launch.class_weights()
    if weights is None:
        return None
    return torch.tensor(weights, dtype=torch.float32, pin_memory=device.type == "cuda")


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
