"""Bytes of an image file to uint8 pixels, and pixels to another size.

JPEG goes through libjpeg-turbo (torchvision's, or nvImageCodec's for a part of the image; the two
give the same pixels); everything else through Pillow. EXIF orientation is not applied, as
everywhere in the field. All functions may run in many threads at once.
"""

import importlib
import importlib.util
import io
import mmap
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode

from googlenet_train.data.crops import Box
from googlenet_train.data.silence import codecs_silent

INTERPOLATIONS = ("bilinear", "area", "nearest", "bicubic")

# Pillow's own limit: 256 MiB of RGB pixels. A small file can claim any size.
MAX_PIXELS = 89_478_485
_SMALLER = "save it smaller, no side over 9400"

# Only these: some of Pillow's other readers start programs (EPS: Ghostscript).
_PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

# Pillow remarks on odd metadata, file after file, and on sizes that are checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UndecodableImage(ValueError):
    """The bytes are no image, or a damaged or too large one; the message says which, shortly."""


def image_size(data: bytes | memoryview) -> tuple[int, int]:
    """(height, width) in pixels from the header alone; no pixel is decoded.

    Raises UndecodableImage.
    """
    if ppm := _ppm_header(data):
        return ppm.height, ppm.width
    data = bytes(data)
    jpeg = _jpeg_header(data)
    if jpeg:
        return jpeg.height, jpeg.width
    image = _open(data)
    return image.height, image.width


def decode(data: bytes | memoryview, box: Box | None = None) -> Tensor:
    """The RGB pixels of `box`, or of the whole image, as a uint8 tensor of shape (3, h, w).

    `box` lies inside the image. The memory layout is channels last. Other colour modes become RGB
    as by Pillow's `Image.convert("RGB")`: transparency is dropped, animations give their first
    frame, 16-bit grey values keep what Pillow keeps of them.
    With a box a decoder may stop below it: damage further down shows for certain only without one.

    Of uncompressed pixels (PPM) only those of the box are looked at.

    Raises UndecodableImage.
    """
    if ppm := _ppm_header(data):
        return _copy_ppm(data, ppm, box)
    data = bytes(data)
    jpeg = _jpeg_header(data)
    if jpeg is None or not jpeg.plain:
        return _decode_with_pillow(data, box)
    if box and _jpeg_region is not None:
        # Its call costs 60 us, torchvision's 20. Measured at short sides of 288 and 375: it begins
        # to pay from 30,000 pixels left out, and of ImageNet's crops saves a fifth of the time.
        left_out = jpeg.height * jpeg.width - box.height * box.width
        # The end marker tells a truncated file, which has to fail for every box alike.
        if left_out >= 30_000 and data.endswith(b"\xff\xd9"):
            with codecs_silent:
                pixels = _jpeg_region(data, box)
            if pixels is not None:
                return pixels
    # The copy is for a writable buffer: PyTorch warns of others.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        # The operator itself: torchvision 0.29 put a deprecation warning around it.
        with codecs_silent:
            pixels = torch.ops.image.decode_jpeg(encoded, ImageReadMode.RGB.value, False)
    except RuntimeError as error:  # "..., <source file>:<line>, <reason>"
        reason = str(error).splitlines()[0].rpartition(", ")[2]
        if "truncated" in reason:
            raise UndecodableImage("truncated JPEG") from None
        raise UndecodableImage(f"damaged JPEG ({reason})") from None
    return _cut(pixels, box)


def resize(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """uint8 (3, h, w) pixels as (3, height, width), by one of INTERPOLATIONS.

    "bilinear" and "bicubic" are antialiased, "nearest" takes the pixel at floor(i * h / height)
    (all three as torchvision's), "area" is the mean of the pixels covered (Pillow's BOX).
    """
    if pixels.shape[1:] == (height, width):
        return pixels
    if interpolation == "area":
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        return from_pillow(image.resize((width, height), Image.Resampling.BOX))
    # A batch of one whose strides say channels last, which `pixels[None]` would not: else PyTorch
    # spreads the result over three planes, and weaving it back into a batch costs as much again
    # (445 us a photo down to 190, the copy into the batch included).
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    resized: Tensor = torch.nn.functional.interpolate(
        batch, (height, width), mode=interpolation, antialias=interpolation != "nearest"
    )
    return resized[0]


class _PpmHeader(NamedTuple):
    height: int
    width: int
    start: int  # of the pixels


def _ppm_header(data: bytes | memoryview) -> _PpmHeader | None:
    """Of a binary PPM as `data pack --codec raw` writes it; None for all else, odd PPMs too."""
    if data[:2] != b"P6" or not (found := re.match(rb"P6\n(\d+) (\d+)\n255\n", data[:32])):
        return None
    height, width = int(found[2]), int(found[1])
    _check_size(height, width)
    return _PpmHeader(height, width, found.end())


def _copy_ppm(data: bytes | memoryview, ppm: _PpmHeader, box: Box | None) -> Tensor:
    count = ppm.height * ppm.width * 3
    if len(data) < ppm.start + count:
        raise UndecodableImage("truncated PPM")
    stored = np.frombuffer(data, dtype=np.uint8, count=count, offset=ppm.start)
    pixels = stored.reshape(ppm.height, ppm.width, 3)
    if box:
        pixels = pixels[box.top : box.top + box.height]
        _fetch(data, pixels)
        pixels = pixels[:, box.left : box.left + box.width]
    # A copy: PyTorch warns of buffers that cannot be written, and a mapped file must not be.
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _fetch(data: bytes | memoryview, rows: npt.NDArray[np.uint8]) -> None:
    """Ask for `rows`, which lie in `data`, in one go where it is a mapped file.

    Without it every page of 4 KiB is a read of its own, waited for (from a cold disk 240 crops/s
    instead of 700).
    """
    mapped = data.obj if isinstance(data, memoryview) else None
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        begin = _address(rows) - _address(np.frombuffer(mapped, dtype=np.uint8))
        page = begin - begin % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, page, begin + rows.nbytes - page)


