"""The index beside packed shards: where each photo lies, so that no header has to be read.

`index.npz` is written last, so a folder that has one is whole. It keeps the size, the time and the
SHA-256 of every shard, by which shards that were changed or cut short afterwards are known.
"""

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from googlenet_train import distributed
from googlenet_train.data.names import names_in, printable
from googlenet_train.data.shards import ShardFiles
from googlenet_train.errors import ExitCode, UserError

SIDECAR = "index.npz"
UNFINISHED = "pack.json"  # the state of a pack that is not complete
VERSION = 1


class Shard(NamedTuple):
    """What is known of a finished shard."""

    name: str
    size: int
    mtime_ns: int
    sha256: str
    until: int  # it holds the photos of the source up to this one, exclusive


def to_bytes(
    classes: Sequence[str],
    labels: npt.NDArray[np.int32],
    files: ShardFiles,
    shards: Sequence[Shard],
    **about: Any,
) -> bytes:
    """The content of `index.npz`; `about` is what else it should say of the pack, for JSON."""
    head = {"version": VERSION, "classes": list(classes), "shards": shards, **about}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
        labels=labels,
        names=np.frombuffer(files.names.blob, dtype=np.uint8),
        shards=files.shards,
        offsets=files.offsets,
        sizes=files.sizes,
    )
    return buffer.getvalue()


def read_head(folder: Path) -> dict[str, Any]:
    """What `index.npz` says of the pack: `version`, `classes`, `shards` and what else it was given.

    Raises UserError (DATA) where it is damaged or of another version.
    """
    return _load(folder, "head")[0]


def read_sidecar(folder: Path) -> tuple[list[str], npt.NDArray[np.int32], ShardFiles]:
    """The class names, a label per photo, and where each photo lies.

    Raises UserError (DATA) where the index is damaged or of another version, and for a shard that
    is missing or no longer what was packed.
    """
    head, arrays = _load(folder, "labels", "names", "shards", "offsets", "sizes")
    shards = [Shard(*shard) for shard in head["shards"]]
    check_shards(folder, shards)
    files = ShardFiles(
        tuple(folder / shard.name for shard in shards),
        names_in(arrays["names"].tobytes()),
        arrays["shards"],
        arrays["offsets"],
        arrays["sizes"],
    )
    return head["classes"], arrays["labels"], files


def check_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Raise UserError (DATA) for the first shard that is missing or no longer what was packed.

    A copy has other times: then the contents are compared, once, for a shard that proves to be the
    same gets its time back where the storage allows it.
    """
    other_time = []
    for shard in shards:
        try:
            status = (folder / shard.name).stat()
        except FileNotFoundError:
            raise _refusal(
                f"shard '{folder / shard.name}' is missing; copy or pack it again"
            ) from None
        if status.st_size != shard.size:
            what = "is cut short" if status.st_size < shard.size else "was changed after packing"
            raise _refusal(
                f"shard '{folder / shard.name}' {what}: {status.st_size:,} bytes instead of "
                f"{shard.size:,}; copy or pack it again"
            )
        if status.st_mtime_ns != shard.mtime_ns:
            other_time.append(shard)
    if not other_time:
        return
    size = sum(shard.size for shard in other_time) / 1e9
    print(
        f"note     shards in {printable(str(folder))} have another time than when they were "
        f"packed; comparing their contents ({size:.1f} GB)",
        file=sys.stderr,
        flush=True,
    )
    with ThreadPoolExecutor(min(8, distributed.cores())) as pool:
        found = pool.map(lambda shard: sha256(folder / shard.name), other_time)
        for shard, digest in zip(other_time, found, strict=True):
            path = folder / shard.name
            if digest != shard.sha256:
                pool.shutdown(cancel_futures=True)
                raise _refusal(
                    f"shard '{path}' was changed after packing (other contents, by SHA-256); "
                    "copy or pack it again"
                )
            with contextlib.suppress(OSError):  # not ours, or a read-only mount
                os.utime(path, ns=(shard.mtime_ns, shard.mtime_ns))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load(folder: Path, *names: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    path = folder / SIDECAR
    try:
        with path.open("rb") as file, np.load(file) as stored:
            head = json.loads(stored["head"].tobytes())
            if head["version"] == VERSION:
                return head, {name: stored[name] for name in names}
    except OSError:
        raise
    except Exception:  # a damaged archive raises nearly anything
        raise _refusal(
            f"'{path}' is damaged; copy or pack it again, or delete it: the shards can be read "
            "without it"
        ) from None
    raise _refusal(
        f"'{path}' has version {head['version']}, but this program reads version {VERSION}; pack "
        "again with this program, or delete it: the shards can be read without it"
    )


def _refusal(message: str) -> UserError:
    return UserError(printable(message), ExitCode.DATA)
