"""Batches travel to a GPU while it computes the steps before them, on a stream of their own.

On a CPU there is nothing to do. None of this waits on the host.
"""

import torch
from torch import Tensor

from googlenet_train.data.loader import Batch, Copied, pinned, travel

Tensors = tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]  # images, labels, second labels


def stream_for(device: torch.device) -> torch.cuda.Stream | None:
    """The stream that all copies to `device` share; None for a device that shares our memory."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def send(batch: Batch, stream: torch.cuda.Stream | None) -> Batch:
    """The batch with its copy on the way. Threads may call this, each for batches of its own.

    What is on the host stays there: weights of classes, pictures and counts are made from it.
    """
    if stream is None:
        return batch
    # A thread begins on GPU 0, and leaving the stream's context goes back to it: each rank of a
    # machine would hold some of that GPU's memory.
    torch.cuda.set_device(stream.device)
    batch = pinned(batch)  # from other memory the copy would wait
    with torch.cuda.stream(stream):
        copies = _on(stream.device, batch)
        return batch._replace(copied=Copied(*copies, stream.record_event()))


def receive(batch: Batch, device: torch.device) -> Tensors:
    """The batch's images (still bytes), labels and second labels on `device`."""
    if batch.copied is None:
        return _on(device, batch)
    images, labels, second, done = batch.copied
    now = torch.cuda.current_stream(device)
    now.wait_event(done)  # the device waits, not the host
    for tensor in (images, labels, *(second or ())):
        tensor.record_stream(now)  # its memory is the other stream's, and in use here until then
    return images, labels, second


def _on(device: torch.device, batch: Batch) -> Tensors:
    images, labels, *second = (
        travel(tensor, device) for tensor in (batch.images, batch.labels, *(batch.second or ()))
    )
    return images, labels, (second[0], second[1]) if second else None
