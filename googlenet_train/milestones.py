"""What happens between steps: log, evaluate, save."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from googlenet_train import announce, checkpoint, runs
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Setting, evaluate, with_weights
from googlenet_train.session import WINDOW, Session, capture, learning_rate_at
from googlenet_train.signals import Signals
from googlenet_train.storage import write_durably


class Clock:
    """Time since the last log: spent on steps, of it waiting for data; pauses left out."""

    def __init__(self) -> None:
        self.saved = time.monotonic()
        self.steps = 0  # since this process started
        self.trained = 0.0  # seconds since this process started
        self._restart()

    def _restart(self) -> None:
        self._start = time.monotonic()
        self._first_step = self.steps
        self._waited = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that belongs to no step: an evaluation, a save."""
        before = time.monotonic()
        yield
        self._start += time.monotonic() - before

    @contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before
        self.steps += 1

    def pace(self) -> float:
        """Seconds a step, over all steps of this process."""
        return (self.trained + time.monotonic() - self._start) / max(1, self.steps)

    def lap(self) -> tuple[float, float, int]:
        """(seconds, seconds of them waiting for data, steps) since the last lap."""
        seconds, steps = time.monotonic() - self._start, self.steps - self._first_step
        lap = (seconds, self._waited, steps)
        self.trained += seconds
        self._restart()
        return lap


def log(run: Session, clock: Clock) -> None:
    """Read the window, the one place where training waits for the device, and begin a new one."""
    sums = _healthy_window(run)
    seconds, waited, steps = clock.lap()
    seen = sums["seen"]
    heads = () if run.model.aux1 is None else ("loss_aux1", "loss_aux2")
    values = {f"train/{name}": sums[name] / seen for name in ("loss", "loss_main", *heads)}
    values |= {
        "train/top1": 100 * sums["correct"] / seen,
        "train/lr": learning_rate_at(run.launch, run.step - 1),
        "train/grad_norm": sums["grad_norm"] / sums["steps"],
        "train/images_per_second": steps * run.config.optimizer.batch_size / seconds,
        "train/data_wait": waited / steps,
    }
    run.window.zero_()
    run.reporter.log(run.step, values)
    announce.status(run, values)


def evaluate_run(run: Session, signals: Signals) -> None:
    """Evaluate the weights and every average; a signal to stop leaves it undone."""
    index = run.launch.val
    if index is None:
        run.evaluated = run.step
        return
    networks = {"val": with_weights(run.model)}
    for decay in sorted(run.averages):
        networks[f"val_ema_{decay}"] = with_weights(run.model, run.averages[decay])
    setting = Setting.of(run.config, run.device)
    bar = tqdm(total=len(index), desc="evaluating", unit="img", leave=False, disable=None)
    run.model.eval()
    try:
        results = evaluate(
            networks,
            index,
            setting,
            interrupted=lambda: signals.stop is not None,
            progress=bar.update,
        )
    finally:
        run.model.train()
        bar.close()
    if results is None:
        return
    if run.averages:
        longest = results[f"val_ema_{max(run.averages)}"]
        results["val_ema"] = longest
        if len(run.averages) == 1:
            del results[f"val_ema_{max(run.averages)}"]
    names = ("top1", "top5", "top1_macro", "loss")
    run.reporter.log(
        run.step, {f"{tag}/{name}": r[name] for tag, r in results.items() for name in names}
    )
    top1 = results.get("val_ema", results["val"])["top1"]
    if top1 > run.best.get("top1", -math.inf):
        run.best = {"step": run.step, "top1": top1}
    run.results = {tag: r["top1"] for tag, r in results.items()}
    run.evaluated = run.step
    announce.evaluated(run, results)
    announce.show_predictions(run, index, setting)


def save(run: Session) -> None:
    """Commit a checkpoint of this step; what was logged before it is on the disk first."""
    _healthy_window(run)
    run.reporter.sync()
    saved = checkpoint.save(run.checkpoints, capture(run))
    run.saved = run.step
    protected = []
    if run.best:
        best = checkpoint.checkpoint_path(run.checkpoints, run.best["step"])
        protected = [best]
        write_durably(
            run.launch.folder / runs.BEST,
            json.dumps({**run.best, "checkpoint": f"{best.parent.name}/{best.name}"}) + "\n",
        )
    checkpoint.prune(run.checkpoints, saved, run.config.checkpoint.keep, protected)


def _healthy_window(run: Session) -> dict[str, float]:
    """The window's sums on the host. Raises UserError (numeric) where one is NaN or infinite.

    A sum keeps every NaN and infinity that entered it, so none since the last look is missed, and
    none is ever saved.
    """
    sums = dict(zip(WINDOW, run.window.tolist(), strict=True))
    if all(math.isfinite(value) for value in sums.values()):
        return sums
    first = run.step - int(sums["steps"]) + 1 if math.isfinite(sums["steps"]) else run.step
    kept = checkpoint.checkpoints(run.checkpoints)
    healthy = f"the last healthy checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    raise UserError(
        f"the loss or the gradients became NaN or infinite in steps {first} to {run.step}; "
        f"{healthy}. Lower optimizer.lr ({run.config.optimizer.lr:g}), lengthen "
        "schedule.warmup_epochs, or set optimizer.clip_norm.",
        ExitCode.NUMERIC,
    )
