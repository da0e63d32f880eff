"""`check --gpus`: what the run would take on more GPUs, from rates measured here or given."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from googlenet_train.checks import scaling
from googlenet_train.data.loader import training_batch
from googlenet_train.data.views import Augmentation
from googlenet_train.run.launch import Launch

_IMAGES = 64  # that are read to learn what one costs

HEADINGS = (
    "GPUs   step ms  all-reduce  exposed  images/s  efficiency  cores  read MB/s     hours  "
    "save every   lost  limited by"
)


def measured(
    planned: Launch, images_per_second: float, checkpoint_seconds: float
) -> scaling.Cluster:
    """The rates of this machine: of its device as given, of a core and of the files as found."""
    config, index = planned.config, planned.train
    chosen = np.linspace(0, len(index) - 1, min(len(index), _IMAGES)).round().astype(np.int64)
    sample = index.chosen(chosen)
    size = sum(len(sample.read(i)) for i in range(len(sample)))
    began = time.thread_time()  # of this thread alone, whatever else the machine does
    training_batch(
        sample,
        0,
        seed=config.run.seed,
        batch_size=len(sample) - len(sample) % 2,  # mixing wants pairs
        image_size=config.largest_side,
        augmentation=Augmentation(**dict(config.augment), fit=config.evaluate.fit),
        quarantine=True,
        exif_orientation=config.data.exif_orientation,
    )
    return scaling.Cluster(
        images_per_second=images_per_second,
        loader_images_per_second=len(sample) / max(1e-6, time.thread_time() - began),
        bytes_per_image=size / len(sample),
        checkpoint_seconds=checkpoint_seconds,
    )


def rows(planned: Launch, cluster: scaling.Cluster, gpus: Sequence[int]) -> list[dict[str, Any]]:
    """An outlook for each number of GPUs that the batch divides by."""
    return [
        scaling.outlook(
            cluster,
            count,
            batch_size=planned.config.optimizer.batch_size,
            images=len(planned.train),
            epochs=planned.config.schedule.epochs,
        )._asdict()
        for count in gpus
        if planned.config.optimizer.batch_size % (count * planned.config.parts) == 0
    ]


def table(planned: Launch, cluster: scaling.Cluster, found: Sequence[dict[str, Any]]) -> str:
    """The outlooks for people, with the rates that they rest on."""
    lines = [
        f"one GPU {cluster.images_per_second:,.0f} images/s; one core decodes "
        f"{cluster.loader_images_per_second:,.0f} images/s; {cluster.bytes_per_image / 1e3:,.0f} "
        f"KB an image; links {cluster.link * 8 / 1e9:g} Gbit/s, {cluster.gpus_per_machine} GPUs "
        f"and {cluster.cores_per_gpu * cluster.gpus_per_machine:g} cores a machine; storage "
        f"{cluster.storage / 1e6:,.0f} MB/s; a machine fails every "
        f"{cluster.days_between_failures:g} days",
        f"batch {planned.config.optimizer.batch_size:,}; the model is in docs/scaling.md",
        HEADINGS,
    ]
    lines += [
        f"{row['gpus']:>4} {1e3 * row['step']:>9,.1f} {1e3 * row['all_reduce']:>11.1f} "
        f"{1e3 * row['exposed']:>8.1f} {row['images_per_second']:>9,.0f} "
        f"{100 * row['efficiency']:>9.0f} % {row['cores']:>6,.0f} {row['storage'] / 1e6:>10,.0f} "
        f"{row['hours']:>9,.1f} {row['checkpoint_minutes']:>8,.0f} min {100 * row['lost']:>4.1f} %"
        f"  {row['bottleneck']}"
        for row in found
    ]
    return "\n".join(lines)
