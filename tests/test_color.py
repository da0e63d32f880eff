"""Photometric distortions, held against torchvision's v2 and the formulas of the papers."""

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from googlenet_train.data import color
from googlenet_train.data.color import photometric, rounded
from googlenet_train.randomness import Draws

KINDS = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
}


def photo(seed: int = 0, size: int = 40) -> Tensor:
    """Smooth colours with noise, uint8, (3, size, size + 10), its pixels together in memory."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (size, size + 10), mode="bilinear")[0]
    noisy = smooth + torch.randn(smooth.shape, generator=generator) * 12
    pixels = noisy.clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.0, 0.5, 0.77, 1.0, 1.31, 1.5, 1.9])
def test_each_is_torchvisions_within_one_grey_level(kind, factor):
    for seed in range(4):
        pixels = photo(seed)
        ours = rounded(getattr(color, kind)(pixels.float(), factor))
        assert difference(ours, 255 * KINDS[kind](pixels / 255, factor)) <= 1
        if 0.5 <= factor <= 1.5:  # beyond, its own uint8 path is further away from its real one
            assert difference(ours, KINDS[kind](pixels, factor)) <= 1
        if factor == 1:
            assert torch.equal(ours, pixels)
        else:
            assert not torch.equal(ours, pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grey_photo_stays_grey(kind):
    grey = photo()[:1].expand(3, -1, -1)
    for factor in (0.5, 0.9, 1.1, 1.5):
        changed = rounded(getattr(color, kind)(grey.float(), factor))
        assert torch.equal(changed[0], changed[1])
        assert torch.equal(changed[0], changed[2])
        if kind == "saturation":  # and to the level: nothing is cut off
            assert torch.equal(changed, grey)


def test_lighting_is_alexnets():
    """p1 a1 l1 + p2 a2 l2 + p3 a3 l3, with the numbers of fb.resnet.torch for pixels in 0..1."""
    deviations = np.array([0.2175, 0.0188, 0.0045])
    components = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    # They are principal components: orthonormal.
    np.testing.assert_allclose(components.T @ components, np.eye(3), atol=1e-3)
    steps = np.array([0.13, -0.21, 0.08])
    expected = 255 * components @ (steps * deviations)
    x = torch.full((3, 2, 2), 128.0)
    shift = color.lighting(x, steps.tolist()) - x
    for channel in range(3):
        np.testing.assert_allclose(shift[channel].numpy(), expected[channel], atol=0.01)


@pytest.fixture
def recorded(monkeypatch) -> list[list[tuple[str, object]]]:
    """What every call of `photometric` did: [("contrast", 0.7), ..., ("lighting", steps)]."""
    calls: list[list[tuple[str, object]]] = [[]]

    def watch(name):
        original = getattr(color, name)

        def watched(x, amount):
            calls[-1].append((name, amount))
            if name == "lighting":
                calls.append([])
            return original(x, amount)

        monkeypatch.setattr(color, name, watched)

    for name in (*KINDS, "lighting"):
        watch(name)
    return calls


def test_the_draws_are_howards(recorded):
    tiny = photo(size=2)
    for i in range(1200):
        photometric(tiny, Draws(5, i))
    done = recorded[:-1]
    assert len(done) == 1200
    assert all(call[-1][0] == "lighting" for call in done)
    orders = Counter(tuple(name for name, _ in call[:-1]) for call in done)
    assert set(orders) == set(itertools.permutations(KINDS))
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3
    for kind in KINDS:
        factors = [amount for call in done for name, amount in call if name == kind]
        assert stats.kstest(factors, stats.uniform(0.5, 1).cdf).pvalue > 1e-3
    for component in range(3):
        steps = [call[-1][1][component] for call in done]
        assert stats.kstest(steps, stats.norm(0, 0.1).cdf).pvalue > 1e-3
    first, second = (np.array([call[k][1] for call in done]) for k in (0, 1))
    assert abs(stats.pearsonr(first, second).statistic) < 0.1


def test_the_whole_is_torchvisions_chain_within_one_grey_level(recorded):
    """The same operations by v2 on real numbers, with the same draws and the lighting added."""
    for i in range(30):
        pixels = photo(i)
        result = photometric(pixels, Draws(1, i))
        assert result.dtype == torch.uint8
        assert result.shape == pixels.shape
        x = pixels.double() / 255
        for name, amount in recorded[i][:-1]:
            x = KINDS[name](x, amount)
        matrix = torch.tensor(color._COMPONENTS) * torch.tensor(color._DEVIATIONS)
        shift = matrix @ torch.tensor(recorded[i][-1][1])
        expected = (255 * x + shift.view(3, 1, 1)).clamp(0, 255)
        assert difference(result, expected) <= 1


def test_it_is_a_function_of_pixels_and_draws():
    pixels = photo()
    before, state = pixels.clone(), torch.get_rng_state()
    first = photometric(pixels, Draws(3))
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(photometric(pixels.contiguous(), Draws(3)), first)  # any layout
    assert not torch.equal(photometric(pixels, Draws(4)), first)


def test_threads_change_nothing():
    pixels = photo(size=300)  # large enough for torch to share the work among threads

    def make(i: int) -> Tensor:
        return photometric(pixels, Draws(9, i))

    alone = [make(i) for i in range(12)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(make, range(12)))
    assert all(map(torch.equal, alone, together))
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, alone, map(make, range(12))))
    finally:
        torch.set_num_threads(threads)
