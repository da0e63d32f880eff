"""The images of a run, from its settings: what it trains on, and what it is evaluated on."""

import csv
import io
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from googlenet_train.config.images import Data
from googlenet_train.data.class_names import class_names
from googlenet_train.data.digests import Digests, copies, digests
from googlenet_train.data.folders import FolderFiles, left_out
from googlenet_train.data.index import (
    Index,
    check_same_classes,
    existing_folder,
    open_labelled,
    open_source,
)
from googlenet_train.data.names import not_read, printable
from googlenet_train.data.split import held_out
from googlenet_train.data.tables import read_labels, read_paths
from googlenet_train.errors import ExitCode, UserError

SPLIT = "split.csv"
MOST_FILES = 200_000  # that are asked what they are before a run starts
# Photos of cameras that a person may take for images that are read.
_OTHER_PHOTOS = {".heic", ".heif", ".avif", ".gif", ".jfif", ".jp2", ".dng", ".nef", ".cr2", ".arw"}

T = TypeVar("T")


class At(Protocol):
    def __call__(self, key: str, open_it: Callable[[], T]) -> T: ...


class Sources(NamedTuple):
    train: Index
    val: Index | None
    split: bool  # `val` was held out of data.train
    names: tuple[str, ...]  # what people call the classes
    notes: tuple[str, ...] = ()  # what a person should know of the photos: "warning  ..."
    contents: tuple[Digests, Digests] | None = None  # of train and val, where it was split

    def fingerprints(self) -> dict[str, str | None]:
        """By setting, of the contents that the images have wherever they lie."""
        return {
            "data.train": self.train.fingerprint(),
            "data.val": self.val.fingerprint() if self.val else None,
        }


def _as_it_is(key: str, open_it: Callable[[], T]) -> T:
    return open_it()


def open_sources(data: Data, at: At = _as_it_is) -> Sources:
    """Open what a run trains on and is evaluated on.

    `at(key, open_it)` runs `open_it` and may add to an error where `key` was written.
    Raises UserError (DATA).
    """
    photos, notes = open_photos(data, at)
    folder = Path(data.train).expanduser()
    at("data.train", lambda: _check_classes(photos, folder))
    names = at(
        "data.train", lambda: class_names(photos.classes, folder if folder.is_dir() else None)
    )
    if data.val is not None:
        source = data.val
        val = at("data.val", lambda: check_same_classes(photos, open_source(source)))
        return Sources(photos, val, False, names, notes)
    if data.val_fraction == 0:
        return Sources(photos, None, False, names, notes)
    found = at("data.train", lambda: digests(photos, data.train))
    out = at(
        "data.train",
        lambda: held_out(found, photos.labels, photos.classes, data.val_fraction),
    )
    notes += _about_copies(photos, copies(found), data.train)
    train, val = photos.chosen(np.flatnonzero(~out)), photos.chosen(np.flatnonzero(out))
    return Sources(train, val, True, names, notes, (found[~out], found[out]))


def _check_classes(photos: Index, folder: Path) -> None:
    """One class leaves nothing to tell apart; folders in it are a level too many."""
    if len(photos.classes) > 1:
        return
    only = photos.classes[0]
    below = folder / only
    inside = sorted(f.name for f in below.iterdir() if f.is_dir()) if below.is_dir() else []
    meant = (
        f". It holds the folders {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}; did "
        f"you mean '{below}'?"
        if inside
        else ". Give every class a folder of its own"
    )
    raise UserError(f"one class, '{only}', so there is nothing to tell apart{meant}", ExitCode.DATA)


def open_val(data: Data) -> Index | None:
    """What a run is evaluated on, with its own classes; data.train is opened where it is split."""
    return open_source(data.val) if data.val is not None else open_sources(data).val


def open_photos(data: Data, at: At = _as_it_is) -> tuple[Index, tuple[str, ...]]:
    """The photos of data.train with the labels and without the exclusions of their tables.

    With them what a person should know.
    """
    notes: tuple[str, ...] = ()
    if data.labels is not None:
        labels = data.labels
        root = at("data.train", lambda: existing_folder(data.train))
        index = at("data.labels", lambda: open_labelled(root, read_labels(labels, root)))
    else:
        index = at("data.train", lambda: open_source(data.train))
    if data.exclude is not None:
        table = data.exclude
        root = Path(data.train).expanduser()
        index, notes = at("data.exclude", lambda: _without(index, table, root))
    return index, notes


