"""`optimizer.accumulate: auto`: the fewest parts of a batch with which a step fits in memory.

Steps on made-up images of the schedule's largest size, in a session of their own that is thrown
away: no weight, no random number and no file of the run is touched. Each rank works by itself, and
all take the most parts that any of them needs.
"""

import contextlib
import gc
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from googlenet_train import checkpoint, distributed
from googlenet_train.config import text as config_text
from googlenet_train.data import order
from googlenet_train.data.loader import Batch
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine import allocator, memory
from googlenet_train.machine import device as devices
from googlenet_train.machine.memory import gigabytes
from googlenet_train.machine.out_of_memory import is_out_of_memory
from googlenet_train.run.launch import Launch
from googlenet_train.run.opening import open_session
from googlenet_train.run.session import Session
from googlenet_train.run.state import capture
from googlenet_train.train import take_step

# Of the memory that is free. On a GPU the rest is for what the ranks exchange; on the host for
# other programs, and for what a measure of few images misses.
_GPU_SHARE, _HOST_SHARE = 0.95, 0.8
_MEASURED = (2, 8)  # images: what a step takes grows with them in a straight line


class Choice(NamedTuple):
    parts: int
    why: str


def fitted(launch: Launch) -> tuple[Launch, str | None]:
    """`launch` with `optimizer.accumulate: auto` as a number, and a line about it.

    Raises UserError (usage) where no number makes a step fit on a GPU.
    """
    config = launch.config
    if config.optimizer.accumulate != "auto":
        return launch, None
    mixes = bool(config.augment.mixup or config.augment.cutmix)
    batch, ranks = config.optimizer.batch_size, distributed.world_size()
    possible = order.possible_parts(batch, ranks, pairs=mixes)
    sizes = [batch // ranks // parts for parts in possible]
    room = distributed.least_known(memory.available())
    if room is not None:
        room //= distributed.local_world_size()
    choice, error = Choice(possible[-1], ""), None
    try:
        with distributed.apart():
            choice = _choose(launch, possible, sizes, room)
    except UserError as raised:
        error = raised
    _give_back()
    distributed.raise_first(error)
    # Of equal numbers the first rank's reason.
    choice = max(distributed.gather(choice), key=lambda found: found.parts)
    images = batch // ranks // choice.parts
    line = f"optimizer.accumulate {choice.parts}, {images} images at once: {choice.why}"
    settled = config_text.resolved(config, {"optimizer.accumulate": choice.parts})
    return replace(launch, config=settled), line


def _choose(
    launch: Launch, possible: Sequence[int], sizes: Sequence[int], room: int | None
) -> Choice:
    kind = devices.choose(launch.config.device.kind).device.type
    if kind == "cpu" and room is None:
        return Choice(possible[0], "this system does not say how much memory is free")
    if kind == "cpu" and launch.config.data.cache != "none":
        room = room and room // 2  # photos may take the other half
    with _trial_session(launch) as run:
        if kind == "cpu":
            assert room is not None
            return by_measure(run, possible, sizes, room)
        return by_trying(run, possible, sizes)


@contextlib.contextmanager
def _trial_session(launch: Launch) -> Iterator[Session]:
    """A session like the run's own, at step 0, in a folder that does not stay. It says nothing."""
    config = config_text.resolved(
        launch.config,
        # Compiling takes minutes, and what it makes takes no more memory.
        # SyncBatchNorm meets the other ranks, which try other sizes, and takes no more either.
        {
            "data.cache": "none",
            "optimizer.accumulate": 1,
            "device.compile": False,
            "distributed.sync_batchnorm": False,
        },
    )
    device = devices.choose(config.device.kind).device
    gpus = [device] if device.type == "cuda" else []
    with (
        tempfile.TemporaryDirectory(prefix="googlenet-train-fit-") as folder,
        torch.random.fork_rng(devices=gpus),
    ):
        before = replace(launch, config=config, folder=Path(folder), resume=False)
        with contextlib.redirect_stderr(io.StringIO()):  # the run itself will say it
            run = open_session(before)
        try:
            run.model.train()
            yield run
        finally:
            run.close()


def by_measure(run: Session, possible: Sequence[int], sizes: Sequence[int], room: int) -> Choice:
    """The first of the `possible` numbers of parts whose images (`sizes`) fit in `room` bytes.

    On the CPU: there a step that does not fit may end the whole process. If none does, the last.
    """
    needed = step_bytes(run)
    share = int(_HOST_SHARE * room)
    found = [(parts, needed(images)) for parts, images in zip(possible, sizes, strict=True)]
    first = next((i for i, (_, size) in enumerate(found) if size <= share), None)
    had = f"of {gigabytes(share)} GB to be had ({100 * _HOST_SHARE:.0f} % of what is free)"
    if first is None:
        parts, size = found[-1]
        return Choice(parts, f"may not fit all the same, it takes {gigabytes(size)} {had}")
    parts, size = found[first]
    why = f"takes {gigabytes(size)} {had}"
    if first > 0:
        fewer, more = found[first - 1]
        why += f"; {fewer} would take {gigabytes(more)}"
    return Choice(parts, why)


def by_trying(run: Session, possible: Sequence[int], sizes: Sequence[int]) -> Choice:
    """The first of the `possible` numbers of parts with which a step on the GPU succeeds."""
    name, failed = run.choice.why, None
    with _a_little_spare(run.device):
        for parts, images in zip(possible, sizes, strict=True):
            if _fits(run, images, parts):
                why = f"fits in the memory of {name}"
                return Choice(parts, why + (f"; {failed} images at once do not" if failed else ""))
            run.optimizer.zero_grad(set_to_none=True)
            _give_back()
            failed = images
    raise UserError(
        f"not even {sizes[-1]} images of {run.config.largest_side} px at once fit in the memory of "
        f"{name}. Lower data.image_size, or free the device's memory.",
        ExitCode.USAGE,
    )


def _fits(run: Session, images: int, parts: int) -> bool:
    try:
        ahead = torch.empty(_bytes_ahead(run) * images, dtype=torch.uint8, device=run.device)
        made_up_step(run, images, min(parts, 2))  # the second part meets the first one's gradients
        del ahead
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


@contextlib.contextmanager
def _a_little_spare(device: torch.device) -> Iterator[None]:
    """Leave a part of a CUDA device's free memory alone."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    ours = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(_GPU_SHARE * (free + ours) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _give_back() -> None:
    """Return to the device what a step has left: nothing else holds its tensors any more."""
    gc.collect()
    allocator.give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def made_up_step(run: Session, images: int, parts: int) -> None:
    """One optimizer step on so many parts of so many images of the largest size."""
    side = run.config.largest_side
    image = torch.arange(3 * side * side).remainder(251).to(torch.uint8).view(1, 3, side, side)
    batch = Batch(
        image.repeat(images, 1, 1, 1).contiguous(memory_format=torch.channels_last),
        torch.zeros(images, dtype=torch.int64),
    )
    run.step = 0
    take_step(run, [batch] * parts, images * parts)
    run.guard.counts.tolist()  # waits for the device


def step_bytes(run: Session) -> Callable[[int], int]:
    """Bytes of the host's memory that training takes on the CPU with so many images at once.

    From two steps on few images: what stays of their activations, and the weights' gradients; then
    the weights, momentum and averages, once more for a checkpoint that is being written, and the
    batches made ahead.
    """
    allocator.give_back()
    memory.forget_peak()
    before = memory.peak() or 0
    points: list[tuple[int, int]] = []
    for images in _MEASURED:
        made_up_step(run, images, 2)  # the second part meets the first one's gradients
        points.append((images, (memory.peak() or 0) - before))
    (few, least), (many, most) = points
    slope = max(0, most - least) / (many - few)
    kept = checkpoint.size(capture(run))

    def needed(images: int) -> int:
        return round(2 * kept + least + slope * (images - few) + _bytes_ahead(run) * images)

    return needed


def _bytes_ahead(run: Session) -> int:
    """Of the batches made ahead, for each image of one: where training computes, they wait."""
    return (int(run.config.data.workers) + 1) * 3 * run.config.largest_side**2
