"""Mixup and CutMix: a training image with a part of another, and both labels.

The partner and the shares are a pure function of (seed, step, position in the global batch). The
global batch falls into pairs of neighbours, (0, 1), (2, 3), ...: in each epoch's random order
neighbours are strangers, and no pair is split between ranks or micro-batches of an even size.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from googlenet_train.data.crops import Box
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.randomness import Draws

_MIXING = 0x6D6978696E67  # "mixing" in ASCII: keeps these draws apart from other uses of the seed


class Mix(NamedTuple):
    """How one image of a batch is mixed with its partner."""

    share: float  # of the image itself, in [0, 1]; the partner has the rest
    box: Box | None  # CutMix: this part is the partner's; mixup: None, all pixels are blended


UNMIXED = Mix(1.0, None)


def draw(
    seed: int, step: int, position: int, height: int, width: int, mixup: float, cutmix: float
) -> Mix:
    """The mix of one position of the global batch for images of height x width pixels.

    `mixup`, `cutmix`: the alpha of each one's Beta(alpha, alpha) of shares, 0 for none; with both,
    either is as likely. CutMix's box has the partner's share of the area, its centre is anywhere
    in the image and what lies outside is cut off, so that the share is counted again.
    Sources: Zhang et al. 2017, section 2; Yun et al. 2019, section 3.
    """
    draws = Draws(seed, step, position, _MIXING)
    cut = draws.uniform() < 0.5 if mixup and cutmix else bool(cutmix)
    share = _symmetric_beta(draws, cutmix if cut else mixup)
    if not cut:
        return Mix(share, None)
    side = math.sqrt(1 - share)
    h, w = int(height * side), int(width * side)
    y, x = draws.integer(height), draws.integer(width)
    top, left = max(0, y - h // 2), max(0, x - w // 2)
    bottom, right = min(height, y - h // 2 + h), min(width, x - w // 2 + w)
    box = Box(top, left, bottom - top, right - left)
    return Mix(1 - box.height * box.width / (height * width), box)


def mixed(
    own: npt.NDArray[np.uint8], partner: npt.NDArray[np.uint8], mix: Mix
) -> npt.NDArray[np.uint8]:
    """The pixels of `own` with those of `partner` mixed in: uint8 of shape (3, height, width)."""
    if mix.box is None:
        blend = own * np.float32(mix.share) + partner * np.float32(1 - mix.share)
        blended: npt.NDArray[np.uint8] = np.rint(blend).astype(np.uint8)
        return blended
    top, left, height, width = mix.box
    result: npt.NDArray[np.uint8] = own.copy(order="K")
    part = np.s_[:, top : top + height, left : left + width]
    result[part] = partner[part]
    return result


def check_pairs(batch_size: int, world_size: int, accumulate: int) -> None:
    """Raise UserError (USAGE) unless each micro-batch of each rank holds whole pairs.

    The batch divides into world_size x accumulate parts (see `order.check_divides`).
    """
    parts = world_size * accumulate
    size = batch_size // parts
    if size % 2:
        raise UserError(
            f"optimizer.batch_size {batch_size} over {world_size} rank"
            f"{'s' if world_size > 1 else ''} x optimizer.accumulate {accumulate} gives parts of "
            f"{size}, which must be even: augment.mixup and augment.cutmix mix pairs of images. "
            f"optimizer.batch_size {(size + 1) * parts} would do, or set both to 0.",
            ExitCode.USAGE,
        )


def _symmetric_beta(draws: Draws, alpha: float) -> float:
    """One draw from Beta(alpha, alpha), for any alpha > 0, from exactly two uniform numbers.

    With T of Student's t distribution of 2 alpha degrees of freedom, (1 + T / sqrt(2 alpha + T^2))
    / 2 is such a draw, and Bailey's polar method (1994) gives T as
    sqrt(2 alpha (u^(-1 / alpha) - 1)) cos(2 pi v) without rejecting any.
    """
    power = (1 - draws.uniform()) ** (1 / alpha)
    cosine = math.cos(2 * math.pi * draws.uniform())
    square = (1 - power) * cosine**2
    return (1 + math.copysign(math.sqrt(square / (square + power)), cosine)) / 2
