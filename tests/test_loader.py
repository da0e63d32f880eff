"""From files to batches: the same pixels for any number of threads, and the right ones."""

import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as F

from googlenet_train.data import order, views
from googlenet_train.data.decode import INTERPOLATIONS, decode, resize
from googlenet_train.data.index import Index, open_source
from googlenet_train.data.loader import (
    Batch,
    ahead,
    evaluation_batch,
    to_device,
    training_batch,
)
from googlenet_train.data.views import Augmentation, evaluation_views, training_image
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.randomness import Draws

SIZE = 32
PLAIN = Augmentation("random_resized", (0.08, 1.0), (3 / 4, 4 / 3), "bilinear", 0.5)
EVERYTHING_RANDOM = PLAIN._replace(interpolation="random")


def draw_photo(height: int, width: int, seed: int) -> Image.Image:
    """Smooth colours with noise on top: every crop of it is different, also mirrored."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + generator.normal(0, 10, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """26 photos of many sizes in three classes, JPEG and PNG."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(26):
        path = root / "abc"[i % 3] / f"{i}.{'png' if i % 4 == 0 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        draw_photo(40 + 7 * (i % 5), 36 + 9 * (i % 4), seed=i).save(path)
    return root


@pytest.fixture(scope="module")
def index(folder) -> Index:
    return open_source(str(folder))


def batches(index: Index, workers: int, steps: int = 7, accumulate: int = 1) -> list[Batch]:
    """As in training: 7 steps of 8 photos are two epochs and a bit."""

    def make(number: int) -> Batch:
        step, part = divmod(number, accumulate)
        return training_batch(
            index,
            step,
            seed=3,
            batch_size=8,
            image_size=SIZE,
            augmentation=EVERYTHING_RANDOM,
            micro_batch=part,
            accumulate=accumulate,
        )

    return list(ahead(make, range(steps * accumulate), workers))


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_pixels_for_any_number_of_workers(index, workers):
    for batch, alone in zip(batches(index, workers), batches(index, 0), strict=True):
        assert torch.equal(batch.images, alone.images)
        assert torch.equal(batch.labels, alone.labels)


