"""What happens between steps: log, evaluate, save."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from googlenet_train import checkpoint, distributed
from googlenet_train.data.loader import Lost
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Setting, evaluate, of_training
from googlenet_train.machine.signals import Signals
from googlenet_train.machine.storage import write_durably
from googlenet_train.reporting import Reporter
from googlenet_train.run import announce, bad_step, runs
from googlenet_train.run.quarantine import Quarantine
from googlenet_train.run.session import WINDOW, Session, learning_rate_at
from googlenet_train.run.state import capture


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
    """Log the means of the window, and begin a new one."""
    # One that hangs in this step is missed here, where it is named, and not on the device.
    distributed.gather(None)
    sums, skipped = _look(run)
    seconds, waited, steps = clock.lap()
    values = {}
    if sums["steps"]:  # none where all were skipped
        heads = () if run.model.aux1 is None else ("loss_aux1", "loss_aux2")
        names = ("loss", "loss_main", *heads)
        values = {f"train/{name}": sums[name] / sums["weight"] for name in names}
        values["train/top1"] = 100 * sums["correct"] / sums["seen"]
        values["train/grad_norm"] = sums["grad_norm"] / sums["steps"]
    if run.guard.scale is not None:
        values["train/loss_scale"] = float(run.guard.scale.factor)
    if run.config.optimizer.on_nonfinite == "skip":
        values["train/skipped_steps"] = skipped
    values |= {
        "train/lr": learning_rate_at(run.launch, run.step - 1),
        "train/images_per_second": steps * run.config.optimizer.batch_size / seconds,
        "train/data_wait": waited / steps,
    }
    run.window.zero_()
    run.guard.counts[0] = 0
    run.reporter.log(run.step, values)
    announce.status(run, values)


def evaluate_run(run: Session, signals: Signals) -> None:
    """Evaluate the weights and every average; a signal to stop leaves it undone."""
    _look(run)
    index = run.launch.val
    if index is None:
        run.evaluated = run.step
        return
    setting = Setting.of(run.config, run.device)
    hidden = True if distributed.rank() else None  # None: where there is no terminal
    bar = tqdm(total=len(index), desc="evaluating", unit="img", leave=False, disable=hidden)
    try:
        results = evaluate(
            of_training(run.model, run.averages, setting.precision),
            index,
            setting,
            signals=signals,
            progress=bar.update,
            leave_out=lambda lost: leave_out(run, "data.val", lost, run.step),
        )
    finally:
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


def leave_out(run: Session, source: str, lost: Sequence[Lost], step: int) -> None:
    """List the images, of all ranks, that could not be read.

    Raises UserError (data) where they are too many.
    """
    distributed.together(lambda: run.quarantine.add(source, lost, step))


def save(run: Session, *, prune: bool = True) -> None:
    """Copy this step's state; another thread commits it as a checkpoint while training goes on.

    Waits for a save that is not done yet. Errors come out of `run.background`.
    """
    _look(run)
    distributed.together(lambda: _begin_save(run, prune))
    run.saved = run.step


def _begin_save(run: Session, prune: bool) -> None:
    run.background.wait()  # before the copy, so that there are never two
    run.reporter.flush()
    keep = run.config.checkpoint.keep if prune else None
    work = partial(
        _commit,
        run.reporter,
        run.quarantine,
        run.launch.folder,
        capture(run),
        keep,
        run.passed_over,
    )
    run.background.start(work)


def _commit(
    reporter: Reporter,
    quarantine: Quarantine,
    folder: Path,
    state: checkpoint.TrainState,
    keep: int | None,
    passed_over: Sequence[Path],
) -> None:
    """What was logged before the checkpoint is on the disk before it, what names it after it."""
    refuse_poisoned(state)
    reporter.fsync()
    quarantine.fsync()
    checkpoints = folder / runs.CHECKPOINTS
    saved = checkpoint.save(checkpoints, state)
    protected = []
    if best := state.info["best"]:
        path = checkpoint.checkpoint_path(checkpoints, best["step"])
        protected = [path]
        named = {**best, "checkpoint": f"{path.parent.name}/{path.name}"}
        write_durably(folder / runs.BEST, json.dumps(named) + "\n")
    if keep is not None:
        checkpoint.prune(checkpoints, saved, keep, protected, passed_over)


def refuse_poisoned(state: checkpoint.TrainState) -> None:
    """Raise UserError (numeric) where the state holds a NaN or an infinity, however it came there.

    The guard sees losses and gradients; a weight can overflow after them, memory can fail.
    """
    for name, tensor in checkpoint.named_tensors(state).items():
        if not np.isfinite(tensor.numpy()).all():
            raise UserError(
                f"step {state.step}: {name} holds NaN or infinity, so this state is not saved; "
                "earlier checkpoints are untouched. Go on from them with --resume and a lower "
                "optimizer.lr (--allow-config-change optimizer.lr), or start over with one.",
                ExitCode.NUMERIC,
            )


def _look(run: Session) -> tuple[dict[str, float], int]:
    """The window's sums, and the steps skipped in it: where training waits for the device.

    Raises UserError (numeric), with the state before it saved, where a step was bad once too often.
    """
    skipped, in_a_row, fatal = run.guard.counts.tolist()
    if fatal >= 0:
        _stop_at_bad_step(run, fatal, in_a_row)
    return dict(zip(WINDOW, run.window.tolist(), strict=True)), skipped


def _stop_at_bad_step(run: Session, fatal: int, skipped_before: int) -> NoReturn:
    run.step = fatal  # nothing has changed since: this still is the state after so many steps
    run.guard.counts[-1] = -1
    kept = checkpoint.checkpoint_path(run.checkpoints, fatal) if fatal else None
    try:
        if run.saved < fatal > 0:
            save(run, prune=False)  # the trouble may be older than its first NaN
        distributed.together(run.background.wait)
    except UserError as error:
        if error.exit_code != ExitCode.NUMERIC:
            raise
        kept = next(reversed(checkpoint.checkpoints(run.checkpoints)), None)

    def report() -> NoReturn:
        raise UserError(bad_step.report(run, skipped_before, kept), ExitCode.NUMERIC)

    distributed.together(report)
    raise AssertionError("unreachable: every rank raises the report")
