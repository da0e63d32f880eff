"""Evaluation of one or more networks on one data set, in one pass over its images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from googlenet_train import distributed, metrics
from googlenet_train.config import Config
from googlenet_train.data.index import Index
from googlenet_train.data.loader import (
    Batch,
    Lost,
    ahead,
    evaluation_batch,
    pinned,
    to_device,
    travel,
)
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import device as devices
from googlenet_train.machine.signals import Signals
from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.model.inference import folded, images_at_once

_NOTHING = Batch(torch.empty(0), torch.empty(0, dtype=torch.int64))
_CONSTANTS: dict[str, Any] = {"freezing": True}  # of the compiler: weights are constants
Network = Callable[[Tensor], Tensor]  # normalised images (N, 3, size, size) to logits (N, classes)


@dataclass(frozen=True)
class Setting:
    """How images reach a network in evaluation: the part of a run that evaluation shares."""

    device: torch.device
    precision: str
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int
    workers: int
    views: int = 1
    quarantine: bool = False  # leave out what cannot be read
    exif_orientation: bool = False
    fit: str = "center_crop"
    channels_last: bool = True

    @staticmethod
    def of(config: Config, device: torch.device, views: int = 1) -> "Setting":
        """As the run of a resolved `config` evaluates, on the device at hand.

        A run in half precision is evaluated in float32 where that would have to be emulated.
        """
        own = config.device.precision
        return Setting(
            device=device,
            precision=own if own in devices.native_precisions(device) else "fp32",
            image_size=config.data.image_size,
            mean=config.data.mean,
            std=config.data.std,
            batch_size=config.evaluate.batch_size,
            workers=int(config.data.workers),
            views=views,
            quarantine=config.data.on_error == "quarantine",
            exif_orientation=config.data.exif_orientation,
            fit=config.evaluate.fit,
            channels_last=config.device.channels_last,
        )

    def at_once(self, count: int) -> int:
        """How many of `count` images go through a network together."""
        if self.device.type != "cpu":
            return count
        return min(count, images_at_once(self.image_size, devices.DTYPES[self.precision]))


def with_weights(
    model: GoogLeNet,
    weights: Mapping[str, Tensor] | None = None,
    precision: str = "fp32",
    compiled_for: int = 0,
) -> Network:
    """`model` as it is now, made for inference, with its own weights or with `weights`.

    By torch.compile for `compiled_for` images, where that is not 0; another number of them, as in
    a last batch, runs as it is, since compiling takes longer than a batch.
    """
    dtype = devices.DTYPES[precision]
    network = folded(model, weights, dtype=dtype)
    fast: Network = network
    if compiled_for:
        fast = torch.compile(network, dynamic=False, options=_CONSTANTS)

    def run(images: Tensor) -> Tensor:
        chosen = fast if len(images) == compiled_for else network
        return chosen(images.to(dtype))

    return run


def of_training(
    model: GoogLeNet, averages: Mapping[float, Mapping[str, Tensor]], precision: str
) -> dict[str, Network]:
    """What a run evaluates: its weights (`val`) and each average (`val_ema_<decay>`)."""
    networks = {"val": with_weights(model, None, precision)}
    for decay in sorted(averages):
        networks[f"val_ema_{decay}"] = with_weights(model, averages[decay], precision)
    return networks


def ensemble(networks: Sequence[Network]) -> Network:
    """The mean of the networks' probabilities, as log-probabilities (paper, section 7)."""

    def network(images: Tensor) -> Tensor:
        return torch.stack([n(images).float().softmax(1) for n in networks]).mean(0).log()

    return network


@torch.inference_mode()
def probabilities(network: Network, images: Tensor, setting: Setting) -> Tensor:
    """uint8 images (N * views, 3, size, size) to class probabilities (N, classes) in float32.

    Probabilities are averaged over an image's views.
    """
    parts = []
    for part in torch.split(images, setting.at_once(len(images))):
        x = to_device(part, setting.device, setting.mean, setting.std, setting.channels_last)
        parts.append(network(x).float().softmax(1))
    p = torch.cat(parts)
    return p.reshape(-1, setting.views, p.shape[1]).mean(1)


def evaluate(
    networks: Mapping[str, Network],
    index: Index,
    setting: Setting,
    *,
    signals: Signals | None = None,
    progress: Callable[[int], object] = lambda images: None,
    leave_out: Callable[[Sequence[Lost]], object] = lambda lost: None,
) -> dict[str, dict[str, float]] | None:
    """Per network: `top1`, `top5`, `top1_macro` (percent), `loss`, `seen`.

    Every image is seen exactly once, by one of the ranks: the last batch is smaller, nothing is
    padded. Each image is decoded once, whatever the number of networks. None where `signals` asks
    to stop. With `setting.quarantine` those that cannot be read are told to `leave_out`, those of
    all ranks on each rank, and not seen.
    """
    signals = signals or Signals()
    mine = range(distributed.rank(), len(index), distributed.world_size())
    per_batch = max(1, setting.batch_size // setting.views)
    # As many batches on every rank, the last of them empty on some, so that all agree as often.
    most = -(-len(index) // distributed.world_size())
    starts = range(0, most, per_batch)

    def make(start: int) -> Batch:
        batch = evaluation_batch(
            index,
            mine[start : start + per_batch],
            setting.image_size,
            setting.views,
            setting.quarantine,
            setting.exif_orientation,
            setting.fit,
        )
        return pinned(batch) if setting.device.type == "cuda" else batch

    counts = {name: metrics.new_counts(len(index.classes), setting.device) for name in networks}
    batches = ahead(make, starts, setting.workers)
    seen = 0  # by all ranks
    for _ in starts:
        batch, error = _NOTHING, None
        try:
            batch = next(batches)
        except UserError as raised:
            error = raised
        images, lost = signals.agree(len(batch.labels), len(batch.lost), error=error)
        if signals.stop is not None:
            return None
        if lost:
            leave_out(distributed.gather_all(batch.lost))
        if len(batch.labels):
            labels = travel(batch.labels, setting.device)
            for name, network in networks.items():
                metrics.count(counts[name], probabilities(network, batch.images, setting), labels)
        seen += images
        progress(images + lost)
    if seen == 0:
        raise UserError("none of the images to evaluate on can be read", ExitCode.DATA)
    return {name: metrics.summary(c) for name, c in counts.items()}
