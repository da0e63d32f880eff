"""The picture of what the network sees: the right pixels in the right places."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from googlenet_train.config.file import load
from googlenet_train.data import order
from googlenet_train.data.index import open_source
from googlenet_train.data.loader import Augmentation, training_batch, training_image
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.randomness import Draws
from googlenet_train.verbs import data_show, view_sheet

# At this size a view fills its frame as it is, so that its pixels can be found on the sheet.
SIZE = view_sheet._TILE - 2 * view_sheet._FRAME
LOUD = ("augment.photometric=true", "augment.policy=trivialaugment", "augment.erase=0.5")


def show(folder, monkeypatch, *words: str) -> np.ndarray:
    monkeypatch.chdir(folder)
    arguments = ["--config", "tiny.yaml", f"data.image_size={SIZE}", "--out", "sheet.png"]
    assert data_show.main([*arguments, *words]) == ExitCode.DONE
    with Image.open(folder / "sheet.png") as sheet:
        return np.asarray(sheet)


def tile(sheet: np.ndarray, row: int, epoch: int) -> np.ndarray:
    """The framed view of one row and epoch."""
    s = view_sheet
    top = s._MARGIN + s._HEAD + row * (s._TILE + s._TEXT + s._GAP)
    left = s._MARGIN + s._PHOTO + s._GAP + epoch * (s._TILE + s._GAP)
    return sheet[top : top + s._TILE, left : left + s._TILE]


def view(sheet: np.ndarray, row: int, epoch: int) -> torch.Tensor:
    """What is inside of the frame, (3, SIZE, SIZE)."""
    f = view_sheet._FRAME
    return torch.from_numpy(tile(sheet, row, epoch)[f:-f, f:-f].copy()).permute(2, 0, 1)


def test_it_shows_the_views_of_training(tiny_folder, monkeypatch, capsys):
    sheet = show(tiny_folder, monkeypatch, "--images", "3", "--views", "2", "run.seed=7", *LOUD)
    out, err = capsys.readouterr()
    assert out == "sheet.png: 3 training images, as their first 2 epochs show them\n"
    assert err == "loading PyTorch…\n"
    index = open_source("photos/train")
    augmentation = Augmentation(
        **dict(load("tiny.yaml", LOUD).config.augment)  # the settings as training gets them
    )
    assert augmentation.photometric
    labels = set()
    for row, i in enumerate((5, 15, 25)):  # 30 images: the middle of each third
        labels.add(index.labels[i])
        for epoch in range(2):
            expected, _ = training_image(index.read(i), Draws(7, epoch, i), SIZE, augmentation)
            assert torch.equal(view(sheet, row, epoch), expected)
            frame = ImageColor.getrgb(view_sheet._COLOURS[epoch])
            assert tuple(tile(sheet, row, epoch)[0, 0]) == frame
    assert len(labels) == 3


def test_the_boxes_lie_where_the_views_come_from(tiny_folder, monkeypatch):
    sheet = show(tiny_folder, monkeypatch, "--images", "1", "--views", "1")
    index = open_source("photos/train")
    augmentation = Augmentation(**dict(load("tiny.yaml").config.augment))
    _, box = training_image(index.read(15), Draws(0, 0, 15), SIZE, augmentation)
    s = view_sheet
    top, left = s._MARGIN + s._HEAD, s._MARGIN
    photo = sheet[top : top + s._TILE, left : left + s._TILE]  # 40 x 40 pixels, enlarged
    rows, columns = np.nonzero((photo == ImageColor.getrgb(s._COLOURS[0])).all(2))
    scale = s._TILE / 40
    found = np.array([rows.min(), columns.min(), rows.max(), columns.max()]) / scale
    expected = [box.top, box.left, box.top + box.height, box.left + box.width]
    np.testing.assert_allclose(found, expected, atol=3 / scale)


def test_mixed_views_are_those_of_the_batches(tiny_folder, monkeypatch):
    mixing = ("augment.mixup=0.5", "augment.cutmix=1")
    sheet = show(tiny_folder, monkeypatch, "--images", "30", "--views", "2", *mixing)
    index = open_source("photos/train")
    augmentation = Augmentation(**dict(load("tiny.yaml", mixing).config.augment))
    shown = 0
    for step in range(6):  # 30 images in batches of 8: three steps an epoch, six images left over
        batch = training_batch(
            index, step, seed=0, batch_size=8, image_size=SIZE, augmentation=augmentation
        )
        for image, i in zip(batch.images, order.batch_indices(0, step, 30, 8), strict=True):
            assert torch.equal(view(sheet, int(i), step // 3), image)
            shown += 1
    empty = torch.tensor(ImageColor.getrgb(view_sheet._EMPTY)).view(3, 1, 1)
    blank = [
        bool((view(sheet, row, epoch) == empty).all()) for row in range(30) for epoch in range(2)
    ]
    assert shown + sum(blank) == 60
    assert sum(blank) == 12


def test_a_bare_folder_of_photos(tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(tiny_folder)
    words = ["photos/train/", "data.image_size=32", "--images", "2", "--views", "1"]
    assert data_show.main(words) == ExitCode.DONE
    assert capsys.readouterr().out.startswith("train-views.jpg: 2 training images")


def test_shipped_photos_and_the_default_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert data_show.main(["--config", "quickstart.yaml", "--images", "2", "--views", "3"]) == 0
    assert capsys.readouterr().out.startswith("quickstart-views.jpg: 2 training images")
    with Image.open(tmp_path / "quickstart-views.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert sheet.width > 3 * SIZE


def test_more_images_than_there_are(tiny_folder, monkeypatch, capsys):
    show(tiny_folder, monkeypatch, "--images", "99", "--views", "1")
    assert "30 training images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        ([], 2, "--config"),
        (["--config", "tiny.yaml", "--views", "0"], 2, "must be 1 to 100, not 0"),
        (["--config", "tiny.yaml", "--images", "many"], 2, "invalid"),
        (["--config", "tiny.yaml", "--out", "a.gif"], 2, "--out a.gif: must end in .png or .jpg"),
        (["--config", "tiny.yaml", "--out", "no/a.png"], 2, "there is no folder no"),
        (["--config", "tiny.yaml", "augment.flop=1"], 2, "did you mean augment.flip?"),
        (["--config", "tiny.yaml", "data.train=none"], 3, "command line data.train: "),
        (["--config", "tiny.yaml", "augment.mixup=1", "optimizer.batch_size=7"], 2, "be even"),
        (["--config", "tiny.yaml", "augment.mixup=1", "optimizer.batch_size=64"], 2, "64"),
    ],
    ids=str,
)
def test_mistakes_are_answered_without_torch(tiny_folder, words, exit_code, message):
    script = (
        "import sys; sys.modules['torch'] = None\n"  # an import of it raises ImportError
        "from googlenet_train.errors import UserError\n"
        "from googlenet_train.verbs import data_show\n"
        f"try: data_show.main({words!r})\n"
        "except UserError as error: print(error); sys.exit(error.exit_code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tiny_folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == exit_code, done.stderr
    assert message in done.stdout
    assert done.stdout.count("\n") == 1


def test_an_undecodable_photo_is_named(tiny_folder, monkeypatch):
    bad = next((tiny_folder / "photos" / "train" / "dog").iterdir())
    bad.write_bytes(b"no photo")
    with pytest.raises(UserError, match=bad.name) as caught:
        show(tiny_folder, monkeypatch, "--images", "30", "--views", "1")
    assert caught.value.exit_code == ExitCode.DATA
