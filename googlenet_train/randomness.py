"""Random numbers as a pure function of counters (seed, epoch, index, step), never of hidden state.

Everything rests on splitmix64's finaliser (Steele, Lea & Flood, 2014): a bijection of 64-bit
integers whose output bits each depend on every input bit. Plain integer arithmetic, so the same
counters give the same numbers on every platform and with every version of NumPy and PyTorch.
"""

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """splitmix64's finaliser: one 64-bit integer to another, one to one."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key(*counters: int) -> int:
    """Fold any number of counters, in order, into one 64-bit key."""
    state = _GOLDEN
    for counter in counters:
        state = mix(state + _GOLDEN + mix(counter + _GOLDEN))
    return state


def hashes(base: int, count: int) -> npt.NDArray[np.uint64]:
    """`mix(base + i * golden)` for i in 0..count-1, as one vector of shape (count,)."""
    with np.errstate(over="ignore"):
        value = np.uint64(base) + np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = value ^ (value >> np.uint64(31))
        return mixed


class Draws:
    """A stream of random numbers that belongs to one thing: an image in an epoch, say.

    The n-th draw is a hash of (counters, n); two streams with other counters are independent.
    Passed explicitly to whoever needs it, so threads cannot disturb each other.
    """

    def __init__(self, *counters: int) -> None:
        self._state = key(*counters)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A real number in [low, high), 53 random bits."""
        self._state = (self._state + _GOLDEN) & _MASK
        return low + (high - low) * ((mix(self._state) >> 11) * 2.0**-53)

    def integer(self, count: int) -> int:
        """An integer in 0..count-1 (bias below count / 2**53)."""
        return int(self.uniform() * count)
