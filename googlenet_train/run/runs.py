"""The folder of a run: which one, whose, and what is in it. No torch."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from googlenet_train import checkpoint
from googlenet_train.config import Config
from googlenet_train.config import file as config_file
from googlenet_train.config import text as config_text
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.storage import make_folder
from googlenet_train.run import lock

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
BEST = "best.json"

# Settings that may differ when a run is resumed: none of them reaches a weight or a logged value.
# The data's place may change too, for its fingerprint is compared instead, and what is done about
# an unreadable image or a NaN, for a run that met none is the same and one that stopped goes on.
# When to save (checkpoint.*) is free as well.
FREE_ON_RESUME = (
    "run.dir",
    "data.workers",
    "data.train",
    "data.val",
    "data.labels",
    "data.exclude",
    "data.on_error",
    "data.quarantine_limit",
    "optimizer.on_nonfinite",
    "optimizer.skip_limit",
    "distributed.timeout",
)

_PLACES = ("train", "val", "labels", "exclude")  # of the data: with another one it is another run


class Progress(NamedTuple):
    """How far a run has come: its newest checkpoint's step, and what that says of itself."""

    step: int
    info: dict[str, Any]  # as it states it

    @property
    def total_steps(self) -> int:
        return int(self.info.get("total_steps", sys.maxsize))

    @property
    def evaluated(self) -> bool:
        """Whether this step was evaluated; a signal can come between it and its evaluation."""
        return int(self.info.get("evaluated", self.step)) >= self.step

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps and self.evaluated


@dataclass(frozen=True)
class RunFolder:
    folder: Path
    note: str | None = None  # why this folder, where that is not plain
    aside: Path | None = None  # what an old run that lies there is to be renamed to


def progress(folder: Path, *, verified: bool = False) -> Progress | None:
    """How far the run in `folder` has come; None where it holds no checkpoint.

    With `verified` only a checkpoint that is whole is believed, which reads all of it.
    """
    paths = checkpoint.checkpoints(folder / CHECKPOINTS)
    for path in reversed(paths):
        if info := _verified(path) if verified else checkpoint.header(path):
            return Progress(checkpoint.step_of(path), info)
    # Damaged ones alone still are somebody's run; resuming names what is wrong with them.
    return Progress(checkpoint.step_of(paths[-1]), {}) if paths else None


