"""Photos as files below one folder: finding them, and reading one.

The photos come in the order of torchvision.datasets.ImageFolder. For 1.28 million files the work
is done once per folder wherever it can be: a directory entry tells without a look at the file
whether it is a folder, and names are joined and not held one by one.
"""

import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from googlenet_train.data.names import (
    Names,
    class_name,
    ending,
    is_hidden,
    is_photo,
    names_in,
    printable,
)
from googlenet_train.errors import ExitCode, UserError

T = TypeVar("T")

_THREADS = 16  # where the storage is slow: most of them wait
_PROBE = 4  # folders after which that is known


class Folder(NamedTuple):
    """A folder and its times (ns since 1970) just before it was listed.

    They change with every file that is added to it, removed from it or renamed in it.
    """

    name: str  # relative to the root, which is itself "."
    mtime: int
    ctime: int


class FolderScan(NamedTuple):
    """What was found below a folder of class folders."""

    classes: list[str]  # sorted; see `class_name`
    counts: list[int]  # photos per class
    names: Names
    folders: list[Folder]  # every folder that was looked into
    began: int  # when, in ns since 1970
    settled: bool  # False: more may be found though no folder changes (a link to nothing as yet)


@dataclass(frozen=True, eq=False)
class FolderFiles:
    """Photos as files below one folder.

    `indexed` and `opened` (ns since 1970) are when the folder was scanned and when this process
    began to use the index; they differ where the index was kept from an earlier start.
    """

    root: Path
    names: Names
    indexed: int
    opened: int
    _told: list[str] = field(default_factory=list, init=False, repr=False)

    def name(self, i: int) -> str:
        return str(self.root / self.names[i])

    def read(self, i: int) -> bytes:
        """Raises UserError (DATA) where the photo was overwritten after `opened`.

        One that was overwritten between `indexed` and `opened` is read as it is now, because an
        index holds no more than names; the first such photo is named on stderr.
        """
        with (self.root / self.names[i]).open("rb", buffering=0) as file:
            data = file.read()
            written = os.fstat(file.fileno()).st_mtime_ns  # afterwards: a write meanwhile shows
        if written > self.indexed:
            self._judge(i, written)
        return data

    def identity(self) -> tuple[bytes, ...]:
        """What the data set's fingerprint covers besides classes and labels: the names."""
        return (self.names.blob,)

    def stamp(self, i: int) -> tuple[int, int]:
        """(size, time of the last change in ns): other contents have another one."""
        status = os.stat(f"{self.root}/{self.names[i]}")  # noqa: PTH116  a third of Path's time
        return status.st_size, status.st_mtime_ns

    def chosen(self, places: npt.NDArray[np.int64]) -> "FolderFiles":
        return FolderFiles(self.root, self.names.chosen(places), self.indexed, self.opened)

    def _judge(self, i: int, written: int) -> None:
        if written > time.time_ns():  # a wrong clock's; no scan would ever be newer
            return
        what, mend = printable(self.name(i)), shlex.quote(printable(str(self.root)))
        if written > self.opened:
            raise UserError(
                f"'{what}' was overwritten while the data set was in use, so that epochs would "
                f"see different images; run `googlenet-train data index {mend}`, then start again",
                ExitCode.DATA,
            )
        if not self._told:
            self._told.append(what)
            print(
                f"warning  '{what}' was overwritten after the data set was indexed; it is read as "
                f"it is now. `googlenet-train data index {mend}` indexes anew",
                file=sys.stderr,
            )


def scan(root: Path) -> FolderScan:
    """Find the photos below the class folders of `root`; there may be none.

    A link to a folder that the way there leads through is left out: it would never end.
    Raises OSError, and UserError (DATA) where two class folders have the same name.
    """
    began = time.time_ns()
    status = root.stat()
    with os.scandir(root) as listing:
        entries = [entry for entry in listing if not is_hidden(entry.name)]
    folder_of = _folders_by_class(root, [entry.name for entry in _folders_among(entries)])
    above = frozenset({_identity(status)})
    folders = [_folder(".", status)]
    blocks, counts = [], []
    settled = not any(map(_may_become_folder, entries))
    in_turn = list(folder_of.values())
    for found in in_order(lambda name: _scan_class(str(root), name, above), in_turn):
        folders += found.folders
        blocks.append(found.block)
        counts.append(found.photos)
        settled &= found.settled
    return FolderScan(list(folder_of), counts, names_in(b"".join(blocks)), folders, began, settled)


