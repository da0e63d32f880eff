"""One image file to the pixels that a network sees: random views to train on, fixed to test."""

from typing import NamedTuple

import torch
from torch import Tensor

from googlenet_train.data import color, crops, policies
from googlenet_train.data.decode import INTERPOLATIONS, decode, image_size, resize
from googlenet_train.data.erasing import random_erase
from googlenet_train.data.orientation import UPRIGHT, orientation, seen_size, stored_box, turned
from googlenet_train.randomness import Draws


class Augmentation(NamedTuple):
    """How a training image becomes pixels; see the keys of the same names under `augment`."""

    crop: str
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str
    flip: float
    photometric: bool = False
    policy: str = "none"
    policy_magnitude: int = 9
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether an image gets a part of its neighbour in the batch."""
        return self.mixup > 0 or self.cutmix > 0


def training_image(
    data: bytes | memoryview,
    draws: Draws,
    size: int,
    augmentation: Augmentation,
    exif_orientation: bool = False,
) -> tuple[Tensor, crops.Box]:
    """One augmented view, (3, size, size) uint8, and the box of the image that it shows.

    The box is chosen from the header's size alone, so a decoder may leave out all that lies beside.
    What is switched off draws nothing: the rest stays as it is without. Mixing is of batches.
    """
    turn = orientation(data) if exif_orientation else UPRIGHT
    height, width = seen_size(*image_size(data), turn)
    if augmentation.crop == "vgg_scale_jitter":
        box = crops.vgg_scale_jitter(height, width, size, draws)
    else:
        box = crops.random_resized_crop(
            height, width, draws, augmentation.scale, augmentation.ratio
        )
    interpolation = augmentation.interpolation
    if interpolation == "random":
        interpolation = INTERPOLATIONS[draws.integer(len(INTERPOLATIONS))]
    pixels = turned(decode(data, stored_box(box, height, width, turn)), turn)
    pixels = resize(pixels, size, size, interpolation)
    if draws.uniform() < augmentation.flip:
        pixels = pixels.flip(2)
    if augmentation.photometric:
        pixels = color.photometric(pixels, draws)
    if augmentation.policy == "randaugment":
        pixels = policies.randaugment(pixels, draws, augmentation.policy_magnitude)
    elif augmentation.policy == "trivialaugment":
        pixels = policies.trivialaugment_wide(pixels, draws)
    if augmentation.erase:
        pixels = random_erase(pixels, draws, augmentation.erase)
    return pixels, box


def evaluation_views(
    data: bytes | memoryview, size: int, views: int = 1, exif_orientation: bool = False
) -> Tensor:
    """(views, 3, size, size) uint8: the centre crop, or the 10 or 144 crops of `crops.views`."""
    pixels = turned(decode(data), orientation(data) if exif_orientation else UPRIGHT)
    height, width = int(pixels.shape[1]), int(pixels.shape[2])
    scaled: dict[int, Tensor] = {}
    out = torch.empty(views, 3, size, size, dtype=torch.uint8)
    for n, view in enumerate(crops.views(height, width, size, views)):
        if view.short_side not in scaled:
            target = crops.resized_size(height, width, view.short_side)
            scaled[view.short_side] = resize(pixels, *target, "bilinear")
        top, left, h, w = view.box
        crop = resize(
            scaled[view.short_side][:, top : top + h, left : left + w], size, size, "bilinear"
        )
        out[n] = crop.flip(2) if view.mirrored else crop
    return out
