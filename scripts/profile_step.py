"""Where the time of a training step goes, by kind of operation.

    python scripts/profile_step.py [--size 224 --batch 32] [--steps 3] [--rows 25]

It takes the steps of benchmark_step.py's `ours` under PyTorch's profiler, and prints each kind's
share, then the slowest operations with the shapes that they were called with. On the CPU it is the
time of the operations themselves, on a GPU that of its kernels; the profiler itself costs a few per
cent.
"""

import argparse
from collections import Counter
from typing import Any

import torch
from benchmark_step import our_step
from torch.profiler import ProfilerActivity, profile

from googlenet_train.machine import allocator
from googlenet_train.machine import device as devices

# The first kind that has a part of the operation's name.
KINDS = {
    "convolution, forward": ("mkldnn_convolution", "cudnn_convolution", "::convolution_overr"),
    "convolution, backward": ("convolution_backward",),
    "max pooling, forward": ("max_pool2d_with_indices",),
    "batch normalisation": ("batch_norm",),
    "ReLU": ("clamp_min", "threshold_backward", "relu"),
    "optimizer": ("_fused_sgd", "_foreach_sgd"),
    "average of the weights": ("lerp",),
    "linear layers, heads' pools": ("::mm", "::addmm", "::bmm"),
    "concatenation": ("::cat",),
    "sums of gradients": ("::add_", "::add"),
    "filling with zeros": ("::fill_", "::zero_"),
    "copies and casts": ("::copy_", "_foreach_copy_"),
}


def kind_of(name: str) -> str:
    if "max_pool2d" in name and "backward" in name:
        return "max pooling, backward"
    return next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "all else")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=25, help="operations to list")
    given = parser.parse_args()
    allocator.keep_freed_memory()
    device = devices.choose("auto").device
    devices.prepare(device, threads=devices.threads_per_rank())
    precision = devices.good_precision(device)
    step = our_step(given.size, given.batch, device, precision)
    for _ in range(2):
        step()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(given.steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def operations(**grouped: bool) -> list[Any]:
        """What was called. A kernel is listed again by itself, with the time of its caller."""
        found = profiler.key_averages(**grouped)
        return [event for event in found if event.device_type.name == "CPU"]

    def milliseconds(event: Any) -> float:
        own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        return float(getattr(event, own) / 1e3 / given.steps)

    kinds: Counter[str] = Counter()
    for event in operations():
        kinds[kind_of(event.key)] += milliseconds(event)  # type: ignore[assignment]
    total = sum(kinds.values())
    print(f"{total:.0f} ms a step of {given.batch} images at {given.size} px, {precision}")
    for kind, spent in kinds.most_common():
        print(f"  {kind:<28}{spent:>8.1f} ms{spent / total:>6.1%}")
    events = sorted(operations(group_by_input_shape=True), key=milliseconds)
    for event in events[: -given.rows - 1 : -1]:
        shapes = " ".join("x".join(map(str, s)) for s in event.input_shapes[:3] if s)
        print(f"{milliseconds(event):>8.1f} ms  {event.key[:44]:<46}{shapes}")


if __name__ == "__main__":
    main()
