"""A picture of training images: where their augmented views come from, and what they look like."""

from functools import partial
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from googlenet_train.config import Config
from googlenet_train.data import order
from googlenet_train.data.crops import Box
from googlenet_train.data.decode import decode
from googlenet_train.data.index import Index
from googlenet_train.data.loader import read, training_batch
from googlenet_train.data.orientation import UPRIGHT, orientation, turned
from googlenet_train.data.views import Augmentation, training_image
from googlenet_train.randomness import Draws

# Okabe and Ito's colours, which colour-blind people tell apart too; brown and violet in place of
# their black and pale yellow.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F3C8D")
_INK, _GREY, _PAPER, _EMPTY = "#222222", "#777777", "#FFFFFF", "#EEEEEE"
_TILE = 192  # the side of a view on the sheet, in pixels
_PHOTO = 288  # the width kept for the photo itself; its height is a tile's at most
_FRAME, _GAP, _MARGIN = 4, 12, 24
_HEAD = 92  # title, settings, and the epochs above their columns
_LINE = 17
_TEXT = 2 * _LINE + 6  # below each photo and view


class View(NamedTuple):
    """What one epoch shows of an image."""

    box: Box
    pixels: Tensor | None  # (3, size, size) uint8; None where the epoch leaves the image out
    caption: str


