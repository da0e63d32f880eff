"""How large the training images are at which step: a pure integer function, as the order is.

Small images first are cheap steps while the network learns what is coarse (Tan & Le, 2021, section
4). Evaluation may show larger ones than training ends with: random crops magnify what they show
(Touvron et al., 2019).
"""

from collections.abc import Sequence
from typing import NamedTuple

STEP = 32  # pixels: what the network's five halvings leave one pixel of


class Growth(NamedTuple):
    """From side `first` at step 0, linearly in steps of STEP, to `last` at the share `until`."""

    first: int
    last: int
    until: float  # of all steps, in (0, 1]


def image_size_at(step: int, total_steps: int, growth: Growth) -> int:
    """The side in pixels of the training images of `step` (the first is 0). The last is `last`."""
    whole = _growing_steps(total_steps, growth)
    if step >= whole:
        return growth.last
    return growth.first + STEP * ((growth.last - growth.first) // STEP * step // whole)


def stretches(total_steps: int, growth: Growth) -> Sequence[tuple[int, int]]:
    """(first step, side) of each stretch of steps with images of one size, in order."""
    whole, grown = _growing_steps(total_steps, growth), (growth.last - growth.first) // STEP
    # The first step s with grown * s // whole == n is n * whole / grown, rounded up.
    starts = [(-(-n * whole // grown), growth.first + STEP * n) for n in range(grown)]
    starts.append((whole, growth.last))
    # Fewer steps than sizes: some sizes have none.
    return [
        (start, side)
        for (start, side), (after, _) in zip(starts, [*starts[1:], (total_steps, 0)], strict=True)
        if start < after
    ]


def pixels(first: int, after: int, total_steps: int, growth: Growth) -> int:
    """What the images of the steps first..after-1 have together, one a step: a measure of work."""
    starts = stretches(total_steps, growth)
    ends = [start for start, _ in starts[1:]] + [total_steps]
    return sum(
        side**2 * max(0, min(after, end) - max(first, start))
        for (start, side), end in zip(starts, ends, strict=True)
    )


def _growing_steps(total_steps: int, growth: Growth) -> int:
    """The first step of the largest size; of a run that grows to its end it is the last step."""
    if growth.first == growth.last:
        return 0
    return min(max(1, round(growth.until * total_steps)), total_steps - 1)
