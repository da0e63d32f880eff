"""Photos of any source into tar shards that are read in place, and by any WebDataset reader.

Of each photo a shard holds `<class>/<name>.<ending>` and its label as `<class>/<name>.cls`. The
bytes of a shard depend on the photos and the settings alone, not on the number of threads; a shard
has its final name only when it is whole, and `index.npz` is written after the last.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from googlenet_train.data import crops, pack_state
from googlenet_train.data.decode import UndecodableImage, decode, image_size, resize
from googlenet_train.data.index import Index
from googlenet_train.data.loader import ahead
from googlenet_train.data.pack_state import Settings as Settings
from googlenet_train.data.pack_state import State, Unreadable, refusal
from googlenet_train.data.shards import scan_shards
from googlenet_train.data.sidecar import SIDECAR, UNFINISHED, Shard, read_head, sha256, to_bytes
from googlenet_train.errors import UserError
from googlenet_train.machine.storage import fsync, fsync_folder, write_durably

_ORIENTATION = 0x0112  # the EXIF tag


class Packed(NamedTuple):
    """What a pack came to."""

    photos: int
    shards: int
    size: int  # bytes of all shards
    unreadable: list[Unreadable]  # left out
    complete: bool  # False: they are waited for


def pack(
    index: Index,
    folder: Path,
    settings: Settings,
    *,
    workers: int = 1,
    skip_unreadable: bool = False,
    progress: Callable[[int], None] = lambda photos: None,
) -> Packed:
    """Pack the photos of `index`, in their order, into shards in `folder`; go on where it stopped.

    With unreadable photos the shards are written without them, but the pack is complete only with
    `skip_unreadable`; otherwise the next call tries them again. `progress` is told how many photos
    are behind it. Complete packs are left as they are.

    Raises UserError (DATA) where `folder` holds anything else than this very pack.
    """
    source = {"photos": len(index), "fingerprint": index.fingerprint()}
    if (folder / SIDECAR).exists():
        state = pack_state.from_json(read_head(folder), folder, source, settings)
        return _packed(state, complete=True)
    folder.mkdir(parents=True, exist_ok=True)
    with pack_state.alone_in(folder):
        state = _retried(pack_state.resumed(folder, source, settings), index, settings)
        pack_state.remove_strays(folder, state)
        pack_state.save(folder, state)
        progress(state.start)
        photos = ahead(partial(_stored, index, settings), range(state.start, len(index)), workers)
        with closing(photos):  # type: ignore[type-var]  # it is a generator
            _write_shards(folder, index, photos, state, progress)
        complete = skip_unreadable or not state.unreadable
        if complete:
            _complete(folder, index, state)
    return _packed(state, complete)


def _packed(state: State, complete: bool) -> Packed:
    return Packed(
        state.source["photos"] - len(state.unreadable),
        len(state.shards),
        sum(shard.size for shard in state.shards),
        state.unreadable,
        complete,
    )


def _complete(folder: Path, index: Index, state: State) -> None:
    """Write `index.npz`, from what the shards hold, not from what they should hold."""
    if not state.shards:
        raise refusal(f"none of the photos can be read; {state.unreadable[0].reason}")
    _, _, files = scan_shards([folder / shard.name for shard in state.shards])
    kept = np.delete(index.labels, [place for place, _ in state.unreadable])
    if len(files.names) != len(kept):
        raise RuntimeError(f"{len(files.names)} photos in the shards, {len(kept)} were packed")
    about = state._asdict()
    content = to_bytes(index.classes, kept, files, about.pop("shards"), **about)
    write_durably(folder / SIDECAR, content)
    for name in (UNFINISHED, pack_state.LOCK):
        (folder / name).unlink(missing_ok=True)


def _retried(state: State, index: Index, settings: Settings) -> State:
    """Without the shards from the first photo on that could not be read and now can."""
    for place, _ in state.unreadable:
        if not isinstance(_stored(index, settings, place), str):
            return state.cut([shard for shard in state.shards if shard.until <= place])
    return state


# --- one photo ------------------------------------------------------------------------------------


def _stored(index: Index, settings: Settings, i: int) -> tuple[bytes | memoryview, str] | str:
    """The bytes to store and their ending, or why there are none."""
    try:
        data = index.read(i)
        if settings.short_side is None:
            image_size(data)
            return data, _ending(index.files.names[i])
        pixels = shrunken(data, settings.short_side)
    except (UndecodableImage, UserError) as error:
        return str(error)
    if pixels is None:
        return data, _ending(index.files.names[i])
    if settings.codec == "raw":
        return to_ppm(pixels), ".ppm"
    # The operator itself, as in decode.py; 15 % faster than Pillow, the same size.
    encoded = torch.ops.image.encode_jpeg(pixels.contiguous(), settings.quality)
    return _with_orientation(encoded.numpy().tobytes(), data), ".jpg"


def shrunken(data: bytes | memoryview, short_side: int) -> Tensor | None:
    """The photo's pixels (3, h, w) at that short side, as they lie; None where it is no larger.

    Raises UndecodableImage.
    """
    height, width = image_size(data)
    if min(height, width) <= short_side:
        return None
    # Bicubic: sharper than bilinear, and training resizes once more.
    return resize(decode(data), *crops.resized_size(height, width, short_side), "bicubic")


def to_ppm(pixels: Tensor) -> bytes:
    """uint8 pixels (3, h, w) as a binary PPM, which `decode` reads without decoding."""
    header = b"P6\n%d %d\n255\n" % (pixels.shape[2], pixels.shape[1])
    return header + pixels.permute(1, 2, 0).contiguous().numpy().tobytes()


def _with_orientation(jpeg: bytes, original: bytes | memoryview) -> bytes:
    """The JPEG, turned by the same EXIF tag as the original: pixels are stored as they lie."""
    if b"Exif\0\0" not in bytes(original[: 1 << 16]):
        return jpeg
    with Image.open(io.BytesIO(original)) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation == 1:
        return jpeg
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    segment = exif.tobytes()
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


# --- names ----------------------------------------------------------------------------------------


def _keys(index: Index) -> list[str]:
    """`<class>/<name>` for every photo, without its ending, each once.

    For WebDataset a name ends at its first dot, and neighbours with one name are one sample: other
    dots become `_`, and the second of `a.jpg` and `a.png` becomes `a-2`.
    """
    taken: set[str] = set()
    keys = []
    for i in range(len(index)):
        folder, _, name = index.files.names[i].rpartition("/")
        key = first = f"{folder}/{name.rpartition('.')[0].replace('.', '_')}"
        number = 1
        while key in taken:
            number += 1
            key = f"{first}-{number}"
        taken.add(key)
        keys.append(key)
    return keys


def _ending(name: str) -> str:
    """The ending of a name in lower case; `.jpg` for `.JPEG`, so that all JPEGs have one field."""
    ending = "." + name.rpartition(".")[2].lower()
    return ".jpg" if ending == ".jpeg" else ending


# --- shards ---------------------------------------------------------------------------------------


def _write_shards(
    folder: Path,
    index: Index,
    photos: Iterator[tuple[bytes | memoryview, str] | str],
    state: State,
    progress: Callable[[int], None],
) -> None:
    """Write the photos that are left; `state` learns of each shard and of each unreadable photo."""
    keys = _keys(index)
    shard: _OpenShard | None = None
    try:
        for i, photo in enumerate(photos, state.start):
            if isinstance(photo, str):
                state.unreadable.append(Unreadable(i, photo))
            else:
                data, ending = photo
                if shard and not shard.has_room_for(data, state.settings["shard_size"]):
                    state.shards.append(shard.finish(until=i))
                    pack_state.save(folder, state)
                    shard = None
                shard = shard or _OpenShard(folder / f"shard-{len(state.shards):06d}.tar")
                shard.add(keys[i] + ending, data)
                shard.add(keys[i] + ".cls", str(index.labels[i]).encode())
            progress(i + 1)
        if shard:
            state.shards.append(shard.finish(until=len(index)))
            pack_state.save(folder, state)
    finally:
        if shard:
            shard.close()


class _OpenShard:
    """A shard that is being written, under another name until it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._file: IO[bytes] = self._partial.open("wb")
        self._tar = tarfile.open(  # noqa: SIM115  # closed by finish
            fileobj=self._file,
            mode="w",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def add(self, name: str, data: bytes | memoryview) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        member.mode = 0o644
        self._tar.addfile(member, io.BytesIO(data))
        self._tar.members.clear()  # type: ignore[attr-defined]  # or every header, 1 KB, stays

    def has_room_for(self, data: bytes | memoryview, limit: int) -> bool:
        """Whether the shard stays within `limit` bytes with it, its label and the end mark."""
        photo, label, end = 1 + -(-len(data) // tarfile.BLOCKSIZE), 2, 2
        length = self._tar.offset + (photo + label + end) * tarfile.BLOCKSIZE
        return -(-length // tarfile.RECORDSIZE) * tarfile.RECORDSIZE <= limit

    def finish(self, until: int) -> Shard:
        """Close the shard and give it its name, on the disk."""
        self._tar.close()
        self._file.flush()
        fsync(self._file.fileno())
        self._file.close()
        digest = sha256(self._partial)
        self._partial.replace(self._path)
        fsync_folder(self._path.parent)
        status = self._path.stat()
        return Shard(self._path.name, status.st_size, status.st_mtime_ns, digest, until)

    def close(self) -> None:
        self._file.close()
