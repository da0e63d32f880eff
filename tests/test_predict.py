"""`predict` takes photos in groups; each answer is its own photo's, wherever a group ends."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from googlenet_train import cli
from googlenet_train.errors import ExitCode
from googlenet_train.evaluate import Setting
from googlenet_train.verbs import predict_photos


def test_what_training_does_not_read_is_not_predicted_either(trained_folder, monkeypatch, capsys):
    monkeypatch.chdir(trained_folder)
    Path("photos/val/dog/._0.jpg").write_text("a Mac's leavings")
    Path("photos/val/__MACOSX").mkdir()
    Path("photos/val/__MACOSX/a.jpg").write_text("more of them")
    assert cli.main(["predict", "runs/tiny", "photos/val"]) == ExitCode.DONE
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_what_is_not_read_for_its_ending_is_told_once(trained_folder, monkeypatch, capsys):
    monkeypatch.chdir(trained_folder)
    for name in ("dog/a.heic", "dog/B.HEIC", "owl/c.gif", "owl/.DS_Store", "README"):
        Path("photos/val", name).write_text("not read")
    assert cli.main(["predict", "runs/tiny", "photos/val/dog", "photos/val"]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 12
    assert err == (
        "note     6 files are not read, for the ending: .heic (4), without ending (1), .gif (1)\n"
    )
    assert cli.main(["predict", "runs/tiny", "photos/val/cat"]) == ExitCode.DONE
    assert capsys.readouterr().err == ""


def test_a_folder_without_photos_says_what_it_holds(trained_folder, monkeypatch, capsys):
    monkeypatch.chdir(trained_folder)
    Path("new/below").mkdir(parents=True)
    assert cli.main(["predict", "runs/tiny", "new"]) == ExitCode.DATA
    assert capsys.readouterr().err == "error    new: no photos in this folder or below it\n"
    Path("new/below/a.heic").write_text("not read")
    assert cli.main(["predict", "runs/tiny", "new"]) == ExitCode.DATA
    assert capsys.readouterr().err == (
        "error    new: no photos in this folder or below it; 1 file is not read, for the ending: "
        ".heic (1). Save photos as .jpg first\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it can be had")
def test_a_device_that_cannot_be_had_is_called_as_it_was_typed(trained_folder, monkeypatch, capsys):
    monkeypatch.chdir(trained_folder)
    words = ["predict", "runs/tiny", "photos/val", "--device", "cuda"]
    assert cli.main(words) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith("error    --device cuda: ")
    assert error.endswith(". Mend that, or choose another --device.\n")


@pytest.mark.parametrize("workers", [0, 2])
def test_each_photo_gets_its_own_answer(trained_folder, monkeypatch, capsys, workers):
    monkeypatch.chdir(trained_folder)
    photos = sorted(map(str, Path("photos").rglob("*.jpg")))[:11]
    for bad in (photos[2], photos[3], photos[4], photos[7]):  # a whole group, and one of another
        Path(bad).unlink()
        Path(bad).write_text("not a photo")

    of = Setting.of
    monkeypatch.setattr(Setting, "of", lambda *a: dataclasses.replace(of(*a), workers=workers))

    def said(at_once: int) -> list:
        monkeypatch.setattr(predict_photos, "_AT_ONCE", at_once)
        assert cli.main(["predict", "runs/tiny", *photos, "--json"]) == ExitCode.DATA
        out, err = capsys.readouterr()
        assert [line.split(": ")[0] for line in err.splitlines() if line.startswith("error")] == [
            f"error    {photos[i]}" for i in (2, 3, 4, 7)
        ]
        return json.loads(out)

    alone = said(1)
    assert [row["path"] for row in alone] == [photos[i] for i in (0, 1, 5, 6, 8, 9, 10)]
    shares = [{one["class"]: one["percent"] for one in row["top"]} for row in alone]
    assert len({tuple(sorted(one.items())) for one in shares}) > 3  # or any order would do
    for at_once in (3, 16):
        grouped = said(at_once)
        assert [row["path"] for row in grouped] == [row["path"] for row in alone]
        for row, expected in zip(grouped, shares, strict=True):
            assert {one["class"]: one["percent"] for one in row["top"]} == pytest.approx(
                expected, abs=0.05
            )
