"""A run, top to bottom. `train_step` is what one step does; `train` is all that lies around it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from googlenet_train import distributed, ema, loss_scale, numeric, optim, parallel
from googlenet_train.data import prefetch
from googlenet_train.data.loader import Batch, ahead, to_device, training_batch
from googlenet_train.data.views import Augmentation
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.loss import googlenet_loss, total_weight
from googlenet_train.machine import device as devices
from googlenet_train.machine.signals import Signals
from googlenet_train.randomness import key
from googlenet_train.run import announce, lock, milestones, shortage
from googlenet_train.run.launch import Launch
from googlenet_train.run.milestones import Clock
from googlenet_train.run.opening import open_session
from googlenet_train.run.session import Session, learning_rate_at

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
    count: int,
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
    class_weights: Tensor | None = None,
) -> None:
    """One optimizer step on one global batch of `count` images, given as this rank's micro-batches.

    Adds to `window` (see WINDOW) on the device; nothing here waits for the device. Where the loss
    or the gradients are not finite nothing changes, but for the counts in `guard`. Images that
    could not be read are not there: the means are over those that are, and a step on none is none.
    `class_weights`, (num_classes,), stay on the host: what they sum to is needed there.
    """
    if count == 0:
        return
    ranks, rank = distributed.world_size(), distributed.rank()
    weights = [total_weight(b.labels, b.second, class_weights) for b in micro_batches]
    on_device: Tensor | None = None
    whole: Tensor | int = count  # what all images of the step weigh
    if class_weights is not None:
        on_device = class_weights.to(device, non_blocking=True)
        whole = distributed.all_reduce_sum(torch.full((), sum(weights), device=device))
    statistics, scale = numeric.snapshot(guard), guard.scale
    sums = torch.zeros(7, device=device)  # of this step, as the first columns of the window
    for number, batch in enumerate(micro_batches):
        exchanging = parallel.exchanging(model, last=number == len(micro_batches) - 1)
        if len(batch.labels) == 0:
            if ranks > 1:
                with exchanging:
                    parallel.take_part(model, guard, device, batch.images.shape[-1], precision)
            continue
        # On a GPU too this sets two numbers on the host, and waits for nothing.
        torch.manual_seed(key(seed, _DROPOUT, step, number * ranks + rank))
        images, labels, second = prefetch.receive(batch, device)
        images = to_device(images, device, mean, std, channels_last)
        with exchanging:
            with devices.autocast(device, precision):
                outputs = model(images)
            losses = googlenet_loss(
                outputs,
                labels,
                second=second,
                aux_weight=aux_weight,
                label_smoothing=label_smoothing,
                class_weights=on_device,
            )
            # The exchange takes the mean over the ranks; the mean over all images is meant.
            loss = losses.total / (whole / (ranks * weights[number]))
            torch.autograd.backward(loss if scale is None else loss * scale.factor)
        logits = outputs if isinstance(outputs, Tensor) else outputs.main
        zero = torch.zeros((), device=device)
        per_image = [one.detach() if one is not None else zero for one in losses]
        correct = (logits.detach().argmax(1) == labels).float().mean()
        sums[:2] += len(labels) * torch.stack([torch.ones_like(zero), correct])
        sums[2:] += weights[number] * torch.stack([torch.ones_like(zero), *per_image])

    distributed.all_reduce_sum(sums)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if scale is not None:
        loss_scale.unscale(scale, gradients)
    norm = nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    sums = window + torch.cat([sums, torch.stack([torch.ones_like(norm), norm])])

    bad = numeric.judge(guard, window, sums, step)
    mine = sum(len(batch.labels) for batch in micro_batches)
    numeric.settle(guard, statistics, bad, share=mine / count)
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
    with ExitStack() as held, Signals() as signals:
        distributed.together(lambda: _take_folder(launch.folder, held))
        run = open_session(launch)
        distributed.finish_first(run.background.wait)
        try:
            announce.introduce(run)
            return _train(run, signals)
        except UserError as error:
            if error.exit_code == ExitCode.DATA or (
                isinstance(error, shortage.EvaluationTooLarge) and not distributed.in_group()
            ):  # an image or an evaluation failed, not the run
                _save_what_was_learnt(run)
            raise
        finally:
            run.close()


def _take_folder(folder: Path, held: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(lock.hold(folder))


def batches_to_come(run: Session, side: int | None = None) -> Iterator[Batch]:
    """This rank's micro-batches from the run's step to its end, made ahead of time.

    Images of `side` pixels, or, for None, of the size that the schedule gives each step.
    """
    config, parts = run.config, run.config.parts
    augmentation = Augmentation(**dict(config.augment), fit=config.evaluate.fit)
    stream = prefetch.stream_for(run.device)

    def make(number: int) -> Batch:
        step, part = divmod(number, parts)
        batch = training_batch(
            run.launch.train,
            step,
            seed=config.run.seed,
            batch_size=config.optimizer.batch_size,
            image_size=side or run.launch.image_size(step),
            augmentation=augmentation,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            micro_batch=part,
            accumulate=parts,
            quarantine=config.data.on_error == "quarantine",
            exif_orientation=config.data.exif_orientation,
        )
        return prefetch.send(batch, stream)

    numbers = range(run.step * parts, run.launch.total_steps * parts)
    return ahead(make, numbers, int(config.data.workers))


def take_step(run: Session, micro_batches: Sequence[Batch], count: int) -> None:
    """`train_step` with everything that the run has."""
    config = run.config
    train_step(
        run.network,
        run.optimizer,
        run.averages,
        run.live,
        micro_batches,
        run.window,
        run.guard,
        step=run.step,
        count=count,
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
        class_weights=run.class_weights,
    )
    run.step += 1


def _train(run: Session, signals: Signals) -> ExitCode:
    config, total = run.config, run.launch.total_steps
    parts = config.parts
    batches = batches_to_come(run)
    clock = Clock()
    run.model.train()
    while True:
        micro_batches, error = [], None
        try:
            run.background.check()
            if run.step < total:
                with clock.waiting(), shortage.in_training(run):
                    micro_batches = [next(batches) for _ in range(parts)]
        except (UserError, OSError) as raised:
            error = distributed.as_user_error(raised)
        count, lost = signals.agree(
            sum(len(batch.labels) for batch in micro_batches),
            sum(len(batch.lost) for batch in micro_batches),
            save=_minutes_passed(run, clock),
            error=error,
        )
        if _evaluation_due(run):
            saved_before = run.saved == run.step  # by a process that was stopped at this point
            with clock.paused(), shortage.in_evaluation(run):
                milestones.evaluate_run(run, signals)
                if saved_before and run.evaluated == run.step:
                    milestones.save(
                        run
                    )  # else a kill would bring the evaluation into the log twice
        if _save_due(run, signals):
            signals.save = False
            with clock.paused():
                milestones.save(run)
            clock.saved = time.monotonic()
        if signals.stop:
            distributed.together(run.background.wait)
            return announce.stopped(run, signals.stop)
        if run.step == total:
            distributed.together(run.background.wait)
            return announce.finished(run)

        if lost:
            mine = [one for batch in micro_batches for one in batch.lost]
            milestones.leave_out(run, "data.train", distributed.gather_all(mine), run.step + 1)
        if run.step == 0:
            announce.show_training_photos(run, micro_batches[0])
        with shortage.in_training(run):
            take_step(run, micro_batches, count)
        run.reporter.advance(run.step, config.schedule.epochs)
        if run.step % config.log.every_steps == 0 or run.step == total:
            milestones.log(run, clock)
        if clock.steps == announce.STEPS_TO_ESTIMATE:
            announce.time_left(run, clock.pace())


def _save_what_was_learnt(run: Session) -> None:
    if run.step > max(run.saved, 0):
        milestones.save(run)
        distributed.together(run.background.wait)
    announce.kept(run)


def _evaluation_due(run: Session) -> bool:
    due = run.config.evaluate
    return run.evaluated < run.step and (
        run.step == run.launch.total_steps
        or _divides(due.every_steps, run.step)
        or _divides(due.every_epochs and due.every_epochs * run.launch.steps_per_epoch, run.step)
    )


def _minutes_passed(run: Session, clock: Clock) -> bool:
    every = run.config.checkpoint.every_minutes
    return every is not None and time.monotonic() - clock.saved >= 60 * every


def _save_due(run: Session, signals: Signals) -> bool:
    due = run.config.checkpoint
    return run.saved < run.step and (
        run.step == run.launch.total_steps
        or signals.save
        or signals.stop is not None
        or run.best.get("step") == run.step
        or _divides(due.every_steps, run.step)
        or _divides(due.every_epochs and due.every_epochs * run.launch.steps_per_epoch, run.step)
    )


def _divides(every: int | None, step: int) -> bool:
    return every is not None and step > 0 and step % every == 0