def view_sheet(index: Index, config: Config, *, title: str, images: int, views: int) -> Image.Image:
    """One row for each of `images` training images, spread over `index`: the image with the boxes
    of its first `views` epochs, then the views themselves, as training sees them.

    Raises UserError (DATA) for an image that cannot be decoded.
    """
    size = (
        2 * _MARGIN + _PHOTO + views * (_GAP + _TILE),
        _MARGIN + _HEAD + images * (_TILE + _TEXT + _GAP),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _MARGIN + _PHOTO + _GAP
    _write(draw, (_MARGIN, _MARGIN), f"What the network sees · {title}", 22, _INK, size[0])
    _write(draw, (_MARGIN, _MARGIN + 32), _settings(config), 13, _GREY, size[0] - 2 * _MARGIN)
    top = _MARGIN + _HEAD
    _write(draw, (_MARGIN, top - 22), "photo", 14, _INK, _PHOTO)
    for epoch in range(views):
        x = left + epoch * (_TILE + _GAP)
        _write(draw, (x, top - 22), f"epoch {epoch}", 14, _colour(epoch), _TILE)
    for row in range(images):
        i = (2 * row + 1) * len(index) // (2 * images)
        y = top + row * (_TILE + _TEXT + _GAP)
        shown = [_view(index, config, i, epoch) for epoch in range(views)]
        photo = read(index, i, partial(_photo, exif_orientation=config.data.exif_orientation))
        _draw_photo(sheet, (_MARGIN, y), photo, [view.box for view in shown])
        height, width = photo.shape[1:]
        _write(draw, (_MARGIN, y + _TILE + 4), index.classes[index.labels[i]], 14, _INK, _PHOTO)
        where = f"{width} x {height} px, {PurePath(index.name(i)).name}"
        _write(draw, (_MARGIN, y + _TILE + 4 + _LINE), where, 12, _GREY, _PHOTO)
        for epoch, view in enumerate(shown):
            x = left + epoch * (_TILE + _GAP)
            _draw_view(sheet, (x, y), view, _colour(epoch))
            share = f"{100 * view.box.height * view.box.width / (height * width):.0f} % of the area"
            _write(draw, (x, y + _TILE + 4), share, 12, _GREY, _TILE)
            _write(draw, (x, y + _TILE + 4 + _LINE), view.caption, 12, _GREY, _TILE)
    return sheet


def _photo(data: bytes | memoryview, exif_orientation: bool) -> Tensor:
    return turned(decode(data), orientation(data) if exif_orientation else UPRIGHT)


def _view(index: Index, config: Config, i: int, epoch: int) -> View:
    """Image i in an epoch, as `training_batch` makes it."""
    augmentation = Augmentation(**dict(config.augment), fit=config.evaluate.fit)
    seed, size = config.run.seed, config.largest_side
    pixels, box = read(
        index,
        i,
        lambda data: training_image(
            data, Draws(seed, epoch, i), size, augmentation, config.data.exif_orientation
        ),
    )
    if not augmentation.mixes:
        return View(box, pixels, "")
    # Only its place in the epoch tells what an image is mixed with: ask for that pair alone.
    batch_size = config.optimizer.batch_size
    steps = order.steps_per_epoch(len(index), batch_size)
    position = int(np.flatnonzero(order.permutation(seed, epoch, len(index)) == i)[0])
    step, place = divmod(position, batch_size)
    if step >= steps:
        return View(box, None, "left over in this epoch")
    pair = training_batch(
        index,
        epoch * steps + step,
        seed=seed,
        batch_size=batch_size,
        image_size=size,
        augmentation=augmentation,
        micro_batch=place // 2,
        accumulate=batch_size // 2,
        exif_orientation=config.data.exif_orientation,
    )
    assert pair.second is not None
    row = place % 2
    first, other = (index.classes[labels[row]] for labels in (pair.labels, pair.second[0]))
    share = 100 * float(pair.second[1][row])
    return View(box, pair.images[row], f"{100 - share:.0f} % {first}, {share:.0f} % {other}")


def _settings(config: Config) -> str:
    """The settings that shape the views, in one line."""
    augment = config.augment
    parts = [f"{config.largest_side} px", f"crop {augment.crop}"]
    if augment.crop == "random_resized":
        low, high = augment.scale
        parts.append(f"{100 * low:g} to {100 * high:g} % of the area")
    parts += [f"interpolation {augment.interpolation}", f"flip {augment.flip:g}"]
    if config.evaluate.fit != "center_crop":
        parts.append(f"fit {config.evaluate.fit}")
    if augment.photometric:
        parts.append("photometric")
    if augment.policy == "randaugment":
        parts.append(f"randaugment {augment.policy_magnitude}")
    elif augment.policy != "none":
        parts.append(augment.policy)
    for name in ("erase", "mixup", "cutmix"):
        if value := getattr(augment, name):
            parts.append(f"{name} {value:g}")
    return "  ·  ".join([*parts, f"seed {config.run.seed}"])


def _colour(epoch: int) -> str:
    return _COLOURS[epoch % len(_COLOURS)]


def _draw_photo(
    sheet: Image.Image, corner: tuple[int, int], photo: Tensor, boxes: list[Box]
) -> None:
    """The whole photo with the boxes drawn over it."""
    height, width = photo.shape[1:]
    scale = min(_PHOTO / width, _TILE / height)
    picture = _picture(photo).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC
    )
    left, top = corner
    sheet.paste(picture, corner)
    draw = ImageDraw.Draw(sheet)
    for epoch, box in enumerate(boxes):
        x, y = left + box.left * scale, top + box.top * scale
        outline = (x, y, x + box.width * scale - 1, y + box.height * scale - 1)
        draw.rectangle(outline, outline=_PAPER, width=5)  # tells the colour from the photo's
        draw.rectangle(
            (outline[0] + 1, outline[1] + 1, outline[2] - 1, outline[3] - 1),
            outline=_colour(epoch),
            width=3,
        )


def _draw_view(sheet: Image.Image, corner: tuple[int, int], view: View, colour: str) -> None:
    frame = Image.new("RGB", (_TILE, _TILE), colour)
    side = _TILE - 2 * _FRAME
    inside = Image.new("RGB", (side, side), _EMPTY)
    if view.pixels is not None:
        inside = _picture(view.pixels).resize((side, side), Image.Resampling.BICUBIC)
    frame.paste(inside, (_FRAME, _FRAME))
    sheet.paste(frame, corner)


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    room: int,
) -> None:
    font = ImageFont.load_default(size=size)
    shown = text
    while shown and font.getlength(shown) > room:
        text = text[:-1]
        shown = text + "…"
    draw.text(at, shown, fill=colour, font=font)
