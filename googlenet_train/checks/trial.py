"""The first steps of a run, taken in a temporary folder to see whether they can be taken."""

import itertools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from googlenet_train import checkpoint
from googlenet_train.checks.fitting import fitted
from googlenet_train.data.cache import CachedFiles
from googlenet_train.data.decode import UndecodableImage, decode
from googlenet_train.data.index import Index
from googlenet_train.data.loader import ahead
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Setting, evaluate, of_training
from googlenet_train.machine import allocator, memory
from googlenet_train.machine import device as devices
from googlenet_train.run import shortage
from googlenet_train.run.launch import Launch
from googlenet_train.run.opening import open_session
from googlenet_train.run.session import Session
from googlenet_train.run.state import capture
from googlenet_train.train import batches_to_come, take_step

MOST_SECONDS = 10.0  # for decoding photos of one data set, and for taking more than one step
# Of the state, while it is written: as it was, and in the file's order or read back from the disk.
_COPIES = 2
STEPS = 4  # that count, where there is time for them


class Memory(NamedTuple):
    """Bytes at the peak of a run: of the process on the CPU, of the device's memory on a GPU."""

    training: int  # in a step with the largest images
    evaluation: int
    checkpoint: int  # while one is written beside a step
    room: int | None  # that could be had; None: unknown

    @property
    def peak(self) -> int:
        return max(self.training + self.checkpoint, self.evaluation)


class Trial(NamedTuple):
    device: str
    slow: str | None  # what should be known of the precision
    fitting: str | None  # how optimizer.accumulate: auto was settled
    step: float  # seconds, with the largest images
    training: float  # seconds of all steps
    evaluation: float  # seconds, of all of data.val
    evaluations: int
    checkpoint: int  # bytes
    pause: float  # seconds that training stands still for one
    memory: Memory | None  # None where the device or the system does not say


def decode_some(index: Index, workers: int, *, everything: bool) -> list[tuple[str, str]]:
    """(name, what is wrong with it or "") of photos from all over the data set, decoded wholly.

    Ends after MOST_SECONDS, unless `everything` is to be decoded.
    """
    mixed = np.random.default_rng(0).permutation(len(index))

    def look(i: int) -> tuple[str, str]:
        try:
            decode(index.read(i))
        except (UndecodableImage, UserError) as error:
            return index.name(i), str(error)
        return index.name(i), ""

    started, looked = time.monotonic(), []
    for result in ahead(look, mixed.tolist(), workers):
        looked.append(result)
        if not everything and time.monotonic() - started > MOST_SECONDS:
            break
    return looked


def first_steps(launch: Launch) -> Trial:
    """Take the first steps of the run as training would, and time them. Nothing of it stays.

    Raises UserError where training would stop in them: usage where memory is short, numeric where
    the loss is not finite, data where an image cannot be read.
    """
    launch, line = fitted(launch)
    with tempfile.TemporaryDirectory(prefix="googlenet-train-check-") as folder:
        run = open_session(replace(launch, folder=Path(folder), resume=False))
        try:
            # First: what a step takes may be kept, and would hide what an evaluation takes.
            with shortage.in_evaluation(run):
                seconds, evaluation = _tried_evaluation(run)
            forget_peak(run.device)
            with shortage.in_training(run):
                step, training = _timed_steps(run)
            most = peak(run.device)
            if int(run.guard.counts[-1]) >= 0:
                raise UserError(
                    "the loss or its gradients are not finite in the first steps. Lower "
                    "optimizer.lr",
                    ExitCode.NUMERIC,
                )
            began = time.monotonic()
            state = capture(run)
            pause = time.monotonic() - began
            size = checkpoint.size(state)
            return Trial(
                device=run.choice.why,
                slow=devices.emulated(run.config.device.precision, run.device),
                fitting=line,
                step=step,
                training=training,
                evaluation=seconds,
                evaluations=_evaluations(run),
                checkpoint=size,
                pause=pause,
                memory=_memory(run, most, evaluation, size),
            )
        finally:
            run.close()


