"""Which device trains, why, and how: precision, threads, determinism."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from googlenet_train import distributed
from googlenet_train.errors import ExitCode, UserError

_SMALL_TURING = re.compile(r"GTX 16|MX[45]50|\bT(400|500|550|600|1000|1200|2000)\b")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Choice(NamedTuple):
    device: torch.device
    why: str
    warning: str | None = None


def choose(kind: str, asked: str = "device.kind=") -> Choice:
    """The device for `device.kind` auto, cpu, cuda or mps, and the reason in words.

    `asked` is how a person asks for a kind. Raises UserError (usage) where it cannot be had.
    """
    cuda_missing = _why_no_cuda()
    if kind == "cuda" and cuda_missing:
        raise UserError(
            f"{asked}cuda: {cuda_missing}. Mend that, or choose another {asked.rstrip(' =')}.",
            ExitCode.USAGE,
        )
    if kind in ("auto", "cuda") and cuda_missing is None:
        local_rank, count = distributed.local_rank(), torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(
                f"torchrun started {distributed.local_world_size()} ranks here, but there "
                f"{'are' if count > 1 else 'is'} {count} GPU{'s' if count > 1 else ''}. Use "
                f"--nproc-per-node {count}.",
                ExitCode.DISTRIBUTED,
            )
        name = torch.cuda.get_device_name(local_rank)
        return Choice(torch.device("cuda", local_rank), f"{name}, CUDA {torch.version.cuda}")
    mps = torch.backends.mps.is_available()
    if kind == "mps" and not mps:
        raise UserError(
            f"{asked}mps: this PyTorch finds no Apple GPU. Use {asked}auto.",
            ExitCode.USAGE,
        )
    if kind == "mps" or (kind == "auto" and mps):
        return Choice(torch.device("mps"), "Apple GPU")
    if kind == "cpu":
        return Choice(torch.device("cpu"), "CPU (device.kind: cpu)")
    # A machine that has a GPU and trains on its CPU would take a hundred times as long: say so.
    warning = cuda_missing if cuda_missing and _driver_present() else None
    return Choice(torch.device("cpu"), f"CPU ({cuda_missing})", warning)


def _driver_present() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _why_no_cuda() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        if _driver_present():
            return (
                "this PyTorch has no CUDA, an NVIDIA driver is present; "
                "install the CUDA build of torch"
            )
        return "this PyTorch has no CUDA, and no NVIDIA driver is present"
    if _driver_present():
        return (
            f"an NVIDIA driver is present, but this PyTorch (built for CUDA {torch.version.cuda}) "
            "finds no usable GPU; check nvidia-smi and the driver's version"
        )
    return "no NVIDIA GPU found"


def native_precisions(device: torch.device) -> tuple[str, ...]:
    """Those of `bf16` and `fp16` that the device has sound arithmetic for, the better first.

    bfloat16 has float32's range, so it needs no loss scale; Ampere and later have both.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return ("bf16", "fp16")
        # Turing's small chips have no tensor cores, and many report NaN from them in float16
        # (pytorch/pytorch issues 58123 and 77955).
        sound = not _SMALL_TURING.search(torch.cuda.get_device_name(device))
        return ("fp16",) if capability >= (7, 0) and sound else ()
    if device.type == "cpu":
        # Elsewhere bfloat16 is emulated: 13 times slower than float32 on AVX2 alone.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return ("bf16",) if native else ()
    return ()


def emulated(precision: str, device: torch.device) -> str | None:
    """What a person should know of a `precision` that the device only imitates; else None."""
    if device.type == "mps" or precision in ("fp32", *native_precisions(device)):
        return None
    return (
        f"device.precision {precision} is no number that this device multiplies: it is imitated, "
        "many times slower. auto takes one that it does"
    )


def good_precision(device: torch.device) -> str:
    """What `device.precision: auto` means: the native one, where it is faster than float32.

    A CPU is asked by a trial. With AMX a convolution in bfloat16 takes a ninth of the time; where
    the kernel or a virtual machine keeps AMX back, AVX-512's bfloat16 took 1.7 times float32's.
    """
    precision = (*native_precisions(device), "fp32")[0]
    if device.type == "cpu" and precision != "fp32":
        trial = {name: _seconds_of_convolution(DTYPES[name]) for name in (precision, "fp32")}
        return min(trial, key=trial.__getitem__)
    return precision


@torch.no_grad()
def _seconds_of_convolution(dtype: torch.dtype, tries: int = 5) -> float:
    """Of one core: the best of `tries`, after one that packs and plans; 10 ms in float32.

    Time on the processor, in this thread alone: on a busy machine a run must choose the same.
    """
    images = torch.ones(8, 128, 28, 28, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weights = torch.ones(128, 128, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(1 + tries):
            start = time.thread_time()
            nn.functional.conv2d(images, weights, padding=1)
            seconds.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(seconds[1:])


def autocast(device: torch.device, precision: str) -> torch.autocast:
    enabled = precision != "fp32"
    return torch.autocast(device.type, DTYPES[precision] if enabled else None, enabled=enabled)


def threads_per_rank() -> int:
    """Intra-op threads for `device.threads: auto`: PyTorch's own choice; of a rank, its share.

    torchrun gives each rank one thread where OMP_NUM_THREADS is not set: safe, and most of the
    machine idle. The ranks of one machine share its cores evenly instead; all take the least.
    """
    if not distributed.in_group():
        return torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return distributed.least(torch.get_num_threads())
    return distributed.least(distributed.cores())


def prepare(
    device: torch.device,
    *,
    threads: int | None = None,
    deterministic: bool = False,
    autotune: bool = True,
) -> None:
    """Set the process up: intra-op threads, and deterministic algorithms (always on the CPU).

    With `autotune` cuDNN tries several ways at the first convolution of each shape, for seconds
    in all: good where many batches follow.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = autotune and not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # TF32. Of the two ways to say it the older: after the newer one (`fp32_precision`) the
        # questions of the older, which torch.compile asks, are refused (torch 2.14).
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.use_deterministic_algorithms(deterministic or device.type == "cpu")
    # It fills every new tensor with NaN to find reads of raw memory: a debugging aid, and slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def topology(
    device: torch.device, threads: int, ranks: int, *, compiled: bool
) -> dict[str, str | int]:
    """What must be the same for a resumed run to be bit-identical."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        hardware = f"CPU {torch.backends.cpu.get_cpu_capability()}"
    else:
        hardware = device.type
    return {
        "hardware": hardware,
        "threads": threads,
        "ranks": ranks,
        "compiled": compiled,
        "torch": torch.__version__.split("+")[0],
    }
