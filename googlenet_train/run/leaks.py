"""Photos that are evaluated on although a network was trained on them: known by their contents.

What is trained on and what is held out is written to a run's split.csv, with each photo's hash.
"""

import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from googlenet_train.data.digests import SIZE, Digests, copies, digests
from googlenet_train.data.index import Index
from googlenet_train.run.sources import SPLIT, Sources

_MOST_BYTES = 2_000_000_000  # that are read to compare contents, unless all are to be


class Copies(NamedTuple):
    """Of data.val."""

    photos: int  # that are copies of training photos
    first: str  # names of one of them
    its_original: str


class TooMuch(NamedTuple):
    """It was not looked for copies."""

    bytes: int  # that would have to be read; 0 where the source does not tell


def across(
    train: Index, val: Index, sources: tuple[str, str], *, everything: bool = False
) -> Copies | TooMuch | None:
    """Copies of training photos in `val`; None where there are none.

    Only photos of the same size can be the same, so few are read. `sources` names the two, for what
    is kept of them. Raises UserError (DATA) for a photo that cannot be read.
    """
    sizes = [np.array([_size(index, i) for i in range(len(index))]) for index in (train, val)]
    if (sizes[0] < 0).any() or (sizes[1] < 0).any():
        return TooMuch(0)
    places = [np.flatnonzero(np.isin(a, b)) for a, b in (sizes, sizes[::-1])]
    total = int(sum(size[place].sum() for size, place in zip(sizes, places, strict=True)))
    if total > _MOST_BYTES and not everything:
        return TooMuch(total)
    if total == 0:
        return None
    chosen = [index.chosen(place) for index, place in zip((train, val), places, strict=True)]
    found = [digests(index, source) for index, source in zip(chosen, sources, strict=True)]
    border = len(chosen[0])
    both = [g for g in copies(np.concatenate(found)) if g[0] < border <= g[-1]]
    if not both:
        return None
    first = both[0]
    return Copies(
        sum(i >= border for group in both for i in group),
        chosen[1].name(first[-1] - border),
        chosen[0].name(first[0]),
    )


def _size(index: Index, i: int) -> int:
    """Bytes of a photo; -1 where its source does not tell, 0 of a link that leads nowhere."""
    try:
        stamp = index.files.stamp(i)
    except OSError:
        return 0
    return stamp[0] if stamp else -1


def told(found: Copies, evaluated: int) -> str:
    """As a warning says it; `evaluated`: photos in all."""
    return (
        f"{found.photos:,} of the {evaluated:,} photos to evaluate on are also trained on, so "
        f"results will look too good; the first is {found.first}, a copy of {found.its_original}"
    )


def trained_on(run: str) -> frozenset[bytes]:
    """The hashes of the photos that RUN was trained on; none where its split.csv has none.

    `run` is a run folder or a checkpoint in one.
    """
    given = Path(run).expanduser()
    folder = given.parent.parent if given.is_file() else given
    try:
        text = os.fsdecode((folder / SPLIT).read_bytes())
    except OSError:
        return frozenset()
    rows = csv.DictReader(io.StringIO(text))
    hashes = (row.get("content") for row in rows if row.get("split") == "train")
    return frozenset(bytes.fromhex(h) for h in hashes if h and len(h) == 2 * SIZE)


def among(found: Digests, trained: frozenset[bytes]) -> npt.NDArray[np.bool_]:
    """Of shape (count,): whether each photo is one of those `trained` on."""
    return np.array([digest.tobytes() in trained for digest in found], dtype=np.bool_)


def seen_by_init(init: str, sources: Sources) -> tuple[str, ...]:
    """A warning where photos held out now were trained on by the run that model.init names."""
    if sources.contents is None or sources.val is None:
        return ()
    count = int(among(sources.contents[1], trained_on(init)).sum())
    if not count:
        return ()
    return (
        f"warning  {init} (model.init) was trained on {count:,} of the {len(sources.val):,} photos "
        "held out now, so results will look too good. Split as it did (the same photos and "
        "data.val_fraction), or evaluate on others (data.val)",
    )