def _timed_steps(run: Session) -> tuple[float, float]:
    """Seconds of a step with the largest images, and of all steps.

    Where images grow, a step takes a part of the time that stays and one that goes with the pixels.
    """
    launch = run.launch
    (_, smallest), largest = launch.image_sizes()[0], launch.config.largest_side
    least = _timed_step(run, smallest)
    if smallest == largest:
        return least, least * launch.total_steps
    most = _timed_step(run, largest)
    each = (most - least) / (largest**2 - smallest**2)
    more = launch.pixels(0, launch.total_steps) - launch.total_steps * smallest**2
    return most, least * launch.total_steps + each * more


def _timed_step(run: Session, side: int) -> float:
    """Seconds a step with images of `side` pixels, with the time that it waits for them.

    The first step is slower and does not count, nor do those whose images were made meanwhile.
    On a GPU its memory does not either: there cuDNN tries what each way of computing takes.
    """
    parts = run.config.parts
    early = 1 + -(-int(run.config.data.workers) // parts)
    run.step = 0
    batches = batches_to_come(run, side)
    run.model.train()
    times: list[float] = []
    started = time.monotonic()
    for _ in range(min(early + STEPS, run.launch.total_steps)):
        begun = time.monotonic()
        micro_batches = list(itertools.islice(batches, parts))
        for batch in micro_batches:
            run.quarantine.add("data.train", batch.lost, run.step + 1)
        take_step(run, micro_batches, sum(len(batch.labels) for batch in micro_batches))
        run.guard.counts.tolist()  # waits for the device
        times.append(time.monotonic() - begun)
        if len(times) == 1 and run.device.type == "cuda":
            forget_peak(run.device)
        if time.monotonic() - started > MOST_SECONDS:
            break
    return statistics.mean(times[early:] or times[-1:])


def _tried_evaluation(run: Session) -> tuple[float, int | None]:
    """Seconds of one evaluation, and its bytes at the peak, from that of a few photos.

    The seconds grow with all photos in a straight line, the bytes with those that go through the
    network at once; where that is not the whole batch, the pixels of those made ahead come to it.
    """
    val = run.launch.val
    if val is None:
        return 0.0, None
    some = val.chosen(np.linspace(0, len(val) - 1, min(len(val), 64)).round().astype(np.int64))
    setting = Setting.of(run.config, run.device)
    networks = of_training(run.model, run.averages, setting.precision)
    if run.device.type == "cuda":
        evaluate(networks, some, setting)  # the first one loads and tries, for seconds
    forget_peak(run.device)
    before = peak(run.device)
    started = time.monotonic()
    evaluate(networks, some, setting)
    seconds = (time.monotonic() - started) * len(val) / len(some)
    most = peak(run.device)
    if before is None or most is None:
        return seconds, None
    batch = min(run.config.evaluate.batch_size, len(val))
    tried = min(batch, len(some))
    at_once = setting.at_once(batch)
    most = before + (most - before) * at_once // setting.at_once(tried)
    if at_once == batch:
        return seconds, most
    batches = min(setting.workers + 1, -(-len(val) // batch))
    return seconds, most + (batches * batch - tried) * 3 * setting.image_size**2


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        allocator.give_back()
        memory.forget_peak()


def peak(device: torch.device) -> int | None:
    """The most bytes since `forget_peak`: of tensors on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return memory.peak() if device.type == "cpu" else None


def _memory(
    run: Session, training: int | None, evaluation: int | None, checkpoint: int
) -> Memory | None:
    """Of a run of which `training` and `evaluation` were measured, checkpoints of so many bytes."""
    if training is None:
        return None
    if run.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(run.device)
        room = free + torch.cuda.memory_reserved(run.device)
        return Memory(training, evaluation or 0, 0, room)  # a checkpoint is written from the host
    left, held = memory.available(), memory.resident()
    photos = run.launch.train.files
    to_come = photos.to_come() if isinstance(photos, CachedFiles) else 0
    return Memory(
        training=training + to_come,
        evaluation=(evaluation or 0) + to_come,
        checkpoint=_COPIES * checkpoint,
        room=left + held if left is not None and held is not None else None,
    )


def _evaluations(run: Session) -> int:
    if run.launch.val is None:
        return 0
    due, total = run.config.evaluate, run.launch.total_steps
    every = [due.every_steps, due.every_epochs and due.every_epochs * run.launch.steps_per_epoch]
    steps = {step for n in every if n for step in range(n, total + 1, n)}
    return len(steps | {total})
