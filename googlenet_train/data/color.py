"""Photometric distortions: the colours of a training image changed at random.

Every function is pure. They work on float32 pixels in 0..255 of shape (3, height, width), so that
several in a row are rounded only once, by `rounded`. No multiplication is fused with an addition
and the one sum is over whole numbers, so no bit depends on the number of threads.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from googlenet_train.randomness import Draws

# Principal components of the RGB values of ImageNet's pixels (AlexNet, Krizhevsky et al. 2012,
# section 4.1), as published with fb.resnet.torch: the standard deviation along each in grey levels,
# and the components, one a column.
_DEVIATIONS = (55.46, 4.794, 1.148)
_COMPONENTS = (
    (-0.5675, 0.7192, 0.4009),  # red
    (-0.5808, -0.0045, -0.8140),  # green
    (-0.5836, -0.6948, 0.4203),  # blue
)


def photometric(pixels: Tensor, draws: Draws) -> Tensor:
    """The distortions of the GoogLeNet paper, section 6, which are Howard's (2013, section 2).

    Brightness, contrast and colour in random order, each by a factor uniform in [0.5, 1.5], then
    AlexNet's lighting: along each component of ImageNet's colours a step of N(0, 0.1) deviations.
    `pixels` and the result are uint8 of shape (3, height, width).
    """
    # Colour by colour in memory: with the pixels' three values together it takes twice as long.
    x = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    kinds = [brightness, contrast, saturation]
    while kinds:
        kind = kinds.pop(draws.integer(len(kinds)))
        x = kind(x, draws.uniform(0.5, 1.5))
    return rounded(lighting(x, [0.1 * _normal(draws) for _ in _DEVIATIONS]))


def brightness(x: Tensor, factor: float) -> Tensor:
    """`factor` times as bright, cut off at white; 0 is black."""
    return (x * factor).clamp_(0, 255)


def contrast(x: Tensor, factor: float) -> Tensor:
    """Away from the mean grey of the image (factor > 1) or towards it; at 0 that grey alone."""
    grey = _grey(x)
    mean = float(grey.round_().sum(dtype=torch.float64)) / grey.numel()
    return (x * factor).add_((1 - factor) * mean).clamp_(0, 255)


def saturation(x: Tensor, factor: float) -> Tensor:
    """Away from each pixel's grey (factor > 1) or towards it; at 0 that grey. Howard's colour."""
    return (x * factor).add_(_grey(x).mul_(1 - factor)).clamp_(0, 255)


def lighting(x: Tensor, steps: Sequence[float]) -> Tensor:
    """One colour added to all pixels: a step along each component, in its standard deviations."""
    shift = [
        sum(part * step * size for part, step, size in zip(row, steps, _DEVIATIONS, strict=True))
        for row in _COMPONENTS
    ]
    return (x + torch.tensor(shift).view(3, 1, 1)).clamp_(0, 255)


def rounded(x: Tensor) -> Tensor:
    """The nearest uint8 pixels. (Cutting the fraction off would make a grey photo darker.)"""
    return x.round().to(torch.int32).to(torch.uint8)  # straight to uint8 is four times slower


def _grey(x: Tensor) -> Tensor:
    """ITU-R BT.601 luma, (height, width)."""
    red, green, blue = x
    luma: Tensor = (red * 0.299).add_(green * 0.587).add_(blue * 0.114)
    return luma


def _normal(draws: Draws) -> float:
    """One draw from N(0, 1), by Box and Muller's method."""
    radius = math.sqrt(-2 * math.log(1 - draws.uniform()))
    return radius * math.cos(2 * math.pi * draws.uniform())
