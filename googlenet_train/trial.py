"""The first steps of a run, taken in a temporary folder to see whether they can be taken."""

import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from googlenet_train import checkpoint, shortage
from googlenet_train.data.decode import UndecodableImage, decode
from googlenet_train.data.index import Index
from googlenet_train.data.loader import ahead
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Setting, evaluate, with_weights
from googlenet_train.fitting import fitted
from googlenet_train.launch import Launch
from googlenet_train.session import Session, capture, open_session
from googlenet_train.train import batches_to_come, take_step

MOST_SECONDS = 10.0  # for decoding photos of one data set, and for taking more than one step
STEPS = 4  # the first is slower and not counted, where there is time for another


class Trial(NamedTuple):
    device: str
    fitting: str | None  # how optimizer.accumulate: auto was settled
    step: float  # seconds, with the largest images
    training: float  # seconds of all steps
    evaluation: float  # seconds, of all of data.val
    evaluations: int
    checkpoint: int  # bytes
    pause: float  # seconds that training stands still for one


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
            with shortage.in_training(run):
                step, training = _timed_steps(run)
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
            run.step = 0  # nothing of it stays
            with shortage.in_evaluation(run):
                seconds = _timed_evaluation(run)
            return Trial(
                run.choice.why, line, step, training, seconds, _evaluations(run), size, pause
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
    """Seconds a step with images of `side` pixels, with the time that it waits for them."""
    parts = run.config.parts
    run.step = 0
    batches = batches_to_come(run, side)
    run.model.train()
    times: list[float] = []
    started = time.monotonic()
    for _ in range(min(STEPS, run.launch.total_steps)):
        begun = time.monotonic()
        micro_batches = list(itertools.islice(batches, parts))
        for batch in micro_batches:
            run.quarantine.add("data.train", batch.lost, run.step + 1)
        take_step(run, micro_batches, sum(len(batch.labels) for batch in micro_batches))
        run.guard.counts.tolist()  # waits for the device
        times.append(time.monotonic() - begun)
        if time.monotonic() - started > MOST_SECONDS:
            break
    return min(times[1:] or times)


def _timed_evaluation(run: Session) -> float:
    """Seconds of one evaluation, from that of a few photos."""
    val = run.launch.val
    if val is None:
        return 0.0
    some = val.chosen(np.linspace(0, len(val) - 1, min(len(val), 64)).round().astype(np.int64))
    networks = {"val": with_weights(run.model)}
    networks |= {f"{d}": with_weights(run.model, average) for d, average in run.averages.items()}
    run.model.eval()
    started = time.monotonic()
    evaluate(networks, some, Setting.of(run.config, run.device))
    return (time.monotonic() - started) * len(val) / len(some)


def _evaluations(run: Session) -> int:
    if run.launch.val is None:
        return 0
    due, total = run.config.evaluate, run.launch.total_steps
    every = [due.every_steps, due.every_epochs and due.every_epochs * run.launch.steps_per_epoch]
    steps = {step for n in every if n for step in range(n, total + 1, n)}
    return len(steps | {total})
