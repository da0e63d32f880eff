"""Images that cannot be read are left out without a substitute, listed, and only so many."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import copy_run
from safetensors.torch import load_file
from steps import one_step
from torch import nn

from googlenet_train import cli, numeric, optim
from googlenet_train.data import mixing, order
from googlenet_train.data.index import Index, open_source
from googlenet_train.data.loader import (
    Augmentation,
    Batch,
    Lost,
    evaluation_batch,
    training_batch,
)
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.evaluate import Setting, evaluate
from googlenet_train.run.quarantine import Quarantine
from googlenet_train.run.session import WINDOW

PLAIN = Augmentation("random_resized", (0.5, 1.0), (0.75, 1.33), "bilinear", 0.5)
MIXED = PLAIN._replace(mixup=1.0)
QUARANTINE = "data.on_error=quarantine"
RATES = {"train/images_per_second", "train/data_wait"}


def damage(folder: Path, name: str) -> None:
    (folder / "photos" / name).write_bytes(b"no photo")


def damaged_index(index: Index, rows: list[int]) -> Index:
    """The same data set, opened after the images in these rows of the first batch were damaged."""
    for row in rows:
        Path(index.name(chosen(0)[row])).write_bytes(b"no photo")
    return open_source(str(Path(index.name(0)).parent.parent))


def batch_of(index: Index, step: int = 0, **settings: object) -> Batch:
    given = {"augmentation": PLAIN, "batch_size": 8, "quarantine": True, **settings}
    return training_batch(index, step, seed=3, image_size=32, **given)


def chosen(step: int, batch_size: int = 8, **parts: int) -> list[int]:
    return order.batch_indices(3, step, 30, batch_size, **parts).tolist()


# --- a batch -------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_not_there_and_all_else_is_as_it_was(tiny_folder):
    index = open_source(str(tiny_folder / "photos/train"))
    whole = batch_of(index)
    rows = [1, 6]
    batch = batch_of(damaged_index(index, rows))
    keep = [row for row in range(8) if row not in rows]
    assert torch.equal(batch.images, whole.images[keep])
    assert torch.equal(batch.labels, whole.labels[keep])
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert [lost.place for lost in batch.lost] == [chosen(0)[row] for row in rows]
    assert {lost.reason for lost in batch.lost} == {"not an image, or its header is damaged"}
    assert whole.lost == ()


def test_a_file_that_has_gone_is_left_out_too(tiny_folder):
    index = open_source(str(tiny_folder / "photos/train"))
    Path(index.name(chosen(0)[2])).unlink()
    (lost,) = batch_of(index).lost
    assert lost.place == chosen(0)[2]
    assert "No such file" in lost.reason


def test_an_image_that_changed_under_way_is_an_error(tiny_folder):
    """It could be read: the epochs would see different images and no resume would be exact."""
    index = open_source(str(tiny_folder / "photos/train"))
    damaged_index(index, [2])
    with pytest.raises(UserError, match="overwritten"):
        batch_of(index)


def test_one_image_alone_is_left_out_too(tiny_folder):
    """Batch normalisation has no variance of one image: at 32 px training would fail."""
    index = open_source(str(tiny_folder / "photos/train"))
    batch = batch_of(damaged_index(index, [0]), accumulate=4)  # parts of two
    assert batch.images.shape == (0, 3, 32, 32)
    assert len(batch.labels) == 0
    assert len(batch.lost) == 1


def test_without_its_partner_an_image_is_not_mixed(tiny_folder):
    index = open_source(str(tiny_folder / "photos/train"))
    whole, unmixed = batch_of(index, augmentation=MIXED), batch_of(index)
    batch = batch_of(damaged_index(index, [2]), augmentation=MIXED)  # the partner of row 3
    assert batch.second is not None
    assert whole.second is not None
    assert torch.equal(batch.images[2], unmixed.images[3])
    assert (batch.labels[2], batch.second[1][2]) == (unmixed.labels[3], 0)
    others = [row for row in range(8) if row not in (2, 3)]
    now = [row for row in range(7) if row != 2]
    assert torch.equal(batch.images[now], whole.images[others])
    assert torch.equal(batch.labels[now], whole.labels[others])
    for a, b in zip(batch.second, whole.second, strict=True):
        assert torch.equal(a[now], b[others])
    assert mixing.UNMIXED.share == 1


def test_evaluation_leaves_out_the_same_way(tiny_folder):
    index = open_source(str(tiny_folder / "photos/val"))
    whole = evaluation_batch(index, range(9), 32, views=10)
    Path(index.name(4)).write_bytes(b"no photo")
    index = open_source(str(tiny_folder / "photos/val"))
    batch = evaluation_batch(index, range(9), 32, views=10, quarantine=True)
    keep = [i for i in range(9) if i != 4]
    assert torch.equal(batch.labels, whole.labels[keep])
    assert torch.equal(batch.images.reshape(8, -1), whole.images.reshape(9, -1)[keep])
    assert [lost.place for lost in batch.lost] == [4]


def test_the_loss_is_the_mean_over_the_images_there_are():
    """Two parts of 4 and 3 images pull as the 7 of them in one: no part weighs too much."""

    def gradient(parts: list[slice]) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (7, 3, 8, 8), generator=generator, dtype=torch.uint8)
        labels = torch.tensor([0, 1, 2, 0, 1, 1, 1])
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        nn.init.constant_(model[2].weight, 0.1)
        nn.init.zeros_(model[2].bias)
        window = torch.zeros(len(WINDOW))
        one_step(
            model,
            optim.build_sgd(model, lr=1.0, momentum=0.0, weight_decay=0.0, fused=False),
            [Batch(images[part], labels[part]) for part in parts],
            window,
            numeric.new_guard(model, window, 0),
        )
        return model[2].bias.detach(), window

    one, sums = gradient([slice(0, 7)])
    two, same = gradient([slice(0, 4), slice(4, 7)])
    empty, _ = gradient([slice(0, 4), slice(7, 7), slice(4, 7)])
    torch.testing.assert_close(two, one, atol=1e-6, rtol=0)
    torch.testing.assert_close(empty, one, atol=1e-6, rtol=0)
    torch.testing.assert_close(same, sums, atol=1e-5, rtol=0)
    assert sums[0] == 7
    nothing, counted = gradient([slice(7, 7)])
    assert torch.equal(nothing, torch.zeros(3))
    assert not counted.any()


# --- the list ------------------------------------------------------------------------------------


@pytest.fixture
def photos(tiny_folder) -> Index:
    return open_source(str(tiny_folder / "photos/train"))


def listed(folder: Path) -> list[dict[str, str]]:
    with (folder / "quarantine.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_is_listed_once(tmp_path, photos, capsys):
    quarantine = Quarantine({"data.train": photos}, 0.5, tmp_path)
    quarantine.add("data.train", [], 1)
    assert not (tmp_path / "quarantine.csv").exists()
    quarantine.add("data.train", [Lost(4, 'a, "b"\nc')], 2)
    quarantine.add("data.train", [Lost(4, "again"), Lost(7, "d")], 3)
    assert listed(tmp_path) == [
        {"set": "data.train", "path": photos.name(4), "reason": 'a, "b"\nc', "first_step": "2"},
        {"set": "data.train", "path": photos.name(7), "reason": "d", "first_step": "3"},
    ]
    assert capsys.readouterr().err.count("warning  left out of data.train") == 2


@pytest.mark.parametrize(("share", "allowed"), [(0.01, 1), (0.1, 3), (0.101, 4)])
def test_only_so_many(tmp_path, photos, share, allowed):
    quarantine = Quarantine({"data.train": photos}, share, tmp_path)
    quarantine.add("data.train", [Lost(i, "bad") for i in range(allowed)], 1)
    with pytest.raises(UserError, match="data verify") as caught:
        quarantine.add("data.train", [Lost(allowed, "bad")], 2)
    assert caught.value.exit_code == ExitCode.DATA
    assert photos.name(allowed) in str(caught.value)


def test_each_set_has_its_own_limit(tmp_path, photos):
    quarantine = Quarantine({"data.train": photos, "data.val": photos}, 0.01, tmp_path)
    quarantine.add("data.train", [Lost(1, "bad")], 1)
    quarantine.add("data.val", [Lost(1, "bad")], 1)
    assert len(listed(tmp_path)) == 2


def test_what_lies_past_the_restored_step_is_cut_and_the_rest_counts(tmp_path, photos):
    first = Quarantine({"data.train": photos}, 0.1, tmp_path)
    for step in (5, 10, 15):
        first.add("data.train", [Lost(step, "bad\nfile")], step)
    with (tmp_path / "quarantine.csv").open("a") as file:
        file.write("data.train,photo.jpg,torn,1")  # by a crash: it was 17
    again = Quarantine({"data.train": photos}, 0.1, tmp_path, step=10)
    assert [row["first_step"] for row in listed(tmp_path)] == ["5", "10"]
    again.add("data.train", [Lost(5, "bad"), Lost(15, "bad")], 15)
    assert [row["first_step"] for row in listed(tmp_path)] == ["5", "10", "15"]
    with pytest.raises(UserError):
        again.add("data.train", [Lost(16, "bad")], 16)


# --- a run ---------------------------------------------------------------------------------------


def run(folder: str, *words: str) -> int:
    given = ("checkpoint.every_steps=1", "checkpoint.keep=20", "log.every_steps=2")
    return cli.main(["--config", "tiny.yaml", f"run.dir={folder}", *given, *words])


def unequal(one: str, other: str) -> list[str]:
    name = "checkpoints/step-00000006.safetensors"
    a, b = load_file(Path(one, name)), load_file(Path(other, name))
    return [key for key in a if a[key].numpy().tobytes() != b[key].numpy().tobytes()]


def logged(folder: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines]


@pytest.fixture
def damaged(in_folder) -> Path:
    """One photo of each set is damaged; that of the training set belongs to the second step."""
    Path(second_step_photo()).write_bytes(b"no photo")
    damage(in_folder, "val/dog/1.jpg")
    return in_folder


def second_step_photo() -> str:
    return open_source("photos/train").name(int(order.batch_indices(0, 1, 30, 8)[0]))


@pytest.mark.slow
def test_a_run_leaves_them_out_for_any_number_of_workers_and_when_resumed(damaged, capsys):
    assert run("one", QUARANTINE) == 0
    stderr = capsys.readouterr().err
    assert stderr.count("warning  left out of") == 2
    assert "1 images unreadable" not in stderr
    assert "1 image unreadable, left out" in stderr
    assert [(row["set"], row["first_step"]) for row in listed(Path("one"))] == [
        ("data.train", "2"),
        ("data.val", "3"),
    ]
    assert run("three", QUARANTINE, "data.workers=3") == 0
    assert (unequal("one", "three"), logged("one")) == ([], logged("three"))
    for step in (1, 2, 4):
        copy = f"from-{step}"
        copy_run(Path("one"), Path(copy), step)
        assert run(copy, QUARANTINE, "--resume", "data.workers=0") == 0
        assert (unequal("one", copy), logged("one")) == ([], logged(copy))
        assert listed(Path("one")) == listed(Path(copy))


def test_by_default_it_stops_with_the_path_and_goes_on_with_quarantine(damaged, capsys):
    assert run("stopped") == 3
    stderr = capsys.readouterr().err
    assert second_step_photo() in stderr.split("error    ")[1]
    assert "saved    at step 1" in stderr
    assert not Path("stopped/quarantine.csv").exists()
    assert run("stopped", QUARANTINE, "--resume") == 0
    assert run("whole", QUARANTINE) == 0
    assert unequal("whole", "stopped") == []


def test_too_many_stop_the_run_and_the_state_is_saved(damaged, capsys):
    for i in range(5):
        damage(damaged, f"train/owl/{i}.jpg")
    assert run("bad", QUARANTINE) == 3
    error = capsys.readouterr().err.split("error    ")[1]
    assert "of the 30 images of data.train cannot be read" in error
    assert "data verify" in error
    assert run("bad", QUARANTINE, "--resume", "data.quarantine_limit=0.5") == 0


def test_the_verb_evaluate_counts_what_it_saw(damaged, capsys):
    assert run("done", QUARANTINE) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "done", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["seen"] == 8
    assert "warning  left out of photos/val: photos/val/dog/1.jpg" in captured.err


def test_nothing_to_evaluate_on_is_an_error(in_folder):
    for photo in (in_folder / "photos/val").rglob("*.jpg"):
        photo.write_bytes(b"no photo")
    index = open_source("photos/val")
    setting = Setting(
        torch.device("cpu"), "fp32", 32, (0.5,) * 3, (0.5,) * 3, batch_size=4, workers=0
    )
    lost: list[Lost] = []
    with pytest.raises(UserError, match="none of the images"):
        evaluate({}, index, dataclasses.replace(setting, quarantine=True), leave_out=lost.extend)
    assert sorted(entry.place for entry in lost) == list(np.arange(9))
