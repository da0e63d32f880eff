"""How the photos of a data set are shared out among its classes, and what follows from it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from googlenet_train.data.index import Index

UNEVEN = 5  # the largest class over the smallest, beyond which a person is warned


def data_summary(index: Index, names: Sequence[str]) -> str:
    """`3,068 photos, 10 classes, from 112 (skirt) to 795 (t-shirt)`."""
    counts = index.counts()
    low, high = int(np.argmin(counts)), int(np.argmax(counts))
    spread = (
        f"{counts[low]:,} each"
        if counts[low] == counts[high]
        else f"from {counts[low]:,} ({names[low]}) to {counts[high]:,} ({names[high]})"
    )
    classes = f"{len(index.classes):,} class{'es' if len(index.classes) > 1 else ''}"
    return f"{len(index):,} photos, {classes}, {spread}"


def class_warnings(
    train: Index, val: Index | None, names: Sequence[str], *, weighted: bool
) -> list[str]:
    """What is amiss with the numbers of photos: one line each, none where all is well."""
    counts = train.counts()
    low, high = int(np.argmin(counts)), int(np.argmax(counts))
    warnings = []
    small = [f"'{names[i]}' ({counts[i]})" for i in np.flatnonzero(counts < 2).tolist()]
    if small:
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        warnings.append(
            f"fewer than 2 photos to train on: {', '.join(small[:5])}{more}. Nothing can be learnt "
            "from so few: add some, or take the class away"
        )
    if counts[high] > UNEVEN * counts[low] and not weighted:
        times = f"{counts[high] / counts[low]:.1f} times" if counts[low] else "more than"
        warnings.append(
            f"'{names[high]}' has {times} the photos of '{names[low]}': rare classes will be "
            "recognised less often; watch val/top1_macro. loss.class_weights can weigh them more"
        )
    if val is not None and (absent := np.flatnonzero(val.counts() == 0).tolist()):
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        listed = ", ".join(f"'{names[i]}'" for i in absent[:5])
        warnings.append(f"no photos to evaluate on of {listed}{more}")
    return warnings


def balanced_weights(counts: npt.NDArray[np.int64]) -> list[float]:
    """loss.class_weights: auto, w = images / (classes x images of the class), to 4 digits.

    Its mean over the images is 1. A class without images, which no image weighs, has 1.
    """
    return [float(f"{counts.sum() / (len(counts) * n):.4g}") if n else 1.0 for n in counts.tolist()]
