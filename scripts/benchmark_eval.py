"""Time the evaluation of GoogLeNet: ours against torchvision's network.

    python scripts/benchmark_eval.py [--size 224 --batch 64] [--rounds 7] [--json]

Each contender is a process of its own; they take turns, and the figures are medians.

- `torchvision_fp32`: torchvision's network as one writes it down, eager, in float32
- `torchvision_best`: the same in bfloat16 autocast where the device is good at it, channels_last
- `ours`: the network that `evaluate` makes of a trained one, with pixels normalised and
  probabilities taken
- `ours_compiled`: the same with `--compile yes`; `start` is when it was compiled

All run in the same number of threads, on random images that are in memory already. `peak_share` is
the part of the device's speed in plain matrix products that `ours` needs, timed in the same rounds.
"""

from collections.abc import Callable

import contenders
import torch
import torchvision

from googlenet_train.evaluate import Setting, probabilities, with_weights
from googlenet_train.machine import allocator
from googlenet_train.machine import device as devices
from googlenet_train.model.googlenet import GoogLeNet

NAMES = ("torchvision_fp32", "torchvision_best", "ours", "ours_compiled")
CLASSES = 1000


def contender(name: str, size: int, batch: int, seconds: float) -> contenders.Round:
    if name.startswith("ours"):
        allocator.keep_freed_memory()  # as the command does
    device = devices.choose("auto").device
    precision = devices.good_precision(device)
    torch.manual_seed(0)
    if name == "peak":
        return contenders.matrix_product(device, devices.DTYPES[precision])
    if name.startswith("ours"):
        devices.prepare(device)
        work = ours(size, batch, device, precision, compiled=name == "ours_compiled")
    else:
        best = name == "torchvision_best"
        torch.backends.cudnn.benchmark = best
        work = torchvisions(size, batch, device, precision if best else "fp32", best)
    return contenders.timed(work, device, seconds, batch, batch * flops_an_image(size))


def flops_an_image(size: int) -> int:
    """Operations of the network on one image; the paper's, for every contender."""
    model = GoogLeNet(CLASSES, aux_logits=False).to("meta").eval()
    with torch.no_grad():
        return contenders.flops_of(lambda: model(torch.empty(1, 3, size, size, device="meta")))


def ours(
    size: int, batch: int, device: torch.device, precision: str, compiled: bool
) -> Callable[[], object]:
    model = GoogLeNet(CLASSES).to(device).to(memory_format=torch.channels_last).eval()
    setting = Setting(
        device, precision, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), batch, workers=0
    )
    network = with_weights(model, None, precision, setting.at_once(batch) if compiled else 0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    return lambda: probabilities(network, pixels, setting)


def torchvisions(
    size: int, batch: int, device: torch.device, precision: str, best: bool
) -> Callable[[], object]:
    layout = torch.channels_last if best else torch.contiguous_format
    model = torchvision.models.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False)
    model = model.to(device).to(memory_format=layout).eval()
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)

    @torch.inference_mode()
    def work() -> object:
        with devices.autocast(device, precision):
            return model(images)

    return work


if __name__ == "__main__":
    contenders.main(__file__, __doc__, NAMES, contender, batch=64)
