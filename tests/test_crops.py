import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from googlenet_train.data.crops import (
    Box,
    center,
    random_resized_crop,
    resized_size,
    vgg_scale_jitter,
    views,
)
from googlenet_train.randomness import Draws

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
COUNT = 50_000
# A landscape, a portrait, and one so wide that the central fallback is frequent.
SHAPES = [(375, 500), (500, 333), (100, 320)]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def shape_and_reference(request):
    """torchvision's own boxes, (COUNT, 4) as top, left, height, width."""
    torch.manual_seed(0)
    image = torch.empty(3, *request.param)
    get = RandomResizedCrop.get_params
    return request.param, np.array([get(image, SCALE, RATIO) for _ in range(COUNT)])


def statistics(boxes, height, width):
    top, left, h, w = np.asarray(boxes, dtype=float).T
    return {
        "area": h * w / (height * width),
        "aspect": w / h,
        "top": top / np.maximum(height - h, 1),
        "left": left / np.maximum(width - w, 1),
    }


def p_values(boxes, reference, height, width):
    ours, theirs = statistics(boxes, height, width), statistics(reference, height, width)
    return {name: ks_2samp(ours[name], theirs[name]).pvalue for name in ours}


def test_same_distribution_as_torchvision(shape_and_reference):
    (height, width), reference = shape_and_reference
    draws = Draws(1, height, width)
    boxes = [random_resized_crop(height, width, draws) for _ in range(COUNT)]
    assert min(p_values(boxes, reference, height, width).values()) > 1e-3


def test_the_statistics_notice_an_aspect_drawn_without_the_logarithm(
    shape_and_reference, monkeypatch
):
    (height, width), reference = shape_and_reference
    monkeypatch.setattr(math, "log", lambda value: value)
    monkeypatch.setattr(math, "exp", lambda value: value)
    draws = Draws(1, height, width)
    boxes = [random_resized_crop(height, width, draws) for _ in range(COUNT)]
    monkeypatch.undo()
    assert p_values(boxes, reference, height, width)["aspect"] < 1e-3


@pytest.mark.parametrize(
    ("height", "width"), [(10, 1000), (1000, 10), (1, 500), (7, 100), (100, 7)]
)
def test_fallback_is_torchvisions(height, width):
    """Nine tenths of the area fit into none of these: what remains is no matter of chance."""
    scale = (0.9, 1.0)
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), scale, RATIO)
    assert random_resized_crop(height, width, Draws(0), scale) == expected


def test_fallback_is_the_whole_image_when_only_the_scale_is_at_fault():
    assert random_resized_crop(40, 50, Draws(0), scale=(3.0, 4.0)) == Box(0, 0, 40, 50)


@pytest.mark.parametrize("crop", [random_resized_crop, None], ids=["inception", "vgg"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (3, 2), (96, 128), (500, 375)])
def test_boxes_stay_inside(crop, height, width):
    for seed in range(300):
        draws = Draws(seed)
        box = crop(height, width, draws) if crop else vgg_scale_jitter(height, width, 224, draws)
        assert box.height >= 1
        assert box.width >= 1
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width


def test_other_scales_and_ratios():
    for seed in range(300):
        box = random_resized_crop(400, 400, Draws(seed), scale=(0.3, 0.5), ratio=(1.0, 2.0))
        assert 0.29 < box.height * box.width / 400**2 < 0.51
        assert 0.98 < box.width / box.height < 2.02


@pytest.mark.parametrize("size", [64, 224])
def test_vgg_short_sides_are_uniform(size):
    """The side of the box is size * short / S: S is read back from it, in a huge image."""
    short, draws = 100_000, Draws(3)
    boxes = [vgg_scale_jitter(short, 2 * short, size, draws) for _ in range(20_000)]
    assert all(box.height == box.width for box in boxes)
    short_sides = Counter(round(size * short / box.height) for box in boxes)
    low, high = round(size * 256 / 224), round(size * 512 / 224)
    assert set(short_sides) == set(range(low, high + 1))
    expected = 20_000 / len(short_sides)
    chi_squared = sum((n - expected) ** 2 / expected for n in short_sides.values())
    degrees = len(short_sides) - 1
    assert abs(chi_squared - degrees) < 4 * math.sqrt(2 * degrees)
    for place in (
        [box.top / (short - box.height) for box in boxes],
        [box.left / (2 * short - box.width) for box in boxes],
    ):
        assert kstest(place, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 375), (256, 256), (333, 501), (96, 97), (1, 3)]
)
@pytest.mark.parametrize("short_side", [64, 73, 256])
def test_resized_size_is_torchvisions(height, width, short_side):
    resized = F.resize(torch.zeros(1, height, width), [short_side])
    assert resized_size(height, width, short_side) == resized.shape[-2:]


