"""One image file to the pixels that a network sees: random views to train on, fixed to test."""

from typing import NamedTuple

import torch
from torch import Tensor

from googlenet_train.data import color, crops, policies
from googlenet_train.data.decode import INTERPOLATIONS, decode, image_size, resize
from googlenet_train.data.erasing import random_erase
from googlenet_train.data.orientation import UPRIGHT, orientation, seen_size, stored_box, turned
from googlenet_train.randomness import Draws

# ImageNet's mean colour: as an input of the network about 0, as the padding of its convolutions.
_GREY = torch.tensor([124, 116, 104], dtype=torch.uint8)


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
    fit: str = "center_crop"  # evaluate.fit, which training has to match

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
    whole = augmentation.fit != "center_crop"  # evaluation shows all of an image
    if augmentation.crop == "vgg_scale_jitter":
        box = crops.vgg_scale_jitter(height, width, size, draws)
    else:
        crop = crops.relative_crop if whole else crops.random_resized_crop
        box = crop(height, width, draws, augmentation.scale, augmentation.ratio)
    interpolation = augmentation.interpolation
    if interpolation == "random":
        interpolation = INTERPOLATIONS[draws.integer(len(INTERPOLATIONS))]
    pixels = turned(decode(data, stored_box(box, height, width, turn)), turn)
    if augmentation.fit == "pad":
        pixels = padded(pixels, size, interpolation)
    else:
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


def padded(pixels: Tensor, size: int, interpolation: str) -> Tensor:
    """uint8 (3, h, w) as (3, size, size): the long side resized to `size`, grey bars beside it."""
    height, width = int(pixels.shape[1]), int(pixels.shape[2])
    long = max(height, width)
    h, w = max(1, round(size * height / long)), max(1, round(size * width / long))
    out = _GREY.repeat(size, size, 1).permute(2, 0, 1)
    top, left = round((size - h) / 2), round((size - w) / 2)
    out[:, top : top + h, left : left + w] = resize(pixels, h, w, interpolation)
    return out


def evaluation_views(
    data: bytes | memoryview,
    size: int,
    views: int = 1,
    exif_orientation: bool = False,
    fit: str = "center_crop",
) -> Tensor:
    """(views, 3, size, size) uint8 of an image file: see `views_of`."""
    pixels = turned(decode(data), orientation(data) if exif_orientation else UPRIGHT)
    return views_of(pixels, size, views, fit)


def views_of(pixels: Tensor, size: int, views: int = 1, fit: str = "center_crop") -> Tensor:
    """uint8 (3, h, w) as (views, 3, size, size): one view as `fit` says, or 10 or 144 crops.

    `center_crop`: the central square at a short side of size * 256 / 224. `pad`: the whole image,
    grey bars beside it. `squash`: the whole image, its shape lost. More views are those of
    `crops.views`, whatever the fit.
    """
    if views == 1 and fit == "pad":
        return padded(pixels, size, "bilinear")[None]
    if views == 1 and fit == "squash":
        return resize(pixels, size, size, "bilinear")[None]
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
