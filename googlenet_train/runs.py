"""The folder of a run: which one, whose, and that nobody else is writing there. No torch."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from googlenet_train import config_file, config_text
from googlenet_train.config import Config
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.storage import CANNOT, warn_once

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
BEST = "best.json"

# Settings that may differ when a run is resumed: none of them reaches a weight or a logged value.
# The data's place may change too, for its fingerprint is compared instead.
FREE_ON_RESUME = ("run.dir", "data.workers", "data.train", "data.val", "checkpoint.")


class Progress(NamedTuple):
    """How far a run has come: its newest checkpoint's step, and what that says of itself."""

    step: int
    info: dict[str, Any]

    @property
    def total_steps(self) -> int:
        return int(self.info.get("total_steps", sys.maxsize))

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps


@dataclass(frozen=True)
class RunFolder:
    folder: Path
    note: str | None = None  # why this folder, where that is not plain


def progress(folder: Path) -> Progress | None:
    """How far the run in `folder` has come; None where it holds no checkpoint."""
    steps = []
    for path in (folder / CHECKPOINTS).glob("step-*.safetensors"):
        info: dict[str, Any] = {}
        try:
            with safetensors.safe_open(path, "np") as file:
                info = json.loads((file.metadata() or {})["info"])
        except (OSError, KeyError, ValueError, safetensors.SafetensorError):
            pass  # a damaged checkpoint still is somebody's run; resuming names what is wrong
        step = path.stem.removeprefix("step-")
        if step.isdecimal():
            steps.append(Progress(int(step), info))
    return max(steps, key=lambda progress: progress.step, default=None)


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
        if after != "auto" and key != "schedule.epochs" and not key.startswith(FREE_ON_RESUME)
    ]


def choose(config: Config, name: str, *, resume: bool, fresh: bool) -> RunFolder:
    """The folder that this command trains in.

    Raises UserError (usage) where that would shadow or overwrite another run.
    """
    if config.run.dir is not None:
        return _explicit(Path(config.run.dir), resume=resume, fresh=fresh)
    taken = list(_numbered(Path("runs") / name))
    runs = [folder for folder in taken if progress(folder) is not None]
    same = [folder for folder in runs if _is_same(folder, config)]
    free = next(f for f in _candidates(Path("runs") / name) if not _taken(f))
    if resume:
        # One of other settings is taken too: the check of changes then says what differs.
        for folder in reversed(same or runs):
            return RunFolder(folder)
        return RunFolder(free)
    unfinished = [f for f in same if not (p := progress(f)) or not p.finished]
    if unfinished and fresh:
        return RunFolder(unfinished[-1], _set_aside(unfinished[-1]))
    if unfinished:
        at = progress(unfinished[-1])
        step = f"step {at.step}" if at else "its start"
        raise UserError(
            f"{unfinished[-1]} holds an unfinished run of this config, at {step}. "
            "Add --resume to go on with it, or --fresh to start over (the old folder is renamed, "
            "nothing is deleted).",
            ExitCode.USAGE,
        )
    if free.name == name:
        return RunFolder(free)
    return RunFolder(free, f"runs/{name} holds another run")


def _explicit(folder: Path, *, resume: bool, fresh: bool) -> RunFolder:
    if resume or not _taken(folder):
        return RunFolder(folder)
    if fresh:
        return RunFolder(folder, _set_aside(folder))
    raise UserError(
        f"run.dir={folder} is taken. Choose another, add --resume to go on with the run there, or "
        "--fresh to rename it and start over.",
        ExitCode.USAGE,
    )


def _set_aside(folder: Path) -> str:
    old = next(f for f in _candidates(folder.with_name(folder.name + "-old")) if not f.exists())
    folder.rename(old)
    return f"the old run is now {old}"


def _candidates(base: Path) -> Iterator[Path]:
    yield base
    n = 2
    while True:
        yield base.with_name(f"{base.name}-{n}")
        n += 1


def _numbered(base: Path) -> Iterator[Path]:
    for folder in _candidates(base):
        if not folder.exists():
            return
        yield folder


def _taken(folder: Path) -> bool:
    """Whether something worth keeping lies there. A start that failed before its first checkpoint
    leaves nothing: its folder is used again."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        return True
    if (folder / CONFIG).is_file():
        return progress(folder) is not None or _is_locked(folder)
    return any(entry.name != ".lock" for entry in folder.iterdir())


def _is_same(folder: Path, config: Config) -> bool:
    try:
        old = saved_config(folder)
    except UserError:
        return False
    moved = old is not None and (old.data.train, old.data.val) != (
        config.data.train,
        config.data.val,
    )
    return old is not None and not moved and not changes(old, config)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. The lock dies with it, however it dies.

    `lockf`, not `flock`: a forked child inherits `flock`'s and would keep it after our death.
    Raises UserError (usage) where another process trains there.
    """
    handle = _lock(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    if os.name == "nt":
        return None
    import fcntl

    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in CANNOT:
            warn_once(f"{folder}: this storage has no locks; do not train twice in one folder")
            return handle
        os.close(handle)
        raise UserError(
            f"{folder}: another process is training there. Wait for it or stop it, or choose "
            "another run.dir.",
            ExitCode.USAGE,
        ) from None
    return handle


def _is_locked(folder: Path) -> bool:
    try:
        with lock(folder):
            return False
    except UserError:
        return True


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that best.json names; None where there is none yet."""
    try:
        named = json.loads((folder / BEST).read_text())["checkpoint"]
    except (OSError, ValueError, KeyError):
        return None
    return folder / str(named)