def test_a_batch_is_made_of_its_images(index):
    chosen_before = []
    for step, batch in enumerate(batches(index, 0)):
        chosen = order.batch_indices(3, step, len(index), 8).tolist()
        assert batch.images.shape == (8, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.tolist() == [index.labels[i] for i in chosen]
        assert batch.labels.dtype == torch.int64
        for image, i in zip(batch.images, chosen, strict=True):
            draws = Draws(3, step // 3, i)
            expected, _ = training_image(index.read(i), draws, SIZE, EVERYTHING_RANDOM)
            assert torch.equal(image, expected)
        chosen_before.append(chosen)
    assert len({tuple(chosen) for chosen in chosen_before}) == 7


def test_an_image_looks_different_in_each_epoch_and_for_each_seed(index):
    views = [
        training_image(index.read(5), Draws(seed, epoch, 5), SIZE, PLAIN)[0]
        for seed in range(3)
        for epoch in range(3)
    ]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(views, 2))


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_divides_the_same_global_batch(index, accumulate):
    parts = batches(index, 0, accumulate=accumulate)
    for step, whole in enumerate(batches(index, 0)):
        mine = parts[step * accumulate : (step + 1) * accumulate]
        assert all(len(part.labels) == 8 // accumulate for part in mine)
        assert torch.equal(torch.cat([part.images for part in mine]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in mine]), whole.labels)


def test_ranks_divide_the_same_global_batch(index):
    def part(**kwargs) -> Batch:
        return training_batch(
            index, 4, seed=3, batch_size=8, image_size=SIZE, augmentation=PLAIN, **kwargs
        )

    parts = [
        part(rank=rank, world_size=2, micro_batch=micro_batch, accumulate=2)
        for micro_batch in range(2)
        for rank in range(2)
    ]
    assert torch.equal(torch.cat([p.images for p in parts]), part().images)


# --- one training image --------------------------------------------------------------------------


def by_pillow(image: Image.Image, box) -> Tensor:
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    small = image.crop(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return F.pil_to_tensor(small)


def largest_difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@pytest.fixture(scope="module")
def png(tmp_path_factory) -> tuple[bytes, Image.Image]:
    path = tmp_path_factory.mktemp("one") / "photo.png"
    image = draw_photo(90, 120, seed=99)
    image.save(path)
    return path.read_bytes(), image


@pytest.mark.parametrize("crop", ["random_resized", "vgg_scale_jitter"])
@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_the_box_is_what_the_pixels_show(png, crop, flip):
    data, image = png
    flipped = 0
    for i in range(100):
        pixels, box = training_image(
            data, Draws(0, 0, i), SIZE, PLAIN._replace(crop=crop, flip=flip)
        )
        assert pixels.shape == (3, SIZE, SIZE)
        expected = by_pillow(image, box)
        plain = largest_difference(pixels, expected)
        mirrored = largest_difference(pixels, expected.flip(2))
        assert min(plain, mirrored) <= 2 < 10 < max(plain, mirrored)
        flipped += mirrored < plain
    assert flipped == 100 * flip or (flip == 0.5 and 30 < flipped < 70)


def test_the_box_comes_from_the_header_alone(png, monkeypatch):
    data, _ = png
    sequence = []
    real_decode, real_crop = views.decode, views.crops.random_resized_crop

    def watched_crop(*args):
        sequence.append("box")
        return real_crop(*args)

    def watched_decode(data, box=None):
        sequence.append(box)
        return real_decode(data, box)

    monkeypatch.setattr(views, "decode", watched_decode)
    monkeypatch.setattr(views.crops, "random_resized_crop", watched_crop)
    _, box = training_image(data, Draws(1), SIZE, PLAIN)
    assert sequence == ["box", box]


def test_a_random_interpolation_is_each_of_the_four_equally_often(png):
    data, _ = png
    found = Counter()
    for i in range(400):
        pixels, box = training_image(
            data, Draws(1, 0, i), SIZE, EVERYTHING_RANDOM._replace(flip=0.0)
        )
        kinds = [
            kind
            for kind in INTERPOLATIONS
            if torch.equal(pixels, resize(decode(data, box), SIZE, SIZE, kind))
        ]
        assert len(kinds) == 1
        found[kinds[0]] += 1
    assert set(found) == {"bilinear", "area", "nearest", "bicubic"}
    assert stats.chisquare(list(found.values())).pvalue > 1e-3


# --- evaluation ----------------------------------------------------------------------------------


def encoded(image: Image.Image, path) -> bytes:
    image.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize(
    "shape", [(60, 80), (81, 57), (64, 64), (20, 33), (37, 36), (50, 301)], ids=str
)
def test_the_center_crop_is_torchvisions(tmp_path, size, ending, shape):
    path = tmp_path / f"photo.{ending}"
    data = encoded(draw_photo(*shape, seed=1), path)
    reference = transforms.Compose(
        [
            transforms.Resize(round(size * 256 / 224)),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )
    with Image.open(path) as image:
        expected = reference(image.convert("RGB"))
    views = evaluation_views(data, size)
    assert views.shape == (1, 3, size, size)
    assert views.dtype == torch.uint8
    assert largest_difference(views[0], expected) <= 2


@pytest.mark.parametrize("shape", [(60, 80), (81, 57)], ids=str)
def test_ten_crops_are_torchvisions_five_and_their_mirror_images(tmp_path, shape):
    image = draw_photo(*shape, seed=2)
    views = evaluation_views(encoded(image, tmp_path / "photo.png"), SIZE, views=10)
    resized = F.resize(image, round(SIZE * 256 / 224))
    five = torch.stack([F.pil_to_tensor(crop) for crop in F.five_crop(resized, SIZE)])
    assert largest_difference(views, torch.cat([five, five.flip(3)])) <= 2


@pytest.mark.parametrize("shape", [(60, 80), (81, 57)], ids=str)
def test_144_crops_are_the_papers(tmp_path, shape):
    """Section 7: 4 scales x 3 squares x (4 corners, centre, whole square) x 2 mirror images."""
    image = draw_photo(*shape, seed=3)
    views = evaluation_views(encoded(image, tmp_path / "photo.png"), SIZE, views=144)
    expected = []
    for side in (256, 288, 320, 352):
        resized = F.resize(image, round(SIZE * side / 224))
        width, height = resized.size
        s = min(width, height)
        for share in (0, 0.5, 1):
            left, top = round((width - s) * share), round((height - s) * share)
            square = resized.crop((left, top, left + s, top + s))
            parts = [*F.five_crop(square, SIZE), F.resize(square, [SIZE, SIZE])]
            expected += [F.pil_to_tensor(part) for part in parts]
    expected += [view.flip(2) for view in expected]
    assert len(expected) == 144
    assert largest_difference(views, torch.stack(expected)) <= 2


def test_evaluation_batch(index):
    chosen = [20, 3, 11]
    batch = evaluation_batch(index, chosen, SIZE)
    assert batch.labels.tolist() == [index.labels[i] for i in chosen]
    assert batch.labels.dtype == torch.int64
    for image, i in zip(batch.images, chosen, strict=True):
        assert torch.equal(image, evaluation_views(index.read(i), SIZE)[0])

    ten = evaluation_batch(index, chosen, SIZE, views=10)
    assert ten.images.shape == (30, 3, SIZE, SIZE)
    assert ten.labels.shape == (3,)
    assert torch.equal(ten.images[10:20], evaluation_views(index.read(3), SIZE, views=10))


def test_pixels_are_normalised_on_the_device():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    before = images.clone()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = F.normalize(images.float() / 255, mean, std)
    x = to_device(images, torch.device("cpu"), mean, std)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)
    assert torch.equal(images, before)


# --- bad files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize(
    "content", [b"not a photo", b"", "truncated"], ids=["text", "empty", "cut"]
)
def test_an_undecodable_file_is_named(tmp_path, content, kind, workers):
    good = encoded(draw_photo(40, 40, seed=0), tmp_path / "photo.jpg")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    bad = tmp_path / "photos" / "cat" / "7.jpg"
    bad.write_bytes(good[: len(good) // 2] if content == "truncated" else content)
    index = open_source(str(tmp_path / "photos"))

    def make(step: int) -> Batch:
        if kind == "evaluation":
            return evaluation_batch(index, [0], SIZE)
        return training_batch(
            index, step, seed=0, batch_size=1, image_size=SIZE, augmentation=PLAIN
        )

    with pytest.raises(UserError) as caught:
        list(ahead(make, range(3), workers))
    assert caught.value.exit_code == ExitCode.DATA
    message = str(caught.value)
    assert message.startswith(f"{bad}: ")
    assert "\n" not in message
    assert "take it out of the data set" in message


# --- working ahead -------------------------------------------------------------------------------


def loader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("loader")]


@pytest.mark.parametrize("workers", [0, 1, 3, 8])
def test_order_is_kept(workers):
    def make(i: int) -> int:
        time.sleep(0.004 if i % 3 == 0 else 0)  # later items are ready earlier
        return i * i

    assert list(ahead(make, range(30), workers)) == [i * i for i in range(30)]
    assert list(ahead(make, [], workers)) == []
    assert loader_threads() == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_exception_arrives_in_its_turn(workers):
    def make(i: int) -> int:
        if i == 5:
            raise KeyError(i)
        return i

    results = ahead(make, range(20), workers)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError):
        next(results)
    assert loader_threads() == []


def test_a_loader_thread_computes_alone_and_the_step_keeps_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(ahead(lambda _: torch.get_num_threads(), range(8), 2)) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_stop_when_the_consumer_leaves_early(workers):
    started = []

    def make(i: int) -> int:
        started.append(i)
        return i

    for result in ahead(make, itertools.count(), workers):
        if result == 3:
            break
    del result
    assert loader_threads() == []
    before = len(started)
    time.sleep(0.02)
    assert len(started) == before

    results = ahead(make, itertools.count(), workers)
    next(results)
    assert loader_threads() != []
    results.close()
    assert loader_threads() == []


@pytest.mark.parametrize("workers", [1, 3])
def test_it_works_ahead_by_so_many_and_no_more(workers):
    started = []

    def make(i: int) -> int:
        started.append(i)
        return i

    results = ahead(make, itertools.count(), workers)
    for consumed in range(1, 6):
        next(results)
        deadline = time.monotonic() + 5
        while len(started) < consumed + workers and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(started) == consumed + workers
    results.close()


def test_threads_work_at_the_same_time():
    barrier = threading.Barrier(3, timeout=10)  # passes only when three are inside

    def make(i: int) -> int:
        barrier.wait()
        return i

    assert list(ahead(make, range(6), 3)) == list(range(6))
