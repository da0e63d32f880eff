"""What a person is told and shown at the milestones of a run."""

import shlex
import shutil
from collections.abc import Mapping

from googlenet_train import checkpoint, distributed
from googlenet_train.data.balance import data_summary
from googlenet_train.data.index import Index
from googlenet_train.data.loader import Batch, evaluation_batch
from googlenet_train.errors import ExitCode
from googlenet_train.evaluate import Setting, probabilities, with_weights
from googlenet_train.machine import device as devices
from googlenet_train.reporting import duration, say
from googlenet_train.run.launch import Launch
from googlenet_train.run.pictures import contact_sheet
from googlenet_train.run.session import Session, learning_rate_at
from googlenet_train.run.sources import SPLIT
from googlenet_train.run.state import live_state

SHEET = 40  # photos on a picture
STEPS_TO_ESTIMATE = 20  # the first steps are slower: memory is still being found


def introduce(run: Session) -> None:
    """One block: on what, with what and for how long this run trains."""
    if distributed.rank():
        return
    config, launch = run.config, run.launch
    growing = config.schedule.image_size is not None
    threads, precision = config.device.threads, config.device.precision
    plural = "" if threads == 1 else "s"
    say(f"device   {run.choice.why}; {precision}, {threads} thread{plural}")
    if run.choice.warning:
        say(f"warning  {run.choice.warning}")
    if slow := devices.emulated(precision, run.device):
        say(f"warning  {slow}")
    say(f"train    {data_summary(launch.train, launch.sources.names)}")
    held_out = f", held out of data.train ({SPLIT})" if launch.sources.split else ""
    val = (
        f"{data_summary(launch.val, launch.sources.names)}{held_out}"
        if launch.val
        else "none: no evaluation"
    )
    say(f"val      {val}")
    parameters = sum(p.numel() for p in run.model.parameters())
    heads = "with" if run.model.aux1 is not None else "without"
    say(f"network  {parameters:,} parameters {heads} heads, {_sizes(launch)} px")
    say(
        f"steps    {launch.total_steps:,} = {config.schedule.epochs} epochs x "
        f"{launch.steps_per_epoch:,}, batch {config.optimizer.batch_size}"
    )
    say(f"lr       {config.optimizer.lr:g}, {config.schedule.name}")
    if launch.resume:
        now = learning_rate_at(launch, run.step)
        size = f", the images from {launch.image_size(run.step)} px" if growing else ""
        say(f"resume   at step {run.step:,}; the learning rate goes on from {now:.2g}{size}")
    _warn_of_little_room(run)
    run.reporter.text("config", (launch.folder / "config.yaml").read_text())


def _warn_of_little_room(run: Session) -> None:
    """The checkpoints of a run that goes on are there already, and make room for its later ones."""
    needed = checkpoint.most_on_disk(checkpoint.size(live_state(run)), run.config.checkpoint.keep)
    there = sum(path.stat().st_size for path in checkpoint.checkpoints(run.checkpoints))
    free = shutil.disk_usage(run.launch.folder).free
    if free + there < needed:
        say(
            f"warning  the checkpoints of this run take up to {needed / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free: it stops where there is no room for one. Make room, or "
            "lower checkpoint.keep"
        )


def _sizes(launch: Launch) -> str:
    """In pixels: 224, or 128 growing to 192 at step 750, evaluated at 224."""
    evaluated, sizes = launch.config.data.image_size, launch.image_sizes()
    if launch.config.schedule.image_size is None:
        return f"{evaluated}"
    (_, first), (step, last) = sizes[0], sizes[-1]
    grown = f" growing to {last} at step {step:,}" if first < last else ""
    return f"{first}{grown}, evaluated at {evaluated}"


def time_left(run: Session, seconds_per_step: float) -> None:
    """`seconds_per_step`: of the steps just done, which may have had smaller images."""
    launch = run.launch
    done = launch.pixels(run.step - STEPS_TO_ESTIMATE, run.step) / STEPS_TO_ESTIMATE
    left = launch.pixels(run.step, launch.total_steps) / done * seconds_per_step
    say(f"time     about {duration(left)} left, evaluation not counted")


