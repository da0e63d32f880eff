"""Everything between the command line and torch: whatever can be wrong without it is found here."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from googlenet_train import __version__, config_file, config_text, distributed, runs
from googlenet_train.config import Config
from googlenet_train.data import order
from googlenet_train.data.index import Index, check_same_classes, open_source
from googlenet_train.errors import ExitCode, UserError

T = TypeVar("T")


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
    _say(f"googlenet-train {__version__}")
    _say(f"config   {loaded.path if not loaded.shipped else loaded.path.name}{shipped}")
    distributed.refuse_many_ranks()

    run = runs.choose(config, loaded.name, resume=resume, fresh=fresh)
    _say(f"run      {run.folder}" + (f" ({run.note})" if run.note else ""))

    train = _at(loaded, "data.train", lambda: open_source(config.data.train))
    val = None
    if config.data.val is not None:
        source = config.data.val
        val = _at(loaded, "data.val", lambda: check_same_classes(train, open_source(source)))
    order.check_divides(config.optimizer.batch_size, 1, config.optimizer.accumulate)
    order.steps_per_epoch(len(train), config.optimizer.batch_size)
    _check_class_count(loaded, config.model.num_classes, train)

    before = runs.progress(run.folder) if resume else None
    if before:
        config = _continued(run.folder, config, allow)
    config = config_text.resolved(
        config,
        {"model.num_classes": len(train.classes), "data.workers": _workers(config.data.workers)},
    )
    launch = Launch(config, train, val, run.folder, before is not None)
    if before:
        _check_same_data(loaded, before, launch)
        if before.step >= launch.total_steps:
            _say(
                f"{run.folder} is finished, at step {before.step:,}; nothing to do. "
                f"A larger schedule.epochs would go on."
            )
            return None
    elif resume:
        _say(f"resume   no checkpoint yet in {run.folder}: starting at step 0")
    return launch


def _continued(folder: Path, config: Config, allow: Sequence[str]) -> Config:
    """`config` with what was `auto` as it was resolved at step 0; other changes are refused."""
    saved = runs.saved_config(folder)
    if saved is None:
        raise UserError(
            f"{folder} has checkpoints but no {runs.CONFIG}. Restore it, or start over with "
            "--fresh.",
            ExitCode.CHECKPOINT,
        )
    changed = [change for change in runs.changes(saved, config) if change[0] not in allow]
    if changed:
        lines = "\n".join(f"  {key}: {old} -> {new}" for key, old, new in changed)
        keys = " ".join(f"--allow-config-change {key}" for key, _, _ in changed)
        raise UserError(
            f"{folder} was trained with other settings, so going on would not be the same run:\n"
            f"{lines}\nUndo the change, start over with --fresh, or accept it with {keys}",
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
            f"{launch.folder} was trained on {len(classes)}. Give it the same classes, or start a "
            "new run.",
            ExitCode.USAGE,
        )
    for key, fingerprint in launch.fingerprints().items():
        old = before.info.get("fingerprints", {}).get(key, fingerprint)
        if old != fingerprint:
            raise UserError(
                f"{loaded.where(key)}: the images are no longer those that the run in "
                f"{launch.folder} was trained on (files added, removed or renamed). Restore them, "
                "or start a new run.",
                ExitCode.DATA,
            )


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
        raise UserError(
            f"{loaded.where(key)}: {error} Pass {key}=FOLDER, or try --config quickstart.yaml.",
            error.exit_code,
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
    return (
        f"{len(index):,} photos, {len(index.classes):,} classes, from {counts[low]:,} "
        f"({index.classes[low]}) to {counts[high]:,} ({index.classes[high]})"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
