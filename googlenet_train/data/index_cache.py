"""The index of a large folder, kept from one start to the next.

Finding 1.28 million files takes seconds, and minutes on network storage; looking whether their
1,000 folders are as they were takes milliseconds. A folder's times change with every file that is
added, removed or renamed in it, so an index is trusted while all of them are the same. It lies in
the user's cache folder, never among the images, and may be deleted at any time.

A file is one line with a version and a checksum, one line of JSON, and the names.
"""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from googlenet_train.data.folders import Folder, FolderScan, in_order, look
from googlenet_train.data.names import names_in

MIN_PHOTOS = 10_000  # fewer are found in 30 ms

_MAGIC = b"googlenet-train index 2 "
# Some file systems keep times to two seconds only: a folder that is younger may change once more
# without showing it.
_SETTLING_NS = 2_000_000_000


def place(root: Path, ending: str = "index") -> Path:
    """The file that keeps, or would keep, what is known of `root`: its index, its digests.

    Raises RuntimeError where the user has no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache / "googlenet-train" / f"{key}.{ending}"


def load(root: Path) -> FolderScan | None:
    """The kept index, or None where there is none, or it is damaged, or the folders changed."""
    try:
        with place(root).open("rb") as file:
            magic, header, blob = file.readline(), file.readline(), file.read()
        if magic != _first_line(header, blob):
            return None
        kept = json.loads(header)
        folders = [Folder(*folder) for folder in kept["folders"]]
        if kept["root"] != str(root.resolve()):
            return None
        for then, now in zip(
            folders, in_order(lambda name: look(root, name), [f.name for f in folders]), strict=True
        ):
            if then != now:
                return None
    except (OSError, RuntimeError, ValueError):
        return None
    return FolderScan(kept["classes"], kept["counts"], names_in(blob), folders, kept["began"], True)


def save(root: Path, scan: FolderScan) -> None:
    """Keep an index where that is of use and safe; where it cannot be written, go without."""
    newest = max(max(folder.mtime, folder.ctime) for folder in scan.folders)
    if len(scan.names) < MIN_PHOTOS or not scan.settled or newest > scan.began - _SETTLING_NS:
        return
    kept = {
        "root": str(root.resolve()),
        "began": scan.began,
        "classes": scan.classes,
        "counts": scan.counts,
        "folders": scan.folders,
    }
    header = json.dumps(kept).encode() + b"\n"
    with suppress(OSError, RuntimeError):
        write(place(root), [_first_line(header, scan.names.blob), header, scan.names.blob])


def write(path: Path, pieces: Sequence[bytes]) -> None:
    """Put a file into the cache folder, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, as several runs may start at once. Without fsync: after a power cut the
    # checksum tells what is whole, and waiting for the disk would delay the start.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        try:
            file.writelines(pieces)
            file.close()
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink()


def _first_line(header: bytes, blob: bytes) -> bytes:
    return _MAGIC + b"%08x\n" % zlib.crc32(blob, zlib.crc32(header))
