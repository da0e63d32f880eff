"""EXIF orientation against Pillow's `exif_transpose`, for all eight values."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from googlenet_train.data.crops import Box
from googlenet_train.data.decode import decode
from googlenet_train.data.orientation import (
    orientation,
    seen_size,
    stored_box,
    turned,
)
from googlenet_train.data.views import Augmentation, evaluation_views, training_image
from googlenet_train.randomness import Draws

HEIGHT, WIDTH = 40, 60  # as stored


def photo(value: int | None, form: str = "PNG") -> bytes:
    """A photo without symmetry that carries the tag `value`."""
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if value is not None:
        exif[0x0112] = value
    out = io.BytesIO()
    image.save(out, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    return out.getvalue()


def upright(data: bytes) -> torch.Tensor:
    """The pixels as Pillow turns them."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("value", range(1, 9))
def test_whole_photos_and_boxes_are_turned_as_by_pillow(value: int, form: str) -> None:
    data = photo(value, form)
    assert orientation(data) == value
    expected = upright(data)
    height, width = seen_size(HEIGHT, WIDTH, value)
    assert (height, width) == tuple(expected.shape[1:])
    assert torch.equal(turned(decode(data), value), expected)
    box = Box(3, 7, 20, 25)
    part = turned(decode(data, stored_box(box, height, width, value)), value)
    assert torch.equal(part, expected[:, 3:23, 7:32])


@pytest.mark.parametrize("value", [0, 9, 77])
def test_values_without_a_meaning_are_upright(value: int) -> None:
    assert orientation(photo(value)) == 1


def test_none_and_damaged_tags_are_upright() -> None:
    assert orientation(photo(None)) == 1
    assert orientation(photo(None, "JPEG")) == 1
    data = bytearray(photo(6, "JPEG"))
    start = data.index(b"Exif")
    data[start + 6 : start + 30] = b"\xff" * 24
    assert orientation(bytes(data)) == 1
    assert orientation(b"") == 1
    assert orientation(b"\xff\xd8Exif and nothing more") == 1


def test_a_photo_lying_down_gives_the_views_of_one_standing() -> None:
    lying = photo(6)
    standing = io.BytesIO()
    Image.fromarray(upright(lying).permute(1, 2, 0).numpy()).save(standing, "PNG")
    plain = Augmentation("random_resized", (0.08, 1.0), (0.75, 4 / 3), "bilinear", 0.5)
    for n in range(10):
        turned_view, box = training_image(lying, Draws(n), 32, plain, exif_orientation=True)
        view, same = training_image(standing.getvalue(), Draws(n), 32, plain)
        assert box == same
        assert torch.equal(turned_view, view)
    evaluated = evaluation_views(lying, 32, 10, exif_orientation=True)
    assert torch.equal(evaluated, evaluation_views(standing.getvalue(), 32, 10))
    assert not torch.equal(evaluated, evaluation_views(lying, 32, 10))
