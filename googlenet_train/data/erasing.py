"""Random erasing: a rectangle of a training image becomes noise (Zhong et al. 2017)."""

import torch
from torch import Tensor

from googlenet_train import randomness
from googlenet_train.data.crops import random_resized_crop
from googlenet_train.randomness import Draws


def random_erase(pixels: Tensor, draws: Draws, probability: float) -> Tensor:
    """With that probability, a copy with noise in a random box; otherwise `pixels` themselves.

    The box has 2 to 33 % of the area and an aspect ratio of 0.3 to 3.3 (its logarithm uniform, as
    torchvision's); each value inside is uniform in 0..255, the best of the paper's fillings.
    `pixels` and the result are uint8 of shape (3, height, width).
    """
    if draws.uniform() >= probability:
        return pixels
    height, width = pixels.shape[1:]
    box = random_resized_crop(height, width, draws, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    values = 3 * box.height * box.width
    eight_each = randomness.hashes(draws.integer(2**53), -(-values // 8))
    noise = torch.from_numpy(eight_each.view("uint8")[:values]).view(3, box.height, box.width)
    erased = pixels.clone()
    erased[:, box.top : box.top + box.height, box.left : box.left + box.width] = noise
    return erased
