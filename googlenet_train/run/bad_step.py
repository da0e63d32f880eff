"""The step that ended a run with NaN or infinity: what a person is told, what repeats it."""

import json
import math
from pathlib import Path

from googlenet_train.data import order
from googlenet_train.machine.storage import write_durably
from googlenet_train.run.session import WINDOW, Session, learning_rate_at, topology

FILE = "numeric-error.json"


def report(run: Session, skipped_before: int, kept: Path | None) -> str:
    """Write numeric-error.json into the run folder and return the message that ends the run.

    The run is back in the state before the step; `kept` is the checkpoint to go on from. Whoever
    resumes there meets the same step with the same images, dropout and learning rate.
    """
    config, launch = run.config, run.launch
    met = dict(zip(WINDOW, run.guard.values.tolist(), strict=True))
    losses = [name for name in WINDOW if name.startswith("loss")]
    lr = learning_rate_at(launch, run.step)
    batch = order.batch_indices(
        config.run.seed, run.step, len(launch.train), config.optimizer.batch_size
    )
    facts = {
        "step": run.step + 1,  # as in the log: the first step is 1
        "skipped_before": skipped_before,
        "resume_from": str(kept.relative_to(launch.folder)) if kept else None,
        # JSON has no NaN; weights of classes can be too large to add up, and then say nothing.
        **{name: str(met[name] / (met["weight"] or math.nan)) for name in losses},
        "grad_norm": str(met["grad_norm"]),
        "lr": lr,
        "seed": config.run.seed,
        "images": [launch.train.name(i) for i in batch.tolist()],
        "since_last_log": dict(zip(WINDOW, run.window.tolist(), strict=True)),
        "topology": topology(run),
        "config": config.model_dump(mode="json", by_alias=True),
    }
    path = launch.folder / FILE
    write_durably(path, json.dumps(facts, indent=2) + "\n")
    number = skipped_before + 1
    row = f", number {number} in a row and past optimizer.skip_limit" if skipped_before else ""
    where = f"{kept} is the newest sound state" if kept else "There is no checkpoint yet"
    go_on = ""
    if kept:
        go_on = (
            ", then go on with --resume --allow-config-change optimizer.lr (or the key you change)"
        )
    if run.guard.scale is not None:
        go_on += "; device.precision=fp32 where float16, which ends at 65,504, is too narrow"
    if not skipped_before:
        go_on += "; optimizer.on_nonfinite=skip passes over such steps"
    return (
        f"step {run.step + 1:,}{row}: the loss is {facts['loss']} and the gradient's norm "
        f"{facts['grad_norm']}, so nothing of it was applied. {where}; {path} names the step's "
        f"images. Lower optimizer.lr ({lr:.3g} at this step), lengthen schedule.warmup_epochs or "
        f"set optimizer.clip_norm{go_on}."
    )
