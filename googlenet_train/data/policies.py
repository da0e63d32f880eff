"""RandAugment and TrivialAugment: a few operations, drawn at random, on a whole training image.

The operations and their ranges are torchvision's. The draws are the image's own: torchvision's
classes draw from the process, so with threads no image would come out the same twice.
"""

import math
from typing import NamedTuple

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from googlenet_train.data import color
from googlenet_train.randomness import Draws

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
STRONGEST = 30  # a magnitude is one of 0..30


class Ranges(NamedTuple):
    """What the largest magnitude means."""

    shear: float  # tangent of the angle
    translate: float  # pixels
    rotate: float  # degrees
    enhance: float  # distance of the factor of brightness, colour, contrast, sharpness from 1
    posterize: int  # bits taken away


def randaugment(pixels: Tensor, draws: Draws, magnitude: int, count: int = 2) -> Tensor:
    """`count` operations, each drawn from all, at one magnitude (Cubuk et al. 2019).

    `pixels` and the result are uint8 of shape (3, size, size).
    """
    pixels = pixels.contiguous()  # colour by colour; much of this is slow otherwise
    ranges = Ranges(0.3, 150 / 331 * pixels.shape[2], 30, 0.9, 4)
    for _ in range(count):
        operation = OPERATIONS[draws.integer(len(OPERATIONS))]
        pixels = apply(pixels, operation, _strength(operation, magnitude, ranges, draws))
    return pixels


def trivialaugment_wide(pixels: Tensor, draws: Draws) -> Tensor:
    """One operation at a random magnitude, over wide ranges (Müller & Hutter 2021).

    `pixels` and the result are uint8 of shape (3, size, size).
    """
    pixels = pixels.contiguous()
    ranges = Ranges(0.99, 32, 135, 0.99, 6)
    operation = OPERATIONS[draws.integer(len(OPERATIONS))]
    magnitude = draws.integer(STRONGEST + 1)
    return apply(pixels, operation, _strength(operation, magnitude, ranges, draws))


def _strength(operation: str, magnitude: int, ranges: Ranges, draws: Draws) -> float:
    """What `apply` takes for this magnitude; operations that go two ways get a random sign."""
    share = magnitude / STRONGEST
    if operation == "Posterize":
        return 8 - round(share * ranges.posterize)
    if operation == "Solarize":
        return 255 * (1 - share)
    if operation.startswith("Shear"):
        limit = ranges.shear
    elif operation.startswith("Translate"):
        limit = ranges.translate
    elif operation == "Rotate":
        limit = ranges.rotate
    elif operation in ("Brightness", "Color", "Contrast", "Sharpness"):
        limit = ranges.enhance
    else:  # Identity, AutoContrast, Equalize
        return 0
    return share * limit * (1 if draws.uniform() < 0.5 else -1)


def apply(pixels: Tensor, operation: str, strength: float) -> Tensor:
    """One of OPERATIONS on uint8 pixels (3, height, width); what comes from outside is black.

    `strength`: the tangent for shears, pixels for translations, degrees for Rotate, the factor's
    distance from 1 for Brightness, Color, Contrast and Sharpness, the bits kept for Posterize, the
    grey level from which Solarize inverts; nothing for the others.
    """
    factor = 1 + strength
    result: Tensor = pixels  # Identity
    match operation:
        case "ShearX":
            result = _affine(pixels, shear=[math.degrees(math.atan(strength)), 0.0], center=[0, 0])
        case "ShearY":
            result = _affine(pixels, shear=[0.0, math.degrees(math.atan(strength))], center=[0, 0])
        case "TranslateX":
            result = _affine(pixels, translate=[int(strength), 0])
        case "TranslateY":
            result = _affine(pixels, translate=[0, int(strength)])
        case "Rotate":
            result = F.rotate(pixels, strength)
        case "Brightness":
            result = color.rounded(color.brightness(pixels.float(), factor))
        case "Color":
            result = color.rounded(color.saturation(pixels.float(), factor))
        case "Contrast":
            result = color.rounded(color.contrast(pixels.float(), factor))
        case "Sharpness":
            # Blended here for the same reason as in color.py; factor 0 is the blurred image, exact.
            blurred = F.adjust_sharpness(pixels, 0.0).float()
            mixed = (pixels.float() * factor).add_(blurred * (1 - factor))
            result = color.rounded(mixed.clamp_(0, 255))
        case "Posterize":
            result = F.posterize(pixels, int(strength))
        case "Solarize":
            result = F.solarize(pixels, strength)
        case "AutoContrast":
            result = F.autocontrast(pixels)
        case "Equalize":
            result = F.equalize(pixels)
    return result


def _affine(
    pixels: Tensor,
    translate: list[int] | None = None,
    shear: list[float] | None = None,
    center: list[int] | None = None,
) -> Tensor:
    result: Tensor = F.affine(
        pixels,
        angle=0.0,
        translate=translate or [0, 0],
        scale=1.0,
        shear=shear or [0.0, 0.0],
        center=center,
    )
    return result
