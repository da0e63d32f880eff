"""A trained run, opened to be used: its network, weights, classes and settings."""

from pathlib import Path
from typing import NamedTuple

import torch

from googlenet_train import checkpoint
from googlenet_train.config import Config
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Network, with_weights
from googlenet_train.machine.storage import warn_once
from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.run import runs
from googlenet_train.version import __version__


class Trained(NamedTuple):
    path: str
    config: Config
    classes: tuple[str, ...]
    names: tuple[str, ...]  # what people call the classes
    model: GoogLeNet  # with the raw weights, in evaluation mode
    averages: dict[str, dict[str, torch.Tensor]]  # by decay, as written in the config
    step: int
    fingerprints: dict[str, str | None]  # of the images it was trained and evaluated on

    def network(self, weights: str, precision: str, compiled_for: int = 0) -> Network:
        """`raw`, or `ema`: the longest average; raw where the run kept no average."""
        if weights == "raw" or not self.averages:
            return with_weights(self.model, None, precision, compiled_for)
        average = self.averages[max(self.averages, key=float)]
        return with_weights(self.model, average, precision, compiled_for)


def build_model(config: Config, num_classes: int) -> GoogLeNet:
    """The network of a config, on the CPU, with fresh weights."""
    model = GoogLeNet(
        num_classes,
        variant=config.model.variant,
        aux_logits=config.model.aux_logits,
        dropout=config.model.dropout,
        aux_dropout=config.model.aux_dropout,
    )
    if config.device.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def open_trained(run: str, which: str, device: torch.device) -> Trained:
    """Open RUN, a run folder or one checkpoint file; `which` is last, best or a step.

    Raises UserError (usage) where RUN is neither, (checkpoint) where it is damaged.
    """
    state = saved_state(Path(run), which)
    try:
        config = Config.model_validate(state.info["config"])
    except ValueError:
        raise UserError(
            f"{run} was written by googlenet-train {state.info['version']}, whose settings this "
            f"version, {__version__}, does not know. Use that version.",
            ExitCode.CHECKPOINT,
        ) from None
    model = build_model(config, len(state.info["classes"]))
    model.load_state_dict(state.model)
    averages = {
        decay: {name: tensor.to(device) for name, tensor in average.items()}
        for decay, average in state.ema.items()
    }
    classes = tuple(state.info["classes"])
    network = model.to(device).eval()
    fingerprints = state.info["fingerprints"]
    names = tuple(state.info.get("names", classes))  # older runs have none
    return Trained(run, config, classes, names, network, averages, state.step, fingerprints)


def saved_state(run: Path, which: str) -> checkpoint.TrainState:
    """The state that RUN, a run folder or a checkpoint, and `which` (last, best, STEP) mean."""
    path = runs.named_checkpoint(run, which)
    if path is not None:
        return checkpoint.load(path)
    state, bad = checkpoint.newest(run / runs.CHECKPOINTS)
    for line in bad:
        warn_once(f"{line}; taking the one before")
    assert state is not None
    return state