def _address(array: npt.NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


class _JpegHeader(NamedTuple):
    height: int
    width: int
    plain: bool  # 8-bit grey, YCbCr or RGB, Huffman-coded: what torchvision's decoder takes


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """The frame header (ITU-T T.81, B.2.2), or None where Pillow has to say what this is.

    Asking Pillow for every file would cost 35 us in place of 1.3, a tenth of a 96-px photo's way.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            _check_size(height, width)
            precision, components = data[at + 4], data[at + 9]
            plain = marker <= 0xC2 and precision == 8 and components in (1, 3)
            return _JpegHeader(height, width, plain)
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _check_size(height: int, width: int) -> None:
    if height * width == 0:
        raise UndecodableImage(f"an image of {width}x{height} pixels")
    if height * width > MAX_PIXELS:
        raise UndecodableImage(
            f"{width}x{height} pixels is over the limit of {MAX_PIXELS}; {_SMALLER}"
        )


def _open(data: bytes) -> Image.Image:
    if not data:
        raise UndecodableImage("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UndecodableImage(f"more pixels than the limit of {MAX_PIXELS}; {_SMALLER}") from None
    except Exception:  # damaged headers raise nearly anything in Pillow's readers
        raise UndecodableImage("not an image, or its header is damaged") from None
    _check_size(image.height, image.width)
    return image


def _decode_with_pillow(data: bytes, box: Box | None) -> Tensor:
    image = _open(data)
    # Converting to RGB drops it anyway, but not without a warning.
    image.info.pop("transparency", None)
    try:
        with codecs_silent:
            return _cut(from_pillow(image.convert("RGB")), box)
    except Exception as error:  # damaged pixels raise nearly anything in Pillow's readers
        damage = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise UndecodableImage(f"{damage} {image.format}") from None


def from_pillow(image: Image.Image) -> Tensor:
    """The pixels of an RGB image as uint8 (3, h, w)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _cut(pixels: Tensor, box: Box | None) -> Tensor:
    if box is None:
        return pixels
    return pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]


def _load_region_decoder() -> Callable[[bytes, Box], Tensor | None] | None:
    """nvImageCodec's decoder of a part of a JPEG; None where the extra `fast` is not installed.

    At its import it loads all its plugins and complains, past Python, about each GPU library that
    is missing. Shown a folder that holds nothing but its JPEG plugin for the CPU, it is silent.
    """
    try:
        spec = importlib.util.find_spec("nvidia.nvimgcodec")
        if spec is None or spec.origin is None:
            return None
        plugins = list(Path(spec.origin).parent.glob("extensions/libjpeg_turbo_ext.so*"))
        if not plugins:
            return None
        names = ("NVIMGCODEC_EXTENSIONS_PATH", "PYNVIMGCODEC_VERBOSITY")
        before = {name: os.environ[name] for name in names if name in os.environ}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / plugins[0].name).symlink_to(plugins[0])
            os.environ.update(zip(names, (folder, "0"), strict=True))
            try:
                codec = importlib.import_module("nvidia.nvimgcodec")
            finally:
                for name in names:
                    del os.environ[name]
                os.environ.update(before)
        cpu_only = codec.NVIMGCODEC_DEVICE_CPU_ONLY
    except (ImportError, OSError, AttributeError):  # the last: a version older than 0.9
        return None

    local = threading.local()  # one decoder a thread
    as_stored = codec.DecodeParams(apply_exif_orientation=False)

    def decode_region(data: bytes, box: Box) -> Tensor | None:
        """The pixels of `box`, (3, h, w) uint8; None where the codec cannot tell."""
        if not hasattr(local, "decoder"):
            local.decoder = codec.Decoder(
                device_id=cpu_only,
                max_num_cpu_threads=1,
                backends=[codec.Backend(codec.CPU_ONLY)],
                options=":fancy_upsampling=1",  # as torchvision's
            )
        top, left, height, width = box
        # In 4:2:0 files a column one pixel wide at the left edge gets another colour than in the
        # whole image: the only box that does, and here with a wide margin around it.
        if width < 16:
            return None
        region = codec.Region(top, left, top + height, left + width)
        stream = codec.CodeStream(data).get_sub_code_stream(region=region)
        image = local.decoder.decode(stream, params=as_stored)
        if image is None or tuple(image.shape) != (height, width, 3):
            return None
        return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)

    return decode_region


_jpeg_region = _load_region_decoder()
