"""Many file names in little memory, and which files count as photos."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# The endings that torchvision.datasets.ImageFolder accepts.
PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# A Mac's archiver writes the first; a Synology keeps thumbnails in the second, in every folder.
_OF_MACHINES = ("__MACOSX", "@eaDir")


def is_photo(name: str) -> bool:
    """Whether the ending, in any case, is that of an image file."""
    return name.lower().endswith(PHOTO_ENDINGS)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left out: a leading dot, or the leavings of a machine."""
    return name.startswith(".") or name in _OF_MACHINES


def printable(name: str) -> str:
    """A file name as text that any stream can print: bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def ending(name: str) -> str:
    """Of a file that is no photo: `.heic`."""
    return Path(name).suffix.lower() or "without ending"


def not_read(endings: Counter[str]) -> str:
    """`4 files are not read, for the ending: .heic (3), .gif (1)`."""
    listed = ", ".join(f"{one} ({n})" for one, n in endings.most_common(5))
    plural = "s are" if endings.total() > 1 else " is"
    return f"{endings.total():,} file{plural} not read, for the ending: {listed}"


def class_name(written: str) -> str:
    """A class's name in Unicode's composed form (NFC): `ü` is one letter.

    A Mac may spell a folder with `u` and two dots, which looks the same. Only names of classes are
    put so: a path has to stay what the disk holds.
    """
    return unicodedata.normalize("NFC", written)


@dataclass(frozen=True, eq=False)
class Names:
    """Relative paths with `/` between folders, as one run of bytes instead of a million strings.

    `blob` holds every path followed by a zero byte (which no path can contain); `ends`, int64 of
    shape (count,), holds the places of the zeros.
    """

    blob: bytes
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        """The i-th path, 0 <= i < len, in the form the operating system takes (`os.fsdecode`)."""
        start = int(self.ends[i - 1]) + 1 if i else 0
        return os.fsdecode(self.blob[start : int(self.ends[i])])

    def chosen(self, places: npt.NDArray[np.int64]) -> "Names":
        """The paths at these places, in their order."""
        return pack_names([[self[i] for i in places.tolist()]])


def names_in(blob: bytes) -> Names:
    """The paths in a run of bytes that holds each of them followed by a zero."""
    ends = np.flatnonzero(np.frombuffer(blob, dtype=np.uint8) == 0).astype(np.int64, copy=False)
    return Names(blob, ends)


def pack_names(groups: Iterable[Iterable[str]]) -> Names:
    """All paths of all groups, in order; one group at a time is held as strings."""
    blob = bytearray()
    for group in groups:
        if joined := "\0".join(group):
            blob += os.fsencode(joined) + b"\0"
    return names_in(bytes(blob))
