"""How far a pack has come: what `pack.json` keeps, so that a pack that was stopped goes on."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from googlenet_train.data.names import printable
from googlenet_train.data.sidecar import UNFINISHED, VERSION, Shard, check_shards
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.machine.storage import CANNOT, warn_once, write_durably

LOCK = "pack.lock"


class Settings(NamedTuple):
    """What the bytes of a pack depend on besides the photos."""

    short_side: int | None  # pixels; None: every photo as it is
    quality: int | None  # of JPEG, 1 to 100; None where nothing is encoded
    codec: str  # "jpeg" or "raw"
    shard_size: int  # bytes


class Unreadable(NamedTuple):
    """A photo that could not be read: its place in the source and why."""

    place: int
    reason: str


class State(NamedTuple):
    """How far a pack has come: kept in `pack.json` after every shard, and at last in the index."""

    source: dict[str, Any]
    settings: dict[str, Any]
    shards: list[Shard]
    unreadable: list[Unreadable]  # of those before `start`

    @property
    def start(self) -> int:
        """The first photo that is in none of the shards."""
        return self.shards[-1].until if self.shards else 0

    def cut(self, shards: list[Shard]) -> "State":
        """As it was after the last of `shards`."""
        cut = self._replace(shards=shards)
        return cut._replace(unreadable=[p for p in self.unreadable if p.place < cut.start])


def resumed(folder: Path, source: dict[str, Any], settings: Settings) -> State:
    """The state that an earlier call left in `folder`, or that of a new pack."""
    try:
        stored = json.loads((folder / UNFINISHED).read_text())
        if not isinstance(stored, dict):
            raise ValueError
    except FileNotFoundError:
        ours = {LOCK, f"{UNFINISHED}.partial"}
        if others := sorted({path.name for path in folder.iterdir()} - ours):
            raise refusal(
                f"'{folder}' holds '{others[0]}' and no unfinished pack; give a new or empty folder"
            ) from None
        return State(source, settings._asdict(), [], [])
    except ValueError:
        raise refusal(
            f"'{folder / UNFINISHED}' is damaged; delete '{folder}' and pack again"
        ) from None
    state = from_json(stored, folder, source, settings)
    return state.cut(state.shards)  # what failed behind the last shard comes again


def from_json(
    stored: dict[str, Any], folder: Path, source: dict[str, Any], settings: Settings
) -> State:
    """A state from JSON; refused where it is that of another pack or its shards were changed."""
    if stored.get("version") != VERSION:
        raise refusal(
            f"'{folder}' holds a pack by another version of this program; delete it and pack again"
        )
    if stored["source"] != source:
        raise refusal(
            f"'{folder}' holds a pack of other photos ({stored['source']['photos']:,}, here "
            f"{source['photos']:,}, or other names or sizes); give another folder, or delete it"
        )
    others = [
        f"{name.replace('_', '-')} {stored['settings'][name] or 'none'}, here {value or 'none'}"
        for name, value in settings._asdict().items()
        if stored["settings"][name] != value
    ]
    if others:
        raise refusal(
            f"'{folder}' holds a pack with other settings ({'; '.join(others)}); give another "
            "folder, or delete it"
        )
    shards = [Shard(*shard) for shard in stored["shards"]]
    check_shards(folder, shards)
    unreadable = [Unreadable(*photo) for photo in stored["unreadable"]]
    return State(source, settings._asdict(), shards, unreadable)


def remove_strays(folder: Path, state: State) -> None:
    """Remove what a killed process left, and shards that are to be written again."""
    known = {shard.name for shard in state.shards}
    for path in [*folder.glob("shard-*.tar"), *folder.glob("*.partial")]:
        if path.name not in known:
            path.unlink()


def save(folder: Path, state: State) -> None:
    text = json.dumps({"version": VERSION, **state._asdict()}, indent=1)
    write_durably(folder / UNFINISHED, text + "\n")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock dies with it. Without effect on Windows.

    Raises UserError (usage) where another process packs there.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    with (folder / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"another process packs into '{folder}'; wait for it or stop it",
                    ExitCode.USAGE,
                ) from None
            if error.errno not in (*CANNOT, errno.ENOLCK):
                raise
            warn_once(f"{folder}: this storage has no locks; do not pack twice into one folder")
        yield


def refusal(message: str) -> UserError:
    return UserError(printable(message), ExitCode.DATA)
