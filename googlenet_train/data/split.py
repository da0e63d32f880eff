"""Which photos are held out to evaluate on, where one folder is all there is.

A photo's side depends on its bytes alone: copies of it, in whatever class, stand on the same side,
and it stays there when photos are added or renamed. Only where that would leave a class without a
photo on one side does a photo change over.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from googlenet_train.data.digests import Digests, contents
from googlenet_train.errors import ExitCode, UserError


def held_out(
    digests: Digests, labels: npt.NDArray[np.int32], classes: Sequence[str], fraction: float
) -> npt.NDArray[np.bool_]:
    """Of shape (count,): whether a photo is held out, each with probability `fraction` < 1.

    The first 8 bytes of a digest, read as a number between 0 and 1, are below `fraction`. A class
    that has none to train on gives back its photo with the largest number, one that has none to
    evaluate on its photo with the smallest, where no class loses its last training photo by that.

    Raises UserError (DATA) for classes with fewer than two different photos.
    """
    content = contents(digests)
    places = np.zeros(content.max() + 1)
    places[content] = np.ascontiguousarray(digests[:, :8]).view(">u8").reshape(-1) / 2.0**64
    # (class, content), once each, in this order: a class's contents stand side by side.
    pairs = np.stack(np.divmod(np.unique(labels * np.int64(len(places)) + content), len(places)), 1)
    begins = np.searchsorted(pairs[:, 0], np.arange(len(classes) + 1))
    by_content = pairs[np.argsort(pairs[:, 1], kind="stable")]
    distinct = np.diff(begins)
    _refuse_small(classes, labels, distinct)

    out: npt.NDArray[np.bool_] = places < fraction
    evaluated = np.bincount(pairs[out[pairs[:, 1]], 0], minlength=len(classes))
    training = distinct - evaluated

    def of(number: int) -> list[int]:
        """The class's contents, those with the smallest places first."""
        own = pairs[begins[number] : begins[number + 1], 1]
        return [int(own[i]) for i in np.argsort(places[own], kind="stable")]

    def holders(chosen: int) -> npt.NDArray[np.int64]:
        """The classes that have this content."""
        first, last = np.searchsorted(by_content[:, 1], [chosen, chosen + 1])
        return by_content[first:last, 0]

    def move(chosen: int, to_val: bool) -> None:
        change = 1 if to_val else -1
        out[chosen] = to_val
        evaluated[holders(chosen)] += change
        training[holders(chosen)] -= change

    for number in np.flatnonzero(training == 0).tolist():
        if training[number] == 0:  # another class may have mended it
            move(of(number)[-1], to_val=False)
    for number in np.flatnonzero(evaluated == 0).tolist():
        for chosen in of(number):
            if evaluated[number] == 0 and (training[holders(chosen)] > 1).all():
                move(chosen, to_val=True)
    return np.take(out, content)


def _refuse_small(
    classes: Sequence[str], labels: npt.NDArray[np.int32], distinct: npt.NDArray[np.int64]
) -> None:
    small = np.flatnonzero(distinct < 2).tolist()
    if not small:
        return
    photos = np.bincount(labels, minlength=len(classes))
    shown = ", ".join(
        f"'{classes[i]}' ({'copies of one photo' if photos[i] > 1 else f'photos: {photos[i]}'})"
        for i in small[:5]
    )
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    raise UserError(
        f"too few photos to train on some and hold some out: {shown}{more}. A class needs two "
        "different ones at least: add photos, take the class away, or write data.val_fraction=0",
        ExitCode.DATA,
    )