def _verified(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; nothing where it is damaged."""
    try:
        return checkpoint.verify(path)
    except UserError:  # named when the run is opened, which goes on from the one before
        return {}


def saved_config(folder: Path) -> Config | None:
    """The resolved config that the run in `folder` trains with; None where there is no run."""
    path = folder / CONFIG
    return config_file.load(str(path), []).config if path.is_file() else None


def changes(old: Config, new: Config) -> list[tuple[str, object, object]]:
    """(key, old, new) of each setting that may not change on resume and did.

    `old` is resolved; where `new` says auto it means what was resolved at step 0.
    """
    return [
        (key, before, after)
        for key, before, after in config_text.difference(old, new)
        if not (
            after == "auto"
            or key in FREE_ON_RESUME
            or key.startswith("checkpoint.")
            or (key == "schedule.epochs" and _longer(before, after))
        )
    ]


def _longer(before: object, after: object) -> bool:
    return isinstance(before, int) and isinstance(after, int) and after >= before


def choose(config: Config, name: str, *, resume: bool, fresh: bool) -> RunFolder:
    """The folder that this command trains in; nothing is changed on the disk.

    Raises UserError (usage) where that would shadow or overwrite another run.
    """
    if config.run.dir is not None:
        return _explicit(Path(config.run.dir).expanduser(), resume=resume, fresh=fresh)
    base = Path("runs") / name
    found = [folder for folder in _numbered(base) if _is_run(folder)]
    differing = {folder: _differences(folder, config) for folder in found}
    same = [folder for folder in found if differing[folder] == []]
    free = next(folder for folder in _candidates(base) if not _taken(folder))
    if resume:
        if not found:
            return RunFolder(free)
        # One of other settings is taken too: the check of changes then says what differs. Of
        # several the newest.
        nearest = min(
            reversed(found), key=lambda f: (differing[f] is None, len(differing[f] or ()))
        )
        among = len(same or found)
        others = f"of {among} runs the nearest; run.dir=FOLDER names another"
        return RunFolder(_to_resume(nearest), others if among > 1 else None)
    unfinished = [f for f in same if not _lost(f) and (not (at := progress(f)) or not at.finished)]
    if unfinished:
        folder = lock.not_in_use(unfinished[-1])
        if fresh:
            return RunFolder(folder, aside=_old_name(folder))
        step = at.step if (at := progress(folder)) else 0
        raise UserError(
            f"{folder} holds an unfinished run of this config, at step {step:,}. "
            "Add --resume to go on with it, or --fresh to start over (the old folder is renamed, "
            "nothing is deleted).",
            ExitCode.USAGE,
        )
    return RunFolder(free, None if free == base else f"{base} holds another run")


def _to_resume(folder: Path) -> Path:
    lock.not_in_use(folder)
    if _lost(folder):
        raise UserError(
            f"{folder} has {BEST} and no checkpoint any more. Restore {folder / CHECKPOINTS}, or "
            "start over: --fresh in place of --resume (the old folder is renamed).",
            ExitCode.CHECKPOINT,
        )
    return folder


def _lost(folder: Path) -> bool:
    """Whether somebody took the checkpoints of a run away: the best one was told of after it was
    written."""
    return (folder / BEST).exists() and not checkpoint.checkpoints(folder / CHECKPOINTS)


def _explicit(folder: Path, *, resume: bool, fresh: bool) -> RunFolder:
    if not _taken(folder):
        return RunFolder(folder)
    if not _is_run(folder):
        what = "holds other files, and no run" if folder.is_dir() else "is a file"
        raise UserError(
            f"run.dir={folder} {what}. Choose a folder that is new or empty.", ExitCode.USAGE
        )
    lock.not_in_use(folder)
    if resume:
        return RunFolder(_to_resume(folder))
    if fresh:
        return RunFolder(folder, aside=_old_name(folder))
    raise UserError(
        f"run.dir={folder} holds a run already. Choose another folder, add --resume to go on with "
        "that run, or --fresh to start over (the old folder is renamed, nothing is deleted).",
        ExitCode.USAGE,
    )


def make(run: RunFolder) -> None:
    """Create the run folder; an old run that lies there is renamed first.

    Raises UserError (storage) where the file system refuses.
    """
    try:
        if run.aside is not None:
            run.folder.rename(run.aside)
        make_folder(run.folder)
    except OSError as error:
        raise UserError(
            f"the run folder {run.folder} cannot be made ({error.strerror}). "
            "Choose another with run.dir=FOLDER.",
            ExitCode.STORAGE,
        ) from None


def _old_name(folder: Path) -> Path:
    return next(f for f in _candidates(folder.with_name(folder.name + "-old")) if not f.exists())


def _candidates(base: Path) -> Iterator[Path]:
    yield base
    n = 2
    while True:
        yield base.with_name(f"{base.name}-{n}")
        n += 1


def _numbered(base: Path) -> list[Path]:
    """The folders that exist of base, base-2, base-3, ..., in that order; there may be gaps."""
    names = [(p, p.name.removeprefix(f"{base.name}-")) for p in base.parent.glob(f"{base.name}-*")]
    later = sorted((int(number), path) for path, number in names if number.isdecimal())
    return ([base] if base.exists() else []) + [path for _, path in later]


def _taken(folder: Path) -> bool:
    """Whether something worth keeping lies there. A start that failed before its first checkpoint
    leaves nothing: its folder, known by the lock, is used again."""
    if not folder.is_dir():
        return folder.exists()
    if (folder / lock.FILE).exists():
        return _is_run(folder)
    return any(folder.iterdir())


def _is_run(folder: Path) -> bool:
    return progress(folder) is not None or _lost(folder) or lock.is_locked(folder)


def _differences(folder: Path, config: Config) -> list[str] | None:
    """The settings that make `config` another run than that in `folder`; None where it lost its."""
    try:
        old = saved_config(folder)
    except UserError:
        return None
    if old is None:
        return None
    places = [key for key in _PLACES if getattr(old.data, key) != getattr(config.data, key)]
    return places + [key for key, _, _ in changes(old, config)]


def named_checkpoint(run: Path, which: str) -> Path | None:
    """The file that RUN, a run folder or a checkpoint, and `which` (last, best, STEP) mean.

    None for the last one that verifies. Raises UserError (usage) where there is no such file.
    """
    if run.is_file():
        return run
    folder = run / CHECKPOINTS
    saved = {checkpoint.step_of(path): path for path in checkpoint.checkpoints(folder)}
    if not saved:
        raise _no_run(run, _why_no_run(run))
    if which == "last":
        return None
    if which == "best":
        best = best_checkpoint(run)
        if best is None:
            raise UserError(
                f"{run} has no best checkpoint: it was never evaluated. Use --checkpoint last.",
                ExitCode.USAGE,
            )
        return best
    if not which.isdecimal() or int(which) not in saved:
        raise UserError(
            f"--checkpoint {which}: {run} has step{'s' if len(saved) > 1 else ''} "
            f"{', '.join(map(str, saved))}. Give one of them, last or best.",
            ExitCode.USAGE,
        )
    return saved[int(which)]


def refuse_no_run(run: Path, which: str) -> None:
    """What RUN of a command line cannot be is told before PyTorch is loaded."""
    if run.is_file() and run.suffix != ".safetensors":
        raise _no_run(run, "is no checkpoint")
    named_checkpoint(run, which)


def _no_run(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} {why}. RUN is the folder of a run, such as runs/quickstart, or a checkpoint, and "
        "comes first.",
        ExitCode.USAGE,
    )


def _why_no_run(path: Path) -> str:
    if not path.is_dir():
        return "does not exist"
    if checkpoint.checkpoints(path):
        return f"holds the checkpoints of {path.parent}: give that"
    return "has not saved a checkpoint yet" if lock.is_locked(path) else "holds no checkpoint"


def best_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint as the newest one knows it; None where there is none yet.

    `best.json` says the same for people: it is written after, and a kill can come between.
    """
    newest = progress(folder, verified=True)
    best = newest.info.get("best") if newest else None
    return checkpoint.checkpoint_path(folder / CHECKPOINTS, best["step"]) if best else None
