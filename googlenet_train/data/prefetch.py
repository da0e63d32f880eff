"""Batches travel to a GPU while it computes the steps before them, on a stream of their own.

On a CPU there is nothing to do. None of this waits on the host.
"""

import torch
from torch import Tensor

from googlenet_train.data.loader import Batch, Copied, pinned


def stream_for(device: torch.device) -> torch.cuda.Stream | None:
    """The stream that all copies to `device` share; None for a device that shares our memory."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def send(batch: Batch, stream: torch.cuda.Stream | None) -> Batch:
    """The batch with its copy on the way. Threads may call this, each for batches of its own.

    What is on the host stays there: weights of classes, pictures and counts are made from it.
    """
    if stream is None:
        return batch
    batch = pinned(batch)  # from other memory the copy would wait
    second = batch.second
    with torch.cuda.stream(stream):
        images = batch.images.to(stream.device, non_blocking=True)
        labels = batch.labels.to(stream.device, non_blocking=True)
        if second is not None:
            second = (
                second[0].to(stream.device, non_blocking=True),
                second[1].to(stream.device, non_blocking=True),
            )
        return batch._replace(copied=Copied(images, labels, second, stream.record_event()))


def receive(
    batch: Batch, device: torch.device
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """The batch's images (still bytes), labels and second labels on `device`."""
    if batch.copied is None:
        second = batch.second
        return (
            batch.images.to(device, non_blocking=True),
            batch.labels.to(device, non_blocking=True),
            second
            and (second[0].to(device, non_blocking=True), second[1].to(device, non_blocking=True)),
        )
    images, labels, second, done = batch.copied
    now = torch.cuda.current_stream(device)
    now.wait_event(done)  # the device waits, not the host
    for tensor in (images, labels, *(second or ())):
        tensor.record_stream(now)  # its memory is the other stream's, and in use here until then
    return images, labels, second
