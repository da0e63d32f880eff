"""Parquet files as a SOURCE: the images byte for byte, the classes in the data set's order."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from googlenet_train.data.index import open_source
from googlenet_train.data.loader import Augmentation, training_batch
from googlenet_train.data.pack import Settings, pack
from googlenet_train.errors import ExitCode, UserError

CLASSES = ["tench, Tinca tinca", "zebra", "and/or"]  # in no order, and one is no folder's name
LABELS = [1, 0, 2, 2, 0, 1, 1]


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.effect_mandelbrot((50 + seed, 40), (-2, -1.5, 1, 1.5), 20 + seed)
    image.convert("RGB").save(buffer, "PNG" if seed % 2 else "JPEG")
    return buffer.getvalue()


PHOTOS = [encoded(seed) for seed in range(len(LABELS))]


def refusal(source: object) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(source))
    assert caught.value.exit_code == ExitCode.DATA
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, with its cache in tmp_path."""
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


@pytest.fixture
def table(datasets, tmp_path) -> Path:
    """A folder of parquet files with a split for training and one for validation."""
    rows = {"image": [{"bytes": photo, "path": None} for photo in PHOTOS], "label": LABELS}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    )
    whole = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "set/data").mkdir(parents=True)
    for n, part in enumerate([range(4), range(4, 7)]):
        whole.select(part).to_parquet(tmp_path / f"set/data/train-{n:05d}-of-00002.parquet")
    whole.select([5, 2]).to_parquet(tmp_path / "set/data/validation-00000-of-00001.parquet")
    return tmp_path / "set"


def test_parquet_files(table):
    index = open_source(f"hub:{table}")
    assert index.classes == tuple(CLASSES)
    assert index.labels.tolist() == LABELS
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(index.read, range(len(index)))) == PHOTOS
    assert index.name(2) == f"hub:{table}:and_or/00000002.jpg"
    val = open_source(f"hub:{table}:validation")
    assert val.labels.tolist() == [1, 2]
    assert val.read(1) == PHOTOS[2]
    assert len({index.fingerprint(), val.fingerprint()}) == 2


def test_batches_and_a_pack_of_them(table, tmp_path):
    index = open_source(f"hub:{table}")
    pack(index, tmp_path / "p", Settings(None, None, "jpeg", 10**6))
    packed = open_source(str(tmp_path / "p"))
    assert packed.classes == index.classes
    augmentation = Augmentation("random_resized", (0.08, 1.0), (0.75, 4 / 3), "bilinear", 0.5)
    ours, theirs = (
        training_batch(source, 1, seed=0, batch_size=3, image_size=32, augmentation=augmentation)
        for source in (packed, index)
    )
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)


def test_refusals(datasets, table, tmp_path):
    message = refusal(f"hub:{table}:tset")
    assert message.startswith(f"'hub:{table}:tset' cannot be opened: ")
    assert "validation" in message  # the splits that there are
    (tmp_path / "plain").mkdir()
    datasets.Dataset.from_dict({"pixels": [[1, 2]], "label": [0]}).to_parquet(
        tmp_path / "plain/train.parquet"
    )
    assert "has no columns of type Image (its columns: pixels, label)" in refusal(
        f"hub:{tmp_path / 'plain'}"
    )


def test_photos_without_a_label(datasets, tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])}
    )
    rows = {"image": [{"bytes": PHOTOS[0], "path": None}], "label": [-1]}
    (tmp_path / "test").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test/test.parquet")
    assert "has photos without a label; choose another split" in refusal(
        f"hub:{tmp_path / 'test'}:test"
    )


def test_without_a_network(datasets, monkeypatch):
    def unreachable(*arguments: object, **more: object) -> None:
        raise ConnectionError("Couldn't reach 'somebody/photos' on the Hub\nRetry later")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert refusal("hub:somebody/photos") == (
        "'hub:somebody/photos' cannot be opened: Couldn't reach 'somebody/photos' on the Hub"
    )


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hub:food101") == (
        "'hub:food101' needs the package `datasets`: pip install 'googlenet-train[hub]'"
    )
