import io
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from googlenet_train.data import decode as module
from googlenet_train.data.crops import Box
from googlenet_train.data.decode import (
    INTERPOLATIONS,
    MAX_PIXELS,
    UndecodableImage,
    decode,
    image_size,
    resize,
)

regions = pytest.mark.skipif(
    module._jpeg_region is None, reason="nvImageCodec (the extra `fast`) is not installed"
)


def photo(height=75, width=101, seed=0):
    """Gradients, edges and noise, (height, width, 3) uint8: what JPEG meets in a photo."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + 5 * c)) + np.cos(y / (11 - 3 * c)) for c in range(3)]
    pixels = 127 + 50 * np.stack(waves, axis=2) + rng.normal(0, 12, (height, width, 3))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (220, 30, 60)
    return pixels.clip(0, 255).astype(np.uint8)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_pillow(data):
    """What Pillow alone makes of it, as (3, h, w)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def rotated_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to look at it"
    return exif


GREY16 = (np.arange(75 * 101, dtype=np.uint16) * 8).reshape(75, 101)
RGB = Image.fromarray(photo())
PALETTE = RGB.quantize(64)
RGBA = RGB.copy()
RGBA.putalpha(Image.fromarray(photo(seed=1)[..., 0]))

JPEGS = {
    "4:2:0": encode(RGB, "JPEG", subsampling="4:2:0"),
    "4:2:2": encode(RGB, "JPEG", subsampling="4:2:2"),
    "4:4:4": encode(RGB, "JPEG", subsampling="4:4:4", quality=97),
    "progressive": encode(RGB, "JPEG", progressive=True),
    "progressive 4:4:4": encode(RGB, "JPEG", progressive=True, subsampling="4:4:4"),
    "grey": encode(RGB.convert("L"), "JPEG"),
    "grey progressive": encode(RGB.convert("L"), "JPEG", progressive=True),
    "stored as RGB": encode(RGB, "JPEG", keep_rgb=True),
    "restart markers": encode(RGB, "JPEG", restart_marker_blocks=3),
    "optimised": encode(RGB, "JPEG", optimize=True, quality=30),
    "exif orientation": encode(RGB, "JPEG", exif=rotated_exif()),
    "1x1": encode(photo(1, 1), "JPEG"),
    "17x33": encode(photo(17, 33), "JPEG"),
    "161x8": encode(photo(161, 8), "JPEG"),
    "375x500": encode(photo(375, 500), "JPEG", quality=90),
    "500x333": encode(photo(500, 333), "JPEG", progressive=True),
}
OTHERS = {
    "cmyk jpeg": encode(RGB.convert("CMYK"), "JPEG"),
    "png": encode(RGB, "PNG"),  # under whatever name: only the bytes count
    "png rgba": encode(RGBA, "PNG"),
    "png grey alpha": encode(RGBA.convert("LA"), "PNG"),
    "png palette": encode(PALETTE, "PNG"),
    "png palette, transparent": encode(PALETTE, "PNG", transparency=bytes(range(64))),
    "png palette, one transparent": encode(PALETTE, "PNG", transparency=3),
    "png rgb, one transparent": encode(RGB, "PNG", transparency=(220, 30, 60)),
    "png 1 bit": encode(RGB.convert("1"), "PNG"),
    "png 16 bit": encode(GREY16, "PNG"),
    "gif": encode(PALETTE, "GIF"),
    "gif, animated": encode(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(90)]),
    "bmp": encode(RGB, "BMP"),
    "webp": encode(RGB, "WEBP", quality=80),
    "webp lossless alpha": encode(RGBA, "WEBP", lossless=True),
    "tiff": encode(RGB, "TIFF", compression="tiff_lzw"),
    "ppm": encode(RGB, "PPM"),
    "pgm": encode(RGB.convert("L"), "PPM"),
}
EVERY = JPEGS | OTHERS


def boxes(height, width, count=40, seed=0):
    """Random boxes, with the corners, single pixels and the whole among them."""
    rng = random.Random(seed)
    yield Box(0, 0, height, width)
    yield Box(0, 0, 1, 1)
    yield Box(height - 1, width - 1, 1, 1)
    for _ in range(count):
        h, w = rng.randint(1, height), rng.randint(1, width)
        yield Box(rng.randint(0, height - h), rng.randint(0, width - w), h, w)


def cut(pixels, box):
    return pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]


def ycck_jpeg():
    """A CMYK JPEG that claims, as Photoshop's do, to be stored as YCCK: Adobe transform 2."""
    data = OTHERS["cmyk jpeg"]
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\x02" + data[at + 12 :]


