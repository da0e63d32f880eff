"""Random erasing: how often, how large, and with what."""

import numpy as np
import pytest
import torch
from scipy import stats

from googlenet_train.data.erasing import random_erase
from googlenet_train.randomness import Draws

# No noise is likely to leave a whole row or column of 300 as it is.
PIXELS = torch.full((3, 100, 100), 77, dtype=torch.uint8)


def box_of(erased: torch.Tensor) -> tuple[int, int, int, int]:
    """(top, left, height, width) of what was changed."""
    changed = (erased != PIXELS).any(0)
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_probability(probability):
    erased = sum(random_erase(PIXELS, Draws(1, i), probability) is not PIXELS for i in range(1000))
    assert erased == 1000 * probability or stats.binomtest(erased, 1000, 0.25).pvalue > 1e-3
    assert bool((PIXELS == 77).all())  # the image itself is left alone


def test_the_box_is_a_rectangle_of_the_papers_area_and_aspect():
    areas, aspects = [], []
    for i in range(600):
        erased = random_erase(PIXELS, Draws(2, i), 1.0)
        top, left, height, width = box_of(erased)
        inside = erased[:, top : top + height, left : left + width]
        assert float((inside != 77).float().mean()) > 0.95  # all of it, one in 256 aside
        areas.append(height * width / 10_000)
        aspects.append(width / height)
    assert 0.015 < min(areas) < 0.03
    assert 0.31 < max(areas) < 0.35
    assert 0.27 < min(aspects) < 0.36
    assert 2.8 < max(aspects) < 3.7
    assert abs(np.log(aspects).mean()) < 0.1


def test_the_noise_is_uniform():
    values = torch.cat(
        [random_erase(PIXELS, Draws(3, i), 1.0)[PIXELS != 78].flatten() for i in range(30)]
    )
    counts = torch.bincount(values[values != 77].int(), minlength=256).tolist()
    del counts[77]  # what was there before cannot be told from noise of that value
    assert stats.chisquare(counts).pvalue > 1e-3


def test_it_is_a_function_of_pixels_and_draws():
    state = torch.get_rng_state()
    first = random_erase(PIXELS, Draws(4), 1.0)
    assert torch.equal(random_erase(PIXELS, Draws(4), 1.0), first)
    assert not torch.equal(random_erase(PIXELS, Draws(5), 1.0), first)
    assert torch.equal(torch.get_rng_state(), state)
