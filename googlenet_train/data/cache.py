"""Training photos kept in memory as pixels: decoded once, from then on only cropped and resized.

What is kept is what `data pack --codec raw` stores: the photo shrunk to a short side, as a PPM. The
pixels depend on that side alone, and not on whether, when or by which thread a photo was kept: one
that finds no room is decoded and shrunk anew each time.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from googlenet_train.data.crops import resized_size
from googlenet_train.data.decode import UndecodableImage, decode, image_size
from googlenet_train.data.index import Files, Index
from googlenet_train.data.names import Names
from googlenet_train.data.orientation import UPRIGHT, orientation, turned
from googlenet_train.data.pack import shrunken, to_ppm
from googlenet_train.errors import UserError
from googlenet_train.machine.memory import gigabytes

_SAMPLE = 64  # photos that are asked for their size


class Cache(NamedTuple):
    """What became of `data.cache`."""

    photos: Index
    mode: str  # "ram" or "none"
    line: str  # for people


def open_cache(
    index: Index,
    mode: str,
    *,
    short_side: int,
    exif_orientation: bool,
    available: int | None,
    processes: int = 1,
) -> Cache:
    """The photos of `index`, kept in memory once they are read.

    Half of the memory that is `available` (bytes; None: unknown) may be used, shared by as many
    `processes`, each of which comes to see all photos. Mode "ram" keeps what fits there; "auto" is
    "ram" where all photos fit and else "none", which is to be remembered: it leaves other pixels.
    """
    needed = _needed(index, short_side)
    limit = None if available is None else available // 2 // processes
    fits = limit is not None and needed <= limit
    what = f"{len(index):,} photos at a short side of {short_side}"
    room = (
        "" if limit is None else f" of the {gigabytes(limit)} GB to be had (half of what is free)"
    )
    if mode == "auto" and not fits:
        why = room and f" do not fit: {gigabytes(needed)}{room}"
        why = why or " may not fit: this system does not say how much memory is free"
        return Cache(index, "none", f"none: {what}{why}")
    rest = "" if fits or limit is None else "; those that do not fit are decoded each time"
    files = CachedFiles(index.files, short_side, exif_orientation, limit, needed)
    line = f"{what} are decoded once, {gigabytes(needed)}{room or ' GB'}{rest}"
    return Cache(replace(index, files=files), "ram", line)


def _needed(index: Index, short_side: int) -> int:
    """Bytes of all photos shrunk, by the sizes of some that lie evenly spread."""
    sizes = []
    for n in range(min(_SAMPLE, len(index))):
        try:
            height, width = image_size(index.read(n * len(index) // min(_SAMPLE, len(index))))
        except (UndecodableImage, UserError):  # told when it is its turn
            continue
        if min(height, width) > short_side:
            height, width = resized_size(height, width, short_side)
        sizes.append(3 * height * width)
    return len(index) * sum(sizes) // max(1, len(sizes))


@dataclass(frozen=True, eq=False)
class CachedFiles:
    """Photos of other `files`, shrunk, upright, and kept while they are no more than `limit` bytes.

    Many threads may read at once.
    """

    files: Files
    short_side: int
    exif_orientation: bool
    limit: int | None
    needed: int  # bytes that all photos would take
    kept: dict[int, bytes] = field(default_factory=dict, init=False, repr=False)
    _used: list[int] = field(default_factory=lambda: [0], init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def names(self) -> Names:
        return self.files.names

    def name(self, i: int) -> str:
        return self.files.name(i)

    def identity(self) -> Sequence[bytes]:
        return self.files.identity()

    def stamp(self, i: int) -> tuple[int, int] | None:
        return self.files.stamp(i)

    def chosen(self, places: npt.NDArray[np.int64]) -> "CachedFiles":
        files = self.files.chosen(places)
        return replace(self, files=files)

    def to_come(self) -> int:
        """Bytes that will be kept beside those that are kept already."""
        most = self.needed if self.limit is None else min(self.needed, self.limit)
        return max(0, most - self._used[0])

    def read(self, i: int) -> bytes | memoryview:
        """A PPM; of a photo that cannot be decoded its own bytes, for the reader to find out."""
        if (kept := self.kept.get(i)) is not None:
            return kept
        data = self.files.read(i)
        try:
            pixels = shrunken(data, self.short_side)
            pixels = decode(data) if pixels is None else pixels
        except UndecodableImage:
            return data
        ppm = to_ppm(turned(pixels, orientation(data) if self.exif_orientation else UPRIGHT))
        with self._lock:
            if self.limit is None or self._used[0] + len(ppm) <= self.limit:
                self._used[0] += len(ppm)
                self.kept[i] = ppm
        return ppm
