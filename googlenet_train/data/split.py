"""Which photos are held out to evaluate on, where one folder is all there is.

A photo's side depends on its bytes alone: copies of it, in whatever class, stand on the same side,
and it stays there when photos are added or renamed. Only where that would leave a class without a
photo on one side does a photo change over.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from googlenet_train.data.digests import Digests
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
    contents, content = np.unique(digests, axis=0, return_inverse=True)
    content = content.reshape(-1)  # numpy 2.0 gave it a second axis
    places = contents[:, :8].copy().view(">u8").reshape(-1) / 2.0**64
    pairs = np.unique(np.stack([labels, content], axis=1), axis=0)  # (class, content), once each
    distinct = np.bincount(pairs[:, 0], minlength=len(classes))
    _refuse_small(classes, labels, distinct)

    out: npt.NDArray[np.bool_] = places < fraction
    evaluated = np.bincount(pairs[out[pairs[:, 1]], 0], minlength=len(classes))
    training = distinct - evaluated

    def move(chosen: int, to_val: bool) -> None:
        holders = pairs[pairs[:, 1] == chosen, 0]
        out[chosen] = to_val
        evaluated[holders] += 1 if to_val else -1
        training[holders] -= 1 if to_val else -1

    def of(number: int) -> npt.NDArray[np.int64]:
        """The class's contents, those with the smallest places first."""
        own: npt.NDArray[np.int64] = pairs[pairs[:, 0] == number, 1]
        order = np.argsort(places[own], kind="stable")
        return np.take(own, order)

    for number in np.flatnonzero(training == 0).tolist():
        if training[number] == 0:  # another class may have mended it
            move(int(of(number)[-1]), to_val=False)
    for number in np.flatnonzero(evaluated == 0).tolist():
        for chosen in of(number).tolist():
            holders = pairs[pairs[:, 1] == chosen, 0]
            if evaluated[number] == 0 and (training[holders] > 1).all():
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
