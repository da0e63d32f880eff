"""EXIF orientation: photos that a camera stored lying on their side or mirrored.

The tag's values 1 to 8 (EXIF 2.3, section 4.6.4) say how to turn what is stored into what was
seen. A crop is chosen in the photo as seen and decoded where it is stored.
"""

import io

from PIL import Image
from torch import Tensor

from googlenet_train.data.crops import Box

_TAG = 0x0112
UPRIGHT = 1
_LYING = (5, 6, 7, 8)  # rows are stored as columns; first make them rows again
_LEFT_RIGHT = (2, 3, 6, 7)  # then mirror left to right
_TOP_BOTTOM = (3, 4, 7, 8)  # and top to bottom


def orientation(data: bytes | memoryview) -> int:
    """The tag of an image file, UPRIGHT where it has none that makes sense."""
    head = bytes(data[:65536])
    if head.startswith(b"\xff\xd8") and b"Exif" not in head:  # saves a parse of most JPEGs
        return UPRIGHT
    if head.startswith(b"P6"):  # a PPM has no tags
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image_orientation(image)
    except Exception:  # damaged metadata raises nearly anything in Pillow's readers
        return UPRIGHT


def image_orientation(image: Image.Image) -> int:
    """The tag of an image that Pillow has opened, UPRIGHT where it has none that makes sense."""
    value: int = image.getexif().get(_TAG, UPRIGHT)
    return value if value in range(1, 9) else UPRIGHT


def seen_size(height: int, width: int, value: int) -> tuple[int, int]:
    """(height, width) as seen of an image that is stored with height x width."""
    return (width, height) if value in _LYING else (height, width)


def stored_box(box: Box, height: int, width: int, value: int) -> Box:
    """Where a box of the image as seen, which has height x width, is stored."""
    top, left, h, w = box
    if value in _LEFT_RIGHT:
        left = width - left - w
    if value in _TOP_BOTTOM:
        top = height - top - h
    return Box(left, top, w, h) if value in _LYING else Box(top, left, h, w)


def turned(pixels: Tensor, value: int) -> Tensor:
    """Stored pixels (3, h, w) as they were seen."""
    if value in _LYING:
        pixels = pixels.transpose(1, 2)
    mirrored = [d for d, values in ((1, _TOP_BOTTOM), (2, _LEFT_RIGHT)) if value in values]
    return pixels.flip(mirrored) if mirrored else pixels
