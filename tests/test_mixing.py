"""Mixup and CutMix: the shares, the pixels, the labels, and what a step makes of them."""

import numpy as np
import pytest
import torch
from conftest import draw_photos
from safetensors.torch import load
from scipy import stats
from steps import one_step
from torch import nn

from googlenet_train import numeric, optim
from googlenet_train.data import mixing
from googlenet_train.data.index import Index, open_source
from googlenet_train.data.loader import (
    Augmentation,
    Batch,
    ahead,
    training_batch,
    training_image,
)
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.loss import googlenet_loss
from googlenet_train.model.googlenet import GoogLeNetOutputs
from googlenet_train.randomness import Draws
from googlenet_train.run.session import WINDOW

SIZE = 32
PLAIN = Augmentation("random_resized", (0.08, 1.0), (3 / 4, 4 / 3), "bilinear", 0.5)
EVERYTHING = PLAIN._replace(
    photometric=True, policy="randaugment", erase=0.5, mixup=0.4, cutmix=1.0
)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return open_source(str(draw_photos(tmp_path_factory.mktemp("photos"), train=9) / "train"))


def batch(index: Index, augmentation: Augmentation, step: int = 4, **parts: int) -> Batch:
    """One step of 8 of the 27 images, or a part of it; step 4 is in the second epoch."""
    return training_batch(
        index, step, seed=3, batch_size=8, image_size=SIZE, augmentation=augmentation, **parts
    )


# --- the draws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.15, 0.5, 1.0, 4.0])
def test_mixup_shares_are_beta(alpha):
    mixes = [mixing.draw(0, i // 50, i % 50, 64, 64, alpha, 0) for i in range(4000)]
    assert all(mix.box is None for mix in mixes)
    shares = [mix.share for mix in mixes]
    assert 0 <= min(shares) <= max(shares) <= 1
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert stats.kstest(shares, stats.beta(2 * alpha, 2 * alpha).cdf).pvalue < 1e-3


def test_cutmix_boxes():
    """Inside the image, of its aspect unless cut off; the share is what is left of the image."""
    height, width, whole = 60, 90, 0
    left_over = []
    for i in range(3000):
        share, box = mixing.draw(1, i, 0, height, width, 0, 1.0)
        assert box is not None
        assert 0 <= box.top <= box.top + box.height <= height
        assert 0 <= box.left <= box.left + box.width <= width
        assert share == 1 - box.height * box.width / (height * width)
        bottom, right = box.top + box.height, box.left + box.width
        if box.top > 0 and box.left > 0 and bottom < height and right < width:
            whole += 1
            assert abs(box.width / width - box.height / height) < 2 / height
        left_over.append(share)
    assert whole > 300
    # By simulation: lambda uniform, a box of the rest's area, its centre uniform, cut to the image.
    generator = np.random.default_rng(0)
    side = np.sqrt(1 - generator.uniform(size=50_000))
    seen = [
        np.minimum(c + side / 2, 1) - np.maximum(c - side / 2, 0)
        for c in generator.uniform(size=(2, 50_000))
    ]
    assert stats.ks_2samp(left_over, 1 - seen[0] * seen[1]).statistic < 0.05


def test_with_both_each_is_as_likely():
    cut = sum(mixing.draw(0, i, 0, 32, 32, 1.0, 1.0).box is not None for i in range(2000))
    assert stats.binomtest(cut, 2000).pvalue > 1e-3


def test_a_mix_depends_on_seed_step_and_position():
    mixes = {
        mixing.draw(seed, step, position, 32, 32, 1.0, 0)
        for seed in range(4)
        for step in range(4)
        for position in range(4)
    }
    assert len(mixes) == 64
    assert mixing.draw(1, 2, 3, 32, 32, 1.0, 0) == mixing.draw(1, 2, 3, 32, 32, 1.0, 0)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_batch_is_mixed_from_the_unmixed_one(index, mixup, cutmix):
    for step in range(6):
        plain = batch(index, PLAIN, step)
        assert plain.second is None
        mixed = batch(index, PLAIN._replace(mixup=mixup, cutmix=cutmix), step)
        assert mixed.second is not None
        assert mixed.images.is_contiguous(memory_format=torch.channels_last)
        assert mixed.second[0].dtype == torch.int64
        for position in range(8):
            partner = position + 1 if position % 2 == 0 else position - 1
            share, box = mixing.draw(3, step, position, SIZE, SIZE, mixup, cutmix)
            own, other = plain.images[position].double(), plain.images[partner].double()
            if box is None:
                expected = share * own + (1 - share) * other
            else:
                inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
                inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
                expected = torch.where(inside, other, own)
            assert float((mixed.images[position] - expected).abs().max()) <= 0.501
            # The labels' shares are the pixels', and the larger share comes first.
            weight = torch.zeros(3)
            weight[plain.labels[position]] += share
            weight[plain.labels[partner]] += 1 - share
            smaller = mixed.second[1][position]
            given = torch.zeros(3)
            given[mixed.labels[position]] += 1 - smaller
            given[mixed.second[0][position]] += smaller
            torch.testing.assert_close(given, weight)
            assert 0 <= smaller <= 0.5


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4)])
def test_ranks_and_accumulation_give_the_same_mixed_global_batch(index, world_size, accumulate):
    whole = batch(index, EVERYTHING)
    parts = [
        batch(
            index,
            EVERYTHING,
            rank=rank,
            world_size=world_size,
            micro_batch=micro_batch,
            accumulate=accumulate,
        )
        for micro_batch in range(accumulate)
        for rank in range(world_size)
    ]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    for k in range(2):
        assert torch.equal(torch.cat([part.second[k] for part in parts]), whole.second[k])


