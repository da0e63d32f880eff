"""What a data set holds and where: from a SOURCE to compact arrays, before any pixel is read.

A SOURCE is a folder of class folders, a tar shard or a folder of them, or `shipped:NAME/SPLIT`.
The classes are the sorted names of the folders, and the photos of a folder come in the order of
torchvision.datasets.ImageFolder.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from googlenet_train.data.names import Names, is_hidden, is_photo, pack_names, printable
from googlenet_train.data.shards import SHARD_ENDINGS, ShardFiles, scan_shards
from googlenet_train.errors import ExitCode, UserError

_ASSETS = Path(__file__).parent.parent / "assets"
_SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True, eq=False)
class FolderFiles:
    """Photos as files below one folder."""

    root: Path
    names: Names

    def name(self, i: int) -> str:
        return str(self.root / self.names[i])

    def read(self, i: int) -> bytes:
        return (self.root / self.names[i]).read_bytes()

    def identity(self) -> tuple[bytes, ...]:
        """What the data set's fingerprint covers besides classes and labels: the names."""
        return (self.names.blob,)


@dataclass(frozen=True, eq=False)
class Index:
    """A data set: its class names, one label per photo (int32 of shape (count,)), its files."""

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    files: FolderFiles | ShardFiles

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """What a person recognises: the path of the file, or `train.tar:dress/xyz.jpg`."""
        return printable(self.files.name(i))

    def read(self, i: int) -> bytes:
        """The i-th photo as it is stored; many threads may read at once.

        Raises UserError (DATA) where the file system refuses.
        """
        try:
            return self.files.read(i)
        except OSError as error:
            raise UserError(
                f"cannot read '{self.name(i)}': {error.strerror}; the data set changed after it "
                "was indexed, or its disk has a fault",
                ExitCode.DATA,
            ) from None

    def counts(self) -> npt.NDArray[np.int64]:
        """Photos per class, of shape (num_classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64, copy=False)

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


def open_source(source: str) -> Index:
    """Index the photos of a SOURCE.

    Raises UserError (DATA) where there is none, or where it is not what a SOURCE should be.
    """
    if not source:
        raise _refusal("no data source; give a folder of class folders or a .tar shard")
    if source.startswith("hub:"):
        raise _refusal(
            f"'{source}' cannot be read: download the data set and give its folder instead"
        )
    path = _shipped(source) if source.startswith("shipped:") else Path(source).expanduser()
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.is_file():
            return _open_shards(path, [path])
        if path.exists():
            raise _refusal(f"'{path}' is neither a folder nor a file")
        raise _refusal(f"no folder '{source}'{_hint_for_path(path)}")
    except OSError as error:
        raise _refusal(f"cannot read '{error.filename or path}': {error.strerror}") from None


def with_classes(index: Index, classes: Sequence[str]) -> Index:
    """The same photos, labelled by the places of their class names in `classes`.

    Raises UserError (DATA) where the index has a class that `classes` lacks.
    """
    unknown = [name for name in index.classes if name not in set(classes)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise _refusal(
            f"{_listed('class', unknown)} not among the {len(classes)} training classes{hint}"
        )
    places = {name: place for place, name in enumerate(classes)}
    moved = np.array([places[name] for name in index.classes], dtype=np.int32)
    return replace(index, classes=tuple(classes), labels=_frozen(moved[index.labels]))


def check_same_classes(train: Index, val: Index) -> Index:
    """The validation set with the labels of the training set; it may lack some of its classes.

    Raises UserError (DATA) where it has a class that the training set lacks.
    """
    return with_classes(val, train.classes)


def _open_folder(path: Path) -> Index:
    with os.scandir(path) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
    # Class folders come first: ImageNet is often unpacked next to the archives it came in.
    classes = sorted(entry.name for entry in visible if _is_dir(entry))
    if classes:
        return _open_class_folders(path, classes)
    shards = sorted(entry.name for entry in visible if entry.name.endswith(SHARD_ENDINGS))
    if shards:
        return _open_shards(path, [path / name for name in shards])
    found = "photos but no class folders" if any(is_photo(e.name) for e in visible) else "no photos"
    raise _refusal(f"'{path}' holds {found}; expected '{path / '<class>' / '<photo>.jpg'}'")


def _open_class_folders(root: Path, classes: list[str]) -> Index:
    counts = []

    def photos_by_class() -> Iterator[list[str]]:
        for name in classes:
            photos = _photos_below(root, name)
            counts.append(len(photos))
            yield photos

    names = pack_names(photos_by_class())
    _refuse_splits(root, classes, names, f"did you mean '{root / 'train'}'?")
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise _refusal(
            f"{_listed('class folder', empty)} in '{root}' without a photo; add some or remove it"
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Index(tuple(map(printable, classes)), _frozen(labels), FolderFiles(root, names))


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


def _photos_below(root: Path, class_name: str) -> list[str]:
    """Relative names of the photos below one class folder, in the order of ImageFolder.

    A link to a folder that the way here leads through is left out: it would never end.
    """
    groups: list[tuple[str, list[str]]] = []
    pending = [(class_name, frozenset({_identity(root)}))]
    while pending:
        folder, above = pending.pop()
        within = above | {_identity(root / folder)}
        photos = []
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if not _is_dir(entry):
                    if is_photo(entry.name):
                        photos.append(f"{folder}/{entry.name}")
                elif not (entry.is_symlink() and _identity(Path(entry.path)) in within):
                    pending.append((f"{folder}/{entry.name}", within))
        groups.append((folder, sorted(photos)))
    return [photo for _, photos in sorted(groups) for photo in photos]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _refuse_splits(path: Path, classes: list[str], names: Names, mend: str) -> None:
    """Refuse train/ and val/ taken for classes; a class named `train` holds photos itself."""
    if "train" not in classes or not _SPLITS.issuperset(classes):
        return
    if any(names[i].count("/") == 1 for i in range(len(names))):
        return
    folders = " and ".join(f"{name}/" for name in classes)
    raise _refusal(f"'{path}' holds {folders}, which are no classes; {mend}")


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


def _refusal(message: str) -> UserError:
    return UserError(printable(message), ExitCode.DATA)
