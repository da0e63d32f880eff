"""Images that cannot be read and are left out: listed once each, and only so many of them."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from googlenet_train.data.index import Index
from googlenet_train.data.loader import Lost
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.storage import fsync, write_durably
from googlenet_train.reporting import say

FILE = "quarantine.csv"
_COLUMNS = ("set", "path", "reason", "first_step")
_SHOWN = 10  # lines for a person; the file has all of them


class Quarantine:
    """The images of some data sets that were left out so far, in the run folder's quarantine.csv.

    It only reports: each image is tried again whenever its turn comes, so a run depends on the
    files alone, not on what failed when. What lies past `step`, where the run goes on, is cut.
    `sources`: what is named in messages, such as data.train, and its images. `share`: the largest
    part of one data set that may be missing, rounded up to whole images.
    """

    def __init__(
        self, sources: Mapping[str, Index], share: float, folder: Path | None = None, step: int = 0
    ) -> None:
        self._sources = sources
        self._share = share
        self._path = folder / FILE if folder else None
        self._listed: dict[str, set[str]] = {name: set() for name in sources}
        if self._path and self._path.exists():
            rows = [row for row in _read(self._path) if int(row[3]) <= step]
            for source, name, *_ in rows:
                self._listed.setdefault(source, set()).add(name)
            write_durably(self._path, _text([_COLUMNS, *rows]))

    def add(self, source: str, lost: Sequence[Lost], step: int) -> None:
        """List images that were left out at optimizer step `step` (the first is 1).

        Raises UserError (data) where more of `source` are missing than may be.
        """
        index, listed = self._sources[source], self._listed[source]
        limit = math.ceil(self._share * len(index))
        for i, reason in lost:
            name = index.name(i)
            if name in listed:
                continue
            listed.add(name)
            self._write((source, name, reason, str(step)))
            if len(listed) <= _SHOWN:
                last = "; further ones are listed only" if len(listed) == _SHOWN else ""
                say(f"warning  left out of {source}: {name}: {reason}{last}")
            if len(listed) > limit:
                raise UserError(
                    f"{len(listed):,} of the {len(index):,} images of {source} cannot be read, "
                    f"more than data.quarantine_limit={self._share:g} allows ({limit:,}); the last "
                    f"is {name}: {reason}. `googlenet-train data verify SOURCE` lists them all.",
                    ExitCode.DATA,
                )

    def fsync(self) -> None:
        """The list is on the disk when this returns."""
        if self._path and self._path.exists():
            handle = os.open(self._path, os.O_RDWR)
            try:
                fsync(handle)
            finally:
                os.close(handle)

    def _write(self, row: Sequence[str]) -> None:
        if self._path is None:
            return
        rows = [row] if self._path.exists() else [_COLUMNS, row]
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(_text(rows))


def _read(path: Path) -> list[list[str]]:
    """The rows, without a last one that a crash left torn."""
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))[1:]
    return [row for row in rows if len(row) == len(_COLUMNS) and row[3].isdecimal()]


def _text(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
