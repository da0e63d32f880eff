"""How an image becomes a square, against Pillow and torchvision, and the crops to train for it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from googlenet_train import cli
from googlenet_train.data import crops
from googlenet_train.data.pack import to_ppm
from googlenet_train.data.views import Augmentation, evaluation_views, training_image
from googlenet_train.errors import ExitCode
from googlenet_train.evaluate import Setting, probabilities
from googlenet_train.randomness import Draws
from googlenet_train.run.trained import open_trained

SIZES = [(60, 90), (90, 60), (50, 50), (31, 200), (200, 31), (20, 33), (3, 400)]
RATIO = (0.75, 1.3333333)


def photo(height: int, width: int) -> Tensor:
    """Smooth noise, (3, height, width)."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def view(pixels: Tensor, size: int, fit: str) -> Tensor:
    return evaluation_views(to_ppm(pixels), size, fit=fit)[0]


@pytest.mark.parametrize(("height", "width"), SIZES[:-1])  # of the last Pillow leaves nothing
@pytest.mark.parametrize("size", [32, 64, 75])
def test_pad_is_pillows(height, width, size):
    pixels = photo(height, width)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    expected = ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=(124, 116, 104))
    difference = view(pixels, size, "pad").permute(1, 2, 0).numpy().astype(int) - expected
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_squash_is_torchvisions_resize(height, width):
    pixels = photo(height, width)
    assert torch.equal(view(pixels, 64, "squash"), tv.resize(pixels, [64, 64], antialias=True))


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (50, 50)])
def test_center_crop_is_torchvisions(height, width):
    pixels = photo(height, width)
    expected = tv.center_crop(tv.resize(pixels, [37], antialias=True), [32, 32])
    assert torch.equal(view(pixels, 32, "center_crop"), expected)


# --- crops to train with -------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [*SIZES, (1, 1), (1, 500), (2, 3)])
def test_boxes_lie_inside_and_are_never_empty(height, width):
    for i in range(300):
        top, left, h, w = crops.relative_crop(height, width, Draws(i), (0.01, 1.0), RATIO)
        assert 0 <= top < top + h <= height
        assert 0 <= left < left + w <= width


def test_of_a_square_it_is_the_paper_s_crop():
    for i in range(200):
        expected = crops.random_resized_crop(300, 300, Draws(i), (0.08, 1.0), RATIO)
        assert crops.relative_crop(300, 300, Draws(i), (0.08, 1.0), RATIO) == expected


def test_shares_and_shapes_are_those_of_torchvision_in_the_squashed_image():
    height, width, side = 3000, 1000, 3000
    torch.manual_seed(0)
    image = torch.empty(1, side, side)
    theirs = [RandomResizedCrop.get_params(image, (0.2, 1.0), RATIO) for _ in range(3000)]
    ours = [crops.relative_crop(height, width, Draws(i), (0.2, 1.0), RATIO) for i in range(3000)]
    tops, lefts, heights, widths = np.array(ours).T / [[height], [width], [height], [width]]
    t = np.array(theirs).T / side
    pairs = {
        "area": (heights * widths, t[2] * t[3]),
        "aspect": (widths / heights, t[3] / t[2]),
        "top": (tops, t[0]),
        "left": (lefts, t[1]),
    }
    for name, (one, other) in pairs.items():
        assert stats.ks_2samp(one, other).pvalue > 1e-3, name
    # And it is another law than the plain one, whose boxes here are nowhere near the whole.
    plain = [
        crops.random_resized_crop(height, width, Draws(i), (0.2, 1.0), RATIO) for i in range(99)
    ]
    assert max(h * w for _, _, h, w in plain) < 0.5 * height * width < 0.9 * height * width
    assert (heights * widths).max() > 0.9


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_crop_of_everything_is_what_evaluation_shows(fit, height, width):
    everything = Augmentation("random_resized", (1.0, 1.0), (1.0, 1.0), "bilinear", 0.0, fit=fit)
    pixels = photo(height, width)
    seen, box = training_image(to_ppm(pixels), Draws(0), 48, everything)
    assert box == (0, 0, height, width)
    assert torch.equal(seen, view(pixels, 48, fit))


def test_padded_crops_keep_the_shape_of_things():
    """A disc stays a disc: as high as wide, within a pixel of resizing on each side."""
    yy, xx = np.mgrid[:120, :240]
    disc = ((yy - 60) ** 2 + (xx - 120) ** 2 < 30**2).astype(np.uint8) * 255
    data = to_ppm(torch.from_numpy(np.repeat(disc[None], 3, 0)))

    def extent(fit: str, seed: int) -> float:
        augmentation = Augmentation("random_resized", (0.9, 1.0), RATIO, "bilinear", 0.5, fit=fit)
        seen, _ = training_image(data, Draws(seed), 96, augmentation)
        white = (seen.float().mean(0) > 200).nonzero()
        high, wide = (white.max(0).values - white.min(0).values + 1).tolist()
        return math.log(high / wide)

    assert max(abs(extent("pad", seed)) for seed in range(20)) < 0.1
    assert min(extent("squash", seed) for seed in range(20)) > 0.3


# --- a run ---------------------------------------------------------------------------------------


def test_predict_and_evaluate_follow_the_run(in_folder, capsys):
    Image.fromarray(photo(40, 90).permute(1, 2, 0).numpy()).save("wide.png")
    settings = ["--config", "tiny.yaml", "evaluate.fit=pad", "schedule.epochs=1"]
    assert cli.main([*settings, "run.dir=padded"]) == ExitCode.DONE
    capsys.readouterr()

    assert cli.main(["predict", "padded", "wide.png", "--json"]) == ExitCode.DONE
    said = json.loads(capsys.readouterr().out)[0]["top"]
    trained = open_trained("padded", "last", torch.device("cpu"))
    setting = Setting.of(trained.config, torch.device("cpu"))
    image = ImageOps.pad(
        Image.fromarray(photo(40, 90).permute(1, 2, 0).numpy()),
        (32, 32),
        Image.Resampling.BILINEAR,
        color=(124, 116, 104),
    )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    expected = probabilities(trained.network("ema", setting.precision), pixels, setting)[0]
    for entry in said:
        share = 100 * float(expected[trained.classes.index(entry["class"])])
        assert entry["percent"] == pytest.approx(share, abs=0.2)
    # The centre alone looks different to the network, so the above tells the two apart.
    centre = evaluation_views(Path("wide.png").read_bytes(), 32)
    other = probabilities(trained.network("ema", setting.precision), centre, setting)[0]
    assert float((expected - other).abs().max()) > 0.005

    assert cli.main(["evaluate", "padded", "--json"]) == ExitCode.DONE
    result = json.loads(capsys.readouterr().out)
    best = json.loads((in_folder / "padded/best.json").read_text())
    assert result["top1"] == pytest.approx(best["top1"], abs=1e-3)
    assert cli.main(["evaluate", "padded", "--crops", "10"]) == ExitCode.USAGE
    assert "(evaluate.fit: pad). Leave --crops out." in capsys.readouterr().err
