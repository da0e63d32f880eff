"""Time the evaluation of GoogLeNet: ours against torchvision's network.

    python scripts/benchmark_eval.py [--size 224 --batch 64] [--rounds 7] [--json]

Each contender is a process of its own; they take turns, and the figures are medians.

- `torchvision_fp32`: torchvision's network as one writes it down, eager, in float32
- `torchvision_best`: the same in bfloat16 autocast where the device is good at it, channels_last
- `ours`: the network that `evaluate` makes of a trained one, with pixels normalised and
  probabilities taken
- `ours_compiled`: the same with `--compile yes`; `start` is the seconds that compiling took

All run in the same number of threads, on random images that are in memory already. `peak_share` is
the part of the device's speed in plain matrix products that `ours` needs, timed in the same rounds.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import contenders

NAMES = ("torchvision_fp32", "torchvision_best", "ours", "ours_compiled")
CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="a turn takes at least so long")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        contenders.serve(lambda: contender(given.contender, given.size, given.batch, given.seconds))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--contender"]
    results = contenders.race({n: [*command, n] for n in (*NAMES, "peak")}, given.rounds)
    report(results, given.batch, given.json)


def report(results: dict[str, contenders.Results], batch: int, as_json: bool) -> None:
    plain = results["torchvision_fp32"].median("speed")
    peak = results["peak"].median("flops")
    print(f"{'':<18}{'images/s':>10}{'ratio':>8}{'spread':>8}{'peak':>7}{'memory':>10}{'start':>8}")
    for name in NAMES:
        result = results[name]
        speed = result.median("speed")
        print(
            f"{name:<18}{speed:>10.2f}{speed / plain:>8.2f}{result.spread('speed'):>8.0%}"
            f"{result.median('flops') / peak:>7.0%}{result.median('memory') / 2**30:>7.2f} GB"
            f"{result.median('start'):>6.0f} s"
        )
    print(f"matrix product: {peak / 1e9:.0f} GFLOP/s")
    if as_json:
        numbers: dict[str, Any] = {name: results[name].median("speed") for name in NAMES}
        numbers["ours_compiled_start"] = results["ours_compiled"].median("start")
        numbers["peak_share"] = results["ours"].median("flops") / peak
        numbers["memory"] = {name: results[name].median("memory") for name in NAMES}
        numbers["batch"], numbers["rounds"] = batch, len(results["ours"].rounds)
        print(json.dumps(numbers))


def contender(name: str, size: int, batch: int, seconds: float) -> contenders.Round:
    """A turn of `name`: images and operations a second, bytes, seconds of the first batch."""
    if name.startswith("ours"):
        from googlenet_train import allocator

        allocator.keep_freed_memory()  # as the command does
    import torch

    from googlenet_train import device as devices

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
        work = torchvisions(size, batch, device, precision if best else "fp32", best)
    began = time.perf_counter()
    work()
    start = time.perf_counter() - began
    flops = batch * flops_an_image(size)

    def take_turn() -> contenders.Answer:
        took, times = contenders.seconds_of(work, device, at_least=seconds)
        return {
            "speed": batch * times / took,
            "flops": flops * times / took,
            "memory": contenders.peak_memory(device),
            "start": start,
        }

    return take_turn


def flops_an_image(size: int) -> int:
    """Operations of the network on one image; the paper's, for every contender."""
    import torch

    from googlenet_train.model.googlenet import GoogLeNet

    model = GoogLeNet(CLASSES, aux_logits=False).to("meta").eval()
    with torch.no_grad():
        return contenders.flops_of(lambda: model(torch.empty(1, 3, size, size, device="meta")))


def ours(
    size: int, batch: int, device: Any, precision: str, compiled: bool
) -> Callable[[], object]:
    import torch

    from googlenet_train.evaluate import Setting, probabilities, with_weights
    from googlenet_train.model.googlenet import GoogLeNet

    model = GoogLeNet(CLASSES).to(device).to(memory_format=torch.channels_last).eval()
    network = with_weights(model, None, precision, batch if compiled else 0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    setting = Setting(
        device, precision, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), batch, workers=0
    )
    return lambda: probabilities(network, pixels, setting)


def torchvisions(
    size: int, batch: int, device: Any, precision: str, best: bool
) -> Callable[[], object]:
    import torch
    import torchvision

    from googlenet_train import device as devices

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
    main()