def left_out(root: Path, most: int) -> tuple[Counter[str], list[str]]:
    """Files below `root` that no class has: how many of each ending that is not read, in the class
    folders, and the photos that lie beside them or in a folder with a leading dot beside them.
    Nothing where there are more than `most` files.
    """
    endings: Counter[str] = Counter()
    loose: list[str] = []
    seen = 0
    for folder, below, files in os.walk(root):
        names = [name for name in files if not is_hidden(name)]
        if Path(folder) == root:  # lists and licences are at home there
            loose = sorted(filter(is_photo, names))
            for name in sorted(below):
                loose += _photos_in_dotted(root, name)
        else:
            others = (name for name in names if not is_photo(name))
            endings.update(map(ending, others))
        below[:] = [name for name in below if not is_hidden(name)]
        seen += len(files)
        if seen > most:
            return Counter(), []
    return endings, loose


def _photos_in_dotted(root: Path, name: str) -> list[str]:
    """The photos of a folder that only its leading dot keeps from being a class."""
    if not name.startswith("."):
        return []
    try:
        inside = os.listdir(root / name)  # noqa: PTH208  names are all it takes
    except OSError:  # another program's, such as a disk's .Trashes: nothing to tell
        return []
    return [f"{name}/{one}" for one in sorted(inside) if is_photo(one) and not is_hidden(one)]


def look(root: Path, name: str) -> Folder:
    """The folder `name` below `root` as it is now; raises OSError."""
    return _folder(name, os.stat(f"{root}/{name}"))  # noqa: PTH116  a third of Path's time


def in_order(work: Callable[[str], T], folders: Sequence[str]) -> Iterator[T]:
    """`work(folder)` for each, in order; in threads where the storage makes it wait.

    On a warm local disk threads only fight for Python's lock (0.38 s with eight, 0.33 s with none,
    for 200,000 files in 1,000 folders); on a cold or a network disk they wait side by side.
    """
    wall, busy = time.perf_counter(), time.thread_time()
    yield from [work(folder) for folder in folders[:_PROBE]]
    wall, busy = time.perf_counter() - wall, time.thread_time() - busy
    if wall < 5 * busy:  # twice is only a busy machine
        yield from map(work, folders[_PROBE:])
    else:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="scan") as pool:
            yield from pool.map(work, folders[_PROBE:])


def _folders_by_class(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Class -> its folder as the disk spells it, sorted by class."""
    folder_of: dict[str, str] = {}
    for folder in sorted(folders):
        name = class_name(folder)
        if name in folder_of:
            raise UserError(
                f"'{printable(str(root))}' holds two class folders '{printable(name)}', which "
                "differ only in how Unicode spells an accent (a Mac writes a letter and its accent "
                "apart); move the photos of one into the other",
                ExitCode.DATA,
            )
        folder_of[name] = folder
    return dict(sorted(folder_of.items()))


class _ClassScan(NamedTuple):
    block: bytes  # relative names, each followed by a zero byte
    photos: int
    folders: list[Folder]
    settled: bool


def _scan_class(root: str, class_name: str, above: frozenset[tuple[int, int]]) -> _ClassScan:
    groups: list[tuple[str, list[str]]] = []
    folders, settled = [], True
    pending = [(class_name, above)]
    while pending:
        name, above = pending.pop()
        path = f"{root}/{name}"
        status = os.stat(path)  # noqa: PTH116  before the listing: what is added meanwhile shows
        folders.append(_folder(name, status))
        within = above | {_identity(status)}
        with os.scandir(path) as listing:
            entries = list(listing)
        if below := _folders_among(entries):
            inside = set(below)
            entries = [entry for entry in entries if entry not in inside]
        photos = [entry.name for entry in entries]
        photos.sort()
        if not _all_photos(photos):
            settled &= not any(map(_may_become_folder, entries))
            photos = [photo for photo in photos if is_photo(photo) and not is_hidden(photo)]
        groups.append((name, photos))
        pending += [
            (f"{name}/{entry.name}", within)
            for entry in below
            if not is_hidden(entry.name)
            and not (entry.is_symlink() and _identity(entry.stat()) in within)
        ]
    block = "".join(
        f"{name}/" + f"\0{name}/".join(photos) + "\0" for name, photos in sorted(groups) if photos
    )
    return _ClassScan(os.fsencode(block), block.count("\0"), folders, settled)


def _folders_among(entries: Sequence[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    try:
        return [entry for entry in entries if entry.is_dir()]
    except OSError:  # a link to itself
        return [entry for entry in entries if not _leads_nowhere(entry) and entry.is_dir()]


def _all_photos(names: list[str]) -> bool:
    """Whether all are photos with the ending of the first, which is nearly always so.

    Counting that ending takes a fifth of the time of a question for each name.
    """
    if not names or not is_photo(names[0]):
        return False
    joined = "\0".join(names) + "\0"
    ending = names[0][names[0].rindex(".") :]
    return joined.count(f"{ending}\0") == len(names) and "\0." not in f"\0{joined}"


def _folder(name: str, status: os.stat_result) -> Folder:
    return Folder(name, status.st_mtime_ns, status.st_ctime_ns)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether this is a link without a target."""
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110


def _may_become_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a link to what may be mounted some day."""
    return not is_photo(entry.name) and _leads_nowhere(entry)
