"""How a training run would go on more GPUs: a model of the step, and what limits it.

The formulas and their sources are in docs/scaling.md. No torch.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

GRADIENT_BYTES = 13_385_816 * 4  # with heads, 1,000 classes, float32
_BACKWARD = 2 / 3  # of a step: two of its three passes of multiplications
_LAST_BUCKET = 1 / 3  # of the gradients: the stem's and first blocks', with nothing left to hide it


@dataclass(frozen=True)
class Cluster:
    """What the machines can do. Rates are per second; the links' and storage's in bytes."""

    images_per_second: float  # of one GPU that waits for nothing
    loader_images_per_second: float  # of one core
    bytes_per_image: float
    gpus_per_machine: int = 8
    link: float = 25e9 / 8  # between machines, each way: 25 Gbit/s
    inside: float = 200e9  # between the GPUs of one machine
    latency: float = 20e-6  # of one message, seconds
    cores_per_gpu: float = 8
    storage: float = 2e9  # of the file system, for all machines together
    checkpoint_seconds: float = 0.05  # that training stands still for one
    restart_seconds: float = 120.0
    days_between_failures: float = 30.0  # of one machine


class Known(NamedTuple):
    """What the user knows better than the defaults of a Cluster; None for what they do not."""

    images_per_second: float | None = None
    link: float | None = None  # Gbit/s
    storage: float | None = None  # MB/s
    failures: float | None = None  # days between those of a machine

    def added_to(self, cluster: Cluster) -> Cluster:
        return replace(
            cluster,
            images_per_second=self.images_per_second or cluster.images_per_second,
            link=self.link * 1e9 / 8 if self.link else cluster.link,
            storage=self.storage * 1e6 if self.storage else cluster.storage,
            days_between_failures=self.failures or cluster.days_between_failures,
        )


class Outlook(NamedTuple):
    """A run on `gpus`. Times in seconds unless their name says otherwise."""

    gpus: int
    step: float
    compute: float
    all_reduce: float
    exposed: float  # of the all-reduce: what the backward pass does not hide
    images_per_second: float
    efficiency: float  # against as many GPUs that need no one
    cores: float  # to decode for all GPUs
    storage: float  # bytes a second
    hours: float  # to train, failures included
    checkpoint_minutes: float  # the best interval between checkpoints
    lost: float  # share of the time lost to checkpoints, failures and restarts
    bottleneck: str


def ring_all_reduce(bytes_: float, ranks: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce: 2 (n-1)/n of the bytes pass each link, in 2 (n-1) messages.

    Patarasuk & Yuan (2009).
    """
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * bytes_ / bandwidth + 2 * (ranks - 1) * latency


def outlook(cluster: Cluster, gpus: int, *, batch_size: int, images: int, epochs: int) -> Outlook:
    """How training `epochs` of `images` in global batches of `batch_size` goes on `gpus` GPUs."""
    compute = batch_size / gpus / cluster.images_per_second
    across = gpus > cluster.gpus_per_machine
    bandwidth = cluster.link if across else cluster.inside
    all_reduce = ring_all_reduce(GRADIENT_BYTES, gpus, bandwidth, cluster.latency)
    # Buckets travel while the backward pass goes on; the last one has nothing left to hide behind.
    exposed = max(all_reduce - _BACKWARD * compute, _LAST_BUCKET * all_reduce)
    loading = batch_size / (cluster.loader_images_per_second * cluster.cores_per_gpu * gpus)
    reading = batch_size * cluster.bytes_per_image / cluster.storage
    times = {
        "GPUs": compute,
        "all-reduce": exposed,
        "loader cores": loading,
        "storage": reading,
    }
    step = max(compute + exposed, loading, reading)
    waits = {"loader cores": loading, "storage": reading}
    slowest = max(waits, key=lambda name: waits[name])
    if waits[slowest] > compute + exposed:
        bottleneck = slowest
    else:
        bottleneck = "GPUs" if times["GPUs"] >= times["all-reduce"] else "all-reduce"
    rate = batch_size / step
    between = cluster.days_between_failures * 86_400 / math.ceil(gpus / cluster.gpus_per_machine)
    interval = math.sqrt(2 * cluster.checkpoint_seconds * between)
    lost = cluster.checkpoint_seconds / interval
    lost += (interval / 2 + cluster.restart_seconds) / between
    return Outlook(
        gpus=gpus,
        step=step,
        compute=compute,
        all_reduce=all_reduce,
        exposed=exposed,
        images_per_second=rate,
        efficiency=rate / (gpus * cluster.images_per_second),
        cores=rate / cluster.loader_images_per_second,
        storage=rate * cluster.bytes_per_image,
        hours=images // batch_size * epochs * step / (1 - lost) / 3600,
        checkpoint_minutes=interval / 60,
        lost=lost,
        bottleneck=bottleneck,
    )