@pytest.mark.parametrize("size", [64, 65, 96])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (97, 130), (131, 98), (99, 121)])
def test_center_is_torchvisions(height, width, size):
    numbered = torch.arange(height * width).view(1, height, width)
    box = center(height, width, size)
    ours = numbered[:, box.top : box.top + box.height, box.left : box.left + box.width]
    assert torch.equal(ours, F.center_crop(numbered, [size, size]))


def test_one_view():
    assert views(375, 500, 224, 1) == [(256, Box(16, 58, 224, 224), False)]
    assert views(128, 96, 96, 1)[0].short_side == 110


# Even margins: with odd ones the centre of torchvision's mirrored image is one column beside the
# mirrored centre.
@pytest.mark.parametrize(("height", "width"), [(75, 100), (101, 75), (75, 75)])
def test_ten_views_are_torchvisions_ten_crop(height, width):
    size, short_side = 28, 32
    resized = resized_size(height, width, short_side)
    numbered = torch.arange(math.prod(resized)).view(1, *resized)
    crops = set()
    for view in views(height, width, size, 10):
        assert view.short_side == short_side
        top, left, h, w = view.box
        crop = numbered[:, top : top + h, left : left + w]
        crops.add(tuple((crop.flip(2) if view.mirrored else crop).flatten().tolist()))
    expected = F.ten_crop(numbered, [size, size])
    assert crops == {tuple(crop.flatten().tolist()) for crop in expected}
    assert len(crops) == 10


@pytest.mark.parametrize("portrait", [False, True])
def test_the_papers_144_views(portrait):
    """600 x 400 against numbers worked out by hand from section 7 of the paper."""
    height, width = (600, 400) if portrait else (400, 600)
    expected = set()
    for short, long, along in [
        (256, 384, (0, 64, 128)),
        (288, 432, (0, 72, 144)),
        (320, 480, (0, 80, 160)),
        (352, 528, (0, 88, 176)),
    ]:
        assert resized_size(height, width, short) == ((long, short) if portrait else (short, long))
        far, middle = short - 224, (short - 224) // 2
        for offset in along:
            inside = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
            squares = [(top, left, 224) for top, left in inside] + [(0, 0, short)]
            for top, left, side in squares:
                shifted = (top + offset, left) if portrait else (top, left + offset)
                for mirrored in (False, True):
                    expected.add((short, Box(*shifted, side, side), mirrored))
    ours = views(height, width, 224, 144)
    assert len(ours) == len(expected) == 144
    assert set(ours) == expected


@pytest.mark.parametrize("crops", [1, 10, 144])
@pytest.mark.parametrize("size", [32, 64, 224, 299])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (97, 96), (96, 211), (50, 50)])
def test_views_stay_inside_and_come_with_mirrors(crops, size, height, width):
    chosen = views(height, width, size, crops)
    assert len(chosen) == crops
    for short_side, box, _ in chosen:
        resized_height, resized_width = resized_size(height, width, short_side)
        assert box.height == box.width >= size
        assert 0 <= box.top <= resized_height - box.height
        assert 0 <= box.left <= resized_width - box.width
    if crops > 1:
        plain = Counter(view[:2] for view in chosen if not view.mirrored)
        assert plain == Counter(view[:2] for view in chosen if view.mirrored)


def test_views_refuses_other_numbers():
    with pytest.raises(ValueError, match="1, 10 or 144"):
        views(256, 256, 224, 12)
