"""What a data set holds and where: from a SOURCE to compact arrays, before any pixel is read.

A SOURCE is a folder of class folders, a tar shard or a folder of them, `shipped:NAME/SPLIT`, or
`hub:NAME` or `hub:NAME:SPLIT`: a data set of the Hugging Face hub.
The classes are the sorted names of the folders.
"""

import difflib
import errno
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from googlenet_train.data import folders, index_cache
from googlenet_train.data.folders import FolderFiles, FolderScan
from googlenet_train.data.hub import open_hub
from googlenet_train.data.names import (
    Names,
    class_name,
    is_hidden,
    is_photo,
    pack_names,
    printable,
)
from googlenet_train.data.shards import SHARD_ENDINGS, scan_shards
from googlenet_train.data.sidecar import SIDECAR, UNFINISHED, read_sidecar
from googlenet_train.errors import ExitCode, UserError

# Any photo would fail: the process may open no more files, or has no more memory.
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_ASSETS = Path(__file__).parent.parent / "assets"
_TRAIN, _VAL = {"train", "training"}, {"val", "valid", "validation"}
_SPLITS = _TRAIN | _VAL | {"test", "testing"}


class Files(Protocol):
    """Where the bytes of photos come from: a folder, shards, a table, memory."""

    @property
    def names(self) -> Names: ...

    def name(self, i: int) -> str: ...

    def read(self, i: int) -> bytes | memoryview: ...

    def identity(self) -> Sequence[bytes]: ...

    def stamp(self, i: int) -> tuple[int, int] | None: ...

    def chosen(self, places: npt.NDArray[np.int64]) -> "Files": ...


