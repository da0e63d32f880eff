"""Everything between the command line and torch: whatever can be wrong without it is found here."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import numpy as np

from googlenet_train import __version__, config_file, config_text, distributed, runs
from googlenet_train.config import Config
from googlenet_train.data import mixing, order
from googlenet_train.data.index import Index, check_same_classes, open_source
from googlenet_train.errors import ExitCode, UserError

T = TypeVar("T")

# Settings that no resumed run can change: its checkpoint holds other tensors.
ANOTHER_NETWORK = ("model.variant", "model.aux_logits")


@dataclass(frozen=True)
class Launch:
    """A run that may start: its settings, images and folder."""

    config: Config
    train: Index
    val: Index | None
    folder: Path
    resume: bool

    @property
    def steps_per_epoch(self) -> int:
        return order.steps_per_epoch(len(self.train), self.config.optimizer.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.schedule.epochs

    def fingerprints(self) -> dict[str, str | None]:
        return {
            "data.train": self.train.fingerprint(),
            "data.val": self.val.fingerprint() if self.val else None,
        }


def prepare(
    loaded: config_file.Loaded, *, resume: bool, fresh: bool, allow: Sequence[str]
) -> Launch | None:
    """Choose the run folder and open the data; None where a resumed run is finished already.

    Raises UserError for everything that would keep the run from starting.
    """
    config = loaded.config
    shipped = ", shipped with the package" if loaded.shipped else ""
    say(f"googlenet-train {__version__}")
    say(f"config   {loaded.path if not loaded.shipped else loaded.path.name}{shipped}")
    distributed.refuse_many_ranks()

    _check_keys(allow)
    run = runs.choose(config, loaded.name, resume=resume, fresh=fresh)
    say(f"run      {run.folder}" + (f" ({run.note})" if run.note else ""))

    train = _at(loaded, "data.train", lambda: open_source(config.data.train))
    val = None
    if config.data.val is not None:
        source = config.data.val
        val = _at(loaded, "data.val", lambda: check_same_classes(train, open_source(source)))
    _check_batch(loaded, len(train))
    _check_class_count(loaded, config.model.num_classes, train)

    before = runs.progress(run.folder, verified=True) if resume else None
    if before:
        config = _continued(run.folder, config, allow)
    config = config_text.resolved(
        config,
        {"model.num_classes": len(train.classes), "data.workers": _workers(config.data.workers)},
    )
    launch = Launch(config, train, val, run.folder, before is not None)
    if before:
        _check_same_data(loaded, before, launch)
        if before.info and before.step >= launch.total_steps and before.evaluated:
            say(
                f"finished at step {before.step:,} already; nothing to do. "
                "A larger schedule.epochs would go on."
            )
            return None
    elif resume:
        say(f"resume   no checkpoint yet in {run.folder}: starting at step 0")
    if run.aside:
        say(f"fresh    the old run is now {run.aside}")
    runs.make(run)
    return launch


def _check_keys(allow: Sequence[str]) -> None:
    keys = config_text.properties()
    for key in allow:
        if key not in keys:
            near = get_close_matches(key, keys, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"--allow-config-change {key}: there is no such setting.{hint}", ExitCode.USAGE
            )


def _continued(folder: Path, config: Config, allow: Sequence[str]) -> Config:
    """`config` with what was `auto` as it was resolved at step 0; other changes are refused."""
    saved = runs.saved_config(folder)
    if saved is None:
        raise UserError(
            f"{folder} has checkpoints but no {runs.CONFIG}. Restore it, or start over: --fresh in "
            "place of --resume.",
            ExitCode.CHECKPOINT,
        )
    changed = [change for change in runs.changes(saved, config) if change[0] not in allow]
    other = [change for change in runs.changes(saved, config) if change[0] in ANOTHER_NETWORK]
    if other:
        lines = "\n".join(f"  {key}: {old} -> {new}" for key, old, new in other)
        raise UserError(
            f"{folder} trains another network:\n{lines}\nUndo the change, or start over: --fresh "
            "in place of --resume.",
            ExitCode.USAGE,
        )
    if changed:
        lines = "\n".join(f"  {key}: {old} -> {new}" for key, old, new in changed)
        keys = " ".join(f"--allow-config-change {key}" for key, _, _ in changed)
        raise UserError(
            f"{folder} was trained with other settings, so going on would not be the same run:\n"
            f"{lines}\nUndo the change, accept it with {keys}, or start over: --fresh in place of "
            "--resume.",
            ExitCode.USAGE,
        )
    auto = [key for key, value in config_text.flat(config).items() if value == "auto"]
    before = config_text.flat(saved)
    return config_text.resolved(config, {key: before[key] for key in auto})


def _check_same_data(loaded: config_file.Loaded, before: runs.Progress, launch: Launch) -> None:
    classes = before.info.get("classes")
    if classes is not None and len(classes) != len(launch.train.classes):
        raise UserError(
            f"{loaded.where('data.train')}: {len(launch.train.classes)} classes, but the run in "
            f"{launch.folder} was trained on {len(classes)}. Give it the same classes, or "
            "start over: --fresh in place of --resume.",
            ExitCode.USAGE,
        )
    for key, fingerprint in launch.fingerprints().items():
        old = before.info.get("fingerprints", {}).get(key)
        if None not in (old, fingerprint) and old != fingerprint:
            raise UserError(
                f"{loaded.where(key)}: the images are no longer those that the run in "
                f"{launch.folder} was trained on (files added, removed or renamed). Restore them, "
                "or start over: --fresh in place of --resume.",
                ExitCode.DATA,
            )


def _check_batch(loaded: config_file.Loaded, count: int) -> None:
    batch = loaded.config.optimizer
    try:
        order.check_divides(batch.batch_size, 1, batch.accumulate)
        order.steps_per_epoch(count, batch.batch_size)
        if loaded.config.augment.mixup or loaded.config.augment.cutmix:
            mixing.check_pairs(batch.batch_size, 1, batch.accumulate)
    except UserError as error:
        key = "optimizer.batch_size"  # the message begins with it; say where it was written too
        raise UserError(loaded.where(key) + str(error).removeprefix(key), error.exit_code) from None


def _check_class_count(loaded: config_file.Loaded, stated: int | str, train: Index) -> None:
    if stated not in ("auto", len(train.classes)):
        raise UserError(
            f"{loaded.where('model.num_classes')}: {stated}, but data.train has "
            f"{len(train.classes)} classes. Write auto, or {len(train.classes)}.",
            ExitCode.USAGE,
        )


def _at(loaded: config_file.Loaded, key: str, open_it: Callable[[], T]) -> T:
    try:
        return open_it()
    except UserError as error:
        end = "" if str(error).endswith("?") else "."
        other = ", or try --config quickstart.yaml" if key == "data.train" else ""
        raise UserError(
            f"{loaded.where(key)}: {error}{end} Pass {key}=FOLDER{other}.", error.exit_code
        ) from None


def _workers(stated: int | str) -> int:
    if isinstance(stated, int):
        return stated
    # The threads only decode; beyond 16 a GPU that trains GoogLeNet is fed.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, cores or 1)


def data_summary(index: Index) -> str:
    """`3,068 photos, 10 classes, from 112 (skirt) to 795 (t-shirt)`."""
    counts = index.counts()
    low, high = int(np.argmin(counts)), int(np.argmax(counts))
    spread = (
        f"{counts[low]:,} each"
        if counts[low] == counts[high]
        else f"from {counts[low]:,} ({index.classes[low]}) to {counts[high]:,} "
        f"({index.classes[high]})"
    )
    return f"{len(index):,} photos, {len(index.classes):,} classes, {spread}"


def say(line: str) -> None:
    with suppress(BrokenPipeError):  # `2>&1 | head` has seen enough; the run goes on
        print(line, file=sys.stderr, flush=True)
