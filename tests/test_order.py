"""The order of photos: a pure function of seed and step, and a partition of each global batch."""

import numpy as np
import pytest
from scipy import stats

from googlenet_train import randomness
from googlenet_train.data.order import (
    batch_indices,
    check_divides,
    permutation,
    possible_parts,
    steps_per_epoch,
)
from googlenet_train.errors import ExitCode, UserError


def test_golden_values():
    # Written down once: a run that is resumed with another version has to meet the same photos.
    assert permutation(0, 0, 10).tolist() == [1, 8, 5, 7, 0, 3, 2, 9, 6, 4]
    assert permutation(7, 3, 10).tolist() == [8, 2, 0, 7, 6, 4, 1, 3, 9, 5]
    assert permutation(0, 89, 1_281_167)[:5].tolist() == [494914, 654616, 291367, 405264, 1155438]


def test_permutation_is_the_order_of_the_hashes():
    base = randomness.key(5, 2, int.from_bytes(b"order", "big"))
    expected = sorted(range(500), key=lambda i: randomness.mix(base + i * 0x9E3779B97F4A7C15))
    assert permutation(5, 2, 500).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 4097])
def test_every_photo_occurs_once(count):
    order = permutation(1, 2, count)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(count))
    assert not order.flags.writeable


def test_seeds_and_epochs_give_other_orders():
    orders = [permutation(seed, epoch, 1000) for seed in range(4) for epoch in range(4)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Two independent orders agree in one place on average; ten is out of reach.
            assert np.count_nonzero(first == second) < 10


def test_every_photo_is_equally_likely_in_every_place():
    count, epochs = 8, 4000
    table = np.zeros((count, count))
    for epoch in range(epochs):
        table[np.arange(count), permutation(11, epoch, count)] += 1
    # Rows and columns of the table have fixed sums, so (count - 1)^2 degrees of freedom.
    expected = epochs / count
    chi2 = ((table - expected) ** 2 / expected).sum() * (count - 1) / count
    assert stats.chi2.sf(chi2, (count - 1) ** 2) > 1e-3


def test_all_orders_of_four_are_equally_likely():
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(4800):
        order = tuple(permutation(3, epoch, 4).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate"),
    [(12, 1, 1), (12, 2, 1), (12, 1, 3), (12, 2, 3), (12, 3, 2), (12, 4, 3), (12, 1, 12)],
)
def test_ranks_and_micro_batches_partition_the_global_batch(batch_size, world_size, accumulate):
    count, seed = 100, 9
    for step in (0, 3, 7, 8, 20):
        whole = batch_indices(seed, step, count, batch_size)
        blocks = {
            micro_batch * world_size + rank: batch_indices(
                seed, step, count, batch_size, rank, world_size, micro_batch, accumulate
            )
            for rank in range(world_size)
            for micro_batch in range(accumulate)
        }
        joined = np.concatenate([blocks[number] for number in range(len(blocks))])
        assert np.array_equal(joined, whole)


def test_an_epoch_leaves_out_the_remainder_and_the_next_begins_anew():
    count, batch_size = 100, 12
    assert steps_per_epoch(count, batch_size) == 8
    for epoch in (0, 1):
        steps = range(8 * epoch, 8 * epoch + 8)
        seen = np.concatenate([batch_indices(4, step, count, batch_size) for step in steps])
        assert np.array_equal(seen, permutation(4, epoch, count)[:96])


def test_batch_larger_than_the_data_set_is_refused():
    assert steps_per_epoch(200, 200) == 1
    with pytest.raises(UserError) as caught:
        steps_per_epoch(200, 256)
    assert str(caught.value) == (
        "optimizer.batch_size 256 is larger than the 200 training images; "
        "the largest that works is 200"
    )
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "mend"),
    [
        (100, 3, 2, "2; the nearest batch sizes that do are 96 and 102"),
        (4, 8, 1, "1; the smallest that does is 8"),
        (
            100,
            1,
            3,
            "3; the nearest batch sizes that do are 99 and 102; "
            "with 100, optimizer.accumulate could be 2 or 4",
        ),
        (6, 2, 4, "4; the smallest that does is 8; with 6, optimizer.accumulate could be 3"),
    ],
)
def test_uneven_batches_are_refused_with_the_nearest_fits(batch_size, world_size, accumulate, mend):
    with pytest.raises(UserError) as caught:
        check_divides(batch_size, world_size, accumulate)
    assert str(caught.value).endswith(f"x optimizer.accumulate {mend}")
    assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(UserError, match="does not divide"):
        batch_indices(0, 0, 1000, batch_size, 0, world_size, 0, accumulate)


def test_even_batches_pass():
    check_divides(256, 8, 4)
    check_divides(32, 1, 32)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "pairs", "parts"),
    [
        (32, 1, False, [1, 2, 4, 8, 16]),
        (32, 4, True, [1, 2, 4]),
        (12, 1, False, [1, 2, 3, 4, 6]),
        (12, 1, True, [1, 2, 3, 6]),
        (9, 1, False, [1, 3]),
        (7, 1, False, [1]),
        (4, 4, False, [1]),  # one image a rank: the batch asked for it
    ],
)
def test_the_parts_that_a_batch_can_be_cut_into(batch_size, world_size, pairs, parts):
    assert possible_parts(batch_size, world_size, pairs=pairs) == parts
    for accumulate in parts:
        check_divides(batch_size, world_size, accumulate)
