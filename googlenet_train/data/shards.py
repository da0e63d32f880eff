"""Tar shards in the WebDataset layout, read in place and never extracted.

A member's name is `<class>/<photo>.jpg` (sub-folders below the class are welcome): the class is
the first folder of the name, and `.cls` or other side files are not read.
"""

import mmap
import os
import tarfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from googlenet_train.data.names import Names, is_hidden, is_photo, pack_names, printable
from googlenet_train.errors import ExitCode, UserError

SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


def _max_open() -> int:
    """How many descriptors may stay open, and as many maps. ImageNet may come in more shards than a
    process may hold open (often 1,024); those beyond are opened for each read.
    """
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 256 if soft == resource.RLIM_INFINITY else min(256, soft // 4)


_MAX_OPEN = _max_open()


@dataclass(frozen=True, eq=False)
class ShardFiles:
    """Where each photo lies: number of its shard, first byte and length, each of shape (count,)."""

    paths: tuple[Path, ...]
    names: Names
    shards: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    _open: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _maps: dict[int, mmap.mmap] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, _close_all, self._open).atexit = False

    def __reduce__(self) -> tuple[object, ...]:
        # Another process opens the shards itself: a descriptor means nothing there.
        return ShardFiles, (self.paths, self.names, self.shards, self.offsets, self.sizes)

    def name(self, i: int) -> str:
        return f"{self.paths[self.shards[i]].name}:{self.names[i]}"

    def read(self, i: int) -> bytes | memoryview:
        """The bytes of the i-th photo; of uncompressed pixels (.ppm) a view into the mapped shard.

        Nothing of a view is read from the disk before it is looked at.
        """
        shard, offset, size = int(self.shards[i]), int(self.offsets[i]), int(self.sizes[i])
        end = int(self.names.ends[i])
        data: bytes | memoryview
        if self.names.blob[end - 4 : end] == b".ppm":
            data = self._view(shard, offset, size)
        elif (descriptor := self._descriptor(shard)) is not None:
            data = os.pread(descriptor, size, offset)
        else:
            with self.paths[shard].open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
        if len(data) != size:
            raise UserError(
                f"'{printable(self.name(i))}' ends after {len(data)} of {size} bytes; "
                "the shard was changed or cut short after it was indexed",
                ExitCode.DATA,
            )
        return data

    def identity(self) -> tuple[bytes, ...]:
        """What the data set's fingerprint covers besides classes and labels: names and sizes."""
        return self.names.blob, self.sizes.astype("<i8").tobytes()

    def stamp(self, i: int) -> tuple[int, int]:
        """(size, time of the shard's last change in ns): other contents have another one."""
        return int(self.sizes[i]), self.paths[self.shards[i]].stat().st_mtime_ns

    def chosen(self, places: npt.NDArray[np.int64]) -> "ShardFiles":
        names, shards = self.names.chosen(places), self.shards[places]
        return ShardFiles(self.paths, names, shards, self.offsets[places], self.sizes[places])

    def _descriptor(self, shard: int) -> int | None:
        """An open descriptor for `os.pread`, which threads may share; None where there is none."""
        descriptor = self._open.get(shard)
        if descriptor is None and hasattr(os, "pread") and len(self._open) < _MAX_OPEN:
            opened = os.open(self.paths[shard], os.O_RDONLY)
            descriptor = self._open.setdefault(shard, opened)
            if descriptor != opened:  # another thread was first
                os.close(opened)
        return descriptor

    def _view(self, shard: int, offset: int, size: int) -> memoryview:
        mapped = self._maps.get(shard)
        if mapped is None:
            with self.paths[shard].open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
                    return memoryview(b"")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):  # Windows has none
                # Or the system reads ahead: 2 MB for a crop of 0.2, measured on a cold disk.
                mapped.madvise(mmap.MADV_RANDOM)
            if len(self._maps) < _MAX_OPEN:
                mapped = self._maps.setdefault(shard, mapped)
        # A look past the end of a file that was cut short since would kill the process.
        return memoryview(mapped)[offset : min(offset + size, mapped.size())]


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def scan_shards(paths: Sequence[Path]) -> tuple[list[str], npt.NDArray[np.int32], ShardFiles]:
    """Index the photos of the shards, in the order of `paths` and of the members in each.

    Returns the sorted class names, a label per photo, and where each photo lies.
    Raises UserError (DATA) for a shard that is compressed, cut short or damaged, for a member whose
    path leaves the archive, for a photo stored as a link, and for a name that occurs twice.
    """
    found: dict[str, int] = {}  # name -> number of its shard, in order
    offsets, sizes = array("q"), array("q")
    for number, path in enumerate(paths):
        for member in _members(path):
            name = _checked_name(member, path)
            if "/" not in name or not is_photo(name) or any(map(is_hidden, name.split("/"))):
                continue
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise _refusal(
                    path, f"holds '{name}' as a link or a sparse file; pack it as a plain file"
                )
            if name in found:
                first = paths[found[name]].name
                raise _refusal(path, f"holds '{name}', which is in '{first}' already; remove one")
            found[name] = number
            offsets.append(member.offset_data)
            sizes.append(member.size)
    classes = sorted({name.partition("/")[0] for name in found})
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[name.partition("/")[0]] for name in found], dtype=np.int32)
    files = ShardFiles(
        tuple(paths),
        pack_names([found]),
        np.fromiter(found.values(), dtype=np.int32, count=len(found)),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
    )
    return classes, labels, files


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of one shard, one at a time; raises UserError where the shard is not whole."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        if file.read(6).startswith(_COMPRESSED):
            raise _refusal(path, "is compressed, so it cannot be read in place; unpack it to .tar")
        file.seek(0)
        try:
            with tarfile.open(
                fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # or every header, 1 KB, stays
                    if member.isreg() and member.offset_data + member.size > length:
                        raise _cut_short(path, length, f" within '{member.name}'")
                    yield member
                end = tar.offset
        except tarfile.TarError as error:
            raise _refusal(path, f"is no whole tar file ({error}); copy or pack it again") from None
        # tarfile takes a damaged header for the end, but a real end is a block of zeros.
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
        if len(mark) < tarfile.BLOCKSIZE:
            raise _cut_short(path, length, ", before its end mark")
        if mark != bytes(tarfile.BLOCKSIZE):
            raise _refusal(path, f"is damaged at byte {end}; copy or pack it again")


def _checked_name(member: tarfile.TarInfo, path: Path) -> str:
    """The member's name without a leading `./`; refused where it leaves the archive."""
    name = member.name
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise _refusal(path, f"holds the path '{name}', which leaves the archive; pack it again")
    while name.startswith("./"):
        name = name[2:]
    return name


def _cut_short(path: Path, length: int, where: str) -> UserError:
    return _refusal(path, f"is cut short at byte {length}{where}; copy or pack it again")


def _refusal(path: Path, complaint: str) -> UserError:
    return UserError(printable(f"shard '{path}' {complaint}"), ExitCode.DATA)
