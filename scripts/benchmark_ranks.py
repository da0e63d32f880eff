"""Time what training together costs: DDP and the exchange of gradients, as a share of the step.

    torchrun --nproc-per-node 2 scripts/benchmark_ranks.py [--size 64 --batch 16] [--json]

Every rank trains on `batch` images of its own, on its GPU over NCCL or on the CPU over Gloo, in
turns: `alone` is the plain network without any exchange; `not_exchanged` is inside
DistributedDataParallel, whose gradients stay at home; `together` exchanges gradients and BatchNorm
statistics as training does. Medians of `rounds` rounds, ms a step. `all_reduce` times the exchange
of as many bytes as the gradients have by itself, and `predicted` is scaling.py's ring formula with
the bandwidth and latency that `fit` small and large messages gave.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from googlenet_train import distributed, numeric, parallel
from googlenet_train.checks import scaling
from googlenet_train.loss import googlenet_loss
from googlenet_train.machine import device as devices
from googlenet_train.model.googlenet import GoogLeNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=16, help="images a rank")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads a rank")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    given = parser.parse_args()
    with distributed.group(120):
        device = devices.choose("auto").device
        devices.prepare(device, threads=given.threads)
        results = measure(device, given.size, given.batch, given.rounds)
        if distributed.rank() == 0:
            for name, value in results.items():
                print(f"{name:<16}{value:>12.4g}")
            if given.json:
                print(json.dumps(results))


def measure(device: torch.device, size: int, batch: int, rounds: int) -> dict[str, float]:
    """The medians, on rank 0 those of all ranks' slowest."""
    torch.manual_seed(0)
    model = GoogLeNet(1000).to(device).to(memory_format=torch.channels_last)
    guard = numeric.new_guard(model, torch.zeros(9, device=device), 0)
    together = parallel.spread(model, guard, device, size, accumulate=2)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    good = torch.zeros((), dtype=torch.bool, device=device)

    def step(network: nn.Module, exchange: bool) -> None:
        before = numeric.snapshot(guard)
        with parallel.exchanging(network, last=exchange):
            torch.autograd.backward(googlenet_loss(network(images), labels).total)
        if exchange:
            numeric.settle(guard, before, good, 1 / distributed.world_size())
        for parameter in model.parameters():
            parameter.grad = None

    contenders = {
        "alone": lambda: step(model, False),
        "not_exchanged": lambda: step(together, False),
        "together": lambda: step(together, True),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):  # the first one warms up
        for name, contender in contenders.items():
            times[name].append(_slowest(contender, device))
    results = {f"{name}_ms": 1000 * statistics.median(t[1:]) for name, t in times.items()}
    results["ddp_share"] = 1 - results["alone_ms"] / results["not_exchanged_ms"]
    results["exchange_share"] = 1 - results["not_exchanged_ms"] / results["together_ms"]
    return results | _all_reduce(device, rounds)


def _all_reduce(device: torch.device, rounds: int) -> dict[str, float]:
    """Its time for the gradients' bytes; the ring's, from messages of other sizes."""
    ranks = distributed.world_size()
    sizes = {
        "small": 1_000,
        "half": scaling.GRADIENT_BYTES // 8,
        "all": scaling.GRADIENT_BYTES // 4,
    }
    seconds = {}
    for name, count in sizes.items():
        numbers = torch.zeros(count, device=device)
        taken = [
            _slowest(partial(distributed.all_reduce_sum, numbers), device) for _ in range(rounds)
        ]
        seconds[name] = statistics.median(taken)
    latency = seconds["small"] / (2 * (ranks - 1))
    moved = 2 * (ranks - 1) / ranks * sizes["half"] * 4
    bandwidth = moved / max(1e-9, seconds["half"] - seconds["small"])
    predicted = scaling.ring_all_reduce(scaling.GRADIENT_BYTES, ranks, bandwidth, latency)
    return {
        "ranks": ranks,
        "all_reduce_ms": 1000 * seconds["all"],
        "predicted_ms": 1000 * predicted,
        "latency_us": 1e6 * latency,
        "bandwidth_MB_s": bandwidth / 1e6,
    }


def _slowest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` took on the rank where it took longest; all begin together."""
    distributed.gather(None)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(distributed.gather(time.perf_counter() - begin))


if __name__ == "__main__":
    main()
