"""Which part of an image becomes the network's input: geometry on integers, no pixel touched.

A training box is chosen from the size in the file's header, so that a decoder may leave out what
lies beside it. Heights come before widths everywhere; all lengths are pixels.
"""

import math
from typing import NamedTuple

from googlenet_train.randomness import Draws

ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle of an image: rows top..top+height-1, columns left..left+width-1."""

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """One evaluation crop: resize the short side, cut out the box, resize it to (size, size)."""

    short_side: int
    box: Box  # in the resized image
    mirrored: bool


def random_resized_crop(
    height: int,
    width: int,
    draws: Draws,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random part of a height x width image (GoogLeNet paper, section 6; torchvision's law).

    The target area is uniform in `scale` (shares of the image), the logarithm of the aspect ratio
    width / height is uniform in log `ratio`, the position is uniform. After ten targets that do
    not fit inside the image: the largest central box whose aspect ratio lies within `ratio`.
    """
    low, high = ratio
    for _ in range(ATTEMPTS):
        area = height * width * draws.uniform(*scale)
        aspect = math.exp(draws.uniform(math.log(low), math.log(high)))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(draws.integer(height - h + 1), draws.integer(width - w + 1), h, w)
    h, w = height, width
    if width / height < low:
        h = round(width / low)
    elif width / height > high:
        w = round(height * high)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def relative_crop(
    height: int,
    width: int,
    draws: Draws,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random part with the image's own shape: `random_resized_crop` of the image as a square.

    So the area is uniform in `scale`, and `ratio` bounds the aspect of the part over that of the
    image. The whole image is among the parts, which for an oblong one `random_resized_crop`
    excludes.
    """
    side = max(height, width)
    top, left, h, w = random_resized_crop(side, side, draws, scale, ratio)
    first_row, first_column = top * height // side, left * width // side
    return Box(
        first_row,
        first_column,
        -(-(top + h) * height // side) - first_row,  # rounded outwards: never empty
        -(-(left + w) * width // side) - first_column,
    )


def vgg_scale_jitter(height: int, width: int, size: int, draws: Draws) -> Box:
    """A random square, the aspect kept (Simonyan & Zisserman 2014, section 3.1).

    VGG resizes the image to a random short side S, uniform in the integers 256..512 for a network
    input of `size` 224 and in proportion for others, and then cuts a random size x size square.
    The same square of the source image has sides of size * min(height, width) / S pixels; resizing
    it to `size` gives the same view in one go. The differences are below one source pixel: side
    and position are rounded to the source's grid instead of the resized image's, and at the edges
    the resize does not see the pixels outside of the square.
    """
    smallest, largest = round(size * 256 / 224), round(size * 512 / 224)
    short_side = smallest + draws.integer(largest - smallest + 1)
    side = max(1, round(size * min(height, width) / short_side))
    return Box(draws.integer(height - side + 1), draws.integer(width - side + 1), side, side)


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after a resize of the short side, the aspect kept (torchvision's Resize)."""
    if width <= height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def center(height: int, width: int, size: int) -> Box:
    """The central size x size square (torchvision's CenterCrop); size <= min(height, width)."""
    return Box(round((height - size) / 2), round((width - size) / 2), size, size)


def views(height: int, width: int, size: int, crops: int) -> list[View]:
    """The 1, 10 or 144 evaluation crops of a height x width image for a size x size input.

    1: the centre, at a short side of size * 256 / 224. 10: there also the four corners, and the
    mirror images. 144: the GoogLeNet paper's, section 7: four short sides (256, 288, 320, 352 for
    size 224), at each the left, central and right square (top, central and bottom of portraits),
    of each square the four corners, the centre and the whole, and the mirror images.

    Raises ValueError for another number of crops.
    """
    short_side = round(size * 256 / 224)
    resized = resized_size(height, width, short_side)
    if crops == 1:
        return [View(short_side, center(*resized, size), False)]
    if crops == 10:
        boxes = [(short_side, box) for box in _corners_and_center(Box(0, 0, *resized), size)]
    elif crops == 144:
        boxes = [
            (short_side, box)
            for short_side in (round(size * side / 224) for side in (256, 288, 320, 352))
            for square in _squares(*resized_size(height, width, short_side))
            for box in (*_corners_and_center(square, size), square)
        ]
    else:
        raise ValueError(f"crops must be 1, 10 or 144, not {crops}")
    return [View(*box, mirrored) for mirrored in (False, True) for box in boxes]


def _squares(height: int, width: int) -> list[Box]:
    """The first, central and last of the largest squares along the long side."""
    side = min(height, width)
    return [
        Box(0, 0, side, side),
        center(height, width, side),
        Box(height - side, width - side, side, side),
    ]


def _corners_and_center(area: Box, size: int) -> list[Box]:
    """The four corners and the centre of `area`, each size x size, in the frame of the image."""
    bottom, right = area.height - size, area.width - size
    middle = center(area.height, area.width, size)
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (middle.top, middle.left)]
    return [Box(area.top + top, area.left + left, size, size) for top, left in corners]
