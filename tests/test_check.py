"""The verb `check`: it finds what would stop a run, trains nothing, and leaves nothing behind."""

import json
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from googlenet_train import cli
from googlenet_train.checks import trial
from googlenet_train.errors import ExitCode
from googlenet_train.model.googlenet import GoogLeNet


@pytest.fixture
def place(in_folder, monkeypatch, tmp_path_factory) -> Path:
    """The current folder, that of tiny.yaml; temporary files go to an empty one of their own."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return in_folder


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """The exit code and the lines on stdout; whatever was asked, nothing stays behind."""
    before = sorted(Path().rglob("*"))
    code = cli.main(["check", "--config", "tiny.yaml", *words])
    assert sorted(Path().rglob("*")) == before
    assert list(Path(tempfile.gettempdir()).iterdir()) == []
    return code, capsys.readouterr().out.splitlines()


def found(lines: list[str], status: str) -> list[str]:
    return [line for line in lines if line.startswith(status)]


def test_a_run_that_would_start(place, capsys):
    code, lines = asked(capsys)
    assert (code, lines[-1]) == (0, "the run would start")
    assert found(lines, "problem") == found(lines, "warning") == []
    assert "ok class dog 10 train 3 val" in [" ".join(line.split()) for line in lines]
    assert "ok       photos   train: 30 of 30 photos looked at, all can be read" in lines
    assert "ok       copies   no photo to evaluate on is among those to train on" in lines
    assert any(line.startswith("ok       step     batch 8 at 32 px: ") for line in lines)
    assert any(line.startswith("ok       memory   about ") for line in lines)
    assert lines[-2].endswith(": 6 steps and 2 evaluations")


def test_json_alone(place, capsys):
    code, lines = asked(capsys, "--json")
    [line] = lines
    answer = json.loads(line)
    assert (code, answer["starts"]) == (0, True)
    assert answer["classes"]["owl"] == {"name": "owl", "train": 10, "val": 3}
    assert {check["status"] for check in answer["checks"]} == {"ok"}
    assert 0 < answer["seconds_to_train"] < 600
    assert answer["seconds"] > 0
    # Weights, momentum and one average; the statistics of batch normalisation are little.
    parameters = sum(p.numel() for p in GoogLeNet(3).parameters())
    assert 1 < answer["checkpoint_bytes"] / (3 * 4 * parameters) < 1.01
    memory = answer["memory_bytes"]
    assert memory["checkpoint"] == 2 * answer["checkpoint_bytes"]
    assert memory["peak"] == memory["training"] + memory["checkpoint"]
    assert memory["training"] > 3 * 4 * parameters


def test_a_folder_of_photos(place, capsys):
    shutil.copy("photos/train/cat/0.jpg", "photos/train/dog/copy.jpg")
    words = ["photos/train", "data.image_size=32", "optimizer.batch_size=8", "device.threads=1"]
    assert cli.main(["check", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("the same photo stands in two classes" in line for line in found(lines, "warning"))
    assert any("held out of data.train" in line for line in lines)
    assert not Path("runs").exists()


# What would stop the run: the exit code is that of the run itself.


def no_image(place: Path) -> None:
    for photo in (place / "photos/train/dog").iterdir():
        photo.write_text("no image")


def unfinished(place: Path) -> None:
    assert cli.main(["--config", "tiny.yaml"]) == 0
    (place / "runs/tiny/checkpoints/step-00000006.safetensors").unlink()


@pytest.mark.parametrize(
    ("prepare", "words", "code", "message"),
    [
        (None, ["data.train=photos/trian"], 3, "did you mean 'photos/train'?"),
        (None, ["optimizer.batch_size=31"], 2, "is larger than the 30 training images"),
        (None, ["run.dir=tiny.yaml/run"], 6, "cannot be made (Not a directory)"),
        (None, ["run.dir=photos"], 2, "run.dir=photos holds other files"),
        (None, ["optimizer.lr=1e30"], 5, "not finite in the first steps"),
        (no_image, [], 3, "10 cannot be read: "),
        (no_image, ["data.on_error=quarantine"], 3, "10 cannot be read: "),
        pytest.param(
            unfinished, [], 2, "holds an unfinished run of this config", marks=pytest.mark.slow
        ),
    ],
)
def test_what_would_stop_the_run(place, capsys, prepare, words, code, message):
    if prepare:
        prepare(place)
        capsys.readouterr()
    got, lines = asked(capsys, *words)
    assert got == code
    [problem] = found(lines, "problem")
    assert message in problem
    assert lines[-1].startswith("the run would not start")
    if code != ExitCode.NUMERIC:  # which training meets when it logs
        assert cli.main(["--config", "tiny.yaml", *words]) == code


def test_mistakes_in_the_config_are_those_of_training(place, capsys):
    assert cli.main(["check", "--config", "tiny.yaml", "optimizer.lr=fast"]) == ExitCode.USAGE
    assert "must be a number > 0" in capsys.readouterr().err
    assert cli.main(["check"]) == ExitCode.USAGE
    assert "Pass --config FILE or a folder of photos" in capsys.readouterr().err


def test_a_full_disk(place, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1, 1))
    code, lines = asked(capsys)
    assert (code, len(found(lines, "problem"))) == (ExitCode.STORAGE, 1)
    assert "0.62 GB for 3 checkpoints" in found(lines, "problem")[0]
    assert cli.main(["--config", "tiny.yaml"]) == ExitCode.DONE
    warning = "the checkpoints of this run take up to 0.62 GB, and 0.00 GB are free"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize(
    ("work", "told"),
    [
        ("take_step", "out of memory in a training step: 8 images of 32 px at once. optimizer.acc"),
        ("evaluate", "out of memory in an evaluation: 256 images of 32 px at once. evaluate.batch"),
    ],
)
def test_too_little_memory(place, capsys, monkeypatch, work, told):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trial, work, full)
    code, lines = asked(capsys)
    assert code == ExitCode.USAGE
    [problem] = found(lines, "problem")
    assert told in problem
    assert "--resume" not in problem


@pytest.mark.slow
def test_a_resumed_run(place, capsys):
    assert cli.main(["--config", "tiny.yaml", "schedule.epochs=1"]) == 0
    capsys.readouterr()
    assert asked(capsys, "--resume", "schedule.epochs=3")[0] == 0
    code, lines = asked(capsys, "--resume", "schedule.epochs=1")
    assert (code, lines[0]) == (
        0,
        "ok       run      finished already: --resume would change nothing",
    )
    code, lines = asked(capsys, "--resume", "optimizer.lr=0.5")
    assert (code, "optimizer.lr: 0.01 -> 0.5" in "\n".join(lines)) == (2, True)


# What is only told.


def test_photos_on_both_sides(place, capsys):
    shutil.copy("photos/train/cat/0.jpg", "photos/val/owl/same.jpg")
    code, lines = asked(capsys)
    [warning] = found(lines, "warning")
    assert code == 0
    assert "1 of the 10 photos to evaluate on are also trained on" in warning
    assert warning.endswith("photos/val/owl/same.jpg, a copy of photos/train/cat/0.jpg")


def test_files_with_other_endings(place, capsys):
    for name in ("a.HEIC", "b.heic", "c.txt", ".hidden"):
        Path("photos/train/dog", name).write_text("x")
    Path("photos/train/README.txt").write_text("at home there")
    [warning] = found(asked(capsys)[1], "warning")
    assert warning.endswith("3 files are not read, for the ending: .heic (2), .txt (1)")


def test_files_with_other_endings_among_those_to_evaluate_on(place, capsys):
    Path("photos/val/dog/a.HEIC").write_text("x")
    [warning] = found(asked(capsys)[1], "warning")
    assert warning.endswith("data.val: 1 file is not read, for the ending: .heic (1)")


def test_photos_beside_the_class_folders(place, capsys):
    for name in ("loose.jpg", "more.JPG"):
        Path("photos/train", name).write_text("x")
    [warning] = found(asked(capsys)[1], "warning")
    assert warning.endswith(
        "2 photos lie beside the class folders, in no class: loose.jpg, more.JPG"
    )


def test_one_bad_photo_of_many(place, capsys):
    Path("photos/train/dog/1.jpg").write_text("no image")
    code, lines = asked(capsys, "data.on_error=quarantine")
    assert (code, "1 cannot be read" in found(lines, "warning")[0]) == (0, True)
    code, lines = asked(capsys)
    assert (code, "photos/train/dog/1.jpg: not an image" in found(lines, "problem")[0]) == (3, True)


def test_it_looks_as_long_as_there_is_time_or_at_all(place, capsys, monkeypatch):
    monkeypatch.setattr(trial, "MOST_SECONDS", 0.0)
    assert "ok       photos   train: 1 of 30 photos looked at, all can be read" in asked(capsys)[1]
    lines = asked(capsys, "--all")[1]
    assert "ok       photos   train: 30 of 30 photos looked at, all can be read" in lines


def test_classes_without_photos_to_evaluate_on(place, capsys):
    shutil.rmtree("photos/val/owl")
    assert "warning  class    no photos to evaluate on of 'owl'" in asked(capsys)[1]
    assert (
        "warning  val      none: the run would not be evaluated"
        in asked(capsys, "data.val=null", "data.val_fraction=0")[1]
    )
