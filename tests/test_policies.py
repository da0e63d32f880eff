"""RandAugment and TrivialAugment, held against torchvision's v2 at the same magnitudes."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from googlenet_train.data import policies
from googlenet_train.data.policies import OPERATIONS, randaugment, trivialaugment_wide
from googlenet_train.randomness import Draws

REFERENCES = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}
SIZE = 61
COLOURS = {"Brightness", "Color", "Contrast", "Sharpness"}


def photo(seed: int = 0, size: int = SIZE) -> Tensor:
    """Smooth colours with noise: uint8, (3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=generator) * 200 + 30
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0]
    return (smooth + torch.randn(smooth.shape, generator=generator) * 8).clamp(0, 255).byte()


def run(policy: str, pixels: Tensor, draws: Draws, magnitude: int = 9) -> Tensor:
    if policy == "randaugment":
        return randaugment(pixels, draws, magnitude)
    return trivialaugment_wide(pixels, draws)


@pytest.fixture
def applied(monkeypatch) -> list[tuple[str, float]]:
    """Every (operation, strength) that was applied."""
    calls = []
    original = policies.apply

    def watched(pixels, operation, strength):
        calls.append((operation, strength))
        return original(pixels, operation, strength)

    monkeypatch.setattr(policies, "apply", watched)
    return calls


def reference(policy: str, pixels: Tensor, operation: str, magnitude: float) -> Tensor:
    return REFERENCES[policy]._apply_image_or_video_transform(
        pixels, operation, magnitude, interpolation=v2.InterpolationMode.NEAREST, fill={}
    )


def magnitudes(policy: str, operation: str) -> tuple[list[float], bool]:
    make, signed = REFERENCES[policy]._AUGMENTATION_SPACE[operation]
    values = make(31, SIZE, SIZE)
    return ([0.0] * 31 if values is None else [float(v) for v in values]), signed


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("policy", REFERENCES)
def test_an_operation_is_torchvisions(policy, operation):
    values, signed = magnitudes(policy, operation)
    pixels = photo()
    for magnitude in values[::3] + ([-v for v in values[::3]] if signed else []):
        strength = 255 * magnitude if operation == "Solarize" else magnitude
        ours = policies.apply(pixels, operation, strength)
        assert ours.dtype == torch.uint8
        if operation in COLOURS:  # on real numbers: its uint8 path cuts fractions off, twice
            theirs = 255 * reference(policy, pixels / 255, operation, magnitude)
            assert float((ours - theirs).abs().max()) <= 1
            if abs(magnitude) <= 0.5:
                theirs = reference(policy, pixels, operation, magnitude)
                assert int((ours.int() - theirs.int()).abs().max()) <= 1
        else:
            assert torch.equal(ours, reference(policy, pixels, operation, magnitude))


@pytest.mark.parametrize("policy", REFERENCES)
def test_the_operations_are_torchvisions(policy):
    assert set(OPERATIONS) == set(REFERENCES[policy]._AUGMENTATION_SPACE)


@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
def test_randaugment_draws_two_operations_of_one_magnitude(applied, magnitude):
    pixels = photo()
    for i in range(700):
        randaugment(pixels, Draws(2, magnitude, i), magnitude)
    assert len(applied) == 2 * 700
    found = Counter(operation for operation, _ in applied)
    assert stats.chisquare([found[operation] for operation in OPERATIONS]).pvalue > 1e-3
    signs = Counter()
    for operation, strength in applied:
        values, signed = magnitudes("randaugment", operation)
        expected = values[magnitude] * (255 if operation == "Solarize" else 1)
        if signed:
            signs[strength >= 0] += 1
            strength = abs(strength)
        assert strength == pytest.approx(expected, abs=1e-4)
    if magnitude:
        assert stats.binomtest(signs[True], signs.total()).pvalue > 1e-3


def test_trivialaugment_draws_one_operation_of_any_magnitude(applied):
    pixels = photo()
    for i in range(1500):
        trivialaugment_wide(pixels, Draws(4, i))
    assert len(applied) == 1500
    found = Counter(operation for operation, _ in applied)
    assert stats.chisquare([found[operation] for operation in OPERATIONS]).pvalue > 1e-3
    for operation, strength in applied:
        values, signed = magnitudes("trivialaugment", operation)
        value = abs(strength) if signed else strength
        scale = 255 if operation == "Solarize" else 1
        assert min(abs(value - v * scale) for v in values) < 1e-4
    turns = [round(abs(s) / 4.5) for operation, s in applied if operation == "Rotate"]
    assert stats.kstest([t / 30 for t in turns], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("policy", REFERENCES)
def test_it_is_a_function_of_pixels_and_draws(policy):
    pixels = photo().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    before, state = pixels.clone(), torch.get_rng_state()
    results = [run(policy, pixels, Draws(i)) for i in range(40)]
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)  # what else the process draws does not matter
    for i, result in enumerate(results):
        assert torch.equal(run(policy, pixels.contiguous(), Draws(i)), result)
    assert len({result.numpy().tobytes() for result in results}) > 30


@pytest.mark.parametrize("policy", REFERENCES)
def test_threads_change_nothing(policy):
    pixels = photo(size=200)

    def make(i: int) -> Tensor:
        return run(policy, pixels, Draws(6, i), magnitude=15)

    alone = [make(i) for i in range(60)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(make, range(60)))
    assert all(map(torch.equal, alone, together))
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, alone, map(make, range(60))))
    finally:
        torch.set_num_threads(threads)
