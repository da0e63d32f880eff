"""`googlenet_train.load`: from Python the same answers as from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import googlenet_train
from googlenet_train import cli
from googlenet_train.data.decode import UndecodableImage
from googlenet_train.data.index import open_source
from googlenet_train.data.loader import evaluation_batch
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.model.googlenet import GoogLeNet
from googlenet_train.run.trained import open_trained

README = """\
model, classes, preprocess = googlenet_train.load("runs/tiny")
logits = model(preprocess(PIL.Image.open("photo.jpg"))[None])
print(classes[logits.argmax()])
"""


def test_the_lines_of_the_readme(trained_folder, monkeypatch, capsys):
    monkeypatch.chdir(trained_folder)
    Path("photos/val/owl/1.jpg").rename("photo.jpg")
    exec(README, {"googlenet_train": googlenet_train, "PIL": PIL})
    guess = capsys.readouterr().out.strip()
    assert cli.main(["predict", "runs/tiny", "photo.jpg", "--json"]) == ExitCode.DONE
    assert guess == json.loads(capsys.readouterr().out)[0]["top"][0]["class"]


def test_logits_are_those_of_predict_and_pixels_those_of_evaluation(
    trained_folder, monkeypatch, capsys
):
    monkeypatch.chdir(trained_folder)
    model, classes, preprocess = googlenet_train.load(Path("runs/tiny"))
    assert isinstance(model, GoogLeNet)
    assert not model.training
    assert classes == ("cat", "dog", "owl")
    photos = sorted(map(str, Path("photos/val").rglob("*.jpg")))
    assert cli.main(["predict", "runs/tiny", *photos, "--json"]) == ExitCode.DONE
    said = json.loads(capsys.readouterr().out)
    network = open_trained("runs/tiny", "last", torch.device("cpu")).network("ema", "fp32")
    index = open_source("photos/val")
    images = evaluation_batch(index, range(len(index)), 32).images
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for place, (photo, row) in enumerate(zip(photos, said, strict=True)):
        x = preprocess(photo)
        assert (x.shape, x.dtype) == ((3, 32, 32), torch.float32)
        by_hand = (images[place].permute(1, 2, 0) / 255 - mean) / std
        torch.testing.assert_close(x.permute(1, 2, 0), by_hand, atol=1e-5, rtol=1e-5)
        with PIL.Image.open(photo) as image:
            assert torch.equal(preprocess(image), x)
        with torch.inference_mode():
            logits = model(x[None])
            torch.testing.assert_close(logits, network(x[None]), atol=1e-5, rtol=1e-5)
        shares = 100 * logits.softmax(1)[0]
        for entry in row["top"]:
            assert entry["percent"] == pytest.approx(
                float(shares[classes.index(entry["class"])]), abs=0.0051
            )


def test_weights_and_checkpoint_can_be_chosen(trained_folder):
    run = trained_folder / "runs/tiny"
    for step in (3, 6):
        saved = load_file(run / f"checkpoints/step-0000000{step}.safetensors")
        for weights, prefix, which in (("raw", "model/", str(step)), ("ema", "ema/0.9/", step)):
            model = googlenet_train.load(run, checkpoint=which, weights=weights).model
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, saved[prefix + name]), name
    with pytest.raises(ValueError, match="weights must be 'ema' or 'raw'"):
        googlenet_train.load(run, weights="best")
    with pytest.raises(UserError, match="does not exist"):
        googlenet_train.load(trained_folder / "none")


def test_errors_speak_to_who_wrote_python(trained_folder, monkeypatch):
    monkeypatch.chdir(trained_folder)
    for checkpoint in (7, "7"):
        with pytest.raises(UserError) as refused:
            googlenet_train.load("runs/tiny", checkpoint=checkpoint)
        assert str(refused.value) == (
            "checkpoint=7: runs/tiny has steps 3, 6. Give one of them, last or best."
        )
        assert refused.value.exit_code == ExitCode.USAGE
    for run, complaint in (
        ("none", "none does not exist. `run` is the folder of a run, such as runs/quickstart, or"),
        ("", "run is empty. Give the folder of a run, such as runs/quickstart, or"),
    ):
        with pytest.raises(UserError) as refused:
            googlenet_train.load(run)
        assert str(refused.value) == f"{complaint} a checkpoint."
    with pytest.raises(TypeError, match="checkpoint must be 'last', 'best' or a step, not None"):
        googlenet_train.load("runs/tiny", checkpoint=None)
    with pytest.raises(TypeError, match="not NoneType"):
        googlenet_train.load(None)


def test_pictures_of_other_modes(trained_folder):
    preprocess = googlenet_train.load(trained_folder / "runs/tiny").preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        image = PIL.Image.fromarray(pixels).convert(mode)
        assert torch.equal(preprocess(image), preprocess(image.convert("RGB"))), mode


def test_what_is_no_picture(trained_folder):
    preprocess = googlenet_train.load(trained_folder / "runs/tiny").preprocess
    (trained_folder / "text.jpg").write_text("no picture")
    with pytest.raises(UndecodableImage, match=r"text\.jpg: not an image"):
        preprocess(trained_folder / "text.jpg")
    with pytest.raises(FileNotFoundError):
        preprocess(trained_folder / "none.jpg")


def test_photos_are_turned_and_framed_as_the_run_does(in_folder):
    settings = ["data.exif_orientation=true", "evaluate.fit=squash", "schedule.epochs=1"]
    assert cli.main(["--config", "tiny.yaml", "run.dir=turned", *settings]) == ExitCode.DONE
    preprocess = googlenet_train.load("turned").preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = PIL.Image.fromarray(pixels)
    image.save("lying.png", exif=exif)
    image.transpose(PIL.Image.Transpose.ROTATE_270).save("upright.png")
    expected = preprocess("upright.png")
    assert torch.equal(preprocess("lying.png"), expected)
    with PIL.Image.open("lying.png") as lying:
        assert torch.equal(preprocess(lying), expected)
    squashed = image.transpose(PIL.Image.Transpose.ROTATE_270).resize((32, 32), 2)
    x = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None]
    by_hand = (x / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(expected, by_hand[0], atol=0.02, rtol=0)  # a level of 255


def test_importing_the_package_loads_nothing():
    script = "import sys, googlenet_train; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