OTHERS["ycck jpeg"] = EVERY["ycck jpeg"] = ycck_jpeg()


@pytest.mark.parametrize("name", EVERY)
def test_pixels_are_pillows(name):
    expected = with_pillow(EVERY[name])
    pixels = decode(EVERY[name])
    assert pixels.dtype == torch.uint8
    assert image_size(EVERY[name]) == pixels.shape[1:]
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize("name", EVERY)
def test_a_box_has_the_pixels_of_the_whole(name):
    whole = decode(EVERY[name])
    for box in boxes(*whole.shape[1:]):
        assert torch.equal(decode(EVERY[name], box), cut(whole, box)), box


@regions
@pytest.mark.parametrize("name", JPEGS)
def test_the_region_decoder_has_the_pixels_of_the_whole(name):
    """Every box, the large ones too that decode() leaves to the whole decoder."""
    whole = decode(JPEGS[name])
    for box in boxes(*whole.shape[1:], count=60, seed=1):
        region = module._jpeg_region(JPEGS[name], box)
        if region is None:
            assert box.width < 16
        else:
            assert torch.equal(region, cut(whole, box)), box


@regions
def test_the_region_decoder_is_used_for_small_boxes(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_jpeg_region", lambda data, box: asked.append(box))
    data = JPEGS["375x500"]
    whole = decode(data)
    for box in (Box(10, 20, 100, 100), Box(0, 0, 375, 500)):
        assert torch.equal(decode(data, box), cut(whole, box))  # the whole decoder decides
    assert asked == [Box(10, 20, 100, 100)]


def test_many_threads_at_once():
    jobs = [(EVERY[name], box) for name in EVERY for box in boxes(*image_size(EVERY[name]), 8)]
    alone = [decode(*job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: decode(*job), jobs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["4:2:0", "grey", "restart markers", "375x500", "500x333"])
def test_a_truncated_jpeg_fails_for_every_box(name, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(module, "_jpeg_region", None)
    data = JPEGS[name]
    height, width = image_size(data)
    for length in (*range(1, len(data), len(data) // 30), len(data) - 2, len(data) - 1):
        for box in (None, Box(0, 0, 32, 32), Box(height - 32, width - 32, 32, 32)):
            with pytest.raises(UndecodableImage, match=r"truncated|damaged"):
                decode(data[:length], box)


@pytest.mark.parametrize("name", ["png", "webp", "bmp", "gif", "tiff", "cmyk jpeg"])
def test_other_truncated_files_fail(name):
    data = OTHERS[name]
    for length in range(1, len(data) - 2000, len(data) // 12):
        with pytest.raises(UndecodableImage):
            decode(data[:length])


def test_trailing_bytes_do_no_harm():
    data = JPEGS["375x500"]
    box = Box(3, 4, 50, 60)
    assert torch.equal(decode(data + b"\0" * 99, box), decode(data, box))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\0" * 5000, "not an image"),
        (b"\xff" * 5000, "not an image"),
        (b"\xff\xd8\xff", "header is damaged"),
        (b"\xff\xd8\xff" + b"\0" * 5000, "header is damaged"),
        (b"<html><body>404 Not Found</body></html>", "not an image"),
        (b"Not an image, but prose.\n" * 100, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (b"%PDF-1.7\n", "not an image"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    for read in (image_size, decode):
        with pytest.raises(UndecodableImage, match=reason):
            read(data)


def png_header(height, width):
    """A PNG of `height` x `width` pixels that holds none."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg_claiming(height, width):
    data = JPEGS["4:2:0"]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize("make", [png_header, jpeg_claiming])
@pytest.mark.parametrize(("height", "width"), [(12_000, 12_000), (40_000, 40_000)])
def test_bombs_are_refused_from_the_header(make, height, width):
    assert height * width > MAX_PIXELS
    for read in (image_size, decode):
        with pytest.raises(UndecodableImage, match=f"limit of {MAX_PIXELS}; save it smaller"):
            read(make(height, width))


def test_what_a_too_large_photo_is_told_to_become_is_allowed():
    with pytest.raises(UndecodableImage) as refused:
        image_size(jpeg_claiming(9000, 12_000))  # a phone's 108 megapixels
    told = re.search(r"no side over (\d+)$", str(refused.value))
    assert told
    side = int(told[1])
    assert image_size(jpeg_claiming(side, side)) == (side, side)


def test_the_limit_itself_is_allowed():
    assert image_size(png_header(1, MAX_PIXELS)) == (MAX_PIXELS, 1)[::-1]


def test_a_jpeg_without_a_height_is_refused():
    with pytest.raises(UndecodableImage, match="101x0 pixels"):
        image_size(jpeg_claiming(0, 101))


@pytest.mark.parametrize(
    "name", ["4:2:0", "progressive", "grey", "500x333", "cmyk jpeg", "png", "gif", "webp"]
)
def test_random_damage_raises_one_kind_of_error(name):
    rng = random.Random(name)
    outcomes = []
    for _ in range(80):
        data = bytearray(EVERY[name])
        for _ in range(rng.choice((1, 4, 40))):
            # Half the hits go to the headers, where they hurt most.
            end = rng.choice((min(700, len(data)), len(data)))
            data[rng.randrange(end)] = rng.randrange(256)
        data = bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            height, width = image_size(data)
            box = Box(height // 3, width // 3, max(1, height // 4), max(1, width // 4))
            assert decode(data, box).shape == (3, box.height, box.width)
            decode(data)
            outcomes.append("decoded")
        except UndecodableImage as error:
            outcomes.append(str(error))
    refused = [reason for reason in outcomes if reason != "decoded"]
    assert refused
    assert all(len(reason) < 120 and ".cpp" not in reason for reason in refused)


def test_import_and_odd_files_leave_stderr_alone(tmp_path):
    """In a fresh process, where warnings are printed; what C libraries print counts too."""
    names = ["375x500", "png palette, transparent", "cmyk jpeg"]
    for n, name in enumerate(names):
        (tmp_path / str(n)).write_bytes(EVERY[name])
    (tmp_path / "cut").write_bytes(JPEGS["375x500"][:9000])
    (tmp_path / "bomb").write_bytes(png_header(12_000, 12_000))
    (tmp_path / "junk").write_bytes(b"\xff\xd8\xff" + b"0" * 1000)
    program = """
import sys, pathlib
from googlenet_train.data.crops import Box
from googlenet_train.data.decode import UndecodableImage, decode
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        decode(path.read_bytes(), Box(0, 0, 32, 32))
        print(path.name, "decoded")
    except UndecodableImage as error:
        print(path.name, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "0 decoded",
        "1 decoded",
        "2 decoded",
        f"bomb 12000x12000 pixels is over the limit of {MAX_PIXELS}; save it smaller, "
        "no side over 9400",
        "cut truncated JPEG",
        "junk not an image, or its header is damaged",
    ]


LAYOUTS = {
    "channels last": lambda pixels: pixels,
    "cut out": lambda pixels: torch.nn.functional.pad(pixels, (3, 4, 5, 6))[:, 5:-6, 3:-4],
    "planes": lambda pixels: pixels.contiguous(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("target", [(64, 64), (30, 75), (224, 224)])
def test_resize_is_torchvisions(mode, target, layout):
    pixels = torch.from_numpy(photo(180, 240)).permute(2, 0, 1)
    box = Box(11, 23, 120, 150)
    theirs = F.resized_crop(
        pixels, *box, list(target), interpolation=InterpolationMode(mode), antialias=True
    )
    ours = resize(LAYOUTS[layout](cut(pixels, box)), *target, mode)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, *target)
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", [(64, 64), (30, 75), (224, 224)])
def test_area_is_pillows_box_filter(target, layout):
    pixels = photo(120, 150)
    theirs = Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BOX)
    ours = resize(LAYOUTS[layout](torch.from_numpy(pixels).permute(2, 0, 1)), *target, "area")
    assert ours.shape == (3, *target)
    assert np.abs(ours.permute(1, 2, 0).int().numpy() - np.array(theirs, dtype=int)).max() <= 1


def test_area_of_whole_blocks_is_their_mean():
    pixels = torch.from_numpy(photo(120, 160)).permute(2, 0, 1)
    mean = torch.nn.functional.avg_pool2d(pixels.float(), 4)
    assert (resize(pixels, 30, 40, "area").float() - mean).abs().max() <= 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resize_to_the_same_size_is_no_work(interpolation):
    pixels = torch.from_numpy(photo(20, 30)).permute(2, 0, 1)
    assert resize(pixels, 20, 30, interpolation) is pixels
    assert not torch.equal(resize(pixels, 30, 20, interpolation), pixels.mT)


def test_the_interpolations_differ():
    pixels = torch.from_numpy(photo(120, 150)).permute(2, 0, 1)
    results = [resize(pixels, 64, 64, name) for name in INTERPOLATIONS]
    for n, result in enumerate(results):
        assert not any(torch.equal(result, other) for other in results[:n])