@dataclass(frozen=True, eq=False)
class Index:
    """A data set: its class names, one label per photo (int32 of shape (count,)), its files."""

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    files: Files

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """What a person recognises: the path of the file, or `train.tar:dress/xyz.jpg`."""
        return printable(self.files.name(i))

    def read(self, i: int) -> bytes | memoryview:
        """The i-th photo as it is stored; many threads may read at once.

        Raises UserError (DATA) where the file system refuses.
        """
        try:
            return self.files.read(i)
        except OSError as error:
            raise self.failure(i, error) from None

    def failure(self, i: int, error: OSError) -> UserError:
        """What a person is told where the i-th photo could not be read."""
        what = f"cannot read '{self.name(i)}': {error.strerror}"
        if error.errno in OF_THE_MACHINE:
            return UserError(
                f"{what}; the photo is not to blame. A higher `ulimit -n`, more memory or fewer "
                "data.workers help",
                ExitCode.STORAGE,
            )
        if error.filename is not None and Path(error.filename).is_symlink():
            return UserError(f"{what}; it is a link that leads nowhere", ExitCode.DATA)
        return UserError(
            f"{what}; the data set changed after it was indexed, or its disk has a fault",
            ExitCode.DATA,
        )

    def counts(self) -> npt.NDArray[np.int64]:
        """Photos per class, of shape (num_classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64, copy=False)

    def chosen(self, places: npt.NDArray[np.int64]) -> "Index":
        """Some of the photos, given by their places, in that order; the classes stay."""
        labels = _frozen(self.labels[places])
        return Index(self.classes, labels, self.files.chosen(places))

    def fingerprint(self) -> str:
        """SHA-256, in hex, of what the data set holds, wherever it lies.

        It covers the class names, the relative names and the labels, and for shards the sizes too.
        The sizes of files in a folder are left out: a look at each of a million files is too slow.
        """
        digest = hashlib.sha256()
        labels = self.labels.astype("<i4").tobytes()
        for part in (json.dumps(self.classes).encode(), labels, *self.files.identity()):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def open_source(source: str, *, rescan: bool = False) -> Index:
    """Index the photos of a SOURCE.

    The index of a large folder is kept (see `index_cache`); `rescan` makes a new one all the same.

    Raises UserError (DATA) where there is none, or where it is not what a SOURCE should be.
    """
    if not source:
        raise _refusal("no data source; give a folder of class folders or a .tar shard")
    if source.startswith("hub:"):
        names, labels, files = open_hub(source)
        return Index(tuple(names), _frozen(labels), files)
    path = _shipped(source) if source.startswith("shipped:") else Path(source).expanduser()
    try:
        if path.is_dir():
            return _open_folder(path, rescan)
        if path.is_file():
            return _open_shards(path, [path])
        if path.exists():
            raise _refusal(f"'{path}' is neither a folder nor a file")
        raise _refusal(f"no folder '{source}'{_hint_for_path(path)}")
    except OSError as error:
        raise _refusal(f"cannot read '{error.filename or path}': {error.strerror}") from None


def existing_folder(source: str) -> Path:
    """The folder `source`. Raises UserError (DATA) where there is none of that name."""
    path = Path(source).expanduser()
    if not path.is_dir():
        raise _refusal(f"no folder '{source}'{_hint_for_path(path)}")
    return path


def open_labelled(root: Path, rows: Sequence[tuple[str, str]]) -> Index:
    """The photos of a folder with the labels of a table instead of class folders.

    `rows`: (path relative to the folder, label). The classes are the sorted labels, the photos
    sorted within them.
    """
    now = time.time_ns()
    classes = sorted({label for _, label in rows})
    numbers = {label: number for number, label in enumerate(classes)}
    ordered = sorted((numbers[label], name) for name, label in rows)
    names = pack_names([[name for _, name in ordered]])
    labels = np.array([number for number, _ in ordered], dtype=np.int32)
    return Index(tuple(classes), _frozen(labels), FolderFiles(root, names, now, now))


def with_classes(index: Index, classes: Sequence[str]) -> Index:
    """The same photos, labelled by the places of their class names in `classes`.

    Older runs, and packs, may hold names that are not composed (see `class_name`).
    Raises UserError (DATA) where the index has a class that `classes` lacks.
    """
    places = {class_name(name): place for place, name in enumerate(classes)}
    unknown = [name for name in index.classes if class_name(name) not in places]
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f", such as '{classes[0]}'"
        verb = "is" if len(unknown) == 1 else "are"
        raise _refusal(
            f"{_listed('class', unknown)} {verb} not among the {len(classes)} training classes"
            f"{hint}"
        )
    moved = np.array([places[class_name(name)] for name in index.classes], dtype=np.int32)
    return replace(index, classes=tuple(classes), labels=_frozen(moved[index.labels]))


def check_same_classes(train: Index, val: Index) -> Index:
    """The validation set with the labels of the training set; it may lack some of its classes.

    Raises UserError (DATA) where it has a class that the training set lacks.
    """
    return with_classes(val, train.classes)


def _open_folder(path: Path, rescan: bool) -> Index:
    opened = time.time_ns()
    found = None if rescan else index_cache.load(path)
    if found is None:
        found = folders.scan(path)
        # Class folders come first: ImageNet is often unpacked next to the archives it came in.
        if not found.classes:
            return _open_shards_in(path)
        _check_classes(path, found)
        index_cache.save(path, found)
    labels = np.repeat(np.arange(len(found.classes), dtype=np.int32), found.counts)
    files = FolderFiles(path, found.names, indexed=found.began, opened=opened)
    return Index(tuple(map(printable, found.classes)), _frozen(labels), files)


def _check_classes(path: Path, found: FolderScan) -> None:
    _refuse_splits(path, found.classes, found.names, _meant(path, found.classes))
    empty = [name for name, n in zip(found.classes, found.counts, strict=True) if n == 0]
    if empty:
        raise _refusal(
            f"{_listed('class folder', empty)} in '{path}' without a photo; add some or remove it"
        )


def _open_shards_in(path: Path) -> Index:
    visible = sorted(entry.name for entry in path.iterdir() if not is_hidden(entry.name))
    if SIDECAR in visible:
        classes, labels, files = read_sidecar(path)
        return Index(tuple(classes), _frozen(labels), files)
    if UNFINISHED in visible:
        raise _refusal(f"the pack in '{path}' is not complete; run `data pack` again: it goes on")
    shards = [path / name for name in visible if name.endswith(SHARD_ENDINGS)]
    if shards:
        _note(f"'{path}' has no {SIDECAR}; reading the headers of its shards ({len(shards)})")
        return _open_shards(path, shards)
    found = "photos but no class folders" if any(map(is_photo, visible)) else "no photos"
    raise _refusal(f"'{path}' holds {found}; expected '{path / '<class>' / '<photo>.jpg'}'")


def _open_shards(path: Path, shards: list[Path]) -> Index:
    if not all(shard.name.endswith(SHARD_ENDINGS) for shard in shards):
        raise _refusal(f"'{path}' is neither a folder of class folders nor a .tar shard")
    starts = {split for split in _SPLITS for shard in shards if shard.name.startswith(split)}
    if "train" in starts and len(starts) > 1:
        raise _refusal(
            f"'{path}' holds shards for training and for validation; give each its own folder"
        )
    classes, labels, files = scan_shards(shards)
    if not classes:
        raise _refusal(
            f"'{path}' holds no photo in a class folder; expected members <class>/<photo>.jpg"
        )
    _refuse_splits(path, classes, files.names, "pack each into a shard of its own")
    return Index(tuple(map(printable, classes)), _frozen(labels), files)


def _refuse_splits(path: Path, classes: list[str], names: Names, mend: str) -> None:
    """Refuse train/ and val/ taken for classes; a class named `train` holds photos itself."""
    lower = {name.lower() for name in classes}
    if not lower & _TRAIN or not lower <= _SPLITS:
        return
    if any(names[i].count("/") == 1 for i in range(len(names))):
        return
    folders = " and ".join(f"{name}/" for name in classes)
    raise _refusal(f"'{path}' holds {folders}, which are no classes; {mend}")


def _meant(path: Path, classes: list[str]) -> str:
    """Which folders a person may have meant who gave the one that holds the splits."""
    train = next((name for name in classes if name.lower() in _TRAIN), "train")
    val = next((name for name in classes if name.lower() in _VAL), None)
    also = f", with data.val='{path / val}'" if val else ""
    return f"did you mean '{path / train}'{also}?"


def _shipped(source: str) -> Path:
    """The shard of `shipped:NAME/SPLIT` inside the package."""
    shipped = {
        f"shipped:{shard.relative_to(_ASSETS).with_suffix('').as_posix()}": shard
        for shard in sorted(_ASSETS.glob("*/*.tar"))
    }
    if source not in shipped:
        raise _refusal(f"'{source}' is not shipped; there are {', '.join(shipped)}")
    return shipped[source]


def _hint_for_path(path: Path) -> str:
    """How a missing path may have been meant."""
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        if near:
            return f"; did you mean '{path.parent / near[0]}'?"
    return "" if path.is_absolute() else f"; paths start from the current folder, '{Path.cwd()}'"


def _listed(noun: str, names: list[str]) -> str:
    """`class 'a'`, `classes 'a', 'b', 'c' and 4 more`."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    plural = "" if len(names) == 1 else "es" if noun.endswith("s") else "s"
    return f"{noun}{plural} {shown}{more}"


def _frozen(array: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    array.setflags(write=False)
    return array


def _note(message: str) -> None:
    print(f"note     {printable(message)}", file=sys.stderr, flush=True)


def _refusal(message: str) -> UserError:
    return UserError(printable(message), ExitCode.DATA)