def status(run: Session, values: Mapping[str, float]) -> None:
    """The state of training in one line."""
    learnt = "all steps skipped, "
    if "train/loss" in values:
        learnt = f"loss {values['train/loss']:.3f}, top-1 {values['train/top1']:.1f} %, "
    run.reporter.status(
        f"{learnt}{values['train/images_per_second']:.0f} img/s",
        run.step,
        run.launch.total_steps,
    )


def evaluated(run: Session, results: Mapping[str, Mapping[str, float]]) -> None:
    run.reporter.close_bar()
    epoch = run.step / run.launch.steps_per_epoch
    raw = results["val"]
    line = f"epoch {epoch:.4g}/{run.config.schedule.epochs}  "
    if "val_ema" in results:
        line += f"EMA top-1 {results['val_ema']['top1']:.1f} %  raw {raw['top1']:.1f} %  "
    else:
        line += f"top-1 {raw['top1']:.1f} %  "
    missing = len(run.launch.val or ()) - int(raw["seen"])
    if missing:
        line += f"{missing:,} image{'s' if missing > 1 else ''} unreadable, left out  "
    say(f"{line}loss {results.get('val_ema', raw)['loss']:.3f}  ({duration(run.elapsed())})")


def show_training_photos(run: Session, batch: Batch) -> None:
    """train_batch.jpg: the first images of the first step, as the network sees them."""
    if distributed.rank():
        return
    if len(batch.labels) == 0:  # none of its images can be read
        return
    names = run.launch.sources.names
    captions = [[names[label]] for label in batch.labels[:SHEET].tolist()]
    path = run.launch.folder / "train_batch.jpg"
    contact_sheet(path, batch.images[:SHEET], captions)
    run.reporter.picture("train/batch", path, run.step)


def show_predictions(run: Session, index: Index, setting: Setting) -> None:
    """val_predictions.jpg: photos spread over the validation set, true class and prediction."""
    if distributed.rank():
        return
    count = min(SHEET, len(index))
    chosen = [i * len(index) // count for i in range(count)]
    batch = evaluation_batch(
        index,
        chosen,
        setting.image_size,
        quarantine=setting.quarantine,
        exif_orientation=setting.exif_orientation,
        fit=setting.fit,
    )
    if len(batch.labels) == 0:
        return
    average = run.averages[max(run.averages)] if run.averages else None
    network = with_weights(run.model, average, setting.precision)
    p = probabilities(network, batch.images, setting).cpu()
    top, guess = (t.tolist() for t in p.max(1))
    labels = batch.labels.tolist()
    names = run.launch.sources.names
    captions = [
        [f"is: {names[label]}", f"says: {names[g]} {100 * t:.0f} %"]
        for label, g, t in zip(labels, guess, top, strict=True)
    ]
    path = run.launch.folder / "val_predictions.jpg"
    wrong = [label != g for label, g in zip(labels, guess, strict=True)]
    contact_sheet(path, batch.images, captions, wrong)
    run.reporter.picture("val/predictions", path, run.step)


def kept(run: Session) -> None:
    """What a run that ends with an error has, before the error itself is told."""
    run.reporter.close_bar()
    if run.step > 0:
        say(f"saved    at step {run.step:,}; --resume goes on from there")


def stopped(run: Session, number: int) -> ExitCode:
    run.reporter.close_bar()
    say(f"stopped  at step {run.step:,}, saved. Go on with the same command and --resume")
    return ExitCode(128 + number)


def finished(run: Session) -> ExitCode:
    """The result, where to look at it, and what to do next."""
    run.reporter.close_bar()
    folder = run.launch.folder
    took = duration(run.elapsed())
    results = run.results
    say()
    if "val_ema" in results:
        say(f"EMA top-1 {results['val_ema']:.1f} % (raw {results['val']:.1f}) in {took}")
    elif "val" in results:
        say(f"top-1 {results['val']:.1f} % in {took}")
    else:
        say(f"trained {run.step:,} steps in {took}")
    predictions = f", {folder}/val_predictions.jpg" if results else ""
    run_folder, runs_folder = (shlex.quote(str(path)) for path in (folder, folder.parent))
    say(f"pictures  {folder}/train_batch.jpg{predictions}")
    say(f"curves    tensorboard --logdir {runs_folder}")
    say(f"next      googlenet-train predict {run_folder} PHOTO.jpg")
    return ExitCode.DONE