def test_the_same_pixels_for_any_number_of_workers(index):
    state = torch.get_rng_state()
    alone = list(ahead(lambda step: batch(index, EVERYTHING, step), range(9), 0))
    together = list(ahead(lambda step: batch(index, EVERYTHING, step), range(9), 3))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.second[1], other.second[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "on",
    [
        {"photometric": True},
        {"policy": "randaugment"},
        {"policy": "trivialaugment"},
        {"erase": 1.0},
    ],
    ids=str,
)
def test_what_is_switched_on_leaves_box_and_flip_as_they_are(index, on):
    """They are drawn first, so that two configs can be compared image by image."""
    changed = 0
    for i in range(20):
        data = index.read(i)
        plain, box = training_image(data, Draws(0, 1, i), SIZE, PLAIN)
        pixels, same = training_image(data, Draws(0, 1, i), SIZE, PLAIN._replace(**on))
        assert box == same
        changed += not torch.equal(plain, pixels)
    assert changed >= 15


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "mend"),
    [(7, 1, 1, 8), (8, 1, 8, 16), (6, 2, 1, 8), (12, 2, 2, 16)],
)
def test_parts_must_hold_whole_pairs(batch_size, world_size, accumulate, mend):
    with pytest.raises(UserError) as caught:
        mixing.check_pairs(batch_size, world_size, accumulate)
    assert caught.value.exit_code == ExitCode.USAGE
    message = str(caught.value)
    assert message.startswith(f"optimizer.batch_size {batch_size} over {world_size} rank")
    assert "\n" not in message
    assert f"optimizer.batch_size {mend} would do" in message
    mixing.check_pairs(mend, world_size, accumulate)


def test_a_batch_of_odd_parts_is_refused(index):
    with pytest.raises(UserError, match="mix pairs of images"):
        batch(index, EVERYTHING, accumulate=8)
    batch(index, PLAIN, accumulate=8)


# --- the loss and the step -----------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_soft_targets_on_all_three_heads(smoothing):
    generator = torch.Generator().manual_seed(0)
    outputs = GoogLeNetOutputs(*(torch.randn(6, 5, generator=generator) for _ in range(3)))
    targets, others = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 0, 4, 2, 3])
    shares = torch.tensor([0.0, 0.5, 0.3, 0.2, 0.1, 0.45])
    losses = googlenet_loss(
        outputs, targets, second=(others, shares), aux_weight=0.3, label_smoothing=smoothing
    )
    eye = torch.eye(5, dtype=torch.float64)
    q = (1 - shares.double())[:, None] * eye[targets] + shares.double()[:, None] * eye[others]
    q = (1 - smoothing) * q + smoothing / 5
    expected = [float(-(q * z.double().log_softmax(1)).sum(1).mean()) for z in outputs]
    for loss, value in zip((losses.main, losses.aux1, losses.aux2), expected, strict=True):
        assert loss.item() == pytest.approx(value, rel=1e-6)
    assert losses.total.item() == pytest.approx(
        expected[0] + 0.3 * (expected[1] + expected[2]), rel=1e-6
    )
    alone = googlenet_loss(outputs.main, targets, second=(others, shares))
    assert alone.total.item() == pytest.approx(
        googlenet_loss(outputs, targets, second=(others, shares)).main.item(), rel=1e-6
    )


def test_a_step_counts_against_the_larger_share_and_learns_from_both():
    """A network that is one weight a class: what it is told, and how its gradient falls."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([2.0, 1.0, 0.0]))  # always says class 0
    mixed = Batch(
        torch.full((4, 3, 8, 8), 128, dtype=torch.uint8),
        torch.tensor([0, 1, 0, 2]),
        (torch.tensor([1, 0, 0, 0]), torch.tensor([0.4, 0.2, 0.5, 0.0])),
    )
    window = torch.zeros(len(WINDOW))
    before = model[2].bias.detach().clone()
    one_step(
        model,
        optim.build_sgd(model, lr=1.0, momentum=0.0, weight_decay=0.0, fused=False),
        [mixed],
        window,
        numeric.new_guard(model, window, 0),
    )
    assert window[:2].tolist() == [4, 2]
    targets = torch.tensor([[0.6, 0.4, 0], [0.2, 0.8, 0], [1, 0, 0], [0, 0, 1]])
    log_p = before.log_softmax(0)
    assert float(window[3]) == pytest.approx(float(-(targets * log_p).sum()), rel=1e-5)
    gradient = (log_p.exp() - targets).mean(0)
    torch.testing.assert_close(model[2].bias.detach(), before - gradient, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_everything_at_once_trains_and_resumes_exactly(cli, tiny_folder):
    """From the config file to the weights, in one go and in two."""
    settings = (
        *("augment.photometric=true", "augment.policy=trivialaugment", "augment.erase=0.5"),
        *("augment.mixup=0.2", "augment.cutmix=1", "optimizer.accumulate=2"),
    )
    whole = cli("--config", "tiny.yaml", *settings, cwd=tiny_folder)
    assert whole.rc == 0, whole.stderr
    checkpoints = tiny_folder / "runs" / "tiny" / "checkpoints"
    last = max(checkpoints.glob("step-*.safetensors"))
    names = {path.name: path.read_bytes() for path in checkpoints.glob("step-*.safetensors")}
    last.unlink()
    again = cli(
        *("--config", "tiny.yaml", "--resume", "data.workers=2"),
        *("--allow-config-change", "data.workers", *settings),
        cwd=tiny_folder,
    )
    assert again.rc == 0, again.stderr
    one, two = load(names[last.name]), load(last.read_bytes())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
