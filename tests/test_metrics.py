"""The counters, held against the same measures in NumPy."""

import math

import numpy as np
import pytest
import torch

from googlenet_train import metrics

CPU = torch.device("cpu")
IMAGES = 103  # prime: no batch size divides it


def made_up(num_classes: int, absent: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities that favour the target, and targets; class `absent` has no image."""
    generator = torch.Generator().manual_seed(num_classes)
    classes = torch.tensor([c for c in range(num_classes) if c != absent])
    targets = classes[torch.randint(len(classes), (IMAGES,), generator=generator)]
    logits = torch.randn(IMAGES, num_classes, generator=generator)
    logits[torch.arange(IMAGES), targets] += torch.linspace(0, 2, num_classes)[targets]
    return logits.softmax(1), targets


def counted(probabilities: torch.Tensor, targets: torch.Tensor, batch_size: int) -> torch.Tensor:
    counts = metrics.new_counts(probabilities.shape[1], CPU)
    batches = zip(probabilities.split(batch_size), targets.split(batch_size), strict=True)
    for some, labels in batches:
        metrics.count(counts, some, labels)
    return counts


def by_numpy(probabilities: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    p, t = probabilities.numpy().astype(np.float64), targets.numpy()
    order = np.argsort(-p, axis=1)
    right, right5 = order[:, 0] == t, (order[:, :5] == t[:, None]).any(1)
    return {
        "top1": 100 * right.mean(),
        "top5": 100 * right5.mean(),
        "top1_macro": 100 * np.mean([right[t == c].mean() for c in np.unique(t)]),
        "loss": -np.log(p[np.arange(len(t)), t]).mean(),
        "seen": len(t),
    }


@pytest.mark.parametrize("batch_size", [1, 16, 50, 103, 200])
@pytest.mark.parametrize("num_classes", [2, 3, 5, 12])
def test_equals_numpy_for_any_batch_size(num_classes, batch_size):
    probabilities, targets = made_up(num_classes)
    result = metrics.summary(counted(probabilities, targets, batch_size))
    expected = by_numpy(probabilities, targets)
    assert list(result) == ["top1", "top5", "top1_macro", "loss", "seen"]
    for name in ("top1", "top5", "top1_macro"):  # whole numbers divided once: the last bit or so
        assert result[name] == pytest.approx(expected[name], rel=1e-14)
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert result["seen"] == IMAGES


def test_the_measures_differ():
    # Otherwise the comparison above could not tell one from another.
    result = by_numpy(*made_up(12))
    assert len({round(result[name], 3) for name in ("top1", "top5", "top1_macro")}) == 3


def test_fewer_than_five_classes():
    probabilities, targets = made_up(3)
    result = metrics.summary(counted(probabilities, targets, 10))
    assert result["top5"] == 100
    assert result["top1"] < 100


def test_one_class():
    result = metrics.summary(counted(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), 3))
    assert result == {"top1": 100, "top5": 100, "top1_macro": 100, "loss": 0, "seen": 4}


def test_top1_macro_leaves_out_classes_without_images():
    probabilities, targets = made_up(6, absent=2)
    result = metrics.summary(counted(probabilities, targets, 16))
    assert result["top1_macro"] == pytest.approx(
        by_numpy(probabilities, targets)["top1_macro"], rel=1e-14
    )


def test_top1_macro_weighs_classes_alike():
    # 9 images of class 0, all right; 1 of class 1, wrong.
    probabilities = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
    targets = torch.tensor([0] * 9 + [1])
    result = metrics.summary(counted(probabilities, targets, 4))
    assert (result["top1"], result["top1_macro"]) == (90, 50)


def test_counters_of_ranks_add_up():
    probabilities, targets = made_up(12)
    ranks = [counted(probabilities[rank::3], targets[rank::3], 16) for rank in range(3)]
    whole = metrics.summary(counted(probabilities, targets, 16))
    assert metrics.summary(sum(ranks)) == pytest.approx(whole, rel=1e-12)


def test_the_counters_are_left_as_they_are():
    counts = counted(*made_up(4), 16)
    before = counts.clone()
    assert metrics.summary(counts) == metrics.summary(counts)
    assert torch.equal(counts, before)


def test_a_probability_of_zero_is_no_infinity():
    result = metrics.summary(counted(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), 1))
    assert math.isfinite(result["loss"])
    assert result["loss"] > 87
