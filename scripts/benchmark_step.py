"""Time a training step of GoogLeNet: ours against torchvision's network.

    python scripts/benchmark_step.py [--size 224 --batch 32] [--rounds 7] [--json]

Each contender is a process of its own; they take turns, and the figures are medians.

- `torchvision_fp32`: torchvision's network as one writes it down: float32, the heads' losses added
  by hand, SGD with momentum
- `torchvision_best`: the same in its best plain settings: bfloat16 autocast where the device is
  good at it, channels_last, fused SGD, on a GPU cuDNN's search for the fastest convolutions
- `ours`: `train_step` as a run takes it, with the normalisation of the pixels, the guard against
  NaN, the sums for the log and the average of the weights, which the others do without

All train in the same number of threads, on random images that are in memory already. `peak_share`
is the part of the device's speed in plain matrix products, timed in the same rounds and in ours'
precision, that the convolutions and linear layers of `ours` need.
"""

from collections.abc import Callable

import contenders
import torch
import torchvision
from torch.nn import functional as F

from googlenet_train import ema, numeric, optim
from googlenet_train.data import prefetch
from googlenet_train.data.loader import Batch, pinned
from googlenet_train.machine import allocator
from googlenet_train.machine import device as devices
from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.run.session import WINDOW
from googlenet_train.train import train_step

NAMES = ("torchvision_fp32", "torchvision_best", "ours")
CLASSES = 1000


def contender(name: str, size: int, batch: int, seconds: float) -> contenders.Round:
    if name == "ours":
        allocator.keep_freed_memory()  # as the command does
    device = devices.choose("auto").device
    precision = devices.good_precision(device)
    torch.manual_seed(0)
    if name == "peak":
        return contenders.matrix_product(device, devices.DTYPES[precision])
    if name == "ours":
        devices.prepare(device)
        step = our_step(size, batch, device, precision)
    else:
        best = name == "torchvision_best"
        torch.backends.cudnn.benchmark = best
        step = torchvision_step(size, batch, device, precision if best else "fp32", best)
    return contenders.timed(step, device, seconds, batch, contenders.flops_of(step))


def our_step(size: int, batch: int, device: torch.device, precision: str) -> Callable[[], None]:
    """A step of ours, ready to be called again and again."""
    model = GoogLeNet(CLASSES).to(device).to(memory_format=torch.channels_last)
    optimizer = optim.build_sgd(
        model, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=device.type in ("cpu", "cuda")
    )
    live = model.state_dict()
    averages = {0.9999: ema.start(live)}
    window = torch.zeros(len(WINDOW), device=device)
    guard = numeric.new_guard(model, window, limit=0, precision=precision)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    images = Batch(pixels, torch.randint(0, CLASSES, (batch,)))
    stream = prefetch.stream_for(device)
    if device.type == "cuda":
        images = pinned(images)  # loader threads do that
    taken = 0

    def step() -> None:
        nonlocal taken
        train_step(
            model,
            optimizer,
            averages,
            live,
            [prefetch.send(images, stream)],
            window,
            guard,
            step=taken,
            count=batch,
            lr=0.01,
            seed=0,
            device=device,
            precision=precision,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            channels_last=True,
            aux_weight=0.3,
            label_smoothing=0.0,
            clip_norm=None,
            ema_every=1,
        )
        taken += 1

    return step


def torchvision_step(
    size: int, batch: int, device: torch.device, precision: str, best: bool
) -> Callable[[], None]:
    """A step of torchvision's network as its users write it; `best` in its best plain settings."""
    layout = torch.channels_last if best else torch.contiguous_format
    model = torchvision.models.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False)
    model = model.to(device).to(memory_format=layout)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=best or None
    )
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (batch,), device=device)

    def step() -> None:
        with devices.autocast(device, precision):
            out = model(images)
            heads = F.cross_entropy(out.aux_logits1, labels) + F.cross_entropy(
                out.aux_logits2, labels
            )
            loss = F.cross_entropy(out.logits, labels) + 0.3 * heads
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    contenders.main(__file__, __doc__, NAMES, contender, batch=32)
