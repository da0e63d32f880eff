"""The counter-based generator: written-down values, uniform, and independent between streams."""

import numpy as np
import pytest
from scipy import stats

from googlenet_train.randomness import Draws, hashes, key, mix

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


# --- values --------------------------------------------------------------------------------------


def test_splitmix64_as_published():
    # The first outputs of the reference implementation for the seed 1234567.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mix(1234567 + n * GOLDEN) for n in range(1, 6)] == published
    assert hashes((1234567 + GOLDEN) & MASK, 5).tolist() == published


def test_golden_values():
    # Written down once: a resumed run has to draw the same crops with another version.
    assert key() == 11400714819323198485
    assert key(0) == 12935080325729570654
    assert key(1, 2, 3) == 11729535726472988794
    draws = Draws(0, 1, 2)
    assert [draws.uniform() for _ in range(3)] == [
        0.32176741560830424,
        0.29393655951925735,
        0.7489047859120926,
    ]
    assert [draws.integer(100) for _ in range(5)] == [93, 77, 27, 58, 1]


def test_hashes_are_mix_of_a_counter():
    base = key(5)
    vector = hashes(base, 1000)
    assert vector.dtype == np.uint64
    assert vector.tolist() == [mix(base + i * GOLDEN) for i in range(1000)]
    assert hashes(base, 0).shape == (0,)


def test_mix_is_one_to_one():
    def undo_shift(value: int, shift: int) -> int:
        result = value
        for _ in range(64 // shift + 1):
            result = value ^ (result >> shift)
        return result

    def inverse(value: int) -> int:
        value = undo_shift(value, 31) * pow(0x94D049BB133111EB, -1, 1 << 64) & MASK
        value = undo_shift(value, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & MASK
        return undo_shift(value, 30)

    for value in [0, 1, MASK, *hashes(1, 1000).tolist()]:
        assert inverse(mix(value)) == value


# --- keys ----------------------------------------------------------------------------------------


def test_the_order_and_the_number_of_counters_matter():
    assert key(1, 2) != key(2, 1)
    assert len({key(), key(0), key(0, 0), key(0, 0, 0)}) == 4


def test_keys_of_small_counters_do_not_meet():
    keys = {key(a, b, c) for a in range(30) for b in range(30) for c in range(30)}
    assert len(keys) == 30**3


def test_each_bit_of_a_counter_reaches_every_bit_of_the_key():
    # Share of 1,000 counters for which output bit j flips with input bit i: 1/2, within 5 sigma.
    counters = hashes(3, 1000).tolist()
    for bit in range(64):
        flips = np.array([key(0, c) ^ key(0, c ^ (1 << bit)) for c in counters], dtype=np.uint64)
        share = ((flips[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(0)
        assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(1000)


# --- draws ---------------------------------------------------------------------------------------


def chi_square(values: np.ndarray, bins: int) -> float:
    """The p-value of `values` in 0..bins-1 being equally likely."""
    return float(stats.chisquare(np.bincount(values, minlength=bins)).pvalue)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uniform(seed):
    draws = Draws(seed, 0, 0)
    values = np.array([draws.uniform() for _ in range(50_000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert chi_square((values * 100).astype(int), 100) > 1e-3
    # The next draw, given this one.
    cells = (values[:-1] * 10).astype(int) * 10 + (values[1:] * 10).astype(int)
    assert chi_square(cells[::2], 100) > 1e-3


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_integer(count):
    draws = Draws(4, count)
    values = np.array([draws.integer(count) for _ in range(20_000)])
    assert set(values.tolist()) == set(range(count))
    assert count == 1 or chi_square(values, count) > 1e-3


def test_bounds():
    draws = Draws(5)
    values = [draws.uniform(-3, 2) for _ in range(20_000)]
    assert min(values) >= -3
    assert max(values) < 2
    assert stats.kstest(values, stats.uniform(-3, 5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("place", ["seed", "epoch", "index"])
def test_neighbouring_streams_are_independent(place, n):
    """The n-th draws of streams whose counters differ by one, as if of one sequence."""

    def nth(i: int) -> float:
        counters = {"seed": (i, 3, 5), "epoch": (3, i, 5), "index": (3, 5, i)}[place]
        draws = Draws(*counters)
        for _ in range(n):
            draws.uniform()
        return draws.uniform()

    values = np.array([nth(i) for i in range(10_000)])
    assert chi_square((values * 50).astype(int), 50) > 1e-3
    cells = (values[::2] * 10).astype(int) * 10 + (values[1::2] * 10).astype(int)
    assert chi_square(cells, 100) > 1e-3


def test_streams_do_not_overlap():
    # A stream shifted along another one would be the same crops for another image, one draw later.
    seen: set[float] = set()
    for index in range(500):
        draws = Draws(0, 0, index)
        seen |= {draws.uniform() for _ in range(20)}
    assert len(seen) == 500 * 20


def test_streams_do_not_disturb_each_other():
    alone = [Draws(1).uniform(), Draws(2).uniform()]
    first, second = Draws(1), Draws(2)
    assert [first.uniform(), second.uniform()] == alone