def about_left_out(data: Data, opened: Sources) -> tuple[str, ...]:
    """What lies in the folders of the photos, and is in no class: notes for a person."""
    # With a table of labels a photo's place says nothing, and what is held out lies in data.train.
    notes = () if data.labels is not None else _in_no_class(opened.train, "")
    if opened.val is not None and not opened.split:
        notes += _in_no_class(opened.val, "data.val: ")
    return notes


def _in_no_class(index: Index, where: str) -> tuple[str, ...]:
    if not isinstance(index.files, FolderFiles) or len(index) > MOST_FILES:
        return ()
    endings, loose = left_out(index.files.root, MOST_FILES)
    notes = []
    if endings:
        status = "warning" if endings.keys() & _OTHER_PHOTOS else "note"
        notes.append(f"{status:<8} {where}{not_read(endings)}")
    if loose:
        plural = "s lie" if len(loose) > 1 else " lies"
        notes.append(
            f"warning  {where}{len(loose):,} photo{plural} beside the class folders, in no class: "
            f"{', '.join(loose[:3])}{', ...' if len(loose) > 3 else ''}"
        )
    return tuple(notes)


def _without(index: Index, table: str, root: Path) -> tuple[Index, tuple[str, ...]]:
    listed = read_paths(table, root)
    names = [index.files.names[i] for i in range(len(index))]
    absent = listed.keys() - set(names)
    notes: tuple[str, ...] = ()
    if absent:
        first = min(absent, key=lambda path: listed[path])
        none = len(absent) == len(listed)
        mend = "; a path starts from data.train" if none else ""
        mend += ", and has / between folders" if none and "\\" in first else ""
        notes = (
            f"{'warning' if none else 'note':<8} {table}: {len(absent)} of its {len(listed)} paths "
            f"are not in data.train, first '{first}' in line {listed[first]}{mend}",
        )
    kept = np.array([i for i, name in enumerate(names) if name not in listed], dtype=np.int64)
    counts = np.bincount(index.labels[kept], minlength=len(index.classes))
    if not counts.all():
        name = index.classes[int(np.argmin(counts))]
        raise UserError(f"{table}: leaves out every photo of class '{name}'", ExitCode.DATA)
    return index.chosen(kept), notes


def _about_copies(index: Index, groups: list[list[int]], source: str) -> tuple[str, ...]:
    if not groups:
        return ()
    spare = sum(len(group) - 1 for group in groups)
    notes = [
        f"note     {spare:,} photo{'s are copies' if spare > 1 else ' is a copy'} of another; all "
        "copies of one are on the same side of the split. `googlenet-train data verify "
        f"--duplicates {shlex.quote(source)}` lists them"
    ]
    across = [group for group in groups if len(set(index.labels[group].tolist())) > 1]
    if across:
        first = across[0]
        other = next(i for i in first if index.labels[i] != index.labels[first[0]])
        more = f", and {len(across) - 1:,} more" if len(across) > 1 else ""
        notes.append(
            f"warning  the same photo stands in two classes: {index.name(first[0])} and "
            f"{index.name(other)}{more}. Delete one of them, or list it in data.exclude"
        )
    return tuple(notes)


def split_text(sources: Sources) -> bytes:
    """split.csv: path (from data.train), label, split and content's hash of each photo.

    It may serve as data.labels. In bytes, for a file name need not be text.
    """
    assert sources.contents is not None
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("path", "label", "split", "content"))
    sides = zip(("train", "val"), (sources.train, sources.val), sources.contents, strict=True)
    rows = [
        (index.files.names[i], index.classes[index.labels[i]], side, found[i].tobytes().hex())
        for side, index, found in sides
        if index is not None
        for i in range(len(index))
    ]
    table.writerows(sorted(rows))
    return os.fsencode(text.getvalue())


def split_changes(path: Path, sources: Sources) -> str | None:
    """How `sources` differs from a run's split.csv, in words; None where there is none."""
    if not (sources.split and path.is_file()):
        return None
    before, now = _by_path(path.read_bytes()), _by_path(split_text(sources))
    kinds = {
        "added": now.keys() - before.keys(),
        "gone": before.keys() - now.keys(),
        # A column that an older version did not write says nothing.
        "changed": {p for p in now.keys() & before.keys() if before[p].items() - now[p].items()},
    }
    told = [f"{len(found):,} {kind}, '{min(found)}'" for kind, found in kinds.items() if found]
    return printable("; ".join(told)) or None


def _by_path(table: bytes) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(io.StringIO(os.fsdecode(table), newline=""))
    return {row["path"]: row for row in rows}
