"""One network on many ranks: DistributedDataParallel, and what it leaves to its user."""

from contextlib import AbstractContextManager
from inspect import signature
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from googlenet_train import distributed, numeric
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import device as devices

Network = TypeVar("Network", bound=nn.Module)


def with_sync_batchnorm(model: Network, device: torch.device) -> Network:
    """`model` normalising over the images of all ranks. Raises UserError (usage) off the GPU."""
    if device.type != "cuda":
        raise UserError(
            "distributed.sync_batchnorm: true works on GPUs only, and this run trains on "
            f"{device.type}. Write false.",
            ExitCode.USAGE,
        )
    return cast(
        Network,
        nn.SyncBatchNorm.convert_sync_batchnorm(model),  # type: ignore[no-untyped-call]
    )


def spread(
    model: nn.Module, guard: numeric.Guard, device: torch.device, size: int, accumulate: int
) -> nn.Module:
    """`model` as the ranks train it: its backward pass ends with the mean of all ranks' gradients.

    Alone it is the model itself. BatchNorm's statistics are not exchanged here but by
    `numeric.settle`, after every step, so that a save or an evaluation has nothing left to agree.
    """
    if not distributed.in_group():
        return model
    known = signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    with distributed.waiting():
        network = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **cast(dict[str, Any], {buffers: False}),  # torch 2.14 gave it another name
            static_graph=accumulate == 1,  # with more it would count the unexchanged passes too
        )
    # After its first backward passes (one, or two where the graph is static) it lays the gradients
    # out anew, and the last bit of a sum over three or more ranks depends on where in that layout a
    # number stands. So those are passes without images: then every start is alike.
    for _ in range(2):
        take_part(network, guard, device, size, "fp32")
    for parameter in model.parameters():
        parameter.grad = None
    return network


def exchanging(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients travel once a step, with the `last` of its micro-batches."""
    if last or not isinstance(network, DistributedDataParallel):
        return distributed.waiting()
    return cast(AbstractContextManager[None], network.no_sync())


def take_part(
    network: nn.Module,
    guard: numeric.Guard,
    device: torch.device,
    size: int,
    precision: str,
    images: Tensor | None = None,
) -> None:
    """Exchange gradients with the other ranks although this one has no image to learn from.

    `images`, normalised, are what the network is shown in their place; whichever, nothing changes.
    """
    before = numeric.snapshot(guard)
    if images is None:
        images = torch.zeros(2, 3, size, size, device=device)
    with distributed.waiting(), devices.autocast(device, precision):
        outputs = network(images)
    logits = (outputs,) if isinstance(outputs, Tensor) else outputs
    nothing = torch.stack([head.float().sum() for head in logits if head is not None]).sum() * 0
    with distributed.waiting():
        torch.autograd.backward(nothing)
    numeric.put_back(guard, before)
