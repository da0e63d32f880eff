"""A run, top to bottom. `train_step` is what one step does; `train` is all that lies around it."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from googlenet_train import announce, ema, milestones, numeric, optim, runs
from googlenet_train import device as devices
from googlenet_train.data.loader import (
    Batch,
    ahead,
    pinned,
    to_device,
    training_batch,
)
from googlenet_train.data.views import Augmentation
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.launch import Launch
from googlenet_train.loss import googlenet_loss
from googlenet_train.milestones import Clock
from googlenet_train.randomness import key
from googlenet_train.session import Session, learning_rate_at, open_session
from googlenet_train.signals import Signals

_DROPOUT = 2  # one use of the seed: no two uses share their numbers


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: Mapping[float, ema.Average],
    live: Mapping[str, Tensor],
    micro_batches: Sequence[Batch],
    window: Tensor,
    guard: numeric.Guard,
    *,
    step: int,
    lr: float,
    seed: int,
    device: torch.device,
    precision: str,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    aux_weight: float,
    label_smoothing: float,
    clip_norm: float | None,
    ema_every: int,
) -> None:
    """One optimizer step on one global batch, given as micro-batches.

    Adds to `window` (see WINDOW) on the device; nothing here waits for the device. Where the loss
    or the gradients are not finite nothing changes, but for the counts in `guard`. Images that
    could not be read are not there: the means are over those that are, and a step on none is none.
    """
    count = sum(len(batch.labels) for batch in micro_batches)
    if count == 0:
        return
    sums, statistics = window.clone(), numeric.snapshot(guard)
    for number, batch in enumerate(micro_batches):
        if len(batch.labels) == 0:
            continue
        torch.manual_seed(key(seed, _DROPOUT, step, number))
        images = to_device(batch.images, device, mean, std, channels_last)
        labels = batch.labels.to(device, non_blocking=True)
        second = batch.second
        if second is not None:
            second = (
                second[0].to(device, non_blocking=True),
                second[1].to(device, non_blocking=True),
            )
        with devices.autocast(device, precision):
            outputs = model(images)
        losses = googlenet_loss(
            outputs, labels, second=second, aux_weight=aux_weight, label_smoothing=label_smoothing
        )
        torch.autograd.backward(losses.total / (count / len(labels)))
        logits = outputs if isinstance(outputs, Tensor) else outputs.main
        zero = torch.zeros((), device=device)
        per_image = [loss.detach() if loss is not None else zero for loss in losses]
        correct = (logits.detach().argmax(1) == labels).float().mean()
        sums[:6] += len(labels) * torch.stack([torch.ones_like(zero), correct, *per_image])

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    sums[6:] += torch.stack([torch.ones_like(norm), norm])

    bad = numeric.judge(guard, window, sums, step)
    numeric.restore(guard, statistics, bad)
    window.copy_(torch.where(bad, window, sums))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    optim.masked_step(optimizer, bad)
    optimizer.zero_grad(set_to_none=True)

    updates, due = divmod(step + 1, ema_every)
    if due == 0:
        for decay, average in averages.items():
            ema.update(average, live, ema.decay_after(updates - 1, decay, ema_every), bad)


def train(launch: Launch) -> ExitCode:
    """Train until the last step, or until a signal asks to stop; both leave a checkpoint."""
    launch.folder.mkdir(parents=True, exist_ok=True)
    with runs.lock(launch.folder), Signals() as signals:
        run = open_session(launch)
        try:
            announce.introduce(run)
            return _train(run, signals)
        except UserError as error:
            if error.exit_code == ExitCode.DATA:  # an image failed, not the run
                _save_what_was_learnt(run)
            raise
        finally:
            run.close()


def _train(run: Session, signals: Signals) -> ExitCode:
    config, total = run.config, run.launch.total_steps
    parts = config.optimizer.accumulate
    augmentation = Augmentation(**dict(config.augment), fit=config.evaluate.fit)

    def make(number: int) -> Batch:
        step, part = divmod(number, parts)
        batch = training_batch(
            run.launch.train,
            step,
            seed=config.run.seed,
            batch_size=config.optimizer.batch_size,
            image_size=config.data.image_size,
            augmentation=augmentation,
            micro_batch=part,
            accumulate=parts,
            quarantine=config.data.on_error == "quarantine",
            exif_orientation=config.data.exif_orientation,
        )
        return pinned(batch) if run.device.type == "cuda" else batch

    batches = ahead(make, range(run.step * parts, total * parts), int(config.data.workers))
    clock = Clock()
    run.model.train()
    while True:
        run.background.check()
        if _evaluation_due(run):
            saved_before = run.saved == run.step  # by a process that was stopped at this point
            with clock.paused():
                milestones.evaluate_run(run, signals)
                if saved_before and run.evaluated == run.step:
                    milestones.save(
                        run
                    )  # else a kill would bring the evaluation into the log twice
        if _save_due(run, clock, signals):
            signals.save = False
            with clock.paused():
                milestones.save(run)
            clock.saved = time.monotonic()
        if signals.stop:
            run.background.wait()
            return announce.stopped(run, signals.stop)
        if run.step == total:
            run.background.wait()
            return announce.finished(run)

        with clock.waiting():
            micro_batches = [next(batches) for _ in range(parts)]
        for batch in micro_batches:
            run.quarantine.add("data.train", batch.lost, run.step + 1)
        if run.step == 0:
            announce.show_training_photos(run, micro_batches[0])
        train_step(
            run.model,
            run.optimizer,
            run.averages,
            run.live,
            micro_batches,
            run.window,
            run.guard,
            step=run.step,
            lr=learning_rate_at(run.launch, run.step),
            seed=config.run.seed,
            device=run.device,
            precision=config.device.precision,
            mean=config.data.mean,
            std=config.data.std,
            channels_last=config.device.channels_last,
            aux_weight=config.loss.aux_weight,
            label_smoothing=config.loss.label_smoothing,
            clip_norm=config.optimizer.clip_norm,
            ema_every=config.ema.every_steps,
        )
        run.step += 1
        run.reporter.advance(run.step, config.schedule.epochs)
        if run.step % config.log.every_steps == 0 or run.step == total:
            milestones.log(run, clock)
        if clock.steps == announce.STEPS_TO_ESTIMATE:
            announce.time_left(run, clock.pace())


def _save_what_was_learnt(run: Session) -> None:
    if run.step > max(run.saved, 0):
        milestones.save(run)
        run.background.wait()
    announce.kept(run)


def _evaluation_due(run: Session) -> bool:
    due = run.config.evaluate
    return run.evaluated < run.step and (
        run.step == run.launch.total_steps
        or _divides(due.every_steps, run.step)
        or _divides(due.every_epochs and due.every_epochs * run.launch.steps_per_epoch, run.step)
    )


def _save_due(run: Session, clock: Clock, signals: Signals) -> bool:
    due = run.config.checkpoint
    minutes = (time.monotonic() - clock.saved) / 60
    return run.saved < run.step and (
        run.step == run.launch.total_steps
        or signals.save
        or signals.stop is not None
        or run.best.get("step") == run.step
        or _divides(due.every_steps, run.step)
        or _divides(due.every_epochs and due.every_epochs * run.launch.steps_per_epoch, run.step)
        or (due.every_minutes is not None and minutes >= due.every_minutes)
    )


def _divides(every: int | None, step: int) -> bool:
    return every is not None and step > 0 and step % every == 0
