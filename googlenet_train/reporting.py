"""What a run shows while it trains: TensorBoard, metrics.jsonl, lines and a bar on stderr."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from googlenet_train import distributed
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.storage import fsync, write_durably

EVENTS = "events.out.tfevents.*"


class Reporter:
    """The open files of one run's log; without a folder, as on all ranks but the first, nothing.

    `step` is the step that the run starts from: whatever an earlier process logged past it is cut.
    """

    def __init__(self, folder: Path | None, step: int, steps_per_epoch: int) -> None:
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self._bar: Any = None  # tqdm's own type cannot be written for a bar without items
        self._said = time.monotonic()
        self._terminal = folder is not None and sys.stderr.isatty()
        if folder is None:
            return
        self._metrics_path = folder / "metrics.jsonl"
        _cut(self._metrics_path, step)
        if step == 0:  # a start that failed before its first checkpoint may have left some
            for events in folder.glob(EVENTS):
                events.unlink()
        self._metrics = self._metrics_path.open("a")
        self._hook = threading.excepthook
        threading.excepthook = partial(_quiet_board, self._hook)
        # TensorBoard hides what is larger or equal, and step itself was logged before it was saved.
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Values under their TensorBoard tags, at optimizer step `step`."""
        if self._folder is None:
            return
        epoch = round(step / self._steps_per_epoch, 4)
        with self._storage():
            self._metrics.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
            for tag, value in values.items():
                self._board.add_scalar(tag, value, step)

    def picture(self, tag: str, path: Path, step: int) -> None:
        """Show a JPEG file in TensorBoard."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._board.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def text(self, tag: str, text: str) -> None:
        self._board.add_text(tag, "\n".join("    " + line for line in text.splitlines()))

    def advance(self, step: int, total_epochs: int) -> None:
        """One optimizer step more: moves the bar of its epoch."""
        if not self._terminal:
            return
        epoch, done = divmod(step - 1, self._steps_per_epoch)
        if self._bar is None:
            self._bar = tqdm(
                total=self._steps_per_epoch,
                initial=done,
                desc=f"epoch {epoch + 1}/{total_epochs}",
                unit="step",
                dynamic_ncols=True,
                leave=False,
            )
        self._bar.update()
        if done + 1 == self._steps_per_epoch:
            self.close_bar()

    def status(self, text: str, step: int, total_steps: int) -> None:
        """The state of training: beside the bar on a terminal, else now and then a line."""
        if self._terminal:
            if self._bar is not None:
                self._bar.set_postfix_str(text, refresh=False)
        elif time.monotonic() - self._said >= 5:
            self._said = time.monotonic()
            say(f"step {step:,}/{total_steps:,}  {text}")

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def flush(self) -> None:
        """Hand everything logged so far to the operating system."""
        with self._storage():
            self._metrics.flush()
            self._board.flush()

    def fsync(self) -> None:
        """What was flushed is on the disk when this returns; another thread may log meanwhile."""
        with self._storage():
            for path in (self._metrics_path, *self._metrics_path.parent.glob(EVENTS)):
                handle = os.open(path, os.O_RDWR)
                try:
                    fsync(handle)
                finally:
                    os.close(handle)

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Errors of the disk as UserError (storage): by themselves they know no name."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._metrics_path.parent}: the log could not be written ({error.strerror}). "
                "Checkpoints are untouched; make room or mend the disk, then --resume.",
                ExitCode.STORAGE,
            ) from error

    def close(self) -> None:
        self.close_bar()
        if self._folder is None:
            return
        threading.excepthook = self._hook
        with self._storage():
            try:
                self._metrics.close()
            finally:
                self._board.close()


def _quiet_board(tell: Callable[[Any], object], failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands an error of the disk to whoever logs next, who says it."""
    ours = type(failed.thread).__module__.startswith("tensorboard.")
    if not (ours and issubclass(failed.exc_type, OSError)):
        tell(failed)


def say(line: str = "") -> None:
    """A line for the person at the keyboard, on stderr, above a bar if there is one; once a run.

    Nobody may be there any more (`2>&1 | head`): the run is worth more than its lines.
    """
    if distributed.rank():
        return
    with suppress(BrokenPipeError):
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """`48 s`, `3 min 46 s`, `5 h 12 min`, `2 d 3 h`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    if s < 48 * 3600:
        return f"{s // 3600} h {s % 3600 // 60} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


def _cut(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl past `step`, and a last one that a crash left torn."""
    if not path.exists():
        return
    kept = []
    # A power cut can leave anything in a block that was not synced.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_durably(path, "".join(line + "\n" for line in kept))
