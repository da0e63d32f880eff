"""What each photo's bytes are, as a hash: by it copies are known, whatever they are called.

Reading every file takes a while, so the hashes of files are kept in the user's cache folder, each
trusted while its file has the same size and time.
"""

import hashlib
import io
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from googlenet_train import distributed
from googlenet_train.data import index_cache
from googlenet_train.data.index import Index
from googlenet_train.data.names import names_in, pack_names
from googlenet_train.errors import UserError

Digests = npt.NDArray[np.uint8]

SIZE = 16  # bytes: two different photos out of a billion share one with probability 1e-21
MIN_BYTES = 50_000_000  # less is read in a blink: nothing is kept and nothing said
_BLOCK = 64  # photos a task: a task a photo would cost more than hashing it
_SETTLING_NS = 2_000_000_000  # some file systems keep times to two seconds


def digests(index: Index, source: str) -> Digests:
    """The BLAKE2b of each photo's bytes, of shape (count, SIZE). `source` names what is kept.

    Raises UserError (DATA) for a photo that cannot be read.
    """
    began = time.time_ns()
    stamps = [_stamp(index, i) for i in range(len(index))]
    found = np.zeros((len(index), SIZE), dtype=np.uint8)
    missing = list(range(len(index)))
    root = Path(source).expanduser()
    names = index.files.names
    if all(stamps):
        kept = _load(root)
        known = [kept.get((names[i], *stamp)) for i, stamp in enumerate(stamps) if stamp]
        missing = [i for i, digest in enumerate(known) if digest is None]
        for i, digest in enumerate(known):
            if digest is not None:
                found[i] = np.frombuffer(digest, dtype=np.uint8)
    size = sum(stamp[0] for i in missing if (stamp := stamps[i]))
    _read(index, missing, found, size)
    if all(stamps) and size >= MIN_BYTES:
        settled = [i for i, stamp in enumerate(stamps) if stamp and stamp[1] < began - _SETTLING_NS]
        _save(root, [names[i] for i in settled], [stamps[i] for i in settled], found[settled])
    return found


def _stamp(index: Index, i: int) -> tuple[int, int] | None:
    try:
        return index.files.stamp(i)
    except OSError:  # reading it says what is wrong
        return None


def digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=SIZE).digest()


def contents(found: Digests) -> npt.NDArray[np.int64]:
    """A number from 0 on for each photo, the same for photos with the same bytes; (count,)."""
    halves = np.ascontiguousarray(found).view("<u8")  # sorts ten times as fast as rows of bytes
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    numbers = np.zeros(len(found), dtype=np.int64)
    numbers[order[1:]] = np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1))
    return numbers


def copies(found: Digests) -> list[list[int]]:
    """Groups of two and more photos with the same bytes, in the order of their first members."""
    group = contents(found)
    shared = np.bincount(group)[group] > 1
    groups: dict[int, list[int]] = {}
    for place in np.flatnonzero(shared).tolist():
        groups.setdefault(int(group[place]), []).append(place)
    return list(groups.values())


def _read(index: Index, places: Sequence[int], found: Digests, size: int) -> None:
    """Put the digests of the photos at `places` into `found`."""
    if not places:
        return
    from tqdm import tqdm

    def read(block: Sequence[int]) -> int:
        for i in block:
            found[i] = np.frombuffer(digest(_content(index, i)), dtype=np.uint8)
        return len(block)

    if size >= MIN_BYTES:
        print(
            f"reading  {len(places):,} photos ({size / 1e9:.2g} GB) once, to know copies by their "
            "contents",
            file=sys.stderr,
            flush=True,
        )
    blocks = [places[start : start + _BLOCK] for start in range(0, len(places), _BLOCK)]
    pool = ThreadPoolExecutor(min(16, distributed.cores()), thread_name_prefix="digest")
    quiet = True if size < MIN_BYTES else None  # None: where there is no terminal
    try:
        with tqdm(total=len(places), unit="img", desc="reading", leave=False, disable=quiet) as bar:
            for done in pool.map(read, blocks):
                bar.update(done)
    finally:
        pool.shutdown(cancel_futures=True)


def _content(index: Index, i: int) -> bytes | memoryview:
    """Of a link that leads nowhere its name: what is to be done about it is the run's to decide."""
    try:
        return index.read(i)
    except UserError:
        path = Path(index.files.name(i))
        if path.is_symlink() and not path.exists():
            return os.fsencode(index.files.names[i])
        raise


def _load(root: Path) -> dict[tuple[str, int, int], bytes]:
    """(name, size, time) -> digest; empty where nothing is kept, or it is damaged."""
    try:
        with index_cache.place(root, "digests").open("rb") as file, np.load(file) as kept:
            names = names_in(kept["names"].tobytes())
            stamps, found = kept["stamps"].tolist(), kept["digests"]
        return {
            (names[i], size, changed): found[i].tobytes()
            for i, (size, changed) in enumerate(stamps)
        }
    except Exception:  # a damaged archive raises nearly anything; it is made anew
        return {}


def _save(
    root: Path, names: Sequence[str], stamps: Sequence[tuple[int, int] | None], found: Digests
) -> None:
    """Where it cannot be written, go without."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.frombuffer(pack_names([names]).blob, dtype=np.uint8),
        stamps=np.array(stamps, dtype=np.int64).reshape(-1, 2),
        digests=found,
    )
    with suppress(OSError, RuntimeError):
        index_cache.write(index_cache.place(root, "digests"), [buffer.getvalue()])
